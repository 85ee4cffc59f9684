from collections import Counter

import numpy as np
import pytest

from kdmcse_hf.schedule import Schedule, ScheduledBatchSampler, derive_interval


def kinds(schedule: Schedule, steps: int) -> list[str]:
    return [schedule.kind(step) for step in range(steps)]


def test_a_paired_batch_comes_every_kth_step_beginning_with_the_first() -> None:
    schedule = Schedule(100, 40, 10, pair_every_n_steps=3, seed=0)
    assert kinds(schedule, 7) == ["pair", "text", "text", "pair", "text", "text", "pair"]


@pytest.mark.parametrize(
    ("num_pairs", "interval", "steps"), [(29_783, 33, 48_273), (148_915, 6, 53_856), (82_783, 12, 50_757)]
)
def test_interval_and_epoch_are_those_of_the_published_runs(num_pairs: int, interval: int, steps: int) -> None:
    assert derive_interval(1_000_000, num_pairs, 64) == interval
    # The published loaders keep the last, smaller batch of each set; ours are full.
    schedule = Schedule(1_000_000, num_pairs, 64, interval, seed=0)
    assert 3 * schedule.steps_per_epoch == pytest.approx(steps, abs=3)


@pytest.mark.parametrize("interval", [2, 3, None])
def test_every_pass_shows_every_row_of_a_full_batch_once_in_a_new_order(interval: int | None) -> None:
    schedule = Schedule(53, 31, 5, interval, seed=1)
    rows: dict[str, list[int]] = {"text": [], "pair": []}
    for step in range(60):
        kind, batch = schedule.rows(step)
        assert len(batch) == 5
        rows[kind].extend(batch.tolist())
    for kind, size in (("text", 53), ("pair", 31)):
        one_pass = size // 5 * 5
        first, second = rows[kind][:one_pass], rows[kind][one_pass : 2 * one_pass]
        assert max(Counter(first).values()) == 1
        assert max(Counter(second).values()) == 1
        assert first[: len(second)] != second


def test_proportional_uses_each_set_exactly_once_an_epoch_in_changing_order() -> None:
    schedule = Schedule(60, 20, 5, None, seed=0)
    epochs = [kinds(schedule, 32)[:16], kinds(schedule, 32)[16:]]
    assert [epoch.count("pair") for epoch in epochs] == [4, 4]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("interval", [2, None])
def test_a_step_is_the_same_whichever_steps_were_asked_for_before(interval: int | None) -> None:
    fresh = Schedule(90, 40, 4, interval, seed=3)
    used = Schedule(90, 40, 4, interval, seed=3)
    for step in (70, 3, 41):
        used.rows(step)
    for step in (40, 41, 5):
        assert fresh.kind(step) == used.kind(step)
        np.testing.assert_array_equal(fresh.rows(step)[1], used.rows(step)[1])


def test_another_seed_is_another_order() -> None:
    first, second = (Schedule(90, 40, 4, 2, seed=seed).rows(1)[1] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("interval", [2, None])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_work_together_on_the_rows_of_one_process(processes: int, interval: int | None) -> None:
    schedule = Schedule(90, 60, 6, interval, seed=0)
    together = list(ScheduledBatchSampler(schedule, processes))
    alone = list(ScheduledBatchSampler(schedule, 1))
    assert len(together) == processes * len(alone)
    for step, batch in enumerate(alone):
        # accelerate deals batch n to process n modulo the number of processes
        shares = together[step * processes : (step + 1) * processes]
        assert sum(shares, []) == batch
        assert len({index >= 90 for share in shares for index in share}) == 1  # one kind everywhere


def test_epochs_go_on_where_the_last_one_ended() -> None:
    schedule = Schedule(50, 20, 5, 2, seed=0)
    sampler = ScheduledBatchSampler(schedule)
    sampler.epoch = 1
    kind, rows = schedule.rows(schedule.steps_per_epoch)
    assert next(iter(sampler)) == (rows + (50 if kind == "pair" else 0)).tolist()


def test_one_set_alone_needs_no_interval() -> None:
    assert set(kinds(Schedule(50, 0, 5, None, seed=0), 20)) == {"text"}
    assert set(kinds(Schedule(0, 50, 5, 2, seed=0), 20)) == {"pair"}


def test_less_text_than_pairs_is_refused_with_the_ways_out() -> None:
    with pytest.raises(ValueError, match=r"text set \(1,000 rows\).*pair set \(5,000 rows\).*pair_every_n_steps"):
        derive_interval(1000, 5000, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 40, 20, 2), "text set has 10 rows, fewer than one batch of 20"),
        ((40, 10, 20, 2), "pair set has 10 rows, fewer than one batch of 20"),
        ((0, 0, 2, None), "neither text nor pairs"),
        ((40, 40, 4, 1), "`pair_every_n_steps` is 1"),
    ],
)
def test_impossible_schedules_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments, seed=0)


