"""What is loaded by the name of a repository of which not everything is known, or that is hostile."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from tiny import make_tokenizer

from kdmcse_hf import KDMCSEModel, SentenceEncoder
from kdmcse_hf.export import export_release
from kdmcse_hf.release import read_manifest, write_json, write_manifest

pytestmark = [
    pytest.mark.slow,
    # of the client's own code, which uploads large files through an older argument of its HTTP library
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

HEADS = {"pooling": "mean", "image_embed_dim": 12}
BEGIN = """
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = "{offline}"
from kdmcse_hf import KDMCSEModel, SentenceEncoder
from kdmcse_hf.cli import main
def attempt(load, *args, **kwargs):
    try:
        print("opened", type(load(*args, **kwargs)).__name__)
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()))
HEADS = dict(pooling="mean", image_embed_dim=12)
"""
REFUSED = """
for load in (SentenceEncoder.from_pretrained, KDMCSEModel.from_encoder, KDMCSEModel.from_pretrained):
    attempt(load, "alice/forbidden")
"""
ONE_REFUSED = """
attempt(SentenceEncoder.from_pretrained, {name!r})
"""
FILL_THE_CACHE = """
from huggingface_hub import hf_hub_download
for name in ("alice/release", "alice/unmarked"):
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        hf_hub_download(name, file)
attempt(SentenceEncoder.from_pretrained, "alice/plain")
attempt(KDMCSEModel.from_encoder, "alice/plain")
"""
OFFLINE = """
for name in ("alice/release", "alice/unmarked", "alice/plain"):
    attempt(SentenceEncoder.from_pretrained, name)
attempt(KDMCSEModel.from_encoder, "alice/release", **HEADS)
attempt(KDMCSEModel.from_encoder, "alice/plain", **HEADS)
attempt(KDMCSEModel.from_pretrained, "alice/release")
attempt(SentenceEncoder.from_pretrained, "alice/nothing")
print(json.dumps(SentenceEncoder.from_pretrained("alice/release", pooling="mean")("the cat runs").tolist()))
"""
VERIFY = """
sys.stderr = sys.stdout
for name in ("alice/good", "alice/code", "alice/named"):
    print("exit", main(["verify", name]))
"""


@pytest.fixture
def release(encoder_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    KDMCSEModel.from_encoder(encoder_folder("bert"), **HEADS).save_pretrained(tmp_path / "checkpoint")
    make_tokenizer().save_pretrained(tmp_path / "checkpoint")
    return export_release(tmp_path / "checkpoint", tmp_path / "release")


@pytest.fixture
def push(api: HfApi) -> Callable[[str, Path], None]:
    def push(name: str, folder: Path) -> None:
        api.create_repo(name)
        api.upload_folder(repo_id=f"alice/{name}", folder_path=folder)

    return push


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **changes})


def test_a_hub_that_does_not_say_whether_it_is_a_release_is_an_error_that_names_the_file(
    api: HfApi, hub: LoopbackHub, push: Callable[[str, Path], None], run_client: Callable[..., str], release: Path
) -> None:
    for name, status in (("forbidden", 403), ("broken", 500)):
        push(name, release)
        hub.fail("HEAD", f"alice/{name}/resolve/main/kdmcse/config.json", times=1000, status=status)
    begin = BEGIN.format(offline=0)
    gone = 'import os\nos.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"\n' + begin  # where nobody listens
    output = run_client(begin + REFUSED + ONE_REFUSED.format(name="alice/broken"), api.token)
    for line, name in zip(output.splitlines(), ["forbidden"] * 3 + ["broken"], strict=True):
        kind = f"OSError 'alice/{name}' is no folder here, and it is not known whether it has a file kdmcse/config.json"
        assert line.startswith(kind)
    # Where there is no Hub at all, the cache is what there is, as offline; and of these it has nothing.
    assert run_client(gone + ONE_REFUSED.format(name="alice/gone"), api.token).startswith("OSError")


def test_offline_a_part_of_a_release_is_not_taken_for_a_plain_encoder(
    api: HfApi,
    push: Callable[[str, Path], None],
    run_client: Callable[..., str],
    encoder_folder: Callable[[str], Path],
    release: Path,
) -> None:
    vector = SentenceEncoder.from_pretrained(release)("the cat runs").tolist()
    push("plain", encoder_folder("bert"))
    edit(release / "config.json", kdmcse_checkpoint="kdmcse")
    push("release", release)
    edit(release / "config.json", kdmcse_checkpoint=None)
    push("unmarked", release)
    online = run_client(BEGIN.format(offline=0) + FILL_THE_CACHE, api.token)
    assert online.split() == ["opened", "SentenceEncoder", "opened", "KDMCSEModel"]
    said = run_client(BEGIN.format(offline=1) + OFFLINE, api.token).splitlines()
    for line, name in zip(said[:2], ("release", "unmarked"), strict=True):
        assert line.startswith(f"ValueError How 'alice/{name}' makes its vectors is not known offline")
        assert "1_Pooling/config.json" in line and f"`hf download alice/{name}`" in line and "`pooling`" in line
    assert said[2] == "opened SentenceEncoder"  # the Hub had said that it has no such files
    missing = (
        "'alice/release' is a release, of which the cache holds the plain encoder alone: `hf download alice/release`"
    )
    assert said[3].startswith(f"OSError {missing}")
    assert said[4] == "opened KDMCSEModel"
    assert said[5].startswith(f"OSError {missing}")
    assert said[6].startswith("OSError")
    assert said[7] == str(vector)


def test_verify_looks_at_all_of_a_repository_and_does_not_download_states(
    api: HfApi, hub: LoopbackHub, push: Callable[[str, Path], None], run_client: Callable[..., str], release: Path
) -> None:
    resumable = release / "last-checkpoint"
    resumable.mkdir()
    for name in ("optimizer.pt", "model.safetensors", "rng_state_0.pth"):
        (resumable / name).write_bytes(b"x" * 1000)
    push("good", release)
    (resumable / "evil.py").write_text("print('evil')")
    push("code", release)
    (resumable / "evil.py").unlink()
    edit(release / "kdmcse" / "config.json", auto_map={"AutoModel": "evil/repo--model.M"})
    files = read_manifest(release)["files"]
    (release / "kdmcse" / "release.json").unlink()
    write_manifest(release, "1")
    manifest = read_manifest(release)
    write_json(release / "kdmcse" / "release.json", {**manifest, "files": {n: manifest["files"][n] for n in files}})
    push("named", release)
    good, code, named, _ = run_client(BEGIN.format(offline=0) + VERIFY, api.token).split("exit ")
    assert "WRONG" not in good
    assert code.startswith("0") and "last-checkpoint/evil.py is code" in code
    assert named.startswith("1") and "names other code than the two files beside it" in named
    assert hub.count("GET", "last-checkpoint/evil.py") == 1
    assert hub.count("GET", "optimizer.pt") == hub.count("GET", "last-checkpoint/model.safetensors") == 0
