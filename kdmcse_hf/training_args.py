"""Training arguments: transformers' own, with the papers' settings as defaults."""

import os
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments


@dataclass
class KDMCSETrainingArguments(TrainingArguments):
    r"""[`TrainingArguments`] whose defaults are the papers' settings for BERT-base, and the schedule of batches.

    What is minimised is not set here but by an [`Objective`].
    """

    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows of a batch on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sentences that are scored at a time."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Peak learning rate of AdamW."})
    schedule: Literal["interval", "proportional"] = field(
        default="interval",
        metadata={"help": "interval: a paired batch every n-th step; proportional: every batch once, in random order."},
    )
    pair_every_n_steps: int | None = field(
        default=None, metadata={"help": "The interval; by default derived from the sizes of the two sets."}
    )
    avoid_same_image: bool = field(
        default=False, metadata={"help": "Make batches in which no two captions are of one image."}
    )
    gather_across_devices: bool = field(
        default=True, metadata={"help": "Use the rows of all processes as negatives, with gradients."}
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata={"help": "Rows that are embedded at a time: large batches in the memory of small ones (GradCache)."},
    )
    # A mean over the batch hides a NaN, and looking for one at every step waits for the device.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "See `TrainingArguments`."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "See `TrainingArguments`."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "See `TrainingArguments`."})

    def __post_init__(self) -> None:
        if self.ddp_find_unused_parameters is None:
            # Text batches leave the cross-modal heads unused.
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1 and self.world_size == 1:
            raise ValueError(
                f"{started} processes were started, but this one believes that it is alone and would train by itself. "
                "Without GPUs say so: `--use_cpu true`. With GPUs, check that torch sees them."
            )
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if self.world_size == 1 and tasks != "1":
            raise ValueError(
                f"`srun` started {tasks} tasks, and this one would train by itself: start one task a node, and in it "
                "`accelerate launch` or `torchrun`. If each is to be a run of its own, or only the first task "
                "has this shell, unset SLURM_STEP_NUM_TASKS."
            )
        sampling = getattr(self, "train_sampling_strategy", "random")  # since transformers 5.2
        if self.auto_find_batch_size or sampling != "random":
            raise ValueError(
                f"`auto_find_batch_size={self.auto_find_batch_size}` and `train_sampling_strategy={sampling!r}`: "
                "expected False and 'random', for the `schedule` makes the batches. To save memory with the same "
                "negatives, set `mini_batch_size`."
            )
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"`mini_batch_size` is {self.mini_batch_size}: expected at least 1, or none.")
        if self.pair_every_n_steps is not None and self.schedule != "interval":
            raise ValueError(
                f"`pair_every_n_steps={self.pair_every_n_steps}` has no effect with `schedule={self.schedule!r}`: "
                "drop one of the two."
            )