def repeated_images(schedule: Schedule, images: np.ndarray, steps: int) -> int:
    batches = [images[schedule.rows(step)[1]] for step in range(steps)]
    return sum(len(batch) - len(set(batch.tolist())) for batch in batches)


@pytest.mark.parametrize(("num_images", "captions", "batch_size"), [(2000, 5, 64), (60, 5, 16), (40, 1, 40)])
def test_no_batch_holds_an_image_twice_where_that_is_asked_for(num_images: int, captions: int, batch_size: int) -> None:
    images = np.repeat(np.arange(num_images), captions)
    plain, apart = (Schedule(0, len(images), batch_size, None, seed=0, image_of_pair=given) for given in (None, images))
    steps = 3 * apart.steps_per_epoch
    assert repeated_images(apart, images, steps) == 0
    if captions > 1:  # 64 captions of 2,000 images: a batch has a pair of one image in 100 * 64 * 63 / 2 * 4 / 9,999 %
        expected = steps * batch_size * (batch_size - 1) / 2 * (captions - 1) / (len(images) - 1)
        assert repeated_images(plain, images, steps) == pytest.approx(expected, rel=0.35)


def test_keeping_images_apart_moves_only_a_few_rows_and_loses_none() -> None:
    images = np.repeat(np.arange(2000), 5)
    plain, apart = (Schedule(0, 10_000, 64, None, seed=0, image_of_pair=given) for given in (None, images))
    before, after = (
        np.concatenate([schedule.rows(step)[1] for step in range(schedule.steps_per_epoch)])
        for schedule in (plain, apart)
    )
    assert len(set(after.tolist())) == len(after)
    assert 0.9 < (before == after).mean() < 1


TIGHT = {
    "every image in every batch": ([5] * 8, 8),
    "one batch": ([1] * 40, 40),
    "one image in every batch": ([6] + [1] * 24, 5),
    "some in more than every batch": ([9, 8, 7] + [6] * 3 + [1] * 3, 6),
    "a tail": ([5] * 9, 8),
    "a tail that only the largest image can fill": ([10] + [5] * 7, 8),
}


@pytest.mark.parametrize(("captions", "batch_size"), TIGHT.values(), ids=TIGHT)
def test_images_are_kept_apart_wherever_that_is_possible(captions: list[int], batch_size: int) -> None:
    images = np.repeat(np.arange(len(captions)), captions)
    schedules = [Schedule(0, len(images), batch_size, None, seed=seed, image_of_pair=images) for seed in (0, 0, 1)]
    epochs = []
    for epoch in range(21):
        steps = range(epoch * schedules[0].steps_per_epoch, (epoch + 1) * schedules[0].steps_per_epoch)
        first, again, other = (np.concatenate([schedule.rows(step)[1] for step in steps]) for schedule in schedules)
        for batch in first.reshape(-1, batch_size):
            assert len(set(images[batch])) == batch_size
        assert len(set(first)) == len(first)
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
        epochs.append(tuple(first))
    assert len(set(epochs)) == 21
    assert {row for epoch in epochs for row in epoch} == set(range(len(images)))  # nobody is left out for ever


def test_an_image_with_more_captions_than_batches_is_refused() -> None:
    images = np.array([0] * 7 + list(range(1, 24)))
    with pytest.raises(ValueError, match="24 images, one of them 7 times, in 6 batches. Use smaller batches"):
        Schedule(0, 30, 5, None, seed=0, image_of_pair=images)


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="There is no order .*batches of 8 .*: the 40 pairs have 7 images"):
        Schedule(0, 40, 8, None, seed=0, image_of_pair=np.arange(40) % 7)
