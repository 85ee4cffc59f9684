"""The noisy-negative threshold: how it is written, what it means in a batch, and its calibration."""

from dataclasses import dataclass

from torch import Tensor

MAX_FILTER_RATE = 0.5
"""A threshold that filters more than this share of all negatives is refused: little would be left to contrast."""
KINDS = ("cosine", "relative", "rate")


@dataclass(frozen=True)
class Threshold:
    """`cosine:X`: the cosine X. `relative:X`: X times the positive pair's own cosine. `rate:X`: see [`calibrate`]."""

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str, *, name: str = "threshold") -> "Threshold | None":
        """Reads `"cosine:0.3"`, `"relative:0.9"`, `"rate:0.01"` or `"none"`.

        Raises:
            ValueError: anything else, a cosine outside [-1, 1], or a rate outside (0, `MAX_FILTER_RATE`].
        """
        if text == "none":
            return None
        kind, _, number = text.partition(":")
        try:
            value = float(number)
        except ValueError:
            value = float("nan")
        low, high = {"cosine": (-1.0, 1.0), "relative": (0.0, 2.0), "rate": (0.0, MAX_FILTER_RATE)}.get(kind, (1, 0))
        if not low <= value <= high or (kind == "rate" and value == 0):
            raise ValueError(
                f"`{name}` is {text!r}: expected 'none', 'cosine:X' with X in [-1, 1], 'relative:X' with X in [0, 2], "
                f"or 'rate:X' with X in (0, {MAX_FILTER_RATE}]."
            )
        return cls(kind, value)

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:.6g}"

    def cosine(self, similarity: Tensor, positives: Tensor) -> Tensor | float:
        """The cosine above which a pair is noisy: a number, or (A, 1) where it hangs on the positive pair's own.

        Args:
            similarity: (A, C), the teacher's.
            positives: (A,).

        Raises:
            ValueError: a rate, which only the training pairs can turn into a cosine.
        """
        if self.kind == "cosine":
            return self.value
        if self.kind == "relative":
            return self.value * similarity.gather(1, positives.unsqueeze(1))
        raise ValueError(f"The threshold '{self}' has not been calibrated on training pairs.")
