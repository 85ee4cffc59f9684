import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import make_cache, make_sentences, make_tokenizer, write_sts

from kdmcse_hf import KDMCSEModel, KDMCSETrainer, KDMCSETrainingArguments
from kdmcse_hf import trainer as trainer_module
from kdmcse_hf.checkpoint import differences, last_complete_checkpoint
from kdmcse_hf.data import CaptionPairs, TrainingData, tokenize
from kdmcse_hf.objective import Objective
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.sts import load_sts
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.trainer import NonFiniteError

LOOSE = {"image_threshold": "rate:0.05", "caption_threshold": "rate:0.05"}
KDMCSE = dataclasses.replace(PRESETS["kdmcse"], **LOOSE)
PLUS = dataclasses.replace(PRESETS["kdmcse_plus"], **LOOSE)


def make_trainer(
    tmp_path: Path,
    encoder: Path,
    objective: Objective = KDMCSE,
    num_text: int = 200,
    text_seed: int = 9,
    pairs: bool = True,
    dev: bool = False,
    dropout: bool = True,
    nan_feature: bool = False,
    **arguments: object,
) -> KDMCSETrainer:
    tokenizer = make_tokenizer()
    folder = tmp_path / "cache"
    cache = (TeacherCache(folder) if folder.exists() else make_cache(folder)) if pairs else None
    if nan_feature:  # changed behind the manifest's back
        shard = folder / "image_features-00000.safetensors"
        content = bytearray(shard.read_bytes())
        content[-48:] = np.full(12, np.nan, np.float32).tobytes()
        shard.write_bytes(content)
        cache = TeacherCache(folder)
    sentences = Dataset.from_dict({"text": make_sentences(num_text, seed=text_seed)})
    data = TrainingData(
        tokenize(sentences, "text", tokenizer, 32) if num_text else None,
        CaptionPairs(TeacherPairs(cache, captions_per_image=objective.captions_per_image), tokenizer)
        if cache
        else None,
        objective.needs,
    )
    torch.manual_seed(0)
    model = KDMCSEModel.from_encoder(
        encoder,
        image_embed_dim=12 if objective.image_term else None,
        caption_embed_dim=12 if objective.caption_term else None,
        projection_dim=8,
    )
    if not dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    if dev and not (tmp_path / "sts").exists():
        write_sts(tmp_path / "sts", make_sentences(30, seed=5))
    settings = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 8,
        "pair_every_n_steps": 2 if num_text and pairs else None,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        **arguments,
    }
    return KDMCSETrainer(
        model,
        KDMCSETrainingArguments(**settings),
        objective,
        train_dataset=data,
        eval_dataset=load_sts(tmp_path / "sts", "STSB", "dev") if dev else None,
        processing_class=tokenizer,
    )


def losses(trainer: KDMCSETrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def bert(encoder_folder) -> Path:
    return encoder_folder("bert")


# One term, whose filter and margin read both of the teacher's sides all the same.
ONE_TERM = {
    "image term": dataclasses.replace(KDMCSE, caption_term=False),
    "caption term": dataclasses.replace(KDMCSE, image_term=False, caption_margin_source="text_image"),
}


@pytest.mark.parametrize("mini_batch_size", [None, 3])
@pytest.mark.parametrize("name", [*PRESETS, *ONE_TERM])
def test_every_objective_moves_every_parameter_it_has(
    name: str, mini_batch_size: int | None, bert: Path, tmp_path: Path
) -> None:
    objective = (PRESETS | {"kdmcse": KDMCSE, "kdmcse_plus": PLUS} | ONE_TERM)[name]
    assert name not in ONE_TERM or objective.needs == {"image", "text"}
    trainer = make_trainer(tmp_path, bert, objective, mini_batch_size=mini_batch_size)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    still = {name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])}
    # Keys' biases cancel in the softmax, and one token type is never used apart from the rest.
    assert not {name for name in still if not name.endswith("key.bias")}


def test_the_loss_falls(bert: Path, tmp_path: Path) -> None:
    objective = dataclasses.replace(PRESETS["mcse"], cross_modal_weight=1.0)
    trainer = make_trainer(tmp_path, bert, objective, num_text=0, max_steps=60)
    trainer.train()
    found = losses(trainer)
    assert np.mean(found[-10:]) < 0.7 * np.mean(found[:5])


