import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from test_export import make_checkpoint
from tiny import make_cache

from kdmcse_hf import __version__
from kdmcse_hf.cli import main
from kdmcse_hf.export import export_release
from kdmcse_hf.golden import Golden
from kdmcse_hf.modeling_kdmcse import KDMCSEModel
from kdmcse_hf.release import GOLDEN, write_manifest
from kdmcse_hf.verification import Check, verify_release

CHECKS = ("files", "nothing else", "code", "weights", "pooling", "max length", "tokenizer")
CLIENTS = ("transformers", "kdmcse_hf")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    make_checkpoint(folder / "checkpoint")
    return export_release(folder / "checkpoint", folder / "out")


@pytest.fixture
def release(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "release")


def wrong(release: Path) -> dict[str, str]:
    checks = verify_release(release, clients=CLIENTS)
    assert [check.name for check in checks] == [*CHECKS, *CLIENTS]
    return {check.name: check.found for check in checks if not check.ok}


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_release_as_it_was_exported_has_nothing_wrong_even_if_its_card_is_edited(release: Path) -> None:
    (release / "README.md").write_text("# Mine")
    (release / ".gitattributes").write_text("*.safetensors filter=lfs")
    for name in ("last-checkpoint", "checkpoint-20"):  # a Trainer pushes them for those who go on training
        (release / name).mkdir()
        (release / name / "optimizer.pt").write_bytes(b"x")
    assert wrong(release) == {}


@pytest.mark.parametrize(("place", "client"), [("", "transformers"), ("kdmcse/", "kdmcse_hf")])
def test_a_flipped_byte_in_the_weights_is_found_by_its_file_and_by_the_client_that_reads_it(
    place: str, client: str, release: Path
) -> None:
    path = release / f"{place}model.safetensors"
    words = next(value for name, value in load_file(path).items() if name.endswith("word_embeddings.weight"))
    offset = path.read_bytes().index(words[2].numpy().tobytes())  # [CLS], which every sentence meets
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 0x20  # an exponent bit
    path.write_bytes(content)
    found = wrong(release)
    assert found.keys() == {"files", client}
    assert found["files"] == f"{place}model.safetensors has other content than when it was exported (SHA-256)"
    assert "vectors that differ from the golden ones by up to" in found[client]


def test_a_flipped_byte_that_no_sentence_meets_is_found_too(release: Path) -> None:
    path = release / "model.safetensors"
    content = bytearray(path.read_bytes())
    row = load_file(path)["embeddings.word_embeddings.weight"][-1].numpy().tobytes()
    content[content.index(row)] ^= 1
    path.write_bytes(content)
    assert wrong(release).keys() == {"files"}


@pytest.mark.parametrize("kept", [0, 7, 100, 2000, -1])
def test_weights_that_were_cut_short_are_found_and_stop_nothing(kept: int, release: Path) -> None:
    path = release / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    found = wrong(release)
    assert found.keys() == {"files", "weights", "transformers"}
    assert "bytes, had" in found["files"]


