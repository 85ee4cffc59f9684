"""Train with changes to the method that the study tries and the package lacks: `train_kdmcse.py` with more flags.

    python examples/train_variants.py --preset kdmcse ... --symmetric_weight 1 --distillation_weight 0.1

Without the flags of [`Variant`] it is `train_kdmcse.py`. One process.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_kdmcse import main as train
from transformers import HfArgumentParser, PreTrainedTokenizerBase

from kdmcse_hf import KDMCSETrainer, TeacherCache
from kdmcse_hf.data import TrainingData
from kdmcse_hf.fingerprint import tokenizer_digest
from kdmcse_hf.losses import cosine_matrix
from kdmcse_hf.modeling_kdmcse import KDMCSEOutput, token_limit
from kdmcse_hf.objective import (
    Objective,
    ObjectiveOutput,
    PairEmbeddings,
    SimilarityMap,
    compute_objective,
    teacher_similarity,
)
from kdmcse_hf.teacher.towers import Towers


@dataclass
class Variant:
    """Changes to the objective of a paired batch, each off by default."""

    symmetric_weight: float = field(default=0.0, metadata={"help": "Weight of the terms from pictures to captions."})
    extra_negatives: int = field(default=0, metadata={"help": "Pictures and captions of other pairs as negatives."})
    distillation_weight: float = field(default=0.0, metadata={"help": "Weight of the teacher's soft labels."})
    distillation_source: SimilarityMap = field(default="text_text", metadata={"help": "Whose similarities those are."})
    distillation_temperature: float = field(default=0.05, metadata={"help": "Of the teacher's similarities."})
    dropped_positives: float = field(
        default=0.0, metadata={"help": "Share of a batch's pairs, least alike to the teacher, without grounding terms."}
    )
    sentence_teacher: str | None = field(
        default=None, metadata={"help": "Towers of train_teacher.py, with the student's tokenizer, for text batches."}
    )
    sentence_distillation_weight: float = field(
        default=0.0, metadata={"help": "Weight of that teacher's soft labels for the sentences of a text batch."}
    )
    pseudo_pairs: bool = field(
        default=False, metadata={"help": "Give each plain sentence the picture that this teacher finds nearest."}
    )
    margin_schedule: Literal["constant", "rising"] = field(
        default="constant", metadata={"help": "Of the margin: rising goes from 0 to twice it."}
    )


class VariantTrainer(KDMCSETrainer):
    """Scores paired batches as a [`Variant`] says."""

    variant = Variant()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.mini_batch_size and self.variant.extra_negatives:
            raise ValueError(
                f"`--extra_negatives {self.variant.extra_negatives}` with `--mini_batch_size "
                f"{self.args.mini_batch_size}`: gradients of further negatives are not cached. Leave one of them out."
            )
        self._sentences: SentenceTeacher | None = None
        if self.variant.sentence_teacher:
            if self.train_dataset.pairs is None:
                raise ValueError("`--sentence_teacher` needs `--teacher_cache`, a cache that these towers made.")
            cache = self.train_dataset.pairs.teacher.cache
            self._sentences = SentenceTeacher(self.variant.sentence_teacher, cache, self.args.device)
            self._sentences.check_reads(self.processing_class, self.train_dataset)
        elif self.variant.sentence_distillation_weight or self.variant.pseudo_pairs:
            raise ValueError("`--sentence_teacher` is missing: plain sentences have no other teacher.")

    def _description(self) -> dict[str, Any]:
        variant = {name: value for name, value in vars(self.variant).items() if value != getattr(Variant(), name)}
        if self._sentences is not None:  # by content: descriptions are published, and places are nobody's business
            variant["sentence_teacher"] = self._sentences.towers.record["files"]
        return {**super()._description(), **({"variant": variant} if variant else {})}

    def _embed(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[PairEmbeddings, KDMCSEOutput]:
        if self._sentences is None or "image_ids" in inputs:
            return super()._embed(model, inputs)
        sentences = self._sentences(inputs)
        if self.variant.pseudo_pairs:
            inputs = {**inputs, "teacher_image_embeds": self._sentences.nearest_pictures(sentences)}
        anchors, outputs = super()._embed(model, inputs)
        return dataclasses.replace(anchors, teacher_text=sentences), outputs

    def _score_sentences(self, objective: Objective, anchors: PairEmbeddings) -> ObjectiveOutput:
        """A text batch; with pseudo-pairs, its pictures and sentences as a paired one, without the caption term."""
        terms = ("image",) if self.variant.pseudo_pairs else ()
        result = compute_objective(_terms(objective, *terms), anchors)
        weight = self.variant.sentence_distillation_weight
        return self._with_soft_labels(result, objective, anchors, "text_text", weight, "sentence_distillation_loss")

    def _with_soft_labels(
        self,
        result: ObjectiveOutput,
        objective: Objective,
        anchors: PairEmbeddings,
        source: str,
        weight: float,
        name: str,
    ) -> ObjectiveOutput:
        if not weight:
            return result
        soft = soft_labels(
            cosine_matrix(anchors.text[:, 0], anchors.text[:, -1]) / objective.temperature,
            teacher_similarity(source, anchors, anchors) / self.variant.distillation_temperature,
        )
        return ObjectiveOutput(result.loss + weight * soft, {**result.terms, name: soft}, result.rates)

    def _score(self, anchors: PairEmbeddings) -> ObjectiveOutput:
        if self.args.world_size > 1:
            raise ValueError(f"{self.args.world_size} processes: the variants are written for one.")
        variant, objective = self.variant, self._scheduled()
        if anchors.image_ids is None:
            return self._score_sentences(objective, anchors)
        text = compute_objective(_terms(objective, ranking=objective.ranking_term), anchors)
        grounding = _kept(anchors, variant.dropped_positives)
        candidates = _all_rows(anchors, variant.dropped_positives)
        if variant.extra_negatives:
            candidates = PairEmbeddings.cat([candidates, self._others(anchors)])
        result = compute_objective(_terms(objective, *objective.terms), grounding, candidates)
        loss = text.loss + result.loss - result.terms["text_loss"]
        result.terms.update(text.terms)
        for term in objective.terms if variant.symmetric_weight else ():
            backward = _from_targets(objective, term, anchors)
            result.terms[f"{term}_backward_loss"] = backward
            loss = loss + variant.symmetric_weight * objective.cross_modal_weight * backward
        result = ObjectiveOutput(loss, result.terms, result.rates)
        return self._with_soft_labels(
            result,
            objective,
            anchors,
            variant.distillation_source,
            variant.distillation_weight,
            "distillation_loss",
        )

    def _scheduled(self) -> Objective:
        step, max_steps = self.state.global_step, self.state.max_steps
        objective = self.objective.at(step, max_steps)
        if self.variant.margin_schedule == "constant":
            return objective
        factor = 2 * step / max_steps
        return dataclasses.replace(objective, cross_modal_margin=objective.cross_modal_margin * factor)

    def _others(self, anchors: PairEmbeddings) -> PairEmbeddings:
        """Random other pairs as candidates: their targets are projections of stored features, and cost no encoder."""
        data, model = self.train_dataset, self.accelerator.unwrap_model(self.model)
        drawn = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        rows = torch.randint(len(data.pairs), (self.variant.extra_negatives,), generator=drawn).numpy()
        features = data.pairs.teacher.features(rows, data.needs)
        tensors = {name: torch.from_numpy(array).to(anchors.text.device) for name, array in features.items()}
        image, text = tensors.get("teacher_image_embeds"), tensors.get("teacher_text_embeds")
        return PairEmbeddings(
            text=anchors.text[:1].detach().expand(len(rows), -1, -1),  # of no account: the text term stands apart
            image=None if anchors.image is None else model._project(model.image_projection, image, "image"),
            caption=None if anchors.caption is None else model._project(model.caption_projection, text, "caption"),
            teacher_image=None if anchors.teacher_image is None else image,
            teacher_text=None if anchors.teacher_text is None else text,
            image_ids=None if anchors.image_ids is None else tensors["image_ids"],
        )


class SentenceTeacher:
    """Towers that read the student's own token ids, and the pictures of a cache in their space."""

    def __init__(self, folder: str, cache: TeacherCache, device: torch.device) -> None:
        self.towers = Towers.from_pretrained(folder, device)
        self.pictures = torch.from_numpy(cache.image_features.rows(np.arange(len(cache.images)))).float().to(device)
        self._directions = F.normalize(self.pictures, dim=-1)
        if self.pictures.shape[1] != self.towers.width:
            raise ValueError(
                f"{cache.folder} has image features of width {self.pictures.shape[1]}, the towers in {folder} of width "
                f"{self.towers.width}: use a cache that these towers made."
            )

    def check_reads(self, tokenizer: PreTrainedTokenizerBase, data: TrainingData) -> None:
        """Raises a `ValueError` if the towers cannot read the sentences of `data`, which are this tokenizer's ids."""
        if tokenizer_digest(tokenizer) != tokenizer_digest(self.towers.tokenizer):
            raise ValueError(
                f"The towers in {self.towers.folder} have another tokenizer than the student, whose token ids they "
                "are to read: train them with `--tokenizer` of the student."
            )
        batches = () if data.text is None else data.text.iter(10_000)
        longest = max((len(ids) for batch in batches for ids in batch["input_ids"]), default=0)
        limit = token_limit(self.towers.model, self.towers.tokenizer)
        if longest > limit:
            raise ValueError(
                f"Sentences have up to {longest} tokens, and the towers in {self.towers.folder} take {limit}: lower "
                "`--max_seq_length`, or train them with a higher one."
            )

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, P) unit vectors of a batch of token ids."""
        model = self.towers.model
        pooled = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
        return F.normalize(model.grounding_head(pooled).float(), dim=-1)

    def nearest_pictures(self, sentences: Tensor) -> Tensor:
        """(B, P) the features of each sentence's nearest picture."""
        return self.pictures[(sentences @ self._directions.T).argmax(dim=1)]


