"""Which rows make batch number n: a pure function of the seed and n, the same on every process."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState

Kind = Literal["text", "pair"]


@dataclass(frozen=True)
class Schedule:
    """Text batches and paired batches over a whole run; step 0 is its first global batch.

    An epoch has as many steps as both sets have full batches. With `pair_every_n_steps=k` a step is paired where
    `step % k == 0` (MCSE's and KDMCSE's fixed interval), so an epoch may show a little more of one set and less of the
    other; each set is reshuffled after each of its own passes. With `pair_every_n_steps=None` the kinds are drawn in
    random order, each set exactly once an epoch (proportional).

    Args:
        num_text, num_pairs: rows of each set.
        batch_size: rows of a global batch, over all processes.
        pair_every_n_steps: see above; no effect where a set is empty.
        seed: of every permutation.
        image_of_pair: (num_pairs,) the image of each pair; where given, no batch holds two pairs of one image.

    Raises:
        ValueError: sizes that make no batch, or an image with more pairs than there are batches.
    """

    num_text: int
    num_pairs: int
    batch_size: int
    pair_every_n_steps: int | None
    seed: int
    image_of_pair: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    _orders: dict[tuple[str, int], NDArray[np.int64]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name, rows in (("text", self.num_text), ("pair", self.num_pairs)):
            if 0 < rows < self.batch_size:
                raise ValueError(
                    f"The {name} set has {rows} rows, fewer than one batch of {self.batch_size} (all processes "
                    "together): use a smaller `per_device_train_batch_size` or more data."
                )
        if not self.num_text and not self.num_pairs:
            raise ValueError("There is neither text nor pairs to train on: give sentences, a teacher cache, or both.")
        if self.num_text and self.num_pairs and self.pair_every_n_steps is not None and self.pair_every_n_steps < 2:
            raise ValueError(
                f"`pair_every_n_steps` is {self.pair_every_n_steps}: expected at least 2, so that text batches occur "
                "at all. For captions only, give no text set."
            )
        if self.image_of_pair is not None:
            self._order("pair", 0)  # finds out whether there is one

    def describe(self) -> dict[str, Any]:
        """What makes two schedules the same."""
        names = ("num_text", "num_pairs", "batch_size", "pair_every_n_steps", "seed")
        described: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {**described, "avoid_same_image": self.image_of_pair is not None}

    @property
    def text_batches(self) -> int:
        """Full batches of one pass over the text set."""
        return self.num_text // self.batch_size

    @property
    def pair_batches(self) -> int:
        """Full batches of one pass over the pairs."""
        return self.num_pairs // self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.text_batches + self.pair_batches

    def kind(self, step: int) -> Kind:
        """Which kind of batch every process takes at `step`."""
        if not self.num_text or not self.num_pairs:
            return "text" if self.num_text else "pair"
        if self.pair_every_n_steps is not None:
            return "pair" if step % self.pair_every_n_steps == 0 else "text"
        epoch, position = divmod(step, self.steps_per_epoch)
        return "pair" if self._pair_positions(epoch)[position] else "text"

    def rows(self, step: int) -> tuple[Kind, NDArray[np.int64]]:
        """The kind of the batch at `step` and its (batch_size,) rows within that set."""
        kind = self.kind(step)
        ordinal = self._batches_before(step, kind)
        per_pass = self.text_batches if kind == "text" else self.pair_batches
        number, position = divmod(ordinal, per_pass)
        order = self._order(kind, number)
        return kind, order[position * self.batch_size : (position + 1) * self.batch_size]

    def _batches_before(self, step: int, kind: Kind) -> int:
        """How many batches of this kind come before `step`."""
        if not self.num_text or not self.num_pairs:
            return step
        if self.pair_every_n_steps is not None:
            pairs = -(-step // self.pair_every_n_steps)
        else:
            epoch, position = divmod(step, self.steps_per_epoch)
            pairs = epoch * self.pair_batches + int(self._pair_positions(epoch)[:position].sum())
        return pairs if kind == "pair" else step - pairs

    def _pair_positions(self, epoch: int) -> NDArray[np.bool_]:
        return self._order("kinds", epoch) < self.pair_batches

    def _order(self, stream: str, number: int) -> NDArray[np.int64]:
        """The `number`-th permutation of a stream: independent of which ones were asked for before."""
        if (stream, number) not in self._orders:
            size = {"text": self.num_text, "pair": self.num_pairs, "kinds": self.steps_per_epoch}[stream]
            rng = np.random.default_rng((self.seed, _STREAMS[stream], number))
            order = rng.permutation(size)
            if stream == "pair" and self.image_of_pair is not None:
                order = _keep_images_apart(order, self.image_of_pair, self.batch_size, rng)
            while len(self._orders) >= 6:
                self._orders.pop(next(iter(self._orders)))
            self._orders[stream, number] = order
        return self._orders[stream, number]


_STREAMS = {"text": 0, "pair": 1, "kinds": 2}
_ROUNDS = 20


def _keep_images_apart(
    order: NDArray[np.int64], image_of_pair: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """`order`, with pairs that meet one of their own image in a batch put in the place of others at random.

    Where images have so many pairs that this does not come to an end, a new order.
    """
    num_batches = len(order) // batch_size
    full = num_batches * batch_size
    places = np.arange(len(order))
    # Behind the last full batch nobody meets: each place there is a batch of its own.
    batch_of_place = np.where(places < full, places // batch_size, places)
    _, image_of_pair, counts = np.unique(image_of_pair, return_inverse=True, return_counts=True)
    if np.minimum(counts, num_batches).sum() < full:
        raise ValueError(
            f"There is no order in which batches of {batch_size} hold an image once: the {len(order):,} pairs have "
            f"{len(counts):,} images, one of them {counts.max():,} times, in {num_batches:,} batches. Use smaller "
            "batches, more images, or `captions_per_image=one`."
        )
    for _ in range(_ROUNDS):
        key = batch_of_place * len(counts) + image_of_pair[order]
        by_key = np.argsort(key, kind="stable")
        again = by_key[1:][np.diff(key[by_key]) == 0]
        if not len(again):
            return order
        for place, other in zip(again, rng.integers(len(order), size=len(again)), strict=True):
            order[[place, other]] = order[[other, place]]
    return _deal(order, image_of_pair, counts, batch_size, rng)


def _deal(
    order: NDArray[np.int64],
    image_of_pair: NDArray[np.int64],
    counts: NDArray[np.int64],
    batch_size: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """A random order in which the pairs of each image are dealt to different batches, one after the other.

    Args:
        order: of all pairs, at random.
        image_of_pair: (num_pairs,) numbers of images.
        counts: (num_images,) pairs of each image; at most `num_batches` of each have to fill the batches.
    """
    num_batches = len(order) // batch_size
    full = num_batches * batch_size
    by_image = order[np.argsort(rng.permutation(len(counts))[image_of_pair[order]], kind="stable")]
    starts = np.flatnonzero(np.diff(image_of_pair[by_image], prepend=-1))
    number = np.empty(len(order), dtype=np.int64)  # of each pair among those of its image
    number[by_image] = np.arange(len(order)) - np.repeat(starts, counts[image_of_pair[by_image[starts]]])
    # What an image has beyond one pair a batch goes behind the last full batch, then others at random.
    kept_first = order[np.argsort(number[order] >= num_batches, kind="stable")]
    kept = np.zeros(len(order), dtype=np.bool_)
    kept[kept_first[:full]] = True
    # An image's pairs lie side by side, at most one a batch, so dealing in turn puts no two into one batch.
    batches = by_image[kept[by_image]].reshape(batch_size, num_batches).T
    batches = rng.permuted(rng.permutation(batches), axis=1)
    return np.concatenate([batches.ravel(), kept_first[full:]])


def derive_interval(num_text: int, num_pairs: int, batch_size: int) -> int:
    """k for a paired batch every k-th step, as MCSE derives it: text batches over pair batches.

    Raises:
        ValueError: fewer than two text batches a pair batch.
    """
    interval = (num_text // batch_size) // max(1, num_pairs // batch_size)
    if interval < 2:
        raise ValueError(
            f"The text set ({num_text:,} rows) is not twice the pair set ({num_pairs:,} rows), so no interval can be "
            "derived from their sizes. Set `pair_every_n_steps` (2: every other batch), use `schedule=proportional`, "
            "or use fewer pairs (`max_pairs`, `captions_per_image=one`)."
        )
    return interval


class ScheduledBatchSampler(Sampler[list[int]]):
    """One epoch of a [`Schedule`] as lists of indices: text rows first, pair rows behind them.

    Each global batch is yielded as `num_processes` consecutive batches, for accelerate deals batches to processes in
    turn: so all processes work on one kind of batch at a time, and together on the rows that one process would have.
    """

    def __init__(self, schedule: Schedule, num_processes: int = 1) -> None:
        self.schedule = schedule
        self.num_processes = num_processes
        self.batch_size = schedule.batch_size // num_processes
        self.drop_last = True
        self.epoch = 0

    def __len__(self) -> int:
        return self.schedule.steps_per_epoch * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        first = self.epoch * self.schedule.steps_per_epoch
        for step in range(first, first + self.schedule.steps_per_epoch):
            kind, rows = self.schedule.rows(step)
            offset = self.schedule.num_text if kind == "pair" else 0
            for process in range(self.num_processes):
                yield (rows[process * self.batch_size : (process + 1) * self.batch_size] + offset).tolist()


class SetEpoch(TrainerCallback):
    """Tells the sampler which epoch begins; accelerate does not reach a wrapped batch sampler when a run resumes."""

    def __init__(self, sampler: ScheduledBatchSampler, accumulation_steps: int) -> None:
        self.sampler = sampler
        self.steps_per_epoch = max(1, -(-sampler.schedule.steps_per_epoch // accumulation_steps))

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.sampler.epoch = state.global_step // self.steps_per_epoch