def test_an_edited_pooling_file_is_found_with_all_that_is_said(release: Path) -> None:
    path = release / "1_Pooling" / "config.json"
    edit(path, pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    said = "1_Pooling/config.json says 'mean'; kdmcse/config.json says 'cls'; kdmcse/golden.safetensors says 'cls'"
    assert wrong(release)["pooling"] == said
    edit(path, pooling_mode_cls_token=True)
    assert wrong(release)["pooling"].startswith("1_Pooling/config.json says 'cls and mean'")
    edit(path, pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)
    assert wrong(release)["pooling"].startswith("1_Pooling/config.json says 'cls and max_tokens'")


def test_weights_of_another_dtype_are_found_by_name(release: Path) -> None:
    for place in ("", "kdmcse/"):
        path = release / f"{place}model.safetensors"
        save_file({name: value.half() for name, value in load_file(path).items()}, path, {"format": "pt"})
    found = wrong(release)
    assert found["weights"].startswith("model.safetensors: embeddings.LayerNorm.bias is F16, but float32 was exported")
    assert found.keys() == {"files", "weights", *CLIENTS}


def test_a_config_of_another_dtype_is_found(release: Path) -> None:
    edit(release / "kdmcse" / "config.json", dtype="bfloat16")
    assert wrong(release)["weights"] == "kdmcse/config.json says dtype 'bfloat16', but float32 was exported"


def test_a_missing_tokenizer_is_found_and_named(release: Path) -> None:
    (release / "tokenizer.json").unlink()
    found = wrong(release)
    assert found["files"] == "tokenizer.json is missing"
    assert "No tokenizer could be loaded" in found["tokenizer"]
    assert "No tokenizer could be loaded" in found["transformers"]


def test_another_tokenizer_is_found_by_its_tokens(release: Path) -> None:
    for place in ("", "kdmcse"):
        path = release / place / "tokenizer.json"
        settings = json.loads(path.read_text())
        settings["normalizer"] = None  # no lower case
        path.write_text(json.dumps(settings))
    assert "splits the golden sentences into other tokens" in wrong(release)["tokenizer"]


def test_another_length_is_found_with_all_that_is_said(release: Path) -> None:
    edit(release / "sentence_bert_config.json", max_seq_length=512)
    said = "sentence_bert_config.json says 512; tokenizer_config.json says 40; kdmcse/tokenizer_config.json says 40"
    assert wrong(release)["max length"] == f"{said}; expected 40"


def test_an_edited_config_is_found_by_the_vectors(release: Path) -> None:
    edit(release / "config.json", layer_norm_eps=1e-2)
    found = wrong(release)
    assert found["files"].startswith("config.json has")
    assert "vectors that differ from the golden ones" in found["transformers"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "kdmcse/training_args.bin", "vectors.pkl", "kdmcse/mcse.pt"])
def test_a_pickle_is_refused_by_name_and_nothing_is_loaded(name: str, release: Path) -> None:
    (release / name).write_bytes(b"x")
    found = wrong(release)
    assert found["code"] == f"{name} is a pickle, and reading one can run code"
    assert found["nothing else"] == f"not of the release: {name}"
    assert set(CLIENTS) < found.keys()
    assert found["transformers"] == "not tried, as the folder holds what is not the release's"


def test_code_is_refused_and_never_run_whatever_the_manifest_says(release: Path, tmp_path: Path) -> None:
    """A hostile repository: every way in which a client could be led to run what it brings along."""
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w').close()\n"
    for name in ("evil.py", "kdmcse/evil.py", "1_Pooling/evil.py"):
        (release / name).write_text(code)
    for name in ("modeling_kdmcse.py", "configuration_kdmcse.py"):
        (release / "kdmcse" / name).write_text(code + (release / "kdmcse" / name).read_text())
    auto_map = {"AutoConfig": "evil.A", "AutoModel": "evil.A", "AutoTokenizer": ["evil.A", "evil.A"]}
    for name in ("config.json", "tokenizer_config.json", "kdmcse/tokenizer_config.json"):
        edit(release / name, auto_map=auto_map)
    modules = json.loads((release / "modules.json").read_text())
    modules[1]["type"] = "evil.Pooling"
    (release / "modules.json").write_text(json.dumps(modules))
    (release / "kdmcse" / "release.json").unlink()
    write_manifest(release, __version__)
    found = wrong(release)
    assert found.keys() == {"code", *CLIENTS}
    for name in ("evil.py is code", "1_Pooling/evil.py is code", "kdmcse/evil.py is code"):
        assert name in found["code"]
    for name in ("config.json", "tokenizer_config.json", "kdmcse/tokenizer_config.json"):
        assert f"{name} has an `auto_map`" in found["code"]
    assert "modules.json names other modules" in found["code"] and "evil.Pooling" in found["code"]
    assert not ran.exists()


OWN_AUTO_MAP = {
    "AutoConfig": "kdmcse/configuration_kdmcse.KDMCSEConfig",
    "AutoModel": "kdmcse/modeling_kdmcse.KDMCSEModel",
}


