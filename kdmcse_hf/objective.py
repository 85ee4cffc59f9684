"""What is minimised: one objective with independent switches."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdmcse_hf.losses import cosine_matrix, info_nce, list_mle, noisy_negatives, positive_mask, subtract_angle
from kdmcse_hf.threshold import Threshold

SimilarityMap = Literal["text_image", "image_text", "text_text", "image_image"]
MarginSource = Literal["constant", "text_image", "image_text", "text_text", "image_image"]
WeightSchedule = Literal["constant", "rising", "falling"]


def _switch(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class Objective:
    r"""The switches of the objective. A field's meaning is its `metadata["help"]`, which `--help` prints.

    A text batch contributes the text term, a paired batch `text + cross_modal_weight * (image + caption + ranking)`.
    The ranking term is ListMLE over the captions of the batch, the others are InfoNCE, the image and caption terms the
    mean over the two dropout views of the caption. The weight of a step is that of [`Objective.at`]. A similarity map
    `a_b` is the teacher's cosine of the anchor's a with the candidate's b, where text is the caption.

    Raises:
        ValueError: a field out of its range.
    """

    temperature: float = _switch(0.05, "temperature of the text term")
    text_margin: float = _switch(0.0, "radians by which every negative of the text term is brought closer (constant)")
    image_term: bool = _switch(True, "contrast captions with the teacher's image features")
    caption_term: bool = _switch(True, "contrast captions with the teacher's caption features")
    cross_modal_weight: float = _switch(0.01, "weight of the image, caption and ranking terms")
    weight_schedule: WeightSchedule = _switch(
        "constant", "course of that weight: the same all along, from 0 to twice it, or from twice it to 0"
    )
    cross_modal_temperature: float = _switch(0.05, "temperature of the image and caption terms")
    cross_modal_margin: float = _switch(0.125, "largest angular margin of a cross-modal negative, radians; 0: none")
    image_margin_source: MarginSource = _switch(
        "text_image", "teacher similarity s that scales the image term's margin by 1 - s; or constant"
    )
    caption_margin_source: MarginSource = _switch("text_text", "the same for the caption term")
    continuous_margin: bool = _switch(False, "close the jump that the published margin makes at theta = margin")
    image_filter_source: SimilarityMap = _switch("text_image", "teacher similarity that filters the image term")
    caption_filter_source: SimilarityMap = _switch("text_text", "teacher similarity that filters the caption term")
    image_threshold: str = _switch(
        "relative:0.85",
        "negatives above it are noisy: cosine:X, relative:X (X times the positive pair's own cosine), rate:X (the "
        "cosine that filters a share X of negatives, calibrated on the training pairs), or none",
    )
    caption_threshold: str = _switch("relative:0.85", "the same for the caption term")
    mask_same_image: bool = _switch(True, "never use another caption of the same image as a negative")
    captions_per_image: Literal["one", "all"] = _switch("all", "captions of an image that are training pairs")
    ranking_term: bool = _switch(False, "order the captions of a batch by likeness as the teacher's text side does")

    def __post_init__(self) -> None:
        for name in ("temperature", "cross_modal_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: expected a positive number.")
        for name in ("text_margin", "cross_modal_margin"):
            if not 0 <= getattr(self, name) <= 1.5707963:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: expected radians between 0 and pi / 2.")
        if not self.cross_modal_weight >= 0:
            raise ValueError(f"`cross_modal_weight` is {self.cross_modal_weight!r}: expected a number >= 0.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}: expected one of {', '.join(choices)}.")
        for term in ("image", "caption"):
            self.threshold(term)

    def threshold(self, term: str) -> Threshold | None:
        """The parsed threshold of the `"image"` or `"caption"` term; `None` where the filter is off."""
        return Threshold.parse(getattr(self, f"{term}_threshold"), name=f"{term}_threshold")

    def at(self, step: int, max_steps: int) -> "Objective":
        """The objective of a step, counted from 0: with the weight that the schedule has reached.

        Where there is no run (`max_steps` is 0) it is the mean weight, which is the same for all schedules.
        """
        if self.weight_schedule == "constant" or not max_steps:
            return self
        done = step / max_steps
        factor = 2 * done if self.weight_schedule == "rising" else 2 * (1 - done)
        return dataclasses.replace(self, cross_modal_weight=self.cross_modal_weight * factor)

    @property
    def terms(self) -> tuple[str, ...]:
        """The cross-modal terms that are on."""
        return tuple(term for term in ("image", "caption") if getattr(self, f"{term}_term"))

    @property
    def needs(self) -> frozenset[str]:
        """Which teacher features (`"image"`, `"text"`) the terms, filters and margins read."""
        needed = {"text"} if self.ranking_term else set()
        for term in self.terms:
            needed.add("image" if term == "image" else "text")
            sources = [getattr(self, f"{term}_filter_source")] if self.threshold(term) else []
            sources += [getattr(self, f"{term}_margin_source")] if self.cross_modal_margin else []
            needed.update(side for source in sources if source != "constant" for side in source.split("_"))
        return frozenset(needed)


_CHOICES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("image_filter_source", "caption_filter_source"), get_args(SimilarityMap)),
    **dict.fromkeys(("image_margin_source", "caption_margin_source"), get_args(MarginSource)),
    "captions_per_image": ("one", "all"),
    "weight_schedule": get_args(WeightSchedule),
}


@dataclass
class PairEmbeddings:
    """B rows as the objective sees them. Only `text` is there for a text batch."""

    text: Tensor
    """(B, V, H): views after the text head."""
    grounded: Tensor | None = None
    """(B, V, P): views after the grounding head."""
    image: Tensor | None = None
    """(B, P): projected image features of the teacher."""
    caption: Tensor | None = None
    """(B, P): projected caption features of the teacher."""
    teacher_image: Tensor | None = None
    """(B, D): the teacher's own image features."""
    teacher_text: Tensor | None = None
    """(B, D): the teacher's own caption features."""
    image_ids: Tensor | None = None
    """(B,) integers: which image a caption belongs to."""

    @classmethod
    def cat(cls, parts: Sequence["PairEmbeddings"]) -> "PairEmbeddings":
        """The rows of all parts, in order."""
        columns: dict[str, Any] = {f.name: [getattr(part, f.name) for part in parts] for f in dataclasses.fields(cls)}
        joined: dict[str, Any] = {k: None if column[0] is None else torch.cat(column) for k, column in columns.items()}
        return cls(**joined)

    def map(self, function: Callable[[Tensor], Tensor]) -> "PairEmbeddings":
        """The same with `function` applied to every tensor that is there."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        mapped: dict[str, Any] = {k: None if v is None else function(v) for k, v in values.items()}
        return PairEmbeddings(**mapped)


_PAIRS_AT_ONCE = 2**21  # of anchor and candidate: each matrix of the loss takes 8 MB


@dataclass
class ObjectiveOutput:
    """`loss` to minimise, `terms` that make it up and `rates` that describe the batch: all scalar tensors."""

    loss: Tensor
    terms: dict[str, Tensor]
    rates: dict[str, Tensor]


def compute_objective(
    objective: Objective, anchors: PairEmbeddings, candidates: PairEmbeddings | None = None, first_positive: int = 0
) -> ObjectiveOutput:
    """The objective of one batch (KDMCSE, section 3; MCSE, equation 4).

    Args:
        objective: its switches; a `rate:` threshold must have been calibrated.
        anchors: this process's rows.
        candidates: the rows of all processes, in the same order on each of them; defaults to `anchors`. Of their views
            only the last is used, and of the rest all but `grounded`.
        first_positive: where in `candidates` this process's rows begin.

    Returns:
        `terms`: `text_loss`, `image_loss`, `caption_loss`, `ranking_loss`. `rates`, of the image and the caption term:
        `*_filter_rate` (filtered share of the negatives that `mask_same_image` leaves), `*_margin_rate` (share of the
        remaining negatives that got a margin). In a batch of thousands of rows, rates are means over blocks of anchors.
    """
    candidates = anchors if candidates is None else candidates
    num_anchors = anchors.text.shape[0]
    block = max(1, _PAIRS_AT_ONCE // len(candidates.text))
    if num_anchors <= block:
        return _objective(objective, anchors, candidates, first_positive)
    blocks, shares = [], []
    for first in range(0, num_anchors, block):
        rows = slice(first, first + block)
        # Backward makes each block's matrices again, so that no two blocks' are held at once.
        blocks.append(
            checkpoint(
                _objective,
                objective,
                anchors.map(itemgetter(rows)),
                candidates,
                first_positive + first,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        )
        shares.append(len(anchors.text[rows]) / num_anchors)

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum()

    return ObjectiveOutput(
        loss=mean([part.loss for part in blocks]),
        terms={name: mean([part.terms[name] for part in blocks]) for name in blocks[0].terms},
        rates={name: mean([part.rates[name] for part in blocks]) for name in blocks[0].rates},
    )


def _objective(
    objective: Objective, anchors: PairEmbeddings, candidates: PairEmbeddings, first_positive: int
) -> ObjectiveOutput:
    num_anchors = anchors.text.shape[0]
    positives = torch.arange(first_positive, first_positive + num_anchors, device=anchors.text.device)
    same_image = None
    if objective.mask_same_image and anchors.image_ids is not None and candidates.image_ids is not None:
        same_image = anchors.image_ids.unsqueeze(1) == candidates.image_ids
        same_image = same_image & ~positive_mask(positives, len(candidates.image_ids))

    cosine = cosine_matrix(anchors.text[:, 0], candidates.text[:, -1])
    moved = cosine
    if objective.text_margin:
        negatives, _ = subtract_angle(
            cosine, objective.text_margin, objective.text_margin, continuous=objective.continuous_margin
        )
        moved = torch.where(positive_mask(positives, cosine.shape[1]), cosine, negatives)
    loss = info_nce(moved, positives, objective.temperature, same_image)
    output = ObjectiveOutput(loss=loss, terms={"text_loss": loss}, rates={})

    for term in objective.terms if anchors.grounded is not None else ():
        term_loss = _cross_modal_term(objective, term, anchors, candidates, positives, same_image, output.rates)
        output.terms[f"{term}_loss"] = term_loss
        output.loss = output.loss + objective.cross_modal_weight * term_loss

    if objective.ranking_term and (anchors.grounded is not None or anchors.teacher_text is not None):
        similarity = teacher_similarity("text_text", anchors, candidates)
        ranking = list_mle(cosine, similarity, positives, objective.temperature)
        output.terms["ranking_loss"] = ranking
        output.loss = output.loss + objective.cross_modal_weight * ranking
    return output


def _cross_modal_term(
    objective: Objective,
    term: str,
    anchors: PairEmbeddings,
    candidates: PairEmbeddings,
    positives: Tensor,
    same_image: Tensor | None,
    rates: dict[str, Tensor],
) -> Tensor:
    targets = getattr(candidates, term)
    if anchors.grounded is None or targets is None:
        raise ValueError(f"The {term} term is on, but the batch has no {term} features of the teacher.")
    cosine = cosine_matrix(anchors.grounded.transpose(0, 1), targets)  # (V, A, C)
    own = positive_mask(positives, targets.shape[0])
    masked = same_image

    threshold = objective.threshold(term)
    if threshold is not None:
        similarity = teacher_similarity(getattr(objective, f"{term}_filter_source"), anchors, candidates)
        noisy = noisy_negatives(similarity, threshold.cosine(similarity, positives), positives)
        negatives = ~own if same_image is None else ~(own | same_image)
        rates[f"{term}_filter_rate"] = (noisy & negatives).sum() / negatives.sum().clamp(min=1)
        masked = noisy if masked is None else masked | noisy

    if objective.cross_modal_margin:
        source = getattr(objective, f"{term}_margin_source")
        margin: Tensor | float = objective.cross_modal_margin
        if source != "constant":
            margin = (1 - teacher_similarity(source, anchors, candidates)).clamp(min=0) * objective.cross_modal_margin
            margin = margin.to(cosine.dtype)
        shifted, applied = subtract_angle(
            cosine, margin, objective.cross_modal_margin, continuous=objective.continuous_margin
        )
        cosine = torch.where(own, cosine, shifted)
        kept = ~own if masked is None else ~(own | masked)
        rates[f"{term}_margin_rate"] = (applied & kept).sum() / (kept.sum() * len(cosine)).clamp(min=1)
    return info_nce(cosine, positives, objective.cross_modal_temperature, masked)


def teacher_similarity(source: str, anchors: PairEmbeddings, candidates: PairEmbeddings) -> Tensor:
    """The teacher's cosine of A anchors with C candidates, (A, C), for a similarity map such as `"text_image"`.

    Raises:
        ValueError: the batch lacks the features, or text and image features do not share one space.
    """
    row, column = (f"teacher_{side}" for side in source.split("_"))
    left, right = getattr(anchors, row), getattr(candidates, column)
    for name, features in ((row, left), (column, right)):
        if features is None:
            raise ValueError(
                f"The similarity {source!r} needs `{name}_embeds`, which this batch lacks. Use features of a teacher "
                "that has them, or another source."
            )
    if left.shape[-1] != right.shape[-1]:
        raise ValueError(
            f"The similarity {source!r} compares {row} features of width {left.shape[-1]} with {column} features of "
            f"width {right.shape[-1]}: they are not in one space. Use a dual encoder, or a source within one modality."
        )
    with torch.no_grad():
        return cosine_matrix(left, right)
