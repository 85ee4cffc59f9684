"""`kdmcse convert` by the name of a repository."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from loopback_hub import LoopbackHub
from transformers import AutoModel

pytestmark = [
    pytest.mark.slow,
    # of the client's own code, which uploads large files through an older argument of its HTTP library
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]

PROGRAM = """
import sys
from kdmcse_hf.cli import main
sys.stderr = sys.stdout
print(main(["convert", "alice/simcse", {folder!r}, "--revision", {revision!r}]))
"""


def test_a_published_checkpoint_is_converted_by_name_at_the_revision_asked_for(
    api: HfApi,
    hub: LoopbackHub,
    run_client: Callable[..., str],
    encoder_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    # An encoder of transformers with its pooler has the very names of a SimCSE checkpoint behind its script.
    theirs = AutoModel.from_pretrained(encoder_folder("bert"))
    api.create_repo("simcse", private=True)
    first = api.upload_folder(repo_id="alice/simcse", folder_path=encoder_folder("bert")).oid
    api.delete_file("model.safetensors", "alice/simcse")

    output = run_client(PROGRAM.format(folder=str(tmp_path / "ours"), revision=first), api.token)
    assert "renamed   embeddings.LayerNorm.bias -> encoder.embeddings.LayerNorm.bias" in output
    ours = AutoModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(ours.pooler.dense.weight, theirs.pooler.dense.weight)
    assert torch.equal(ours.encoder.embeddings.word_embeddings.weight, theirs.embeddings.word_embeddings.weight)

    output = run_client(PROGRAM.format(folder=str(tmp_path / "none"), revision="main"), hub.add_user("bob"))
    assert "alice/simcse is no folder, nor a model that can be had from the Hub (RepositoryNotFoundError" in output
    assert output.endswith("\n1\n")
    assert not (tmp_path / "none").exists()
