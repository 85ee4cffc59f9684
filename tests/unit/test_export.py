import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import metadata_load
from test_trainer import make_trainer
from tiny import ENCODER_CONFIGS, make_sentences, make_tokenizer
from tokenizers import Tokenizer
from transformers import AlbertConfig, AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertModel

from kdmcse_hf import KDMCSEConfig, KDMCSEModel, KDMCSETrainer, SentenceEncoder
from kdmcse_hf.checkpoint import save_mteb_results, save_sts_results
from kdmcse_hf.cli import main
from kdmcse_hf.export import export_release
from kdmcse_hf.golden import Golden
from kdmcse_hf.push import copy_resumable
from kdmcse_hf.release import CHECKPOINT, GOLDEN, files_of, publishing_folder
from kdmcse_hf.truncation import cut_tokenizer, release_length

ENCODER_CONFIGS = {
    **ENCODER_CONFIGS,
    "albert": AlbertConfig(
        **{key: getattr(ENCODER_CONFIGS["bert"], key) for key in ("hidden_size", "num_attention_heads", "vocab_size")},
        embedding_size=16,
        intermediate_size=48,
        max_position_embeddings=40,
    ),
}
HEADS = {"image_embed_dim": 12, "caption_embed_dim": 12, "projection_dim": 8}
PROTOCOL = {"protocol": {"split": "test"}, "max_length": 40}


