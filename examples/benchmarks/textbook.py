"""The contender that everybody starts from: the step as the papers' own code takes it, written anew and without haste.

Sentences are tokenised by the collator in the main process and padded to the longest; both views go through one eager
forward pass; cosines are broadcast to (B, B, D) and their angles taken with `acos`; AdamW and the learning rate are
torch's own. The objective is that of the preset `kdmcse_reference`, or plain SimCSE.
"""

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from kdmcse_hf.sts import SentencePairs

TEMPERATURE, MARGIN, WEIGHT = 0.05, 0.15, 0.01


def broadcast_cosine(first: Tensor, second: Tensor) -> Tensor:
    """(A, D) and (C, D) to (A, C), by way of (A, C, D)."""
    return F.cosine_similarity(first.unsqueeze(1), second.unsqueeze(0), dim=-1)


def margin_logits(cosine: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Negatives brought closer by `scale * MARGIN` radians where their angle exceeds MARGIN; over the temperature."""
    angle = torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7))
    negative = 1 - torch.eye(len(cosine), device=cosine.device)
    moved = torch.where(angle > MARGIN, torch.cos(angle - scale * MARGIN * negative), cosine)
    return torch.where(negative.bool(), moved, cosine) / TEMPERATURE


def text_loss(first: Tensor, second: Tensor, margin: bool) -> Tensor:
    cosine = broadcast_cosine(first, second)
    logits = margin_logits(cosine) if margin else cosine / TEMPERATURE
    return F.cross_entropy(logits, torch.arange(len(first), device=first.device))


def grounding_loss(views: Tensor, targets: Tensor, teacher: Tensor) -> Tensor:
    """Views (B, 2, P) against projected features (B, P); `teacher` (B, D) scales the margins."""
    scale = 1 - broadcast_cosine(teacher, teacher)
    labels = torch.arange(len(targets), device=targets.device)
    losses = [F.cross_entropy(margin_logits(broadcast_cosine(views[:, v], targets), scale), labels) for v in (0, 1)]
    return sum(losses) / 2


class Model(nn.Module):
    def __init__(self, encoder: str, image_dim: int | None, caption_dim: int | None, projection_dim: int = 256) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            encoder, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False
        )
        width = self.encoder.config.hidden_size
        self.pooler = nn.Linear(width, width)
        if image_dim and caption_dim:
            self.grounding = nn.Linear(width, projection_dim)
            self.image = nn.Linear(image_dim, projection_dim)
            self.caption = nn.Linear(caption_dim, projection_dim)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        ids, mask = batch["input_ids"], batch["attention_mask"]  # (B, 2, L)
        rows, views, length = ids.shape
        hidden = self.encoder(input_ids=ids.view(-1, length), attention_mask=mask.view(-1, length))
        pooled = hidden.last_hidden_state[:, 0].view(rows, views, -1)
        text = torch.tanh(self.pooler(pooled))
        loss = text_loss(text[:, 0], text[:, 1], margin=hasattr(self, "grounding"))
        if "image" in batch:
            grounded = torch.tanh(self.grounding(pooled))
            image, caption = torch.tanh(self.image(batch["image"])), torch.tanh(self.caption(batch["caption"]))
            loss = loss + WEIGHT * grounding_loss(grounded, image, batch["image"])
            loss = loss + WEIGHT * grounding_loss(grounded, caption, batch["caption"])
        return loss


class Collator:
    """Sentences to two identical views, padded to the longest."""

    def __init__(self, encoder: str, max_length: int) -> None:
        self.tokenizer, self.max_length = AutoTokenizer.from_pretrained(encoder), max_length

    def __call__(self, sentences: list[str]) -> dict[str, Tensor]:
        batch = self.tokenizer(
            sentences, truncation=True, max_length=self.max_length, padding="longest", return_tensors="pt"
        )
        return {name: batch[name].unsqueeze(1).repeat(1, 2, 1) for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def score(model: Model, collate: Collator, pairs: SentencePairs, batch_size: int = 64) -> float:
    """Spearman on scored pairs, both sides of each embedded, sorted by length, as SentEval does it."""
    model.eval()
    order = sorted(range(len(pairs)), key=lambda row: (len(pairs.first[row].split()), len(pairs.second[row].split())))
    cosines, gold = [], []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        sides = []
        for side in (pairs.first, pairs.second):
            batch = collate.tokenizer([side[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
            batch = batch.to(model.encoder.device)
            hidden = model.encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            sides.append(hidden.last_hidden_state[:, 0])
        cosines += F.cosine_similarity(*sides).tolist()
        gold += [pairs.scores[row] for row in rows]
    model.train()
    return float(spearmanr(cosines, gold).statistic) * 100
