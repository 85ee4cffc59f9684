"""Gradient caching: the loss and the gradients of a large batch in the memory of a small one.

In-batch negatives tie all rows of a batch together, so a batch cannot simply be cut up. Gao et al. (2021, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup") embed it part by part without a graph, compute the loss and
its gradient with respect to the embeddings over the whole batch, and then embed each part again, with a graph and the
same dropout, to carry that gradient on to the weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from kdmcse_hf.objective import ObjectiveOutput, PairEmbeddings

LEARNED = ("text", "grounded", "image", "caption")
"""The fields of [`PairEmbeddings`] that come from the model and carry gradients."""


def split_rows(inputs: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Parts of at most `size` rows of model inputs (B, ...), each cut to its own longest row.

    Args:
        inputs: with an `attention_mask` (B, L), padded on the right.
    """
    parts = []
    for rows in torch.arange(len(inputs["attention_mask"])).split(size):
        part = {name: tensor[rows[0] : rows[-1] + 1] for name, tensor in inputs.items()}
        length = int(part["attention_mask"].sum(dim=1).max())
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if name in part:
                part[name] = part[name][:, :length]
        parts.append(part)
    return parts


def cached_backward(
    parts: Sequence[dict[str, Tensor]],
    embed: Callable[[dict[str, Tensor]], PairEmbeddings],
    objective: Callable[[PairEmbeddings], ObjectiveOutput],
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> ObjectiveOutput:
    """Computes the objective of all parts as one batch and adds its gradients to the weights.

    Args:
        parts: model inputs, from [`split_rows`].
        embed: one part as the objective sees it; called twice a part, with the same random numbers.
        objective: of the whole batch.
        backward: called on one scalar a part, whose gradients add up to those of the loss.
        no_sync: entered around every `backward` but the last, so that processes exchange gradients once.

    Returns:
        The objective, whose tensors have no graph.
    """
    states, embedded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_RandomState(part["attention_mask"].device))
            embedded.append(embed(part))
    batch = PairEmbeddings.cat(embedded)
    leaves = {name: getattr(batch, name) for name in LEARNED if getattr(batch, name) is not None}
    for leaf in leaves.values():
        leaf.requires_grad_()
    result = objective(batch)
    # A head whose term is off, or a view of no use, has no gradient.
    gradients = torch.autograd.grad(result.loss, list(leaves.values()), allow_unused=True, materialize_grads=True)

    first = 0
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        with nullcontext() if number == len(parts) - 1 else no_sync():
            with state.replayed():
                again = embed(part)
            last = first + len(again.text)
            pulls = [
                (getattr(again, name) * gradient[first:last]).sum()
                for name, gradient in zip(leaves, gradients, strict=True)
            ]
            backward(torch.stack(pulls).sum())
            first = last
    return ObjectiveOutput(
        loss=result.loss.detach(),
        terms={name: term.detach() for name, term in result.terms.items()},
        rates=result.rates,
    )


class _RandomState:
    """The random numbers that come next, to be drawn a second time."""

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"`mini_batch_size` draws dropout twice alike, which works on `cpu` and `cuda`; the batch is "
                f"on {device.type!r}: leave `mini_batch_size` out, and take a smaller batch if memory is short."
            )
        self._cuda = [device] if device.type == "cuda" else []
        self._cpu_state = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(device) for device in self._cuda]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, they are drawn again; behind it, all goes on as if they had not been."""
        with torch.random.fork_rng(self._cuda):
            torch.set_rng_state(self._cpu_state)
            for device, state in zip(self._cuda, self._cuda_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
