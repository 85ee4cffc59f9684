"""The loopback Hub, through the client that talks to the real one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import LoopbackHub

# of the client's own code, which uploads large files through an older argument of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "alice/model"
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# Model\n",
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": bytes(range(256)) * 4000,
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "other.bin": b"other" * 1000,
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: str) -> dict[str, bytes]:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }
    assert b"filter=lfs" in found.pop(".gitattributes")  # every repository begins with it
    return found


def visible(api: HfApi) -> tuple[list[str], list[str]]:
    """The titles of all commits, and all files, as anybody sees them."""
    titles = [commit.title for commit in api.list_repo_commits(REPO, token=False)]
    return titles, sorted(api.list_repo_files(REPO, token=False))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "folder", FILES)


@pytest.fixture
def pushed(api: HfApi, folder: Path) -> str:
    """The first commit of the folder."""
    api.create_repo(REPO)
    return api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="first").oid


def test_a_pushed_folder_comes_back_byte_for_byte(api: HfApi, pushed: str, hub: LoopbackHub) -> None:
    assert read(api.snapshot_download(REPO)) == FILES
    assert hub.count("PUT", "/large-files/") == 2
    info = api.model_info(REPO, files_metadata=True)
    assert info.sha == pushed
    assert not info.private
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert {name: sizes[name] for name in FILES} == {name: len(content) for name, content in FILES.items()}
    assert {sibling.rfilename for sibling in info.siblings if sibling.lfs} == {"model.safetensors", "other.bin"}


def test_a_download_is_not_repeated(api: HfApi, pushed: str, hub: LoopbackHub) -> None:
    api.snapshot_download(REPO)
    before = hub.count("GET", "/resolve/")
    api.snapshot_download(REPO)
    api.hf_hub_download(REPO, "model.safetensors")
    assert hub.count("GET", "/resolve/") == before


def test_the_second_push_uploads_only_the_changed_file(api: HfApi, pushed: str, folder: Path, hub: LoopbackHub) -> None:
    before = hub.count("PUT", "/large-files/")
    (folder / "other.bin").write_bytes(b"changed")
    second = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="second").oid
    assert hub.count("PUT", "/large-files/") == before + 1
    assert read(api.snapshot_download(REPO)) == {**FILES, "other.bin": b"changed"}
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == second  # nothing changed: no commit
    assert visible(api)[0] == ["second", "first", "initial commit"]


def test_every_revision_stays_what_it_was(api: HfApi, pushed: str, folder: Path) -> None:
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="experiments/one")
    (folder / "config.json").write_bytes(b"{}")
    api.upload_folder(repo_id=REPO, folder_path=folder)
    for revision in (pushed, "v1", "experiments/one"):
        assert read(api.snapshot_download(REPO, revision=revision)) == FILES
        assert Path(api.hf_hub_download(REPO, "config.json", revision=revision)).read_bytes() == FILES["config.json"]
        assert api.model_info(REPO, revision=revision).sha == pushed
    assert Path(api.hf_hub_download(REPO, "config.json")).read_bytes() == b"{}"
    refs = api.list_repo_refs(REPO)
    assert {branch.name for branch in refs.branches} == {"main", "experiments/one"}
    assert {(tag.name, tag.target_commit) for tag in refs.tags} == {("v1", pushed)}
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="v2")


def test_a_push_to_a_branch_leaves_main_alone(api: HfApi, pushed: str, folder: Path) -> None:
    api.create_branch(REPO, branch="next")
    (folder / "config.json").write_bytes(b"{}")
    api.upload_folder(repo_id=REPO, folder_path=folder, revision="next")
    assert read(api.snapshot_download(REPO)) == FILES
    assert read(api.snapshot_download(REPO, revision="next"))["config.json"] == b"{}"


def test_the_tree_is_listed_and_files_go_when_deleted(api: HfApi, pushed: str) -> None:
    assert {entry.path for entry in api.list_repo_tree(REPO)} == {
        *(".gitattributes", "README.md", "config.json", "model.safetensors", "other.bin", "1_Pooling")
    }
    assert [entry.path for entry in api.list_repo_tree(REPO, "1_Pooling")] == ["1_Pooling/config.json"]
    assert set(api.list_repo_files(REPO)) == {*FILES, ".gitattributes"}
    assert [entry.size for entry in api.get_paths_info(REPO, ["config.json", "none"])] == [len(FILES["config.json"])]
    api.create_commit(REPO, [CommitOperationDelete("1_Pooling/")], commit_message="delete")
    assert "1_Pooling/config.json" not in api.list_repo_files(REPO)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "1_Pooling/config.json")


def test_a_repository_is_made_once(api: HfApi, pushed: str) -> None:
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo(REPO)
    assert api.create_repo("model", exist_ok=True).repo_id == REPO  # the user's own name is the default
    assert read(api.snapshot_download(REPO)) == FILES
    api.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPO)


def test_a_private_repository_does_not_exist_for_others(
    api: HfApi, folder: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert api.model_info(REPO).private
    assert read(api.snapshot_download(REPO)) == FILES
    for token, status in ((False, 401), (hub.add_user("bob"), 404)):
        for attempt in (
            lambda token=token: api.model_info(REPO, token=token),
            lambda token=token: api.hf_hub_download(REPO, "config.json", token=token, cache_dir=tmp_path),
            lambda token=token: api.upload_folder(repo_id=REPO, folder_path=folder, token=token),
        ):
            with pytest.raises(RepositoryNotFoundError) as refused:
                attempt()
            assert refused.value.response.status_code == status


def test_only_the_owner_writes(api: HfApi, pushed: str, folder: Path, hub: LoopbackHub) -> None:
    (folder / "config.json").write_bytes(b"{}")
    bob = hub.add_user("bob")
    assert api.whoami(token=bob)["name"] == "bob"
    with pytest.raises(HfHubHTTPError, match="do not have the rights to write"):
        api.upload_folder(repo_id=REPO, folder_path=folder, token=bob)
    with pytest.raises(HfHubHTTPError, match="don't have the rights to create"):
        api.create_repo("alice/another", token=bob)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_stranger")
    assert read(api.snapshot_download(REPO, token=bob)) == FILES


def test_a_cut_upload_is_tried_again(api: HfApi, folder: Path, hub: LoopbackHub) -> None:
    api.create_repo(REPO)
    hub.fail("PUT", "/large-files/")
    hub.fail("PUT", "/large-files/", status=503)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert hub.count("PUT", "/large-files/") == 4
    assert read(api.snapshot_download(REPO)) == FILES


def test_an_upload_that_fails_publishes_nothing_and_the_next_one_succeeds(
    api: HfApi, folder: Path, hub: LoopbackHub
) -> None:
    api.create_repo(REPO)
    before = visible(api)
    hub.fail("PUT", "/large-files/", status=403)
    with pytest.raises(RuntimeError, match="Error while uploading"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert visible(api) == before == (["initial commit"], [".gitattributes"])
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert read(api.snapshot_download(REPO)) == FILES


@pytest.mark.parametrize("status", [500, None])
def test_a_commit_that_fails_publishes_nothing_and_the_next_one_uploads_nothing_twice(
    status: int | None, api: HfApi, folder: Path, hub: LoopbackHub
) -> None:
    api.create_repo(REPO)
    before = visible(api)
    hub.fail("POST", "/commit/", status=status)
    with pytest.raises(Exception, match="500|disconnected|reset|pipe"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert visible(api) == before
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert read(api.snapshot_download(REPO)) == FILES
    assert hub.count("PUT", "/large-files/") == 2


def test_a_commit_that_names_a_file_nobody_uploaded_is_refused(api: HfApi, pushed: str, hub: LoopbackHub) -> None:
    line = {"path": "ghost.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}
    operations = [{"key": "header", "value": {"summary": "ghost"}}, {"key": "lfsFile", "value": line}]
    before = visible(api)
    with pytest.raises(Exception, match="does not exist: ghost.bin"):
        hub.repositories[REPO].commit("main", operations)
    assert visible(api) == before


def test_a_commit_on_another_state_than_expected_is_refused(api: HfApi, pushed: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(b"{}")
    parent = api.list_repo_commits(REPO)[-1].commit_id
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.upload_folder(repo_id=REPO, folder_path=folder, parent_commit=parent)


def test_a_cut_download_goes_on_where_it_was_cut(api: HfApi, pushed: str, hub: LoopbackHub) -> None:
    hub.fail("GET", "/resolve/main/model.safetensors")
    assert Path(api.hf_hub_download(REPO, "model.safetensors")).read_bytes() == FILES["model.safetensors"]
    assert hub.count("GET", "/resolve/main/model.safetensors") == 2


def test_a_card_is_validated_before_it_is_taken(api: HfApi, pushed: str, folder: Path) -> None:
    before = visible(api)
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    (folder / "README.md").write_text("---\njust words\n---\n")
    with pytest.raises(ValueError, match="not a mapping"):
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert visible(api) == before
    (folder / "README.md").write_text("# No metadata\n")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_folder(repo_id=REPO, folder_path=folder)


def test_what_the_hub_does_not_serve_is_said(api: HfApi, pushed: str) -> None:
    with pytest.raises(BadRequestError, match="models only"):
        api.create_repo("alice/data", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="This Hub has no GET /api/models"):
        list(api.list_models())


PUSH = """
import sys
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained({folder!r})
assert model.push_to_hub("tiny", private=True).oid
AutoTokenizer.from_pretrained({folder!r}).push_to_hub("tiny")
model.embeddings.word_embeddings.weight.data.zero_()
model.push_to_hub("tiny", commit_message="zeros")
"""
LOAD = """
import torch
from transformers import AutoModel, AutoTokenizer
from huggingface_hub import HfApi
old = [commit.commit_id for commit in HfApi().list_repo_commits("alice/tiny") if commit.title == "Upload tokenizer"][0]
tokens = AutoTokenizer.from_pretrained("alice/tiny")(["a cat sits", "the dog"], padding=True, return_tensors="pt")
for revision, folder in (("main", None), (old, {folder!r})):
    model = AutoModel.from_pretrained("alice/tiny", revision=revision).eval()
    if folder:
        expected = AutoModel.from_pretrained(folder).eval()
        assert torch.equal(model(**tokens).last_hidden_state, expected(**tokens).last_hidden_state)
    print(bool(model.embeddings.word_embeddings.weight.any()))
"""
REFUSED = """
from transformers import AutoModel
try:
    AutoModel.from_pretrained("alice/tiny")
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_transformers_pushes_and_loads_by_name_and_revision(
    hub: LoopbackHub, run_client: Callable[..., str], encoder_folder: Callable[[str], Path]
) -> None:
    folder, alice = str(encoder_folder("bert")), hub.add_user("alice")
    run_client(PUSH.format(folder=folder), alice)
    assert run_client(LOAD.format(folder=folder), alice).split() == ["False", "True"]
    refusal = run_client(REFUSED, hub.add_user("bob"))
    assert "alice/tiny is not a local folder and is not a valid model identifier" in refusal
    assert "private" in refusal
