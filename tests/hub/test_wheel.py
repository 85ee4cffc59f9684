import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked far from the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed: Path, program: str) -> str:
    # -P and a folder of its own: nothing of the source tree can be imported by accident
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=installed, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_all_it_needs(installed: Path) -> None:
    program = """
import kdmcse_hf, kdmcse_hf.trainer, kdmcse_hf.extraction, kdmcse_hf.arguments
from kdmcse_hf.world.teacher import TEACHER_FOLDER
from transformers import CLIPModel, CLIPProcessor
CLIPModel.from_pretrained(TEACHER_FOLDER), CLIPProcessor.from_pretrained(TEACHER_FOLDER)
print(kdmcse_hf.__file__)
"""
    assert run(installed, program).strip().startswith(str(installed))
    assert (installed / "kdmcse_hf" / "py.typed").exists()


def test_the_command_is_its_own_package_and_every_package_is_in_the_wheel(installed: Path) -> None:
    assert "import-features" in run(installed, "import kdmcse_cli; kdmcse_cli.main(['--help'])")
    source = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "kdmcse_hf").rglob("*.py")}
    shipped = {path.parent.relative_to(installed).as_posix() for path in installed.rglob("*.py")}
    assert shipped == source - {"kdmcse_hf/cli"} | {"kdmcse_cli"}
