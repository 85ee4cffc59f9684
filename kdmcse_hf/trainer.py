"""The Trainer: one objective over scheduled batches, every term logged, scored on STS pairs as it goes."""

import dataclasses
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from kdmcse_hf.checkpoint import (
    check_same_everywhere,
    check_same_run,
    last_complete_checkpoint,
    save_description,
    save_record,
)
from kdmcse_hf.data import ContrastiveCollator, TrainingData, schedule_of
from kdmcse_hf.distributed import gather_rows
from kdmcse_hf.dropout import speed_up_dropout
from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.grad_cache import cached_backward, split_rows
from kdmcse_hf.modeling_kdmcse import KDMCSEModel, KDMCSEOutput
from kdmcse_hf.objective import Objective, ObjectiveOutput, PairEmbeddings, compute_objective
from kdmcse_hf.packing import pack_rows
from kdmcse_hf.preflight import check_fit
from kdmcse_hf.push import push_checkpoint, push_trained
from kdmcse_hf.schedule import ScheduledBatchSampler, SetEpoch
from kdmcse_hf.sharding import first_non_finite, own_class, set_up_sharding
from kdmcse_hf.sts import SentencePairs, score_pairs
from kdmcse_hf.term_log import TermLog
from kdmcse_hf.training_args import KDMCSETrainingArguments
from kdmcse_hf.training_record import data_record, forward_switches, training_record
from kdmcse_hf.truncation import cut_tokenizer

logger = logging.get_logger(__name__)

NUM_VIEWS = 2


class NonFiniteError(RuntimeError):
    """Training met a NaN or an infinity and stopped; the last checkpoint is still good."""


