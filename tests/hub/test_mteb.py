"""`examples/evaluate_mteb.py`: mteb scores a checkpoint on its own datasets, which it loads from a Hub."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from clean_environments import ROOT
from hub_repositories import Repository
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub
from transformers import AutoTokenizer

from kdmcse_hf import KDMCSEModel, SentenceEncoder
from kdmcse_hf.export import export_release
from kdmcse_hf.sts import SentencePairs, score_pairs
from kdmcse_hf.world import write_student

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.version_info < (3, 11), reason="mteb needs Python 3.11")]

TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
WHERE = """
import json, mteb, sys
print(json.dumps({task.metadata.name: task.metadata.dataset for task in mteb.get_tasks(tasks=sys.argv[1:])}))
"""
COLORS, SHAPES = ("red", "blue", "green", "tiny red"), ("circle", "square", "disc")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_student(tmp_path / "student")
    folder = tmp_path / "checkpoint"
    KDMCSEModel.from_encoder(tmp_path / "student", pooling="mean", image_embed_dim=12).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tmp_path / "student", model_max_length=32).save_pretrained(folder)
    return folder


def pairs_of(number: int) -> SentencePairs:
    """Twelve pairs, others for each task; text is raw: it has capitals, and no blank before a full stop."""
    first = [f"A {color} {shape} is number {number}." for color in COLORS for shape in SHAPES]
    return SentencePairs(first, first[number + 1 :] + first[: number + 1], [(7 * i + number) % 6 for i in range(12)])


def publish(hub: LoopbackHub, where: dict[str, str], pairs: SentencePairs) -> None:
    """At the revision that mteb asks for; a later one holds other gold scores."""
    name = f"datasets/{where['path']}"
    hub.repositories[name] = repository = Repository(name, private=False)
    for scores in (pairs.scores, pairs.scores[::-1]):
        rows = zip(pairs.first, pairs.second, scores, strict=True)
        lines = "".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) + "\n" for a, b, s in rows)
        file = {"path": "test.jsonl", "content": base64.b64encode(lines.encode()).decode()}
        commit = repository.commit(
            "main", [{"key": "header", "value": {"summary": "data"}}, {"key": "file", "value": file}]
        )
        if where["revision"] not in repository.commits:  # a commit's name cannot be chosen, but what goes by it can
            repository.commits[where["revision"]] = replace(commit, oid=where["revision"])


def test_a_checkpoint_is_scored_by_mteb_on_all_seven_sets_as_by_us_and_its_card_says_by_whom(
    hub: LoopbackHub, clean_python: Callable[[str], Path], checkpoint: Path, tmp_path: Path
) -> None:
    python = clean_python("kdmcse_hf[mteb]")

    def run(*program: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = hub.environment(tmp_path / "home") | variables
        return subprocess.run([str(python), *program], env=environment, cwd=tmp_path, capture_output=True, text=True)

    datasets = json.loads(run("-c", WHERE, *TASKS).stdout)
    assert set(datasets) == set(TASKS)
    for number, task in enumerate(TASKS[:-1]):
        publish(hub, datasets[task], pairs_of(number))
    command = [str(ROOT / "examples" / "evaluate_mteb.py"), "--model_name_or_path", str(checkpoint), "--record"]
    failed = run(*command, "--output_json", "scores.json")
    assert failed.returncode == 1
    assert "mteb's SICK-R is mteb/sickr-sts on the Hub, which cannot be read" in failed.stderr
    assert not (checkpoint / "mteb_results.json").exists()

    publish(hub, datasets["SICK-R"], pairs_of(6))
    done = run(*command, "--output_json", "scores.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    encode = SentenceEncoder.from_pretrained(str(checkpoint))
    ours = {task: score_pairs(encode, pairs_of(number))["spearman"] for number, task in enumerate(TASKS)}
    assert scores == pytest.approx({**ours, "avg": sum(ours.values()) / 7}, abs=1e-6)
    assert len(set(scores.values())) > 5

    release = export_release(checkpoint, tmp_path / "release")
    card = ModelCard.load(release / "README.md")
    assert "Spearman x 100 of cosine and gold, by mteb." in card.text and "SentEval" not in card.content
    entries = yaml.safe_load((release / ".eval_results" / "sts.yaml").read_text())
    found = {entry["dataset"]["task_id"]: entry for entry in entries}
    assert {task: entry["value"] for task, entry in found.items()} == {task: scores[task] for task in TASKS}
    for task, entry in found.items():
        place = {"path": entry["dataset"]["id"], "revision": entry["dataset"]["revision"]}
        assert place == {name: datasets[task][name] for name in place}

    wrong = """
import numpy as np, sys
from kdmcse_hf.mteb_sts import evaluate_mteb_sts
for vectors in (lambda s: np.ones((len(s), 2)), lambda s: np.full((len(s), 2), np.nan), lambda s: np.ones((1, 2))):
    try:
        evaluate_mteb_sts(vectors, ["STS12"])
    except ValueError as error:
        print(error)
"""
    collapsed, nan, short = run("-c", wrong).stdout.splitlines()
    assert collapsed == "STS12 has the score nan: the vectors of all its sentences are the same."
    assert "24 of its numbers NaN" in nan and "of shape (1, 2) for 12 sentences" in short

    # Without a connection, `datasets` takes what its cache has of any revision.
    (cached,) = (tmp_path / "home" / "datasets").rglob(datasets["SICK-R"]["revision"])
    cached.rename(cached.with_name("f" * 40))
    stale = run(*command, HF_HUB_OFFLINE="1")
    assert stale.returncode == 1
    assert f"but the cache has {'f' * 40} and the Hub was not reached" in stale.stderr
