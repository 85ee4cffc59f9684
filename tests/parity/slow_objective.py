"""The objective written from the equations as double loops over plain numbers: slow, and short enough to check by eye.

Every function works on Python-level scalars of torch (so that autograd follows), row by row and pair by pair. It shares
nothing with the package.
"""

import math

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def info_nce_row(similarities: list[Tensor], own: int, temperature: float, left_out: set[int]) -> Tensor:
    """-log(exp(s_own / t) / sum over the rest that is not left out)."""
    kept = [s for j, s in enumerate(similarities) if j == own or j not in left_out]
    numerator = (similarities[own] / temperature).exp()
    return -(numerator / sum((s / temperature).exp() for s in kept)).log()


def with_margin(value: Tensor, margin: float, full: float, continuous: bool) -> Tensor:
    """cos(theta - margin) by way of arccos, behind its gate."""
    theta = value.clamp(-1, 1).arccos()
    if continuous:
        return (theta - margin).cos() if theta > margin else value + 1 - math.cos(margin)
    return (theta - margin).cos() if theta > full else value


def text_term(o: object, e: object, same_image: list[set[int]]) -> Tensor:
    batch = range(len(e.text))
    total = torch.zeros((), dtype=e.text.dtype)
    for i in batch:
        row = []
        for j in batch:
            value = cosine(e.text[i, 0], e.text[j, 1])
            if j != i and o.text_margin:
                value = with_margin(value, o.text_margin, o.text_margin, o.continuous_margin)
            row.append(value)
        total = total + info_nce_row(row, i, o.temperature, same_image[i]) / len(batch)
    return total


def cross_modal_term(o: object, e: object, same_image: list[set[int]], term: str) -> Tensor:
    batch = range(len(e.text))
    targets = getattr(e, term)
    teacher = {"text": e.teacher_text, "image": e.teacher_image}

    def alpha(source: str, i: int, j: int) -> float:
        left, right = source.split("_")
        return float(cosine(teacher[left][i], teacher[right][j]))

    def noisy(i: int) -> set[int]:
        kind, _, number = getattr(o, f"{term}_threshold").partition(":")
        if kind == "none":
            return set()
        source = getattr(o, f"{term}_filter_source")
        limit = float(number) * (alpha(source, i, i) if kind == "relative" else 1.0)
        return {j for j in batch if j != i and alpha(source, i, j) > limit}

    def margin(i: int, j: int) -> float:
        source = getattr(o, f"{term}_margin_source")
        return o.cross_modal_margin * (1.0 if source == "constant" else 1.0 - alpha(source, i, j))

    total = torch.zeros((), dtype=e.text.dtype)
    for i in batch:
        for view in (0, 1):
            row = []
            for j in batch:
                value = cosine(e.grounded[i, view], targets[j])
                if j != i and o.cross_modal_margin:
                    value = with_margin(value, margin(i, j), o.cross_modal_margin, o.continuous_margin)
                row.append(value)
            loss = info_nce_row(row, i, o.cross_modal_temperature, same_image[i] | noisy(i))
            total = total + loss / (2 * len(batch))
    return total


def ranking_term(o: object, e: object) -> Tensor:
    """Draw without replacement, the teacher's nearest first: -log of each draw's chance."""
    batch = range(len(e.text))
    total, draws = torch.zeros((), dtype=e.text.dtype), 0
    for i in batch:
        others = [j for j in batch if j != i]
        left = sorted(others, key=lambda j: -float(cosine(e.teacher_text[i], e.teacher_text[j])))
        while left:
            chances = [(cosine(e.text[i, 0], e.text[j, 1]) / o.temperature).exp() for j in left]
            total, draws, left = total - (chances[0] / sum(chances)).log(), draws + 1, left[1:]
    return total / draws


def slow_objective(o: object, e: object) -> Tensor:
    """o: an Objective with `cosine:` or `relative:` thresholds; e: PairEmbeddings of one process."""
    batch = range(len(e.text))
    same_image = [set() for _ in batch]
    if o.mask_same_image and e.image_ids is not None:
        same_image = [{j for j in batch if j != i and e.image_ids[j] == e.image_ids[i]} for i in batch]
    total = text_term(o, e, same_image)
    if e.grounded is not None:
        for term in ("image", "caption"):
            if getattr(o, f"{term}_term"):
                total = total + o.cross_modal_weight * cross_modal_term(o, e, same_image, term)
        if o.ranking_term:
            total = total + o.cross_modal_weight * ranking_term(o, e)
    return total