class KDMCSETrainer(Trainer):
    r"""Trains a [`KDMCSEModel`] on an [`Objective`].

    Logged beside the loss, as means since the last log: every term (`text_loss`, `image_loss`, `caption_loss`), the
    filtered share of negatives (`*_filter_rate`) and the share of the others that got a margin (`*_margin_rate`).
    A saved folder holds the model; the tokenizer, which cuts after 128 tokens if it and the encoder take more;
    `objective.json`, the switches with calibrated thresholds and what the filters do to a sample of the training pairs;
    and `training_record.json` (see [`training_record`]).

    Args:
        model: the model, in float32.
        args: training arguments.
        objective: what to minimise; `rate:` thresholds are calibrated on the training pairs here.
        train_dataset: text, pairs, or both.
        eval_dataset: scored pairs (STS-B dev); gives `eval_spearman`, `eval_alignment`, `eval_uniformity`.
        processing_class: the tokenizer; a copy is kept.
        kwargs: as in `Trainer`.

    Raises:
        ValueError: data, model and objective do not fit together; says how.
    """

    args: KDMCSETrainingArguments
    train_dataset: TrainingData

    def __init__(
        self,
        model: KDMCSEModel,
        args: KDMCSETrainingArguments,
        objective: Objective,
        train_dataset: TrainingData,
        eval_dataset: SentencePairs | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("`processing_class` is None: the Trainer needs the model's tokenizer to pad and to score.")
        processing_class = cut_tokenizer(processing_class, model)
        self.objective: Objective
        self.objective, self.filter_reports = check_fit(model, objective, train_dataset, args.seed)
        if args.world_size > 1:  # processors may round a calibrated threshold otherwise
            self.objective, self.filter_reports = broadcast_object_list([self.objective, self.filter_reports])
        if args.device.type == "cpu":
            pack_rows(model.encoder, first_token_only=model.config.pooling == "cls")
            speed_up_dropout(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=ContrastiveCollator(processing_class),
            **kwargs,
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs, which would split each batch and its negatives. Start one "
                "process a GPU (`accelerate launch` or `torchrun --nproc_per_node`), or set CUDA_VISIBLE_DEVICES."
            )
        set_up_sharding(self.accelerator.state, model, self.args.mini_batch_size)
        # The loss is a mean over a batch, whatever the forward signature says: Trainer divides it to accumulate.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self.can_return_loss = True
        self.sampler = ScheduledBatchSampler(schedule_of(args, train_dataset), args.world_size)
        negatives_of = args.world_size if args.gather_across_devices else 1
        if negatives_of * args.per_device_train_batch_size < 2:
            raise ValueError("A batch of one sentence has no negatives: raise `per_device_train_batch_size`.")
        self.add_callback(SetEpoch(self.sampler, args.gradient_accumulation_steps))
        self.term_log = TermLog()
        self._best_step: int | None = None  # where the weights are the best checkpoint's, not the last step's

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """As in `Trainer`, but `resume_from_checkpoint=True` takes the newest checkpoint that was saved whole.

        Raises:
            ValueError: the checkpoint is of another objective, schedule, model or data; names the difference.
            NonFiniteError: a term or a weight became NaN or infinite.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
        check_same_everywhere(resume_from_checkpoint)
        if resume_from_checkpoint:
            check_same_run(resume_from_checkpoint, {**self._description(), **data_record(self.train_dataset)})
        if self.args.world_size > 1:
            torch.manual_seed(self.args.seed + self.args.process_index)  # each draws its own dropout
        self.term_log, self._best_step = TermLog(), None
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._raise_if_not_finite()
        self._average_weights()
        return output

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches as the schedule has them, one kind at a time on all processes."""
        dataloader: DataLoader[Any] = DataLoader(
            self.train_dataset,
            batch_sampler=self.sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return cast(DataLoader[Any], self.accelerator.prepare(dataloader))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The objective of one batch, with the rows of all processes as candidates."""
        anchors, outputs = self._embed(model, inputs)
        result = self._score(anchors)
        if model.training:
            self.term_log.record({**result.terms, **result.rates}, self.state.global_step + 1)
        return (result.loss, outputs) if return_outputs else result.loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in `Trainer`; with `mini_batch_size`, gradients are cached (see [`cached_backward`])."""
        if self.args.mini_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        getattr(self.optimizer, "train", lambda: None)()
        steps = self.current_gradient_accumulation_steps

        def embed(part: dict[str, Tensor]) -> PairEmbeddings:
            with self.compute_loss_context_manager():
                return self._embed(model, part)[0]

        result = cached_backward(
            split_rows(self._prepare_inputs(inputs), self.args.mini_batch_size),
            embed,
            self._score,
            backward=lambda loss: self.accelerator.backward(loss / steps),
            no_sync=lambda: self.accelerator.no_sync(model),
        )
        self.term_log.record({**result.terms, **result.rates}, self.state.global_step + 1)
        return result.loss / steps

    def _embed(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[PairEmbeddings, KDMCSEOutput]:
        """The rows of this process as the objective sees them, and as the model returned them."""
        inputs = dict(inputs)
        image_ids = inputs.pop("image_ids", None)
        teacher = {side: inputs.pop(f"teacher_{side}_embeds", None) for side in ("image", "text")}
        # What only a filter or a margin reads has no projection in the model.
        for term, side in (("image", "image"), ("caption", "text")):
            if term in self.objective.terms and (features := teacher[side]) is not None:
                inputs[f"teacher_{side}_embeds"] = features
        outputs = model(**inputs, num_views=NUM_VIEWS)
        anchors = PairEmbeddings(
            text=outputs.text_embeds,
            grounded=outputs.grounded_embeds,
            image=outputs.image_embeds,
            caption=outputs.caption_embeds,
            teacher_image=teacher["image"],
            teacher_text=teacher["text"],
            image_ids=image_ids,
        )
        if self.objective.terms and image_ids is not None and anchors.grounded is None:
            raise RuntimeError("The model returned no grounded embeddings for a paired batch: its terms would be lost.")
        return anchors, outputs

    def _score(self, anchors: PairEmbeddings) -> ObjectiveOutput:
        """The objective of this step, with the rows of all processes as candidates."""
        objective = self.objective.at(self.state.global_step, self.state.max_steps)
        if self.args.world_size == 1 or not self.args.gather_across_devices:
            return compute_objective(objective, anchors)
        candidates = dataclasses.replace(anchors, text=anchors.text[:, -1:], grounded=None).map(gather_rows)
        return compute_objective(objective, anchors, candidates, self.args.process_index * len(anchors.text))

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: SentencePairs | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Spearman, alignment and uniformity on scored pairs. Every process computes all of it."""
        self._raise_if_not_finite()
        self._average_weights()
        pairs = cast(SentencePairs | None, self.eval_dataset) if eval_dataset is None else eval_dataset
        if pairs is None:
            raise ValueError("There is nothing to evaluate on: give the Trainer an `eval_dataset` of scored pairs.")
        model = self.accelerator.unwrap_model(self.model)
        tokenizer = cast(PreTrainedTokenizerBase, self.processing_class)
        encoder = SentenceEncoder(model, tokenizer, batch_size=self.args.per_device_eval_batch_size)
        with self.accelerator.autocast():
            scores = score_pairs(encoder, pairs)
        if isinstance(self.model, FSDPModule):
            self.model.reshard()  # the best checkpoint may be loaded next, and goes into shards
        if self.args.world_size > 1:  # processes that round otherwise would take other checkpoints for the best
            scores = broadcast_object_list([scores])[0]
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means of all terms and rates since the last training log."""
        if "loss" in logs:
            self._raise_if_not_finite()
            logs = {**logs, **self.term_log.drain(self.accelerator)}
        super().log(logs, start_time)

    def _average_weights(self) -> None:
        """Of schedule-free optimizers, which keep two sets; the next step goes back to the other one."""
        getattr(self.optimizer, "eval", lambda: None)()

    def _raise_if_not_finite(self) -> None:
        if bad := self.term_log.first_bad_steps(self.accelerator):
            first = min(bad.values())
            terms = ", ".join(name for name, step in bad.items() if step == first)
            raise NonFiniteError(
                f"At step {first} the {terms} became NaN or infinite; training stops. {self._last_good()} Lower the "
                "learning rate, raise the temperature, clip gradients (`max_grad_norm`), or use bf16 instead of fp16."
            )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with own_class(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
        if not self.args.should_save:  # every process comes by
            return
        folder = output_dir or str(self.args.output_dir)
        save_description(folder, self._description())
        step = self.state.global_step if self._best_step is None else self._best_step
        model, dev = self.accelerator.unwrap_model(self.model), cast(SentencePairs | None, self.eval_dataset)
        pairs = 0 if dev is None else len(dev)
        save_record(folder, training_record(model, self.args, self.train_dataset, self.state, step, pairs))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._best_step = self.state.best_global_step

    def _description(self) -> dict[str, Any]:
        return {
            "objective": dataclasses.asdict(self.objective),
            "schedule": self.sampler.schedule.describe(),
            "filters": [dataclasses.asdict(report) for report in self.filter_reports],
            "model": forward_switches(self.accelerator.unwrap_model(self.model)),
            "optimization": {"gradient_accumulation_steps": self.args.gradient_accumulation_steps},
        }

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A checkpoint with NaN in it must never push a good one out.
        self._raise_if_not_finite()
        if name := first_non_finite(model, self.accelerator):
            raise NonFiniteError(
                f"After step {self.state.global_step} the parameter {name} is NaN or infinite; training stops and this "
                f"step is not saved. {self._last_good()} Lower the learning rate."
            )
        self._average_weights()
        super()._save_checkpoint(model, trial)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`, but what is pushed is a release (see [`export_release`])."""
        return push_trained(self, *args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        push_checkpoint(self, checkpoint_folder)

    def _last_good(self) -> str:
        checkpoint = last_complete_checkpoint(str(self.args.output_dir))
        return f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint had been saved yet."