def rewrite_manifest(release: Path) -> None:
    """As somebody hostile would: it lists whatever is there."""
    (release / "kdmcse" / "release.json").unlink()
    write_manifest(release, __version__)


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoConfig": "evil/repo--config.C", "AutoModel": "evil/repo--model.M"},
        {**OWN_AUTO_MAP, "AutoModel": "last-checkpoint/evil.M"},
        {**OWN_AUTO_MAP, "AutoTokenizer": ["kdmcse/evil.T", None]},
        {},
        None,
    ],
)
def test_custom_code_is_what_the_config_names_and_that_is_the_two_files_alone(
    auto_map: dict[str, object] | None, release: Path
) -> None:
    assert json.loads((release / "kdmcse" / "config.json").read_text())["auto_map"] == OWN_AUTO_MAP
    edit(release / "kdmcse" / "config.json", auto_map=auto_map)
    rewrite_manifest(release)
    found = wrong(release)
    said = f"kdmcse/config.json has an `auto_map` that names other code than the two files beside it: {auto_map}"
    assert found["code"] == said
    assert all(found[client].startswith("not tried") for client in CLIENTS)


@pytest.mark.parametrize(
    "name",
    [
        *("last-checkpoint/evil.py", "checkpoint-7/evil.py", ".cache/evil.py", ".cache/huggingface/evil.PY"),
        *("last-checkpoint/modeling_kdmcse.py", "modeling_kdmcse.py", "last-checkpoint/kdmcse/modeling_kdmcse.py"),
    ],
)
def test_code_is_refused_in_folders_that_the_manifest_need_not_list(name: str, release: Path) -> None:
    (release / name).parent.mkdir(parents=True, exist_ok=True)
    (release / name).write_text("print('evil')")
    assert wrong(release)["code"] == f"{name} is code"


def test_of_a_folder_to_resume_from_only_the_states_may_be_pickles(release: Path, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "checkpoint")  # with the two files of code, and a config that names them
    for folder in ("last-checkpoint", "checkpoint-20"):
        shutil.copytree(tmp_path / "checkpoint", release / folder)
        for state in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_3.pth"):
            (release / folder / state).write_bytes(b"x")
    assert wrong(release) == {}
    for name in ("last-checkpoint/training_args.bin", "checkpoint-20/pytorch_model.bin", "checkpoint-x/optimizer.pt"):
        (release / name).parent.mkdir(exist_ok=True)
        (release / name).write_bytes(b"x")
        assert f"{name} is a pickle" in wrong(release)["code"]


