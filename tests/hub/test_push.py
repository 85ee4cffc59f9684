"""A Trainer pushes to a Hub, during training and after it; others load what it pushed by its name alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import metadata_load
from loopback_hub import LoopbackHub
from tiny import make_cache, make_sentences, write_sts
from transformers import AutoTokenizer

from kdmcse_hf import KDMCSEModel, SentenceEncoder

pytestmark = pytest.mark.slow

TRAIN = """
import json
from pathlib import Path
from test_trainer import make_trainer

def trainer_for(home, encoder, **arguments):
    settings = {{"dev": True, "max_steps": 4, "push_to_hub": True, "hub_model_id": "alice/name", **arguments}}
    return make_trainer(Path(home), Path(encoder), **settings)

home, encoder = {home!r}, {encoder!r}
"""
PUSH_DURING_AND_AFTER = """
trainer = trainer_for(
    home, encoder, hub_private_repo=True, hub_always_push=True, hub_strategy="checkpoint",
    save_strategy="steps", save_steps=2,
)
trainer.train()
commit = trainer.push_to_hub()
print("oid", commit.oid)
"""
PUSH_AGAIN = """
from kdmcse_hf.checkpoint import save_sts_results
from huggingface_hub import HfApi
from kdmcse_hf.export import export_release
out = Path(home) / "out"
scores = {{"scores": {{"STSB": 12.5}}, "pairs": {{"STSB": 40}}, "protocol": {{"split": "test"}}, "max_length": 40}}
save_sts_results(out, scores)
release = export_release(out, Path(home) / "release", name="alice/name")
print("oid", HfApi().upload_folder(repo_id="alice/name", folder_path=release, commit_message="with scores").oid)
"""
CLIENTS = """
import json
import torch
from importlib.util import find_spec
from huggingface_hub import snapshot_download
from transformers import AutoModel, AutoTokenizer
name, revision = "alice/name", {revision!r}
sentences = ["a cat sits on the mat", "the red bird", "a house"]
inputs = AutoTokenizer.from_pretrained(name, revision=revision)(sentences, padding=True, return_tensors="pt")
with torch.inference_mode():
    plain = AutoModel.from_pretrained(name, revision=revision)(**inputs).last_hidden_state[:, 0]
found = {{"plain": plain}}
if find_spec("sentence_transformers"):
    from sentence_transformers import SentenceTransformer
    found["st"] = torch.tensor(SentenceTransformer(name, revision=revision).encode(sentences))
from kdmcse_hf import KDMCSEModel, SentenceEncoder
ours = KDMCSEModel.from_pretrained(name, subfolder="kdmcse", revision=revision)
where = {{"subfolder": "kdmcse", "revision": revision}}
found["ours"] = torch.tensor(SentenceEncoder(ours, AutoTokenizer.from_pretrained(name, **where))(sentences))
assert all(torch.equal(vectors, plain) for vectors in found.values()), found
print(json.dumps({{"clients": sorted(found), "vectors": plain.double().tolist()}}))
"""
GO_ON = """
import torch
from transformers import AutoTokenizer
from kdmcse_hf import KDMCSEModel
from kdmcse_hf.checkpoint import RECORD_FILE
from kdmcse_hf import SentenceEncoder
before = KDMCSEModel.from_pretrained("alice/name", subfolder="kdmcse")
heads = dict(image_embed_dim=12, caption_embed_dim=12, projection_dim=8)
old = KDMCSEModel.from_encoder("alice/name", revision={revision!r}, **heads)
pinned = KDMCSEModel.from_pretrained("alice/name", subfolder="kdmcse", revision={revision!r})
assert torch.equal(old.image_projection.weight, pinned.image_projection.weight)
assert not torch.equal(old.image_projection.weight, before.image_projection.weight)
sentences = ["a cat sits on the mat", "the red bird"]
for model, where in ((before, {{}}), (pinned, {{"revision": {revision!r}}})):
    encode = SentenceEncoder.from_pretrained("alice/name", device="cpu", **where)
    assert (encode(sentences) == model.encode(sentences)).all()
