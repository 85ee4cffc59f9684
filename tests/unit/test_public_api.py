import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kdmcse_hf
from kdmcse_hf import cli

ROOT = Path(__file__).parents[2]


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_exists_and_the_list_is_sorted() -> None:
    assert kdmcse_hf.__all__ == sorted(kdmcse_hf.__all__)
    for name in kdmcse_hf.__all__:
        assert getattr(kdmcse_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kdmcse_hf.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_beyond_transformers_own_model_classes() -> None:
    base = "import sys; from transformers import AutoModel, PreTrainedModel"
    before, after = (
        set(run(f"{base}{more}; print(*sys.modules)").split()) for more in ("", ", AutoConfig; import kdmcse_hf")
    )
    assert {name for name in after - before if name.split(".")[0] != "kdmcse_hf"} == set()
    assert {name for name in after if name.startswith("kdmcse_hf.")} == {
        "kdmcse_hf.configuration_kdmcse",
        "kdmcse_hf.modeling_kdmcse",
    }


def test_the_command_answers_help_without_torch() -> None:
    program = """
import sys
sys.path.insert(0, {path!r})
from importlib.util import spec_from_file_location, module_from_spec
spec = spec_from_file_location("kdmcse_cli", {file!r}, submodule_search_locations=[{folder!r}])
cli = sys.modules["kdmcse_cli"] = module_from_spec(spec)
spec.loader.exec_module(cli)
try:
    cli.main(["--help"])
except SystemExit as error:
    assert error.code == 0
assert not {{"torch", "transformers", "kdmcse_hf"}} & set(sys.modules)
"""
    folder = ROOT / "kdmcse_hf" / "cli"
    assert "import-features" in run(
        program.format(path=str(ROOT), file=str(folder / "__init__.py"), folder=str(folder))
    )


def test_modules_depend_in_one_direction_only() -> None:
    """From tensors over the teacher's side to the Trainer and the audit; no module imports a later one."""
    layers = [
        {
            "configuration_kdmcse",
            "fingerprint",
            "losses",
            "metrics",
            "schedule",
            "sharding",
            "significance",
            "teacher.text",
            "term_log",
            "threshold",
            "tokenizer",
        },
        {"distributed", "dropout", "modeling_kdmcse", "objective", "sts", "training_args"},
        {
            "golden",
            "mteb_sts",
            "packing",
            "presets",
            "teacher.annotations",
            "teacher.pictures",
            "teacher.shard",
            "truncation",
        },
        {"release", "transfer"},
        {"checkpoint"},
        {"embedding", "privacy", "release_card", "verification"},
        {"export"},
        {"push"},
        {"teacher.captioned_pictures", "teacher.encoder", "teacher.cache", "teacher.feature_file"},
        {"teacher.additions", "teacher.cache_writer", "teacher.pairs"},
        {"teacher.extraction_plan", "teacher.feature_import", "teacher.json_import"},
        {"sentence_file", "teacher.extraction", "vector_file"},
        {"file_embedding"},
        {"calibration", "conversion", "data", "grad_cache", "retrieval"},
        {"preflight", "teacher.towers", "training_record"},
        {"trainer"},
        {"arguments", "teacher.tower_training"},
        {"audit.batches"},
        {"audit.gallery"},
        {"audit.filter"},
        {"audit.report"},
        {"audit.chart"},
        {"audit.page"},
    ]
    level = {name: number for number, names in enumerate(layers) for name in names}
    files = {
        ".".join(path.relative_to(ROOT / "kdmcse_hf").with_suffix("").parts): path
        for folder in ("", "teacher", "audit")
        for path in (ROOT / "kdmcse_hf" / folder).glob("*.py")
        if path.stem != "__init__"
    }
    assert files.keys() == level.keys()
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kdmcse_hf."):
                used = node.module.removeprefix("kdmcse_hf.")
                assert level[used] < level[name], f"{name} imports {used}"


def test_no_module_is_longer_than_its_reader_s_patience() -> None:
    long = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "kdmcse_hf").rglob("*.py")}
    # The model is one file, for it travels with the weights.
    assert {name: lines for name, lines in long.items() if lines > (600 if name == "modeling_kdmcse.py" else 320)} == {}


def test_an_interrupted_command_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdmcse_hf.teacher.json_import.import_json", interrupt)
    assert cli.main(["import-json", "cache", "x.json", "--teacher_name", "t"]) == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"


@pytest.mark.parametrize(("package", "extra"), [("PIL", "vision"), ("h5py", "import"), ("ijson", "import")])
def test_a_missing_optional_package_is_one_line_with_its_remedy(
    package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named '{package}.x'", name=f"{package}.x")

    monkeypatch.setattr("kdmcse_hf.teacher.json_import.import_json", missing)
    assert cli.main(["import-json", "cache", "x.json", "--teacher_name", "t"]) == 1
    error = f"kdmcse import-json: error: the package {package} is missing: pip install 'kdmcse_hf[{extra}]'\n"
    assert capsys.readouterr().err == error


def test_any_other_missing_module_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr("kdmcse_hf.teacher.json_import.import_json", missing)
    with pytest.raises(ModuleNotFoundError, match="other"):
        cli.main(["import-json", "cache", "x.json", "--teacher_name", "t"])


def test_an_audit_with_pictures_names_pillow_where_it_is_missing(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["PIL"] = None
from kdmcse_hf.cli import main
print(main(["audit", {str(tmp_path)!r}, "--images", {str(tmp_path)!r}, "--html", "page.html"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1\n"
    assert done.stderr == "kdmcse audit: error: the package PIL is missing: pip install 'kdmcse_hf[vision]'\n"


def test_bad_input_to_the_command_is_one_line_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(
        ["import-features", str(tmp_path / "c"), "--captions", "gone.csv", "--image_features", "x.npy"]
        + ["--teacher_name", "t"]
    )
    assert status == 1
    assert capsys.readouterr().err.startswith("kdmcse import-features: error: gone.csv does not exist")