def test_terms_and_rates_are_logged_and_add_up_to_the_loss(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert, PLUS)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for paired in logs[::2]:  # the weight rises from 0 to twice its mean
        grounding = paired["image_loss"] + paired["caption_loss"] + paired["ranking_loss"]
        weight = 2 * PLUS.cross_modal_weight * (paired["step"] - 1) / trainer.state.max_steps
        assert paired["loss"] == pytest.approx(paired["text_loss"] + weight * grounding, rel=1e-5)
    assert len(logs) > 2
    text = logs[1]
    assert {"image_filter_rate", "caption_filter_rate", "image_margin_rate", "caption_margin_rate"} <= paired.keys()
    assert text["loss"] == pytest.approx(text["text_loss"], rel=1e-5)
    assert "image_loss" not in text


def test_captions_can_be_ordered_without_a_term_over_pictures(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert, dataclasses.replace(PRESETS["simcse"], ranking_term=True))
    trainer.train()
    paired, text = [entry for entry in trainer.state.log_history if "loss" in entry][:2]
    assert paired["loss"] == pytest.approx(paired["text_loss"] + 0.01 * paired["ranking_loss"], rel=1e-5)
    assert {"ranking_loss", "image_loss", "caption_loss"}.isdisjoint(text)


def test_logged_terms_are_means_over_the_steps_since_the_last_log(bert: Path, tmp_path: Path) -> None:
    every = make_trainer(tmp_path, bert)
    every.train()
    single = [entry["text_loss"] for entry in every.state.log_history if "text_loss" in entry]
    together = make_trainer(tmp_path, bert, logging_steps=4)
    together.train()
    (entry,) = [entry for entry in together.state.log_history if "text_loss" in entry]
    assert entry["text_loss"] == pytest.approx(np.mean(single), rel=1e-5)


def test_the_loss_logged_under_accumulation_is_the_mean_over_micro_batches(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert, gradient_accumulation_steps=2, learning_rate=0.0, max_steps=2)
    trainer.train()
    plain = make_trainer(tmp_path, bert, learning_rate=0.0, max_steps=4)
    plain.train()
    single = losses(plain)
    assert losses(trainer) == pytest.approx([np.mean(single[:2]), np.mean(single[2:])], rel=1e-5)


def test_accumulated_gradients_are_the_mean_over_micro_batches(bert: Path, tmp_path: Path) -> None:
    gradients = []
    for steps in (1, 2):
        trainer = make_trainer(tmp_path, bert, dropout=False, gradient_accumulation_steps=steps)
        batches = [trainer.data_collator(trainer.train_dataset.__getitems__(rows)) for rows in ([0, 1, 2], [5, 6, 7])]
        trainer.current_gradient_accumulation_steps = steps
        for batch in batches:
            trainer.training_step(trainer.model, batch)
        gradients.append(trainer.model.pooler.dense.weight.grad)
    torch.testing.assert_close(gradients[0] / 2, gradients[1])


def test_accumulation_is_not_a_bigger_batch(bert: Path, tmp_path: Path) -> None:
    """Each micro-batch has its own negatives only: what GradCache and gathering are for."""
    trainer = make_trainer(tmp_path, bert, dropout=False)
    collate, rows = trainer.data_collator, trainer.train_dataset.__getitems__
    whole = trainer.compute_loss(trainer.model, collate(rows([0, 1, 2, 3]))).item()
    halves = [trainer.compute_loss(trainer.model, collate(rows(part))).item() for part in ([0, 1], [2, 3])]
    assert whole > max(halves)


def test_the_dev_score_is_logged_and_the_best_checkpoint_is_the_one_loaded(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        bert,
        dev=True,
        max_steps=6,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="spearman",
        greater_is_better=True,
    )
    trainer.train()
    scores = [entry["eval_spearman"] for entry in trainer.state.log_history if "eval_spearman" in entry]
    assert len(scores) == 6
    assert trainer.state.best_metric == max(scores)
    assert trainer.evaluate()["eval_spearman"] == pytest.approx(max(scores), abs=1e-4)