# by its name alone: the checkpoint in the release is found
trainer = make_trainer(Path(home), "alice/name", max_steps=2)
for name, value in before.state_dict().items():
    assert torch.equal(value, trainer.model.state_dict()[name]), name
trainer.train()
trainer.save_model()
after = KDMCSEModel.from_pretrained(Path(home) / "out")
assert not torch.equal(after.image_projection.weight, before.image_projection.weight)
print("base", json.loads((Path(home) / "out" / RECORD_FILE).read_text())["base_model"])
"""
REFUSED = """
from huggingface_hub.errors import HfHubHTTPError
from kdmcse_hf.verification import download_release
try:
    download_release("alice/name")
except ValueError as error:
    print("refused", error)
try:
    trainer_for(home, encoder).push_to_hub()
except (HfHubHTTPError, OSError) as error:
    print("push refused", type(error).__name__, error)
"""
CUT = """
trainer = trainer_for(home, encoder, hub_model_id="alice/cut")
trainer.train()
try:
    print("pushed", trainer.push_to_hub().oid)
except Exception as error:
    print("failed", type(error).__name__)
"""
# A Trainer of which nobody had said before that it pushes; two trainers, as the weights are others
WITHOUT_ARGUMENTS = """
trainer = trainer_for(home, encoder, push_to_hub=False)
try:
    trainer.push_to_hub(tags=["x"], language="en")
except ValueError as error:
    print("refused", error)
print("first", trainer.push_to_hub(private=True).oid)
"""
OTHER_WEIGHTS = """
import torch
from huggingface_hub import HfApi
from kdmcse_hf.checkpoint import save_mteb_results

def scored(trainer):  # scores belong to saved weights: the Trainer saves the same again
    trainer.save_model(_internal_call=True)
    datasets = {{"STS12": {{"path": "mteb/sts12-sts", "revision": "a0d554a"}}}}
    scores = {{"scores": {{"STS12": 81.25}}, "pairs": {{"STS12": 3108}}, "datasets": datasets}}
    scores |= {{"protocol": {{"split": "test"}}, "max_length": 40}}
    save_mteb_results(trainer.args.output_dir, scores)

api = HfApi()
trainer = trainer_for(home, encoder)
(Path(home) / "out" / "_push-killed").mkdir(parents=True)
scored(trainer)
trainer.push_to_hub()
assert not (Path(home) / "out" / "_push-killed").exists()
mine = {{"pictures/a.json": b"1", "checkpoint-7/trainer_state.json": b"2", "last-checkpoint/vocab.txt": b"3"}}
mine |= {{"LICENSE": b"4", "plot.png": b"5"}}
theirs = {{"vocab.txt": b"a", "special_tokens_map.json": b"{{}}", "model-00001-of-00002.safetensors": b"6"}}
for name, content in {{**mine, **theirs}}.items():
    api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="alice/name")
with torch.no_grad():
    trainer.model.pooler.dense.bias += 1
(Path(home) / "out" / "mteb_results.json").unlink()
print("oid", trainer.push_to_hub(commit_message="other weights").oid)
"""
EDITED = """
trainer = trainer_for(home, encoder)
trainer.push_to_hub()
HfApi = __import__("huggingface_hub").HfApi
HfApi().upload_file(path_or_fileobj=b"by hand", path_in_repo="README.md", repo_id="alice/name")
print("same", trainer.push_to_hub().oid)
trainer.state.global_step = 3
try:
    trainer.push_to_hub()
except ValueError as error:
    print("refused", error)
print("replaced", trainer.push_to_hub(replace_card=True).oid)
"""
IN_ORDER = """
import time
from kdmcse_hf import push
upload = push._upload

def slow_at_first(repository, folder, message, *rest):
    time.sleep(1.5 if "step 2" in message else 0)  # an older step's upload takes longer than a newer one's
    return upload(repository, folder, message, *rest)