def make_checkpoint(folder: Path, kind: str = "bert", seed: int = 0, **settings: object) -> KDMCSEModel:
    torch.manual_seed(seed)
    AutoModel.from_config(ENCODER_CONFIGS[kind]).save_pretrained(folder / "encoder")
    model = KDMCSEModel.from_encoder(folder / "encoder", **HEADS, **settings).eval()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def batch() -> dict[str, torch.Tensor]:
    encoded = make_tokenizer()(make_sentences(5), padding=True, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", sorted(ENCODER_CONFIGS))
def test_the_plain_encoder_gives_the_checkpoint_s_vectors_to_the_bit_and_says_nothing(
    kind: str, pooling: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", kind, pooling=pooling)
    out = export_release(tmp_path / "checkpoint", tmp_path / "out")
    caplog.clear()
    plain, report = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert type(plain) is AutoModel._model_mapping[type(ENCODER_CONFIGS[kind])]
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer(make_sentences(5), padding=True, truncation=True, return_tensors="pt")
    hidden, mask = plain(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
    vectors = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    assert torch.equal(vectors, model(**inputs).pooler_output)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "albert"])
def test_the_text_head_stands_where_the_plain_encoder_has_its_pooler_and_the_card_warns_of_it(
    kind: str, tmp_path: Path
) -> None:
    model = make_checkpoint(tmp_path / "checkpoint", kind)
    out = export_release(tmp_path / "checkpoint", tmp_path / "out")
    found = AutoModel.from_pretrained(out)(**batch()).pooler_output
    assert torch.equal(found, model.pooler(model(**batch()).pooler_output))
    assert "The plain encoder's `pooler_output` is the trained text head" in (out / "README.md").read_text()


def test_a_card_warns_of_no_pooler_where_there_is_none(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", "distilbert")
    out = export_release(tmp_path / "checkpoint", tmp_path / "out")
    assert "The plain encoder's `pooler_output`" not in (out / "README.md").read_text()


class TwoLayerPoolerConfig(BertConfig):
    model_type = "two_layer_pooler"


class TwoLayerPoolerModel(BertModel):
    config_class = TwoLayerPoolerConfig

    def __init__(self, config: TwoLayerPoolerConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        if add_pooling_layer:
            self.pooler.second = torch.nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()


def test_an_encoder_whose_pooler_the_text_head_cannot_fill_is_refused_by_its_weights(tmp_path: Path) -> None:
    AutoConfig.register("two_layer_pooler", TwoLayerPoolerConfig, exist_ok=True)
    AutoModel.register(TwoLayerPoolerConfig, TwoLayerPoolerModel, exist_ok=True)
    config = TwoLayerPoolerConfig(**{**ENCODER_CONFIGS["bert"].to_dict(), "model_type": "two_layer_pooler"})
    ENCODER_CONFIGS["two_layer_pooler"] = config
    make_checkpoint(tmp_path / "checkpoint", "two_layer_pooler")
    with pytest.raises(ValueError, match=r"plain TwoLayerPoolerModel: they differ in \['pooler.second.bias', 'pooler"):
        export_release(tmp_path / "checkpoint", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_release_holds_these_files_and_no_others(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "objective.json").write_text("{}")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        (checkpoint / name).write_bytes(b"{}")
    out = export_release(checkpoint, tmp_path / "out")
    both = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    root = {"README.md", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
    inner = {"configuration_kdmcse.py", "modeling_kdmcse.py", "objective.json", "golden.safetensors", "release.json"}
    assert set(files_of(out)) == both | root | {"1_Pooling/config.json"} | {f"kdmcse/{name}" for name in both | inner}
    assert len({path.stat().st_mode for path in out.rglob("*") if path.is_file()}) == 1  # weights as readable as text


def test_the_training_checkpoint_in_a_release_is_whole(checkpoint: Path, tmp_path: Path) -> None:
    out = export_release(checkpoint, tmp_path / "out")
    model, report = AutoModel.from_pretrained(out, subfolder=CHECKPOINT, output_loading_info=True)
    assert isinstance(model, KDMCSEModel)
    assert not any(report.values())
    expected = KDMCSEModel.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    again = KDMCSEModel.from_encoder(out / CHECKPOINT, image_embed_dim=12, caption_embed_dim=12, projection_dim=8)
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_a_release_of_a_release_s_checkpoint_is_the_same(checkpoint: Path, tmp_path: Path) -> None:
    out = export_release(checkpoint, tmp_path / "out")
    assert content(export_release(out / CHECKPOINT, tmp_path / "again")) == content(out)


def test_training_goes_on_from_a_release_and_what_it_saves_can_be_released(checkpoint: Path, tmp_path: Path) -> None:
    out = export_release(checkpoint, tmp_path / "release")
    before = KDMCSEModel.from_pretrained(out, subfolder=CHECKPOINT)
    trainer = make_trainer(tmp_path, out / CHECKPOINT)
    assert torch.equal(trainer.model.image_projection.weight, before.image_projection.weight)
    trainer.train()
    trainer.save_model()
    again = export_release(tmp_path / "out", tmp_path / "again")
    after = AutoModel.from_pretrained(again, subfolder=CHECKPOINT)
    assert torch.equal(after.image_projection.weight, trainer.model.image_projection.weight)
    assert not torch.equal(after.image_projection.weight, before.image_projection.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_and_golden_vectors_are_of_its_float32_values(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "checkpoint").to(dtype)
    model.save_pretrained(tmp_path / "checkpoint")
    out = export_release(tmp_path / "checkpoint", tmp_path / "out")
    assert AutoModel.from_pretrained(out).dtype == dtype
    golden = Golden.load(out / GOLDEN)
    assert golden.dtype == str(dtype).removeprefix("torch.")
    mask = (golden.input_ids != 0).long()
    assert torch.equal(golden.vectors, model.float()(golden.input_ids, mask).pooler_output)


def test_golden_sentences_are_ten_longest_first_with_one_to_cut_and_one_of_odd_characters(
    checkpoint: Path, tmp_path: Path
) -> None:
    golden = Golden.load(export_release(checkpoint, tmp_path / "out", max_length=30) / GOLDEN)
    lengths = [len(sentence) for sentence in golden.sentences]
    assert len(golden.sentences) == 10
    assert lengths == sorted(set(lengths), reverse=True)
    assert len(make_tokenizer()(golden.sentences[0])["input_ids"]) > 30
    assert golden.input_ids.shape == (10, 30)
    assert any(ord(character) > 0xFFFF for sentence in golden.sentences for character in sentence)


# --- what must not be in it -------------------------------------------------------------------------------------------

PLANTED = {
    "folder": "plantedfolder",
    "user": "planteduser",
    "token": "hf_PlantedTokenPlantedTokenPlanted",
    "run": "plantedrun",
}


def test_nothing_of_the_machine_the_user_or_a_token_is_in_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of a real training run, in planted folders, whose files also say where they came from."""
    home = tmp_path / PLANTED["user"] / PLANTED["folder"]
    for name, value in {"USER": "user", "LOGNAME": "user", "HF_TOKEN": "token"}.items():
        monkeypatch.setenv(name, PLANTED[value])
    encoder = home / "encoder"
    AutoModel.from_config(ENCODER_CONFIGS["bert"]).save_pretrained(encoder)
    trainer = make_trainer(
        home, encoder, dev=True, hub_token=PLANTED["token"], run_name=PLANTED["run"],
        max_steps=2, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="spearman",
    )  # fmt: skip
    trainer.train()
    checkpoint = home / "out" / "checkpoint-2"
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((checkpoint / name).read_text())
        settings |= {name: str(encoder) for name in ("_name_or_path", "name_or_path", "special_tokens_map_file")}
        (checkpoint / name).write_text(json.dumps(settings))

    def traces(folder: Path) -> dict[str, set[str]]:
        wanted = {**PLANTED, "absolute path": str(tmp_path), "home": str(Path.home()) + "/"}
        return {
            name: {
                kind
                for kind, value in wanted.items()
                if value.encode() in data or value.encode("utf-16-le") in data or value in name
            }
            for name, data in content(folder).items()
        }

    # They are there to be found: the test would see them.
    assert traces(checkpoint)["training_args.bin"] >= {"folder", "user", "token", "run"}
    for name in ("config.json", "tokenizer_config.json", "trainer_state.json"):
        assert traces(checkpoint)[name] >= {"folder", "user", "absolute path"}
    save_sts_results(checkpoint, {"scores": {"STSB": 1.0}, "pairs": {"STSB": 1379}, **PROTOCOL})
    datasets = {"STS12": {"path": "mteb/sts12-sts", "revision": "a0d554a"}}
    mteb = {"scores": {"STS12": 1.0}, "pairs": {"STS12": 3108}, "datasets": datasets, **PROTOCOL}
    save_mteb_results(checkpoint, mteb)
    before = content(checkpoint)
    out = export_release(checkpoint, home / "out" / "release")
    card = (out / "README.md").read_text()
    assert "| teacher |" in card and "| STSB |" in card and (out / ".eval_results" / "sts.yaml").exists()
    copy_resumable(checkpoint, out / "last-checkpoint")  # what two of the Trainer's `hub_strategy` push beside it
    assert {name: found for name, found in traces(out).items() if found} == {}
    assert {path.name for path in (out / "last-checkpoint").iterdir()} == {
        path.name for path in checkpoint.iterdir() if path.name != "training_args.bin"
    }
    assert content(checkpoint) == before


@pytest.mark.parametrize("value", ["/home/anna/x.txt", "a hf_abcdefghijklmnop"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "objective.json", "training_record.json"])
def test_a_setting_that_names_a_place_or_a_token_stops_the_export(
    name: str, value: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = checkpoint / name
    record = {"base_model": None, "data": {"sha256": {}}, "teacher": None, "settings": {}, "versions": {}}
    empty = {**record, "hardware": "", "commit": None} if name == "training_record.json" else {}
    settings = json.loads(path.read_text()) if path.exists() else empty
    path.write_text(json.dumps({**settings, "notes": {"made with": [value]}}))
    with pytest.raises(ValueError, match=rf"{name} holds .* names a place on this machine, its user or itself"):
        export_release(checkpoint, tmp_path / "out")
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_folder_as_the_name_in_the_card_stops_the_export(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"README.md holds .* names a place on this machine"):
        export_release(checkpoint, tmp_path / "out", name=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_two_hub_strategies_push_beside_a_release_is_looked_through_too(checkpoint: Path, tmp_path: Path) -> None:
    state = {"best_model_checkpoint": None, "log_history": [{"note": "see [/home/anna/logs]"}]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"trainer_state.json holds 'see \[/home/anna/logs\]'"):
        copy_resumable(checkpoint, tmp_path / "last-checkpoint")


def test_an_address_a_fraction_or_a_name_on_the_hub_is_no_place_on_this_machine(
    checkpoint: Path, tmp_path: Path
) -> None:
    notes = ["https://huggingface.co/user/model", "user/model", "1/2 of 3/4", "a / b", "</s>", "kdmcse_hf_is_no_token"]
    (checkpoint / "objective.json").write_text(json.dumps({"notes": notes}))
    out = export_release(checkpoint, tmp_path / "out")
    assert json.loads((out / CHECKPOINT / "objective.json").read_text()) == {"notes": notes}


def test_the_base_model_is_named_if_it_came_from_the_hub_and_never_if_it_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "cache" / "models--user--encoder"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    AutoModel.from_config(ENCODER_CONFIGS["bert"]).save_pretrained(cached / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, expected in (("user/encoder", "user/encoder"), ("mine/encoder", None)):
        if expected is None:
            AutoModel.from_config(ENCODER_CONFIGS["bert"]).save_pretrained(name)
        folder = tmp_path / f"checkpoint of {name.partition('/')[0]}"
        KDMCSEModel.from_encoder(name).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        monkeypatch.chdir(cached)  # a relative name says nothing in another folder
        card = metadata_load(export_release(folder, tmp_path / "out") / "README.md")
        assert card.get("base_model") == expected
        assert card["pipeline_tag"] == "sentence-similarity"
        monkeypatch.chdir(tmp_path)


def test_the_code_that_travels_is_two_flat_files_that_import_torch_and_transformers_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = export_release(checkpoint, tmp_path / "out")
    files = [out / name for name in files_of(out) if name.endswith(".py")]
    assert [path.name for path in files] == ["configuration_kdmcse.py", "modeling_kdmcse.py"]
    for path in files:
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            if isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0] if node.level == 0 else f".{node.module}")
        assert imported - sys.stdlib_module_names <= {"torch", "transformers", ".configuration_kdmcse"}


# --- whole, or not there ----------------------------------------------------------------------------------------------


def test_a_release_is_replaced_and_leaves_nothing_of_the_one_before(checkpoint: Path, tmp_path: Path) -> None:
    out = export_release(checkpoint, tmp_path / "out")
    (out / "README.md").write_text("edited")
    make_checkpoint(tmp_path / "other", "distilbert", seed=1)
    export_release(tmp_path / "other", out, replace_card=True)
    assert content(out) == content(export_release(tmp_path / "other", tmp_path / "fresh"))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "other", "out", "fresh"}


def test_an_empty_folder_is_filled(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert (export_release(checkpoint, tmp_path / "out") / "modules.json").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "release with a file of mine", "damaged release"])
def test_what_is_not_a_release_is_never_overwritten(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    else:
        export_release(checkpoint, out)
        if kind == "damaged release":
            (out / "kdmcse" / "release.json").write_text("{")
        else:
            (out / "kdmcse" / "notes.txt").write_text("mine")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"not overwritten. Choose another folder, or remove it"):
        export_release(checkpoint, out)
    assert content(tmp_path) == before


def test_a_full_disk_leaves_the_earlier_release_and_nothing_half_done(checkpoint: Path, tmp_path: Path) -> None:
    export_release(checkpoint, tmp_path / "out")
    before = content(tmp_path)
    make_checkpoint(tmp_path / "other", seed=1)
    program = """
import resource, sys
from kdmcse_hf.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # the kernel refuses to write more, as on a full disk
print(*(main(["export", "other", out]) for out in ("out", "new")))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "1 1\n"
    assert done.stderr.count("nothing is left of it") == done.stderr.count("kdmcse export: error:") == 2
    after = {name: data for name, data in content(tmp_path).items() if not name.startswith("other/")}
    assert after == before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "other", "out"}


def test_a_release_that_a_killed_process_had_moved_aside_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    out = export_release(checkpoint, tmp_path / "out")
    before = content(out)
    work = tmp_path / ".out.incomplete-killed"
    work.mkdir()
    out.rename(work / "replaced")
    os.utime(work, (0, 0))
    with pytest.raises(ValueError, match="is not a folder"):
        export_release(tmp_path / "gone", out)
    assert content(out) == before
    assert work.is_dir()  # of today: perhaps another process is at work
    os.utime(work, (0, 0))
    export_release(checkpoint, out)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out"}


def test_a_link_stays_one_and_what_it_points_to_is_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    release = export_release(checkpoint, tmp_path / "big disk" / "release")
    link = tmp_path / "link"
    link.symlink_to(release)
    make_checkpoint(tmp_path / "other", seed=1)
    for source in (tmp_path / "other", checkpoint, tmp_path / "other"):
        export_release(source, link)
        assert link.is_symlink() and os.listdir(tmp_path / "big disk") == ["release"]
    assert content(release) == content(export_release(tmp_path / "other", tmp_path / "fresh"))
    assert {path.name for path in tmp_path.iterdir()} == {"big disk", "checkpoint", "fresh", "link", "other"}


def test_a_failed_export_leaves_no_folder_above_it_that_was_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        export_release(tmp_path / "gone", tmp_path / "a" / "b" / "c")
    assert os.listdir(tmp_path) == ["checkpoint"]
    assert (export_release(checkpoint, tmp_path / "a" / "b" / "c") / "modules.json").exists()


def test_two_exports_to_one_place_at_a_time_do_not_touch_each_other_s_files(tmp_path: Path) -> None:
    with publishing_folder(tmp_path / "out") as first:
        (first / "kdmcse").mkdir()
        with publishing_folder(tmp_path / "out") as second:
            (second / "kdmcse").mkdir()
            (second / "kdmcse" / "second").touch()
        (first / "kdmcse" / "first").touch()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out" / "kdmcse") == ["first"]


def test_a_card_that_was_edited_is_kept_or_nothing_is_replaced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(export_release(checkpoint, tmp_path / "out"))
    card = tmp_path / "out" / "README.md"
    card.write_text("edited")
    assert main(["export", str(checkpoint), out]) == 0
    assert card.read_text() == "edited"
    make_checkpoint(tmp_path / "distilbert", "distilbert")
    before = content(tmp_path)
    for different in ([str(tmp_path / "distilbert"), out], [str(checkpoint), out, "--name", "alice/model"]):
        assert main(["export", *different]) == 1
        message = capsys.readouterr().err
        assert "out is not replaced: its README.md was edited by hand" in message and "--replace_card" in message
        assert content(tmp_path) == before
        assert os.listdir(tmp_path).count("out") == 1
    assert main(["export", str(checkpoint), out, "--name", "alice/model", "--replace_card"]) == 0
    assert card.read_text().count('name = "alice/model"') == 3
    make_checkpoint(checkpoint, seed=1)  # other weights, the same card, and nobody edited it
    assert main(["export", str(checkpoint), out, "--name", "alice/model"]) == 0


# --- where sentences are cut ---------------------------------------------------------------------------------------


@pytest.fixture
def long_checkpoint(tmp_path: Path) -> Path:
    """A trained checkpoint of an encoder that reads 300 tokens, by the mean of all of them."""
    torch.manual_seed(0)
    config = BertConfig(**{**ENCODER_CONFIGS["bert"].to_dict(), "max_position_embeddings": 300})
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    model = KDMCSEModel.from_encoder(tmp_path / "encoder", pooling="mean", **HEADS)
    trainer = make_trainer(tmp_path, tmp_path / "encoder", max_steps=1)
    trainer = KDMCSETrainer(
        model, trainer.args, trainer.objective, trainer.train_dataset, processing_class=make_tokenizer()
    )
    trainer.train()
    trainer.save_model()
    return tmp_path / "out"


def test_a_checkpoint_and_its_release_cut_a_long_sentence_at_the_same_token(
    long_checkpoint: Path, tmp_path: Path
) -> None:
    text = " ".join(make_sentences(60, seed=3))
    assert len(make_tokenizer()(text)["input_ids"]) > 300
    encode = SentenceEncoder.from_pretrained(long_checkpoint)
    vector = encode(text)
    release = export_release(long_checkpoint, tmp_path / "release")
    assert encode.max_length == 128
    np.testing.assert_array_equal(SentenceEncoder.from_pretrained(release)(text), vector)
    inputs = AutoTokenizer.from_pretrained(release)(text, truncation=True, return_tensors="pt")
    plain = AutoModel.from_pretrained(release)(**inputs).last_hidden_state.mean(dim=1)[0]
    np.testing.assert_allclose(plain.detach(), vector, atol=1e-6)
    longer = export_release(long_checkpoint, tmp_path / "longer", max_length=300)
    assert AutoTokenizer.from_pretrained(longer).model_max_length == 300
    assert not np.allclose(SentenceEncoder.from_pretrained(longer)(text), vector, atol=1e-4)


def test_a_tokenizer_s_own_limit_holds_and_one_without_a_limit_is_given_one(tmp_path: Path) -> None:
    config = BertConfig(**{**ENCODER_CONFIGS["bert"].to_dict(), "max_position_embeddings": 300})
    model, tokenizer = KDMCSEModel(KDMCSEConfig(text_config=config)), make_tokenizer()
    assert tokenizer.model_max_length > 1e20
    cases = ((int(1e30), 128, 128), (200, 200, 128), (64, 64, 64), (512, 300, 128))
    for own, release, checkpoint in cases:
        tokenizer.model_max_length = own
        assert release_length(tokenizer, model) == release
        assert cut_tokenizer(tokenizer, model).model_max_length == checkpoint
        assert tokenizer.model_max_length == own  # a caller's tokenizer stays as it is


def test_scores_of_sentences_that_were_cut_elsewhere_are_no_scores_of_the_release(
    checkpoint: Path, tmp_path: Path
) -> None:
    save_sts_results(checkpoint, {"scores": {"STSB": 1.0}, "pairs": {"STSB": 1379}, **PROTOCOL})
    with pytest.raises(ValueError, match=r"cut after 40 tokens, but .* after 20: evaluate again .* `--max_length 40`"):
        export_release(checkpoint, tmp_path / "out", max_length=20)
    assert "| STSB |" in (export_release(checkpoint, tmp_path / "out", max_length=40) / "README.md").read_text()


def test_scores_are_not_recorded_in_a_release(checkpoint: Path, tmp_path: Path) -> None:
    out = export_release(checkpoint, tmp_path / "out")
    before = content(out)
    for place in (out, out / CHECKPOINT):
        with pytest.raises(ValueError, match="is a release, .* in the checkpoint that it was made of, and export that"):
            save_sts_results(place, {"scores": {"STSB": 1.0}, "pairs": {"STSB": 1379}, **PROTOCOL})
    assert content(out) == before


def test_how_a_tokenizer_was_called_last_is_not_in_the_release(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer, text = make_tokenizer(), " ".join(make_sentences(1))
    tokenizer([text, "a"], truncation=True, max_length=5, padding=True)
    tokenizer.save_pretrained(checkpoint)
    out = export_release(checkpoint, tmp_path / "out")
    for place in (out, out / CHECKPOINT):
        alone = Tokenizer.from_file(str(place / "tokenizer.json"))
        assert len(alone.encode(text).ids) == 2 + len(text.split()) > 5
        assert [len(encoding.ids) for encoding in alone.encode_batch([text, "a"])] == [2 + len(text.split()), 3]


def test_the_plain_encoder_s_config_says_where_the_checkpoint_is(checkpoint: Path, tmp_path: Path) -> None:
    out = export_release(checkpoint, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["kdmcse_checkpoint"] == "kdmcse"
    assert "kdmcse_checkpoint" not in (out / CHECKPOINT / "config.json").read_text()


# --- settings and bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [("bert", 40), ("roberta", 39), ("mpnet", 38), ("distilbert", 40)])
def test_all_clients_cut_at_what_the_encoder_can_read(kind: str, most: int, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint", kind)
    for wanted, expected in ((None, most), (most, most), (11, 11)):
        out = export_release(tmp_path / "checkpoint", tmp_path / "out", max_length=wanted)
        assert AutoTokenizer.from_pretrained(out).model_max_length == expected
        assert AutoTokenizer.from_pretrained(out / CHECKPOINT).model_max_length == expected
        assert json.loads((out / "sentence_bert_config.json").read_text())["max_seq_length"] == expected
    with pytest.raises(ValueError, match=f"`max_length` is {most + 1}: expected 3 to {most}"):
        export_release(tmp_path / "checkpoint", tmp_path / "out", max_length=most + 1)


def test_a_checkpoint_that_cannot_be_released_is_named_with_its_fault(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="encoder holds a model of type 'bert': expected 'kdmcse'"):
        export_release(checkpoint / "encoder", out)
    release = export_release(checkpoint, tmp_path / "release")
    with pytest.raises(ValueError, match=f"Is {release / 'kdmcse'} meant?"):
        export_release(release, out)
    model = KDMCSEModel.from_pretrained(checkpoint)
    with torch.no_grad():
        model.pooler.dense.bias[3] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    make_tokenizer().save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match=r"holds NaN or infinite weights, such as pooler.dense.bias"):
        export_release(tmp_path / "nan", out)
    KDMCSEModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "no tokenizer")
    with pytest.raises(ValueError, match="No tokenizer could be loaded"):
        export_release(tmp_path / "no tokenizer", out)
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"The weights in .*checkpoint cannot be read"):
        export_release(checkpoint, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("objective.json", '{"objective": {', r"objective.json is not JSON, or was cut short"),
        ("objective.json", "[1]", r"objective.json holds a list: expected a JSON object\."),
        ("training_record.json", '{"base_model": null}', r"record.json holds \['base_model'\]: .* data \(dict\)"),
        ("training_record.json", '{"data": {}, "settings": {}, "versions": {}}', r"training_record.json: .*'teacher'"),
        ("objective.json", '{"filters": [{}]}', r"objective.json.* are not as .* write them"),
        ("sts_results.json", '{"scores": {}}', r"sts_results.json holds \['scores'\]: .* pairs \(dict\)"),
        ("mteb_results.json", '{"scores": {}}', r"mteb_results.json holds \['scores'\]: .* datasets \(dict\)"),
    ],
)  # fmt: skip
def test_a_record_that_is_not_one_is_named_with_what_was_expected(
    name: str, text: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / name).write_text(text)
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_verifies(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["export", str(checkpoint), out, "--max_length", "20"]) == 0
    assert f"kdmcse verify {out}" in capsys.readouterr().out
    assert main(["verify", out]) == 0
    assert "20 tokens, in all places" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "gone"), out]) == 1
    assert capsys.readouterr().err.startswith("kdmcse export: error: ")
