"""The loss terms as pure functions of tensors: cosine, angular margin, noisy-negative filter, InfoNCE, ListMLE.

Everywhere A anchors meet C candidates: `positives` (A,) holds the index of each anchor's own candidate, every other
candidate is a negative. Cosines may carry leading dimensions (..., A, C), one per view of the anchors; what the
teacher says, (A, C), is the same for all views.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine_matrix(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Cosine of every anchor (..., A, D) with every candidate (C, D): (..., A, C), in [-1, 1] up to rounding.

    Always in float32 (float64 stays float64), also under autocast: at temperature 0.05 a bfloat16 cosine is off by
    up to 0.08 in the logit, and two dropout views of a sentence round to exactly 1.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(anchors.dtype, candidates.dtype), torch.float32)
        anchors = F.normalize(anchors.to(dtype), dim=-1)
        return anchors @ F.normalize(candidates.to(dtype), dim=-1).transpose(-1, -2)


def positive_mask(positives: Tensor, num_candidates: int) -> Tensor:
    """(A, C) bool: True where the candidate is the anchor's own."""
    return positives.unsqueeze(1) == torch.arange(num_candidates, device=positives.device)


def subtract_angle(
    cosine: Tensor, margin: Tensor | float, full_margin: float, *, continuous: bool = False
) -> tuple[Tensor, Tensor]:
    r"""`cos(theta - margin)` for `theta = arccos(cosine)`, and where it was applied: two tensors shaped as `cosine`.

    AdapACSE (KDMCSE, section 3) brings a negative closer by its margin, so that the loss pushes it harder. As in the
    published code, the margin is applied where `theta > full_margin`, so a cosine jumps from `cos(full_margin)` to
    about 1 at the gate. With `continuous`, each pair's gate is its own margin and below it the cosine is raised by
    `1 - cos(margin)`: no jump, and the negative still feels a gradient.

    Args:
        cosine: (..., A, C).
        margin: radians, one number or (A, C); at most `full_margin` where the teacher's cosine is not negative.
        full_margin: radians in [0, pi].
        continuous: whether to close the jump.
    """
    # No arccos: cos(a - b) = cos a cos b + sin a sin b has finite gradients once the root is kept off zero.
    clamped = cosine.clamp(-1.0, 1.0)
    sine = ((1 - clamped) * (1 + clamped)).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
    cosine_of_margin = margin.cos() if isinstance(margin, Tensor) else math.cos(margin)
    sine_of_margin = margin.sin() if isinstance(margin, Tensor) else math.sin(margin)
    shifted = cosine * cosine_of_margin + sine * sine_of_margin
    if continuous:
        applied = cosine < cosine_of_margin
        return torch.where(applied, shifted, cosine + 1 - cosine_of_margin), applied
    applied = cosine < math.cos(full_margin)
    return torch.where(applied, shifted, cosine), applied


def noisy_negatives(similarity: Tensor, threshold: Tensor | float, positives: Tensor) -> Tensor:
    """(A, C) bool: the negatives that the teacher finds too similar to be negatives. Never the positive.

    Args:
        similarity: (A, C), the teacher's cosine of anchor and candidate.
        threshold: a cosine, or (A, 1) of them; pairs above it are noisy.
        positives: (A,).
    """
    return (similarity > threshold) & ~positive_mask(positives, similarity.shape[1])


def info_nce(cosine: Tensor, positives: Tensor, temperature: Tensor | float, masked: Tensor | None = None) -> Tensor:
    """InfoNCE (SimCSE, equation 1), mean over anchors and views: a scalar >= 0.

    Args:
        cosine: (..., A, C).
        positives: (A,).
        temperature: positive.
        masked: (A, C) bool, negatives to leave out of the denominator. The positive always stays.

    An anchor without negatives costs 0 and has no gradient.
    """
    logits = cosine / temperature
    own = positive_mask(positives, cosine.shape[-1])
    excluded = own if masked is None else own | masked
    negatives = logits.masked_fill(excluded, float("-inf")).logsumexp(dim=-1)
    # log(1 + sum exp(negative - positive)): exact where the loss is tiny, unlike log-softmax at the positive.
    positive = logits.gather(-1, positives.expand(negatives.shape).unsqueeze(-1)).squeeze(-1)
    return -F.logsigmoid(positive - negatives).mean()


def list_mle(cosine: Tensor, similarity: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """ListMLE (Xia et al., ICML 2008) of the negatives in the teacher's order: a scalar >= 0.

    How unlikely the student's softmax is to draw an anchor's negatives one after the other, the most similar to the
    teacher first: mean over anchors and draws.

    Args:
        cosine: (A, C), the student's.
        similarity: (A, C), the teacher's; only its order counts.
        positives: (A,); the positive takes no part.
        temperature: positive.

    An anchor without negatives costs 0.
    """
    own = positive_mask(positives, cosine.shape[1])
    order = similarity.masked_fill(own, float("inf")).argsort(dim=1, descending=True, stable=True)[:, 1:]
    logits = cosine.gather(1, order) / temperature
    left = logits.flip(1).logcumsumexp(1).flip(1)  # of what has not been drawn yet
    return (left - logits).sum() / max(1, logits.numel())
