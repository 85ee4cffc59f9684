"""A Hub for each test, and two ways to be its client.

`huggingface_hub` reads its settings when it is imported, and other libraries copy some of them, so a process has one
Hub for life. `run_client` therefore starts a process with the right environment: what transformers, a Trainer or
sentence-transformers do by the name of a repository is tested so. `api` is the client in this process, which is
quicker: it is told its Hub by arguments, and only settings that the library looks up at each call are changed.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clean_environments import clean_python, installed, wheel
from huggingface_hub import HfApi, close_session, constants
from loopback_hub import LoopbackHub

__all__ = ["api", "clean_python", "hub", "installed", "run_client", "wheel"]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def api(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HfApi]:
    """The real client of the user `alice`."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    close_session()
    yield HfApi(endpoint=hub.url, token=hub.add_user("alice"))
    close_session()


@pytest.fixture
def run_client(hub: LoopbackHub, tmp_path: Path) -> Callable[..., str]:
    """Runs a program in a process of its own, as a user with a cache of his own; returns what it printed."""

    def run(program: str, token: str | None = None) -> str:
        environment = hub.environment(tmp_path / f"home_of_{token}", token)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
