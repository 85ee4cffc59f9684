import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_the_three_uses_in_the_readme_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train_kdmcse import main as train

    monkeypatch.chdir(tmp_path)
    Path("runs/quickstart").mkdir(parents=True)
    Path("runs/quickstart/world").symlink_to(world)
    trainer = train(
        [
            *("--preset", "kdmcse", "--model_name_or_path", str(world / "student"), "--max_steps", "1"),
            *("--teacher_cache", str(world / "cache"), "--output_dir", "runs/quickstart/kdmcse"),
            *("--per_device_train_batch_size", "8", "--use_cpu", "true", "--save_strategy", "no"),
        ]
    )
    section = README.read_text(encoding="utf-8").partition("## Three uses")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert names["vectors"].shape == (2, trainer.model.config.hidden_size)
    assert -100 <= names["scores"]["avg"] <= 100
    assert Path("runs/mine/model.safetensors").exists()


def test_commands_and_files_named_in_the_readme_exist() -> None:
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\b(?:examples|tests|kdmcse_hf)/[\w./]+", text):
        assert (README.parent / path.rstrip(".")).exists(), path
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
