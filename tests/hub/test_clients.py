"""One release, and every client in a clean environment of its own: the same vectors to the bit, and not a word."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer, RobertaConfig

from kdmcse_hf import KDMCSEModel
from kdmcse_hf.export import export_release
from kdmcse_hf.golden import Golden
from kdmcse_hf.release import GOLDEN
from kdmcse_hf.world import write_student

pytestmark = pytest.mark.slow

# Every program reads sentences.json and writes vectors_<n>.npy for the n-th folder that it is given.
_BEGIN = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
import numpy as np
assert [name for name in ("kdmcse_hf", "sentence_transformers", "mteb", "datasets") if find_spec(name)] == {present}
sentences, folders = json.loads(Path("sentences.json").read_text()), sys.argv[1:]
"""
_TRANSFORMERS = """
import torch
from transformers import AutoModel, AutoTokenizer
def embed(folder, **where):
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True, **where)
    assert not any(report.values()), report
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**batch), batch["attention_mask"].unsqueeze(-1)
"""
_SENTENCE_TRANSFORMERS = """
from sentence_transformers import SentenceTransformer
for number, folder in enumerate(folders):
    np.save(f"vectors_{number}", SentenceTransformer(folder).encode(sentences))
"""
PROGRAMS = {
    "transformers": _TRANSFORMERS
    + """
for number, folder in enumerate(folders):
    output, mask = embed(folder)
    hidden = output.last_hidden_state
    pooled = hidden[:, 0] if "cls" in folder else (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    np.save(f"vectors_{number}", pooled.numpy())
    try:
        embed(folder, subfolder="kdmcse", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code=True" in str(error), error
    else:
        raise AssertionError("custom code ran unasked")
""",
    "remote_code": _TRANSFORMERS
    + """
for number, folder in enumerate(folders):
    output, _ = embed(folder, subfolder="kdmcse", trust_remote_code=True)
    np.save(f"vectors_{number}", output.pooler_output.numpy())
""",
    "sentence_transformers": _SENTENCE_TRANSFORMERS,
    "sentence_transformers_5": _SENTENCE_TRANSFORMERS,
    "mteb": """
import warnings
import mteb
from datasets import Dataset, DatasetDict
from mteb.models import SentenceTransformerEncoderWrapper
from torch.utils.data import DataLoader
models = [SentenceTransformerEncoderWrapper(folder) for folder in folders]
tasks = mteb.get_tasks(tasks=["STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R"])
for number, model in enumerate(models):
    batches = DataLoader(Dataset.from_dict({"text": sentences}), batch_size=len(sentences))
    vectors = model.encode(batches, task_metadata=tasks[0].metadata, hf_split="test", hf_subset="default")
    np.save(f"vectors_{number}", vectors)
sys.stderr.write("from here on mteb may say what it thinks of its own tasks\\n")
warnings.simplefilter("ignore")
pairs = {"sentence1": sentences, "sentence2": sentences[1:] + sentences[:1], "score": list(range(len(sentences)))}
scores = []
for model in models:
    for task in tasks:
        task.dataset, task.data_loaded = DatasetDict(test=Dataset.from_dict(pairs)), True
    results = mteb.evaluate(model, tasks, cache=None, show_progress_bar=False).task_results
    scores.append({result.task_name: result.scores["test"][0]["cosine_spearman"] for result in results})
mock = mteb.mock_run(models[0]).task_results
kinds = {name: type(result).__name__ for name, result in mock.items() if result is not None}
print(json.dumps({"scores": scores, "mock": kinds}))
""",
    "kdmcse_hf": """
import kdmcse_hf
from kdmcse_hf import KDMCSEModel, SentenceEncoder
from transformers import AutoModel, AutoTokenizer
for number, folder in enumerate(folders):
    model, report = AutoModel.from_pretrained(folder, subfolder="kdmcse", output_loading_info=True)
    assert isinstance(model, KDMCSEModel) and not any(report.values())
    encode = SentenceEncoder(model, AutoTokenizer.from_pretrained(folder, subfolder="kdmcse"))
    np.save(f"vectors_{number}", encode(sentences))
""",
}
PRESENT = {
    "sentence_transformers": ["sentence_transformers"],
    "sentence_transformers_5": ["sentence_transformers"],
    "mteb": ["sentence_transformers", "mteb", "datasets"],
    "kdmcse_hf": ["kdmcse_hf", "datasets"],
}


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two: BERT by its first token, RoBERTa by its mean."""
    folder = tmp_path_factory.mktemp("releases")
    write_student(folder / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, type_vocab_size=1, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder / "roberta")
    made = []
    for encoder, pooling in (("bert", "cls"), ("roberta", "mean")):
        checkpoint = folder / f"{encoder} checkpoint"
        KDMCSEModel.from_encoder(folder / encoder, pooling=pooling, image_embed_dim=12).save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        made.append(export_release(checkpoint, folder / f"{encoder}-{pooling}"))
    return made


def run(python: Path, program: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In an empty home, offline, with warnings as errors."""
    environment |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "passive", "PATH": os.defpath, "PYTHONWARNINGS": "error"}
    return subprocess.run([str(python), *program], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("client", PROGRAMS)
def test_every_client_gives_the_golden_vectors_to_the_bit_without_a_warning(
    client: str, clean_python: Callable[[str], Path], releases: list[Path], tmp_path: Path
) -> None:
    golden = [Golden.load(release / GOLDEN) for release in releases]
    assert golden[0].sentences == golden[1].sentences
    (tmp_path / "sentences.json").write_text(json.dumps(golden[0].sentences))
    program = _BEGIN.format(present=PRESENT.get(client, [])) + PROGRAMS[client]
    done = run(clean_python(client), ["-c", program, *map(str, releases)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.partition("from here on")[0] == ""
    for number, expected in enumerate(golden):
        vectors = np.load(tmp_path / f"vectors_{number}.npy")
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, expected.vectors.numpy())
    if client == "mteb":
        report = json.loads(done.stdout)
        assert set(report["mock"].values()) == {"TaskResult"} and len(report["mock"]) > 20
        for scores, expected in zip(report["scores"], golden, strict=True):
            cosines = torch.cosine_similarity(expected.vectors, expected.vectors.roll(-1, 0))
            wanted = spearmanr(cosines, range(10)).statistic
            assert scores.keys() == {"STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R"}
            assert all(score == pytest.approx(wanted) for score in scores.values())


def test_verify_tries_every_client_that_is_installed(
    clean_python: Callable[[str], Path], installed: Path, releases: list[Path], tmp_path: Path
) -> None:
    """mteb's environment has sentence-transformers, too; this package joins them there."""
    program = ["-m", "kdmcse_cli", "verify", str(releases[1])]
    done = run(clean_python("mteb"), program, tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout + done.stderr
    same = {line.split()[1] for line in done.stdout.splitlines() if line.endswith("the golden vectors, to the bit")}
    assert same == {"transformers", "sentence_transformers", "kdmcse_hf"}
    assert done.stderr == ""