@pytest.mark.parametrize(("accumulation", "updates"), [(1, 14), (4, 5)])
def test_batches_are_the_schedule_s_in_every_epoch(accumulation: int, updates: int, bert: Path, tmp_path: Path) -> None:
    # 48 pairs make 6 steps an epoch: with accumulation, an update of 4 and one of 2
    settings = {"gradient_accumulation_steps": accumulation, "max_steps": updates}
    trainer = make_trainer(tmp_path, bert, num_text=0, **settings)
    compute, seen = trainer.compute_loss, []

    def watched(model, inputs, *args, **kwargs):
        seen.append(inputs["image_ids"].tolist())
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    image_rows = trainer.train_dataset.pairs.teacher.image_rows
    assert seen == [image_rows[trainer.sampler.schedule.rows(step)[1]].tolist() for step in range(len(seen))]
    assert len(seen) >= 14


@pytest.mark.parametrize("apart", [False, True])
def test_captions_of_one_image_meet_in_a_batch_unless_the_sampler_keeps_them_apart(
    apart: bool, bert: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, bert, num_text=0, avoid_same_image=apart)
    batches = [batch["image_ids"].tolist() for _ in range(3) for batch in trainer.get_train_dataloader()]
    assert (sum(len(batch) - len(set(batch)) for batch in batches) == 0) is apart


def test_same_seed_same_curve_and_another_seed_another(bert: Path, tmp_path: Path) -> None:
    curves = []
    for seed in (1, 1, 2):
        trainer = make_trainer(tmp_path, bert, seed=seed)
        trainer.train()
        curves.append(losses(trainer))
    assert curves[0] == curves[1] != curves[2]


def test_workers_change_nothing(bert: Path, tmp_path: Path) -> None:
    curves = []
    for workers in (0, 2):
        trainer = make_trainer(tmp_path, bert, dataloader_num_workers=workers, dropout=False)
        trainer.train()
        curves.append(losses(trainer))
    assert curves[0] == curves[1]


def test_bf16_follows_float32_with_float32_weights(bert: Path, tmp_path: Path) -> None:
    curves = []
    for bf16 in (False, True):
        trainer = make_trainer(tmp_path, bert, dropout=False, bf16=bf16)
        trainer.train()
        curves.append(losses(trainer))
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.05)
    assert curves[0] != curves[1]


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}])
def test_mini_batches_change_neither_losses_nor_weights(settings: dict, bert: Path, tmp_path: Path) -> None:
    # Plain gradient descent, for Adam would forgive a wrong scale of the gradients.
    settings = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 1e9, **settings}
    curves, moves = [], []
    for mini_batch_size in (None, 3):
        trainer = make_trainer(tmp_path, bert, dropout=False, mini_batch_size=mini_batch_size, **settings)
        before = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "text_loss" in entry]
        curves.append([(e["loss"], e["text_loss"], e.get("image_filter_rate", 0.0)) for e in logs])
        moves.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before)
    tolerance = 0.03 if settings.get("bf16") else 1e-3
    np.testing.assert_allclose(curves[1], curves[0], rtol=tolerance, atol=1e-6)
    assert (moves[1] - moves[0]).norm() <= tolerance * moves[0].norm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_gpu_follows_float32(precision: str, bert: Path, tmp_path: Path) -> None:
    curves = []
    for settings in ({}, {precision: True}):
        trainer = make_trainer(tmp_path, bert, dropout=False, use_cpu=False, **settings)
        trainer.train()
        curves.append(losses(trainer))
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.05)


def test_the_record_knows_of_a_precision_that_accelerate_s_configuration_asked_for(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    make_trainer(tmp_path, bert).save_model(str(tmp_path / "saved"))
    record = json.loads((tmp_path / "saved" / "training_record.json").read_text())
    assert record["settings"]["precision"] == "bfloat16, mixed"


def test_a_step_under_fp16_autocast_has_finite_gradients(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert)
    first_pair = trainer.train_dataset.num_text
    batch = trainer.data_collator(trainer.train_dataset.__getitems__(list(range(first_pair, first_pair + 8))))
    with torch.autocast("cpu", dtype=torch.float16):
        loss = trainer.compute_loss(trainer.model, batch)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in trainer.model.parameters())


