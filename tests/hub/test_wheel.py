import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(installed: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_all_it_needs(installed: Path) -> None:
    program = """
import kdmcse_hf, kdmcse_hf.trainer, kdmcse_hf.teacher.extraction, kdmcse_hf.audit.page, kdmcse_hf.arguments
from kdmcse_hf.world.teacher import TEACHER_FOLDER
from transformers import CLIPModel, CLIPProcessor
CLIPModel.from_pretrained(TEACHER_FOLDER), CLIPProcessor.from_pretrained(TEACHER_FOLDER)
print(kdmcse_hf.__file__)
"""
    assert run(installed, sys.executable, "-c", program).strip().startswith(str(installed))
    assert (installed / "kdmcse_hf" / "py.typed").exists()
    for folder in ("kdmcse_hf/templates", "kdmcse_hf/audit/templates"):
        assert {path.name for path in (installed / folder).iterdir()} == {
            path.name for path in (ROOT / folder).iterdir()
        }


def test_the_command_is_its_own_package_and_every_package_is_in_the_wheel(installed: Path) -> None:
    assert "import-features" in run(installed, sys.executable, str(installed / "bin" / "kdmcse"), "--help")
    source = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "kdmcse_hf").rglob("*.py")}
    shipped = {path.parent.relative_to(installed).as_posix() for path in installed.rglob("*.py")}
    assert shipped == source - {"kdmcse_hf/cli"} | {"kdmcse_cli"}
