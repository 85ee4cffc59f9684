"""The built package, and a clean environment for each of its clients."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

# What each client installs, and the environment that its own starts as a copy of: nobody needs less than that.
CLIENTS: dict[str, tuple[str, list[str]]] = {
    "transformers": ("", ["transformers"]),
    "remote_code": ("transformers", []),
    "sentence_transformers": ("transformers", ["sentence-transformers"]),
    "sentence_transformers_5": ("transformers", ["sentence-transformers==5.2.2"]),  # the first to import beside hub 1.x
    "mteb": ("sentence_transformers", ["mteb"]),
    "kdmcse_hf": ("transformers", []),
    "kdmcse_hf[mteb]": ("mteb", []),
}


def checked(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    shutil.copytree(ROOT / "kdmcse_hf", source / "kdmcse_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    checked([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)])
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed by pip far from its sources."""
    site = tmp_path_factory.mktemp("installed") / "site"
    checked([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)])
    return site


@pytest.fixture(scope="session")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Python of a clean environment of its own for each client; made once, from the package index.

    They share one thing, torch, which is large: a folder with links to it and to what it depends on, and to nothing
    else that is installed here, is on their path.
    """
    folder = tmp_path_factory.mktemp("clients")
    torch = folder / "torch"
    torch.mkdir()
    _link_with_dependencies("torch", torch)
    made: dict[str, Path] = {}

    def make(client: str) -> Path:
        if client in made:
            return made[client]
        base, packages = CLIENTS[client]
        if client.startswith("kdmcse_hf"):
            packages = [client.replace("kdmcse_hf", str(wheel))]
        environment = folder / client
        checked([sys.executable, "-m", "venv", "--without-pip", str(environment)])
        python = environment / "bin" / "python"
        site = next((environment / "lib").glob("python*/site-packages"))
        if base:
            base_site = next((make(base).parents[1] / "lib").glob("python*/site-packages"))
            shutil.copytree(base_site, site, copy_function=os.link, dirs_exist_ok=True)
        else:
            (site / "torch.pth").write_text(f"{torch}\n")
        pinned = {package.partition("==")[0] for package in packages if "==" in package}
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints = folder / f"{client}.txt"
        constraints.write_text("\n".join(line for line in lines if line.partition("==")[0] not in pinned))
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
        if packages:
            checked([*pip, "-c", str(constraints), *packages])
        made[client] = python
        return python

    return make


def _link_with_dependencies(package: str, folder: Path) -> None:
    waiting, seen = [package], set()
    while waiting:
        try:
            found = distribution(waiting.pop())
        except PackageNotFoundError:  # needed elsewhere only, or optional
            continue
        if found.name in seen:
            continue
        seen.add(found.name)
        for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(found.locate_file(name))
        waiting += [Requirement(line).name for line in found.requires or [] if "extra ==" not in line]