def soft_labels(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of the student's distribution over each row's negatives from the teacher's, mean over rows.

    Args:
        student, teacher: (B, B) logits, the positives on the diagonal, which is left out.
    """
    student, teacher = _negatives(student), _negatives(teacher).to(student.dtype)
    return F.kl_div(student.log_softmax(1), teacher.log_softmax(1), log_target=True, reduction="batchmean")


def _negatives(logits: Tensor) -> Tensor:
    """(B, B - 1) without the diagonal."""
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return logits[~own].view(len(logits), len(logits) - 1)


def _terms(objective: Objective, *names: str, ranking: bool = False) -> Objective:
    """The objective with these of its terms alone, beside the text term."""
    return dataclasses.replace(
        objective, image_term="image" in names, caption_term="caption" in names, ranking_term=ranking
    )


def _order(anchors: PairEmbeddings, dropped: float) -> Tensor:
    """Rows, those first whose caption and picture the teacher finds most alike; as they are if none is dropped."""
    if not dropped:
        return torch.arange(len(anchors.text), device=anchors.text.device)
    return teacher_similarity("text_image", anchors, anchors).diagonal().argsort(descending=True)


def _all_rows(anchors: PairEmbeddings, dropped: float) -> PairEmbeddings:
    order = _order(anchors, dropped)
    return dataclasses.replace(anchors.map(lambda rows: rows[order]), grounded=None)


def _kept(anchors: PairEmbeddings, dropped: float) -> PairEmbeddings:
    kept = _order(anchors, dropped)[: round(len(anchors.text) * (1 - dropped))]
    return anchors.map(lambda rows: rows[kept])


def _from_targets(objective: Objective, term: str, anchors: PairEmbeddings) -> Tensor:
    """A cross-modal term with the targets as anchors and captions as candidates, filter and margin turned round."""
    flipped = dataclasses.replace(
        _terms(objective, term),
        **{f"{term}_{use}_source": _flip(getattr(objective, f"{term}_{use}_source")) for use in ("filter", "margin")},
    )
    targets = getattr(anchors, term)
    losses = []
    for view in range(anchors.text.shape[1]):
        rows = dataclasses.replace(anchors, grounded=targets.unsqueeze(1))
        captions = dataclasses.replace(anchors, **{term: anchors.grounded[:, view], "grounded": None})
        losses.append(compute_objective(flipped, rows, captions).terms[f"{term}_loss"])
    return torch.stack(losses).mean()


def _flip(source: str) -> str:
    return "_".join(reversed(source.split("_")))


def split_flags(argv: Sequence[str]) -> tuple[Variant, list[str]]:
    """The flags of [`Variant`], and the others."""
    parser = HfArgumentParser(Variant, allow_abbrev=False)
    variant, rest = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    return variant, rest


def main(argv: Sequence[str]) -> KDMCSETrainer:
    variant, rest = split_flags(argv)
    return train(rest, trainer_class=type("Trainer", (VariantTrainer,), {"variant": variant}))


if __name__ == "__main__":
    main(sys.argv[1:])
