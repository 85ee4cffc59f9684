"""Several processes on CPU (gloo) against one process with the whole batch."""

import dataclasses
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from ranks import run_ranks
from tiny import make_cache, make_sentences, make_tokenizer, write_sts
from torch.distributed.fsdp import fully_shard
from transformers import AutoModel

from kdmcse_hf import KDMCSEModel, KDMCSETrainer, KDMCSETrainingArguments
from kdmcse_hf.data import CaptionPairs, TrainingData, tokenize
from kdmcse_hf.distributed import gather_rows
from kdmcse_hf.objective import PairEmbeddings, compute_objective
from kdmcse_hf.presets import PRESETS
from kdmcse_hf.sharding import first_non_finite
from kdmcse_hf.sts import load_sts
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.term_log import TermLog

pytestmark = pytest.mark.slow

KDMCSE = dataclasses.replace(
    PRESETS["kdmcse_plus"], image_threshold="rate:0.05", caption_threshold="rate:0.05", cross_modal_weight=0.5
)


def embeddings() -> tuple[PairEmbeddings, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    leaves = [normal(12, 2, 6), normal(12, 2, 5), normal(12, 5), normal(12, 5)]
    return PairEmbeddings(*leaves, normal(12, 7), normal(12, 7), torch.arange(12) // 2), leaves


REFERENCE = dataclasses.replace(PRESETS["kdmcse_plus"], image_threshold="cosine:0.3", caption_threshold="cosine:0.3")


def gathered_dtypes() -> list[torch.dtype]:
    dist.init_process_group("gloo")
    return [gather_rows(torch.ones(2, 3).to(dtype)).dtype for dtype in (torch.bfloat16, torch.float64, torch.int64)]


def test_half_precision_is_gathered_in_float32(tmp_path: Path) -> None:
    assert run_ranks(gathered_dtypes, 2, tmp_path)[1] == [torch.float32, torch.float64, torch.int64]


def local_gradients() -> list[torch.Tensor]:
    """This rank's gradients of its own rows, as DDP would average them."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    whole, _ = embeddings()
    share = 12 // world
    anchors = whole.map(lambda rows: rows[rank * share : (rank + 1) * share].clone())
    for name in ("text", "grounded", "image", "caption"):
        getattr(anchors, name).requires_grad_()
    loss = compute_objective(REFERENCE, anchors, anchors.map(gather_rows), rank * share).loss
    loss.backward()
    return [getattr(anchors, name).grad / world for name in ("text", "grounded", "image", "caption")]


@pytest.mark.parametrize("world", [2, 3])
def test_gathered_gradients_are_those_of_one_process_with_the_whole_batch(world: int, tmp_path: Path) -> None:
    whole, leaves = embeddings()
    for leaf in leaves:
        leaf.requires_grad_()
    compute_objective(REFERENCE, whole).loss.backward()
    ranks = run_ranks(local_gradients, world, tmp_path)
    for place, leaf in enumerate(leaves):
        torch.testing.assert_close(torch.cat([rank[place] for rank in ranks]), leaf.grad, rtol=1e-9, atol=1e-12)


_SCORED = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "eval_on_start": True,
    "save_strategy": "best",
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_spearman",
    "greater_is_better": True,
}


def train(
    encoder: str,
    cache: str,
    output_dir: str,
    batch_size: int,
    gather: bool = True,
    mini: int | None = None,
    resume: str | None = None,
    optim: str = "sgd",
    sts: str | None = None,
) -> dict:
    tokenizer = make_tokenizer()
    text = tokenize(Dataset.from_dict({"text": make_sentences(200, seed=9)}), "text", tokenizer, 32)
    data = TrainingData(text, CaptionPairs(TeacherPairs(TeacherCache(cache)), tokenizer), KDMCSE.needs)
    torch.manual_seed(0)
    model = KDMCSEModel.from_encoder(encoder, image_embed_dim=12, caption_embed_dim=12, projection_dim=8)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # each process draws its own masks
    args = KDMCSETrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=batch_size,
        pair_every_n_steps=2,
        max_steps=6,
        logging_steps=1,
        save_steps=3,
        use_cpu=True,
        disable_tqdm=True,
        optim=optim,
        **({} if sts is None else _SCORED),
        learning_rate=0.05,
        gather_across_devices=gather,
        mini_batch_size=mini,
    )
    kinds: list[bool] = []
    dev = None if sts is None else load_sts(sts, "STSB", "dev")
    trainer = KDMCSETrainer(model, args, KDMCSE, data, dev, processing_class=tokenizer)
    compute = trainer.compute_loss

    def watched(model: torch.nn.Module, inputs: dict, *rest: object, **named: object) -> object:
        kinds.append("image_ids" in inputs)
        return compute(model, inputs, *rest, **named)

    trainer.compute_loss = watched
    trainer.train(resume)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "next random number": torch.rand(1).item(),
        "scores": [entry["eval_spearman"] for entry in trainer.state.log_history if "eval_spearman" in entry],
        "kinds": kinds,
        "losses": [entry["loss"] for entry in logs],
        "text": [entry["text_loss"] for entry in logs],
        "rates": [entry.get("image_filter_rate", 0.0) for entry in logs],
        "weights": {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
    }


def test_two_processes_train_as_one_with_their_batch(encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    encoder = str(encoder_folder("bert"))
    alone = train(encoder, str(cache.folder), str(tmp_path / "alone"), 8)
    ranks = run_ranks(train, 2, tmp_path, encoder, str(cache.folder), str(tmp_path / "two"), 4)
    assert ranks[0]["next random number"] != ranks[1]["next random number"]  # nor the same dropout
    assert ranks[0]["kinds"] == ranks[1]["kinds"] == alone["kinds"] == [True, False] * 3
    for name in ("losses", "text", "rates"):
        assert ranks[0][name] == pytest.approx(alone[name], rel=1e-4), name
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(ranks[0]["weights"][name], weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ranks[1]["weights"][name], ranks[0]["weights"][name], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_cached_gradients_train_as_the_whole_batch_does(world: int, encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    encoder = str(encoder_folder("bert"))
    alone = train(encoder, str(cache.folder), str(tmp_path / "alone"), 8)
    arguments = (encoder, str(cache.folder), str(tmp_path / "cached"), 8 // world, True, 3)
    cached = train(*arguments) if world == 1 else run_ranks(train, world, tmp_path, *arguments)[0]
    for name in ("losses", "text", "rates"):
        assert cached[name] == pytest.approx(alone[name], rel=1e-4), name
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(cached["weights"][name], weight, rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_two_processes_is_resumed_by_one(encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    encoder = str(encoder_folder("bert"))
    two = run_ranks(train, 2, tmp_path, encoder, str(cache.folder), str(tmp_path / "two"), 4)[0]
    checkpoint = str(tmp_path / "two" / "checkpoint-3")
    resumed = train(encoder, str(cache.folder), str(tmp_path / "one"), 8, resume=checkpoint)
    assert resumed["kinds"] == two["kinds"][3:]
    assert resumed["losses"][-3:] == pytest.approx(two["losses"][-3:], rel=1e-4)
    for name, weight in two["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, rtol=1e-3, atol=1e-5)


def test_without_gathering_each_process_has_its_own_negatives_only(encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    encoder = str(encoder_folder("bert"))
    gathered = run_ranks(train, 2, tmp_path, encoder, str(cache.folder), str(tmp_path / "a"), 4)[0]
    local = run_ranks(train, 2, tmp_path, encoder, str(cache.folder), str(tmp_path / "b"), 4, False)[0]
    assert local["text"][0] < gathered["text"][0]


def train_sharded(*arguments: object, **named: object) -> dict:
    """`train` under accelerate's FSDP2, which it applies to GPUs alone: these processes say that they are some."""
    os.environ.update(
        ACCELERATE_USE_FSDP="true",
        FSDP_VERSION="2",
        FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_RESHARD_AFTER_FORWARD="true",
        FSDP_STATE_DICT_TYPE="FULL_STATE_DICT",
    )
    make = PartialState.__init__

    def make_as_gpus(self: PartialState, *rest: object, **options: object) -> None:
        make(self, *rest, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = make_as_gpus
    found = train(*arguments, **named)
    found["weights"] = {name: weight.full_tensor() for name, weight in found["weights"].items()}
    return found


@pytest.mark.parametrize(("kind", "mini"), [("bert", None), ("roberta", 3)])
def test_sharded_by_fsdp2_two_processes_train_as_one_and_leave_a_checkpoint_that_auto_model_opens(
    kind: str, mini: int | None, encoder_folder, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path / "cache")
    encoder = str(encoder_folder(kind))
    alone = train(encoder, str(cache.folder), str(tmp_path / "alone"), 8)
    arguments = (encoder, str(cache.folder), str(tmp_path / "two"), 4, True, mini)
    two = run_ranks(train_sharded, 2, tmp_path, *arguments)[0]
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    opened = AutoModel.from_pretrained(tmp_path / "two" / "checkpoint-6", trust_remote_code=True)
    for name, weight in opened.named_parameters():
        torch.testing.assert_close(weight, two["weights"][name], rtol=0, atol=0)
        torch.testing.assert_close(weight, alone["weights"][name], rtol=1e-3, atol=1e-5)


def test_a_sharded_run_goes_on_from_its_checkpoint(encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    arguments = (str(encoder_folder("bert")), str(cache.folder), str(tmp_path / "two"), 4, True, None)
    whole = run_ranks(train_sharded, 2, tmp_path, *arguments, None, "adamw_torch")[0]
    checkpoint = str(tmp_path / "two" / "checkpoint-3")
    resumed = run_ranks(train_sharded, 2, tmp_path, *arguments, checkpoint, "adamw_torch")[0]
    assert resumed["losses"][-3:] == pytest.approx(whole["losses"][-3:], rel=1e-5)
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, rtol=1e-5, atol=1e-6)


def test_a_sharded_run_is_scored_from_the_start_and_ends_with_its_best_weights(encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    encoder, sts = str(encoder_folder("bert")), str(write_sts(tmp_path / "sts", make_sentences(60)))
    rest = (True, None, None, "sgd", sts)
    alone = train(encoder, str(cache.folder), str(tmp_path / "alone"), 8, *rest)
    arguments = (encoder, str(cache.folder), str(tmp_path / "two"), 4, *rest)
    first, second = run_ranks(train_sharded, 2, tmp_path, *arguments)
    assert first["scores"] == second["scores"] == pytest.approx(alone["scores"], abs=0.05)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-3, atol=1e-5)


def train_on_a_dev_set_of_its_own(encoder: str, cache: str, folder: str, sts: str) -> dict:
    return train(encoder, cache, folder, 4, True, None, None, "sgd", f"{sts}{os.environ['RANK']}")


def test_all_processes_go_by_the_score_of_the_first(encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    for rank in (0, 1):
        write_sts(tmp_path / f"sts{rank}", make_sentences(60), seed=rank)
    arguments = (str(encoder_folder("bert")), str(cache.folder), str(tmp_path / "two"), str(tmp_path / "sts"))
    first, second = run_ranks(train_on_a_dev_set_of_its_own, 2, tmp_path, *arguments)
    assert first["scores"] == second["scores"]


def first_bad(rank_of_nan: int) -> str | None:
    state = PartialState(cpu=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    fully_shard(model)
    if state.process_index == rank_of_nan:
        with torch.no_grad():
            model[1].weight.to_local()[0, 0] = float("nan")
    return first_non_finite(model, Accelerator(cpu=True))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_all_processes_know_of_a_nan_in_the_part_of_one(rank: int, tmp_path: Path) -> None:
    assert run_ranks(first_bad, 2, tmp_path, rank) == [None if rank == 2 else "1.weight"] * 2


def first_bad_term(rank_of_nan: int) -> dict[str, int]:
    state = PartialState(cpu=True)
    log, accelerator = TermLog(), Accelerator(cpu=True)
    for step in (1, 2, 3):
        bad = state.process_index == rank_of_nan and step > 1
        log.record({"image_loss": torch.tensor(math.nan if bad else 1.0), "text_loss": torch.tensor(1.0)}, step)
    return log.first_bad_steps(accelerator)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_all_processes_know_of_a_nan_in_the_loss_of_one(rank: int, tmp_path: Path) -> None:
    assert run_ranks(first_bad_term, 2, tmp_path, rank) == [{} if rank == 2 else {"image_loss": 2}] * 2


def train_zero2(*arguments: object) -> dict:
    """`train` under DeepSpeed's ZeRO-2, on the processor."""
    os.environ.update(DS_ACCELERATOR="cpu", ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
    return train(*arguments)


def test_under_zero_2_two_processes_train_as_one(encoder_folder, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    cache = make_cache(tmp_path / "cache")
    encoder = str(encoder_folder("bert"))
    alone = train(encoder, str(cache.folder), str(tmp_path / "alone"), 8)
    two = run_ranks(train_zero2, 2, tmp_path, encoder, str(cache.folder), str(tmp_path / "two"), 4)[0]
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-3, atol=1e-5)


def test_under_zero_2_gradients_cannot_be_cached(encoder_folder, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    cache = make_cache(tmp_path / "cache")
    arguments = (str(encoder_folder("bert")), str(cache.folder), str(tmp_path / "two"), 4, True, 3)
    with pytest.raises(Exception, match="`mini_batch_size` is 3 under DeepSpeed"):
        run_ranks(train_zero2, 2, tmp_path, *arguments)


def train_from_elsewhere(encoder: str, cache: str, folder: str) -> None:
    """Rank 1 finds no checkpoint, as on a machine with a disk of its own."""
    mine = folder if os.environ["RANK"] == "0" else f"{folder}-of-another-machine"
    train(encoder, cache, mine, 4, True, None, True)


def test_processes_that_would_go_on_from_different_checkpoints_stop(encoder_folder, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    arguments = (str(encoder_folder("bert")), str(cache.folder), str(tmp_path / "two"))
    run_ranks(train, 2, tmp_path, *arguments, 4)
    with pytest.raises(Exception, match=r"different checkpoints: .*checkpoint-6, none"):
        run_ranks(train_from_elsewhere, 2, tmp_path, *arguments)