@pytest.mark.parametrize("file", ["config.json", "kdmcse/config.json", "sentence_bert_config.json", "new.json"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_map", {"AutoModel": "evil/repo--m.M"}),
        ("attn_implementation", "evil/kernel"),
        ("_attn_implementation", "evil/kernel"),
        ("_attn_implementation_internal", {"": "evil/kernel"}),
    ],
)
def test_a_name_of_code_is_refused_in_every_json_file_at_every_depth(
    name: str, value: object, file: str, release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr("kdmcse_hf.verification.CLIENTS", {client: lambda *_: loaded.append(1) for client in CLIENTS})
    if file == "new.json":
        (release / file).write_text("{}")
    edit(release / file, other=[{"deep": {name: value}}])
    rewrite_manifest(release)
    assert wrong(release)["code"] == f"{file} has an `{name}`, which names code to run"
    assert loaded == []  # it is looked at before anything opens it
    (release / file).write_text("{")
    rewrite_manifest(release)
    assert f"{file} cannot be read as JSON" in wrong(release)["code"]


def test_nobody_is_asked_whether_to_run_code(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    hostile = {"model_type": "aimv2_text_model", "hidden_size": 32, "auto_map": {"AutoModel": "evil/repo--m.M"}}
    edit(release / "kdmcse" / "config.json", text_config=hostile)
    rewrite_manifest(release)
    assert "kdmcse/config.json has an `auto_map`" in wrong(release)["code"]
    with pytest.raises(ValueError):
        KDMCSEModel.from_pretrained(release)  # whose class of encoder nobody knows
    assert asked == []


def test_results_that_the_export_did_not_write_are_not_of_the_release(release: Path) -> None:
    (release / ".eval_results").mkdir()
    (release / ".eval_results" / "sts.yaml").write_text("- value: 99.9\n")
    assert wrong(release)["nothing else"] == "not of the release: .eval_results/sts.yaml"


def test_changed_custom_code_is_named_and_not_run(release: Path, tmp_path: Path) -> None:
    path = release / "kdmcse" / "modeling_kdmcse.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + path.read_text())
    (release / "kdmcse" / "release.json").unlink()
    write_manifest(release, __version__)
    checks = verify_release(release, clients=CLIENTS)
    assert all(check.ok for check in checks)
    code = Check("code", True, "only two files for `trust_remote_code=True`, others than this package's")
    assert code in checks
    assert not (tmp_path / "ran").exists()


def test_damaged_golden_vectors_are_found(release: Path) -> None:
    (release / GOLDEN).write_bytes(b"x" * 50)
    checks = {check.name: check for check in verify_release(release, clients=CLIENTS)}
    assert not checks["golden vectors"].ok
    assert "cannot be read as golden vectors" in checks["golden vectors"].found


@pytest.mark.parametrize(
    ("elsewhere", "shift", "ok", "says"),
    [
        (False, 0.0, True, "to the bit"),
        (False, 1e-6, True, "to within 9.5e-07"),
        (False, 1e-4, False, "vectors that differ"),
        (True, 1e-4, True, "to within 1.0e-04"),
        (True, 1e-2, False, "vectors that differ"),
    ],
)
def test_vectors_may_differ_by_rounding_on_the_same_machine_and_versions_and_by_a_little_more_elsewhere(
    elsewhere: bool, shift: float, ok: bool, says: str, release: Path
) -> None:
    golden = Golden.load(release / GOLDEN)
    vectors = golden.vectors.clone()
    place = vectors.abs().argmax()
    vectors.view(-1)[place] += shift
    made_by = {**golden.made_by, "torch": "2.6.0"} if elsewhere else golden.made_by
    replace(golden, vectors=vectors, made_by=made_by).save(release / GOLDEN)
    checks = {check.name: check for check in verify_release(release, clients=CLIENTS)}
    for client in CLIENTS:
        assert checks[client].ok == ok
        assert says in checks[client].found


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_reports_every_check_and_exits_with_what_it_found(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(release)]) == 0
    captured = capsys.readouterr()
    clients = [name for name in ("transformers", "sentence_transformers", "kdmcse_hf") if find_spec(name)]
    assert [line[:7].strip() for line in captured.out.splitlines()] == ["ok"] * (len(CHECKS) + len(clients))
    assert [line.split()[1] for line in captured.out.splitlines()][len(CHECKS) :] == clients
    (release / "optimizer.pt").write_bytes(b"")
    assert main(["verify", str(release)]) == 1
    captured = capsys.readouterr()
    report = [line for line in captured.out.splitlines() if line.startswith("WRONG")]
    assert report[0].split() == ["WRONG", "nothing", "else", "not", "of", "the", "release:", "optimizer.pt"]
    wrong = ", ".join(["nothing else", "code", *clients])
    assert captured.err == f"kdmcse verify: error: {release} is not as it was exported: {wrong}\n"


@pytest.mark.parametrize(
    ("kind", "flag", "says"),
    [
        ("release", "--captions", "is no teacher cache: leave out --captions"),
        ("release", "--revision", "is a folder here: leave out --revision"),
        ("cache", "--revision", "is a teacher cache: leave out --revision"),
    ],
)
def test_a_flag_without_effect_is_refused(
    kind: str, flag: str, says: str, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache(tmp_path / "cache")
    assert main(["verify", str(tmp_path / kind), flag, "nonsense"]) == 1
    assert says in capsys.readouterr().err


def test_the_command_still_verifies_teacher_caches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_cache(tmp_path / "cache")
    assert main(["verify", str(tmp_path / "cache")]) == 0
    assert "is as its manifest says" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder.mkdir(), "is not a release: kdmcse/release.json cannot be read"),
        (lambda folder: None, "is no folder here, and cannot be read from the Hub"),
    ],
)
def test_what_is_neither_is_one_line_on_stderr(
    make: Callable[[Path], None], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "thing")
    assert main(["verify", "thing"]) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
