"""SimCSE, MCSE, KDMCSE and what this package makes of it: defaults for the switches of the objective."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from kdmcse_hf.objective import Objective

_NO_FILTER: dict[str, Any] = {"image_threshold": "none", "caption_threshold": "none", "mask_same_image": False}

PRESETS: Mapping[str, Objective] = MappingProxyType(
    {
        # EMNLP 2021. No margin in the text term, unlike the "simcse" of the published KDMCSE code.
        "simcse": Objective(image_term=False, caption_term=False, cross_modal_margin=0.0, **_NO_FILTER),
        # NAACL 2022. Images only, so any frozen image features serve.
        "mcse": Objective(caption_term=False, captions_per_image="one", cross_modal_margin=0.0, **_NO_FILTER),
        # NAACL 2024, as far as the paper is known here (README, Presets).
        "kdmcse": Objective(),
        # This package's own: the teacher's order of the captions is distilled into the sentence embeddings as well, and
        # the cross-modal terms come in slowly.
        "kdmcse_plus": Objective(ranking_term=True, weight_schedule="rising"),
        # The published KDMCSE code, term by term: a constant margin in the text term, margins from the similarities
        # within a modality, the filter off as its scripts leave it (its sources are those it would have if on).
        "kdmcse_reference": Objective(
            text_margin=0.15,
            cross_modal_margin=0.15,
            image_margin_source="image_image",
            caption_margin_source="text_text",
            image_filter_source="text_image",
            caption_filter_source="image_text",
            **_NO_FILTER,
        ),
    }
)