def test_resuming_in_mid_epoch_gives_the_straight_run_s_losses(bert: Path, tmp_path: Path) -> None:
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 5, "output_dir": str(tmp_path / "straight")}
    straight = make_trainer(tmp_path, bert, **settings)
    straight.train()
    resumed = make_trainer(tmp_path, bert, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-5"))
    assert losses(resumed) == losses(straight)


def test_resuming_in_a_later_epoch_goes_on_with_that_epoch_s_order(bert: Path, tmp_path: Path) -> None:
    # 48 pairs make 6 steps an epoch
    settings = {"max_steps": 14, "save_strategy": "steps", "save_steps": 8, "output_dir": str(tmp_path / "straight")}
    straight = make_trainer(tmp_path, bert, num_text=0, **settings)
    straight.train()
    resumed = make_trainer(tmp_path, bert, num_text=0, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-8"))
    assert losses(resumed) == losses(straight)


def test_a_half_written_checkpoint_is_passed_over(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert, save_strategy="steps", save_steps=2)
    trainer.train()
    newest = tmp_path / "out" / "checkpoint-4"
    state = newest / "trainer_state.json"
    state.write_text(state.read_text()[:20])
    assert last_complete_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-2")
    resumed = make_trainer(tmp_path, bert, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(trainer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": dataclasses.replace(KDMCSE, cross_modal_weight=0.5)}, "cross_modal_weight was 0.01, is 0.5"),
        ({"per_device_train_batch_size": 4}, "batch_size was 8, is 4"),
        ({"pair_every_n_steps": 3}, "pair_every_n_steps was 2, is 3"),
        ({"seed": 7}, "seed was 42, is 7"),
        ({"text_seed": 8}, "sha256 was .*, is"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1, is 2"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_resumed(changes: dict, message: str, bert: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path, bert, save_strategy="steps", save_steps=2).train()
    other = make_trainer(tmp_path, bert, **changes)
    with pytest.raises(ValueError, match=f"checkpoint-4 belongs to another run: .*{message}"):
        other.train(resume_from_checkpoint=True)


def test_a_part_that_only_one_of_two_runs_has_is_a_difference() -> None:
    plain, variant = {"objective": {}}, {"objective": {}, "variant": {"extra_negatives": 512}}
    assert differences(plain, variant, ("objective", "variant")) == ["extra_negatives was None, is 512"]
    assert differences(variant, plain, ("objective", "variant")) == ["extra_negatives was 512, is None"]


def test_a_checkpoint_of_other_pooling_or_dropout_is_not_resumed(bert: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path, bert, save_strategy="steps", save_steps=2).train()
    other = make_trainer(tmp_path, bert)
    other.model.config.pooling = "mean"
    other.model.config.text_config.hidden_dropout_prob = 0.3
    with pytest.raises(ValueError, match="pooling was 'cls', is 'mean'; hidden_dropout_prob was 0.1, is 0.3"):
        other.train(resume_from_checkpoint=True)


class Averaging(torch.optim.SGD):
    """An optimizer with two sets of weights, as schedule-free ones have."""

    mode = "train"

    def eval(self) -> None:
        self.mode = "eval"

    def train(self) -> None:
        self.mode = "train"

    def step(self, closure: None = None) -> None:
        assert self.mode == "train"
        super().step(closure)


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_weights_are_scored_and_saved_as_the_optimizer_evaluates_them(
    mini_batch_size: int | None, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduled = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(tmp_path, bert, dev=True, mini_batch_size=mini_batch_size, **scheduled)
    optimizer = trainer.optimizer = Averaging(trainer.model.parameters(), lr=1e-3)
    modes = []
    for name in ("score_pairs", "save_description"):
        function = getattr(trainer_module, name)
        monkeypatch.setattr(
            trainer_module, name, lambda *a, function=function: modes.append(optimizer.mode) or function(*a)
        )
    trainer.train()
    assert modes == ["eval"] * 4
    assert trainer.state.global_step == 4

    trainer = make_trainer(tmp_path, bert, mini_batch_size=mini_batch_size, save_strategy="steps", save_steps=3)
    optimizer = trainer.optimizer = Averaging(trainer.model.parameters(), lr=1e-3)
    modes.clear()
    trainer.train()
    trainer.save_model()
    assert modes == ["eval"] * 3  # at the third step, at the last, and what is left in the folder


def test_a_nan_is_raised_even_where_nothing_logs_or_saves(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert, logging_steps=100)
    with torch.no_grad():
        trainer.model.pooler.dense.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="At step 1 the text_loss"):
        trainer.train()


@pytest.mark.parametrize("term", ["text_loss", "image_loss"])
def test_a_nan_stops_the_run_names_step_and_term_and_keeps_the_last_good_checkpoint(
    term: str, bert: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(
        tmp_path, bert, max_steps=20, save_strategy="steps", save_steps=2, save_total_limit=1, logging_steps=4
    )
    compute = trainer.compute_loss

    def poisoned(model, inputs, *args, **kwargs):
        if trainer.state.global_step == 4:  # the fifth step, a paired one
            head = model.pooler.dense if term == "text_loss" else model.image_projection
            with torch.no_grad():
                head.weight[0, 0] = math.nan
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = poisoned
    with pytest.raises(NonFiniteError, match=rf"At step 5 the {term} became NaN.*checkpoint-4"):
        trainer.train()
    kept = KDMCSEModel.from_pretrained(tmp_path / "out" / "checkpoint-4")
    assert all(p.isfinite().all() for p in kept.parameters())


def test_a_trained_folder_opens_with_the_vectors_that_were_scored(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    from kdmcse_hf import SentenceEncoder

    trainer = make_trainer(tmp_path, bert)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    sentences = make_sentences(12)
    scored = SentenceEncoder(trainer.model, trainer.processing_class)(sentences)
    opened = SentenceEncoder(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))(sentences)
    np.testing.assert_array_equal(scored, opened)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["KDMCSEModel"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pairs": False, "objective": KDMCSE},
            "reads the teacher's image and text features, but there are no pairs: give a teacher cache, or use the",
        ),
        ({"per_device_train_batch_size": 1}, "A batch of one sentence has no negatives"),
        ({"nan_feature": True}, "has image features that are NaN or infinite"),
        ({"per_device_train_batch_size": 64}, "pair set has 48 rows, fewer than one batch of 64"),
        ({"pair_every_n_steps": None, "num_text": 40}, r"text set \(40 rows\) is not twice the pair set \(48 rows\)"),
        (
            {"objective": dataclasses.replace(KDMCSE, image_threshold="cosine:0.9999")},
            "image term cannot work.*filters 0.0000%",
        ),
        (
            {"objective": dataclasses.replace(KDMCSE, caption_threshold="cosine:-0.9")},
            "caption term cannot work",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(changes: dict, message: str, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, bert, **changes)


def test_features_that_do_not_fit_the_model_are_refused_with_both_widths(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert)
    model = KDMCSEModel.from_encoder(bert, image_embed_dim=13, caption_embed_dim=12)
    with pytest.raises(ValueError, match="image features of width 12, but the model's `image_embed_dim` is 13"):
        KDMCSETrainer(model, trainer.args, KDMCSE, trainer.train_dataset, processing_class=trainer.processing_class)


def test_a_half_precision_model_is_refused_for_training(bert: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bert)
    with pytest.raises(ValueError, match="bfloat16: small updates would be lost"):
        KDMCSETrainer(
            trainer.model.to(torch.bfloat16),
            trainer.args,
            KDMCSE,
            trainer.train_dataset,
            processing_class=trainer.processing_class,
        )


def test_processes_that_do_not_see_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but this one believes that it is alone"):
        KDMCSETrainingArguments(str(tmp_path))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(ValueError, match="`srun` started 8 tasks, and this one would train by itself"):
        KDMCSETrainingArguments(str(tmp_path))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    KDMCSETrainingArguments(str(tmp_path))


@pytest.mark.parametrize("flag", [{"auto_find_batch_size": True}, {"train_sampling_strategy": "group_by_length"}])
def test_other_batches_than_the_schedule_s_are_refused(flag: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the `schedule` makes the batches"):
        KDMCSETrainingArguments(str(tmp_path), **flag)
