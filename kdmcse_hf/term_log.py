"""Running means of the terms of the objective, kept on the device: recording a step never waits for it."""

import torch
from accelerate import Accelerator
from torch import Tensor


class TermLog:
    """Sums of named scalars since the last [`drain`], and the first step at which each was not finite."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._first_bad: dict[str, Tensor] = {}

    def record(self, values: dict[str, Tensor], step: int) -> None:
        """Adds one step's scalars."""
        for name, value in values.items():
            value = value.detach()
            never = torch.full_like(value, float("inf"), dtype=torch.float32)
            bad = torch.where(value.isfinite(), never, float(step))
            self._first_bad[name] = torch.minimum(self._first_bad[name], bad) if name in self._first_bad else bad
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over steps and processes since the last call. Every process calls it at the same steps."""
        names = sorted(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name].float() / self._counts[name] for name in names])
        means = accelerator.reduce(means, reduction="mean")
        self._sums, self._counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))

    def first_bad_steps(self, accelerator: Accelerator) -> dict[str, int]:
        """The terms that were NaN or infinite on any process, each with the first step at which it was.

        Waits for the device. Every process calls it at the same steps, and all are told the same: one that stopped by
        itself would leave the others waiting for it.
        """
        names = sorted(self._first_bad)
        if not names:
            return {}
        steps = accelerator.gather(torch.stack([self._first_bad[name] for name in names])[None]).amin(dim=0)
        return {name: int(step) for name, step in zip(names, steps.tolist(), strict=True) if step != float("inf")}
