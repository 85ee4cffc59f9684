"""The frozen teacher: any encoder of pictures on the Hub or on disk, and of captions where it has two towers."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kdmcse_hf.fingerprint import model_digest, tokenizer_digest
from kdmcse_hf.modeling_kdmcse import load_pretrained, read_settings
from kdmcse_hf.tokenizer import load_tokenizer

_PADDED_TO_CONTEXT = ("siglip", "siglip2")
"""Trained on captions padded to the whole context, and off without it."""


class Teacher:
    """A frozen model that embeds pictures, and captions in the same space if it is a dual encoder.

    The model becomes the teacher's own: frozen, out of training mode, its weights in another memory layout.

    Args:
        model: has `get_image_features` and `get_text_features` (CLIP, SigLIP, Chinese-CLIP, AltCLIP,
            `VisionTextDualEncoderModel`), or returns a `pooler_output` for pictures alone (ResNet, ViT, DINOv2, timm
            wrappers).
        image_processor: turns RGB pictures into the model's inputs.
        tokenizer: of the text tower; `None` for pictures alone.
        name: for the manifest; by default where the model was loaded from.
        pooled: whether `pooler_output` can be used, or its head was never trained and the first token is.
    """

    def __init__(
        self,
        model: nn.Module,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str | None = None,
        pooled: bool = True,
    ) -> None:
        # Convolutions run up to twice as fast on it; towers of attention do not mind.
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.config: PretrainedConfig | None = getattr(model, "config", None)
        self._name = name or getattr(model, "name_or_path", None) or type(model).__name__
        self._pooled = pooled

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> "Teacher":
        """Loads a model with its image processor and, for a dual encoder, its tokenizer, in float32.

        Raises:
            ValueError: it cannot embed pictures, some of its weights are missing, or it needs code of its own.
        """
        read_settings(name_or_path, revision=revision)
        model, report = load_pretrained(
            AutoModel, name_or_path, revision=revision, dtype=torch.float32, output_loading_info=True
        )
        missing = sorted(report["missing_keys"])
        pooler = [key for key in missing if key.split(".")[0] == "pooler"]
        if len(pooler) < len(missing):
            raise ValueError(
                f"{name_or_path} lacks weights of its {type(model).__name__}, such as {missing[0]!r} ({len(missing)} "
                "in all): its features would be random. Load a complete checkpoint."
            )
        dual = _is_dual_encoder(model)
        if not dual and getattr(model, "main_input_name", None) != "pixel_values":
            raise ValueError(
                f"{name_or_path} is a {type(model).__name__}, which embeds no pictures: expected a dual encoder such "
                "as CLIP or SigLIP, or an image encoder such as ResNet or DINOv2."
            )
        tokenizer = load_tokenizer(name_or_path, revision=revision) if dual else None
        image_processor = load_pretrained(AutoImageProcessor, name_or_path, revision=revision)
        return cls(model, image_processor, tokenizer, pooled=not pooler)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def embeds_captions(self) -> bool:
        return self.tokenizer is not None

    @property
    def max_caption_tokens(self) -> int:
        """The text tower's context, special tokens included."""
        limits = [self.tokenizer.model_max_length] if self.tokenizer else []
        text_config: Any = getattr(self.config, "text_config", None)
        positions = getattr(text_config, "max_position_embeddings", None)
        if positions is not None:
            # RoBERTa's kin count positions from behind the padding id, and so have that many fewer.
            offset = "roberta" in text_config.model_type or text_config.model_type == "altclip_text_model"
            limits.append(positions - (text_config.pad_token_id + 1 if offset else 0))
        return int(min(limits))

    def tokenize(self, captions: Sequence[str]) -> list[list[int]]:
        """Token ids of captions, not cut."""
        if self.tokenizer is None:
            raise ValueError(f"The teacher {self._name} embeds pictures only.")
        ids: list[list[int]] = self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def embed_pictures(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(B, D) features of [`preprocess`]'s output, not normalised."""
        inputs = {name: self._placed(tensor) for name, tensor in inputs.items()}
        model: Any = self.model
        if hasattr(model, "get_image_features"):
            return _features(model.get_image_features(**inputs))
        output = model(**inputs)
        if self._pooled and getattr(output, "pooler_output", None) is not None:
            return _features(output)
        first: Tensor = output.last_hidden_state[:, 0]
        return first

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """(B, D) features of captions, cut at the context, not normalised."""
        if self.tokenizer is None:
            raise ValueError(f"The teacher {self._name} embeds pictures only.")
        whole = getattr(self.config, "model_type", None) in _PADDED_TO_CONTEXT
        inputs = self.tokenizer(
            list(captions),
            padding="max_length" if whole else True,
            truncation=True,
            max_length=self.max_caption_tokens,
            return_tensors="pt",
        )
        model: Any = self.model
        return _features(model.get_text_features(**inputs.to(self.device)))

    def _placed(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def describe(self) -> dict[str, Any]:
        """What has to be the same for two extractions to give the same features, for the manifest."""
        return {
            # Never the path of a folder: caches are shared.
            "name": Path(self._name).name if Path(self._name).is_dir() else self._name,
            "revision": getattr(self.config, "_commit_hash", None),
            "type": getattr(self.config, "model_type", type(self.model).__name__),
            "weights": model_digest(self.model),
            "features": "pooler" if self._pooled else "first token",
            "processor": json.loads(self.image_processor.to_json_string()),
            "max_caption_tokens": self.max_caption_tokens if self.tokenizer else None,
            "tokenizer": tokenizer_digest(self.tokenizer) if self.tokenizer else None,
        }


def preprocess(image_processor: BaseImageProcessor, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
    """RGB pictures as a model's inputs, each with one row a picture. Needs no model: workers call it."""
    return dict(image_processor(images=list(pictures), return_tensors="pt"))


def _is_dual_encoder(model: PreTrainedModel) -> bool:
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")


def _features(output: Any) -> Tensor:
    # transformers 5 returns the pooled output of the tower with the features in it; before, the tensor itself
    features = output if isinstance(output, Tensor) else output.pooler_output
    return features.flatten(1)