push._upload = slow_at_first
trainer = trainer_for(
    home, encoder, hub_always_push=True, hub_strategy="every_save", save_strategy="steps", save_steps=2
)
trainer.train()
trainer._finish_current_push()
"""
_PATHS = str(Path(__file__).parents[1] / "unit"), str(Path(__file__).parents[1])


def _program(body: str, home: Path, encoder: Path, revision: str = "main") -> str:
    head = f"import sys; sys.path[:0] = {list(_PATHS)!r}\n"
    return head + (TRAIN + body).format(home=str(home), encoder=str(encoder), revision=revision)


def _prepare(folder: Path) -> Path:
    folder.mkdir()
    make_cache(folder / "cache")
    write_sts(folder / "sts", make_sentences(30, seed=5))
    return folder


def _said(output: str, word: str) -> str:
    (line,) = re.findall(rf"^{word} (.*)$", output, re.MULTILINE)
    return line


def test_pushed_during_and_after_training_and_loaded_by_name_in_fresh_processes(
    hub: LoopbackHub, run_client: Callable[..., str], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    alice, home = hub.add_user("alice"), _prepare(tmp_path / "privatehome")
    encoder = encoder_folder("bert")
    last = _said(run_client(_program(PUSH_DURING_AND_AFTER, home, encoder), alice), "oid")
    repository = hub.repositories["alice/name"]
    assert repository.private
    titles = [commit.title for commit in repository.at("main").history()]
    # The end of training has nothing to add to the last step's commit, so it makes none.
    assert titles == ["Training in progress, step 4", "Training in progress, step 2", "initial commit"]
    assert repository.at("main").oid == last
    files = repository.at("main").files
    assert {"kdmcse/release.json", "README.md", "last-checkpoint/trainer_state.json"} <= set(files)
    assert not any(name.endswith("training_args.bin") for name in files)
    card = tmp_path / "README.md"
    card.write_bytes(files["README.md"].content)
    assert 'name = "alice/name"' in card.read_text() and "| step | 4 |" in card.read_text()
    assert metadata_load(card)["library_name"] == "sentence-transformers"

    # one changed file: the scores, the card that shows them, and the list of files
    uploads = hub.count("PUT", "")
    newest = _said(run_client(_program(PUSH_AGAIN, home, encoder), alice), "oid")
    assert hub.count("PUT", "") == uploads  # no weights went again
    changed = {
        name for name, file in repository.at("main").files.items() if name not in files or files[name].oid != file.oid
    }
    assert changed == {"README.md", "kdmcse/sts_results.json", "kdmcse/release.json"}

    clients = {
        revision: json.loads(run_client(CLIENTS.format(revision=revision), alice))
        for revision in (newest, repository.at("main").parent.parent.oid)  # of step 2
    }
    after, middle = clients.values()
    assert after["clients"] == middle["clients"] and {"ours", "plain"} <= set(after["clients"])
    sentences = ["a cat sits on the mat", "the red bird", "a house"]
    for found, folder in ((after, home / "out"), (middle, home / "out" / "checkpoint-2")):
        encode = SentenceEncoder(KDMCSEModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
        np.testing.assert_allclose(found["vectors"], encode(sentences), atol=1e-6)
    assert not np.allclose(after["vectors"], middle["vectors"], atol=1e-5)

    going_on = _prepare(tmp_path / "going on")
    first = repository.at("main").parent.parent.oid  # of step 2
    base = _said(run_client(_program(GO_ON, going_on, encoder, first), alice), "base")
    assert base == "alice/name"

    # without a token nothing is there, and nothing can be pushed
    output = run_client(_program(REFUSED, _prepare(tmp_path / "stranger"), encoder), hub.add_user("bob"))
    assert "'alice/name' is no folder here, and cannot be read from the Hub (RepositoryNotFoundError" in output
    assert "push refused" in output
    assert repository.at("main").oid == newest

    sent = [*repository.large_files.values()]
    sent += [file.content for commit in repository.commits.values() for file in commit.files.values()]
    sent += [f"{commit.title} {commit.message}".encode() for commit in repository.commits.values()]
    for private in (str(tmp_path), "privatehome", str(encoder), alice, str(Path.home()) + "/"):
        assert not any(private.encode() in data for data in sent), private


def test_a_trainer_that_was_not_told_to_push_pushes_and_refuses_what_it_has_no_use_for(
    hub: LoopbackHub, run_client: Callable[..., str], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    output = run_client(
        _program(WITHOUT_ARGUMENTS, _prepare(tmp_path / "home"), encoder_folder("bert")), hub.add_user("alice")
    )
    assert "was given language, tags: the card is written from what the run recorded" in _said(output, "refused")
    repository = hub.repositories["alice/name"]
    assert repository.private
    assert repository.at("main").oid == _said(output, "first")
    assert [commit.title for commit in repository.at("main").history()] == ["End of training", "initial commit"]


def test_nothing_of_other_weights_stays_and_no_file_of_somebody_else_s_goes(
    hub: LoopbackHub, run_client: Callable[..., str], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    output = run_client(
        _program(OTHER_WEIGHTS, _prepare(tmp_path / "home"), encoder_folder("bert")), hub.add_user("alice")
    )
    newest = hub.repositories["alice/name"].at(_said(output, "oid"))
    before, files = newest.parent.files, newest.files
    assert newest.title == "other weights"
    assert b"81.25" in before["README.md"].content and b"81.25" in before[".eval_results/sts.yaml"].content
    gone = {".eval_results/sts.yaml", "kdmcse/mteb_results.json", "vocab.txt", "special_tokens_map.json"}
    assert before.keys() - files.keys() == gone | {"model-00001-of-00002.safetensors"}
    assert not any(b"81.25" in file.content for file in files.values())
    for name, data in {"pictures/a.json": b"1", "checkpoint-7/trainer_state.json": b"2", "plot.png": b"5"}.items():
        assert files[name].content == data
    assert {"last-checkpoint/vocab.txt", "LICENSE", ".gitattributes"} <= files.keys()


def test_a_card_that_was_edited_on_the_hub_is_replaced_only_on_demand(
    hub: LoopbackHub, run_client: Callable[..., str], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    output = run_client(_program(EDITED, _prepare(tmp_path / "home"), encoder_folder("bert")), hub.add_user("alice"))
    newest = hub.repositories["alice/name"].at("main")
    assert newest.oid == _said(output, "replaced")
    assert b"| step | 3 |" in newest.files["README.md"].content
    assert newest.parent.oid == _said(output, "same")  # nothing to replace: the same weights, the same card
    assert newest.parent.files["README.md"].content == b"by hand"
    refused = _said(output, "refused")
    assert "alice/name stays as it is: its README.md was edited by hand" in refused and "replace_card=True" in refused


def test_the_last_step_s_commit_is_the_last_one_however_long_an_earlier_upload_takes(
    hub: LoopbackHub, run_client: Callable[..., str], encoder_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    run_client(_program(IN_ORDER, _prepare(tmp_path / "home"), encoder_folder("bert")), hub.add_user("alice"))
    titles = [commit.title for commit in hub.repositories["alice/name"].at("main").history()]
    assert titles == ["Training in progress, step 4", "Training in progress, step 2", "initial commit"]


@pytest.mark.parametrize("times", [1, 50])
def test_a_cut_upload_is_retried_and_publishes_nothing_if_it_fails(
    times: int,
    hub: LoopbackHub,
    run_client: Callable[..., str],
    encoder_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    alice = hub.add_user("alice")
    hub.fail("PUT", "", times=times)
    output = run_client(_program(CUT, _prepare(tmp_path / "home"), encoder_folder("bert")), alice)
    repository = hub.repositories["alice/cut"]
    if times == 1:
        assert _said(output, "pushed") == repository.at("main").oid
        assert "kdmcse/model.safetensors" in repository.at("main").files
    else:
        assert "failed" in output
        assert set(repository.at("main").files) == {".gitattributes"}
        assert repository.at("main").title == "initial commit"
    assert not list((tmp_path / "home" / "out").glob("_push-*"))
