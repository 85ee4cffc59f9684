"""`kdmcse embed` as its users run it: as a command, killed, on several processes, in every format."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import make_sentences, make_tokenizer

from kdmcse_hf import KDMCSEModel, SentenceEncoder, file_embedding
from kdmcse_hf.cli import main
from kdmcse_hf.file_embedding import embed_file
from kdmcse_hf.sentence_file import SentenceFile
from kdmcse_hf.teacher.shard import CacheError

# One thread: two processes of one thread each must find the bits that one process finds.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
# The command, with parts of 8 sentences
PROGRAM = """
import sys
from kdmcse_hf import file_embedding
embed_file = file_embedding.embed_file
file_embedding.embed_file = lambda *args, **kwargs: embed_file(*args, **kwargs, rows_per_part=8)
from kdmcse_hf.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def files(encoder_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and 300 sentences."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    KDMCSEModel.from_encoder(encoder_folder("bert"), pooling="mean").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "in.txt").write_text("\n".join(make_sentences(300)) + "\n")
    return folder


def command(files: Path, out: Path, *more: str) -> list[str]:
    return ["embed", str(files / "in.txt"), str(out), "--model", str(files / "model"), "--device", "cpu", *more]


def embed(files: Path, out: Path, name: str = "model", **options) -> tuple[int, int]:
    settings = {"rows_per_part": 64, "device": "cpu"} | {k: options.pop(k) for k in ("bf16",) if k in options}
    return embed_file(
        SentenceFile(files / "in.txt"),
        out,
        lambda device: SentenceEncoder.from_pretrained(files / name, device=device, **options),
        name=str(files / name),
        **settings,
    )


def test_all_formats_hold_the_vectors_of_the_model_and_leave_nothing_else(files: Path, tmp_path: Path) -> None:
    sentences = (files / "in.txt").read_text().splitlines()
    for suffix in ("npy", "parquet", "jsonl"):
        assert main(command(files, tmp_path / f"out.{suffix}", "--normalize")) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out.npy", "out.parquet", "out.jsonl"}
    vectors = np.load(tmp_path / "out.npy")
    expected = SentenceEncoder.from_pretrained(files / "model", normalize=True)(sentences)
    np.testing.assert_array_equal(vectors, expected)
    table = pq.read_table(tmp_path / "out.parquet")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert table["sentence"].to_pylist() == [row["sentence"] for row in rows] == sentences
    for found in (table["embedding"].to_pylist(), [row["embedding"] for row in rows]):
        np.testing.assert_array_equal(np.array(found, dtype=np.float32), vectors)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(files: Path, tmp_path: Path) -> None:
    straight, out = tmp_path / "straight.npy", tmp_path / "out.npy"
    start = [sys.executable, "-c", PROGRAM]
    subprocess.run([*start, *command(files, straight)], env=ENVIRONMENT, check=True, capture_output=True)
    parts, rng, kills = tmp_path / "out.npy.parts", random.Random(0), 0
    for attempt in range(20):
        before = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.safetensors")}
        with subprocess.Popen(
            [*start, *command(files, out)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            # Wait until it works, then for a random moment of that work; the last run is left alone.
            while process.poll() is None and len(list(parts.glob("part-*.safetensors"))) <= len(before):
                time.sleep(0.002)
            if attempt < 3:
                time.sleep(rng.uniform(0, 0.02))
                process.kill()
            if process.wait() == 0:
                break
        kills += 1
        now = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*.safetensors")}
        assert before.items() <= now.items()  # what was finished is not made again
    assert kills >= 2
    assert out.read_bytes() == straight.read_bytes()
    assert not parts.exists()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(files: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    one = [sys.executable, str(tmp_path / "program.py"), *command(files, tmp_path / "one.npy")]
    two = [*launch, str(tmp_path / "program.py"), *command(files, tmp_path / "two.npy")]
    said = [subprocess.run(call, env=ENVIRONMENT, capture_output=True, text=True) for call in (one, two)]
    assert [done.returncode for done in said] == [0, 0], said[1].stderr
    assert said[1].stdout.count("300 vectors of width 32") == 1  # they know of each other: one speaks for both
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()


def _stop_in_the_middle(files: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = file_embedding.write_shard, []

    def write_two(path: Path, *args: object, **kwargs: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(file_embedding, "write_shard", write_two)
        embed(files, out)


def test_parts_of_another_model_input_or_setting_are_refused_by_name(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_folder
) -> None:
    out = tmp_path / "out.npy"
    _stop_in_the_middle(files, out, monkeypatch)
    other = tmp_path / "other"
    other.mkdir()
    KDMCSEModel.from_encoder(encoder_folder("bert"), pooling="cls").save_pretrained(other / "cls")
    make_tokenizer().save_pretrained(other / "cls")
    (other / "in.txt").write_text((files / "in.txt").read_text())
    with pytest.raises(CacheError, match="holds vectors of something else: model was 'model', is 'cls'.*pooling was"):
        embed(other, out, name="cls")
    for options, message in (
        ({"normalize": True}, "normalize was False, is True"),
        ({"max_length": 8}, "max_length was 40, is 8"),
        ({"bf16": True}, "precision was 'float32', is 'bfloat16, mixed'"),
    ):
        with pytest.raises(CacheError, match=message):
            embed(files, out, **options)
    sentences = (files / "in.txt").read_text()
    (other / "in.txt").write_text(sentences.replace("cat", "dog"))
    (other / "model").symlink_to(files / "model")
    with pytest.raises(CacheError, match=r"something else: sha256 was '\w+', is '\w+'\. Go on with its model"):
        embed(other, out)
    assert embed(files, out) == (300, 32)


def test_only_what_is_missing_or_damaged_is_embedded_again(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(files, tmp_path / "straight.npy")
    out = tmp_path / "out.npy"
    _stop_in_the_middle(files, out, monkeypatch)
    part = tmp_path / "out.npy.parts" / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    embedded = []
    call = SentenceEncoder.__call__
    monkeypatch.setattr(SentenceEncoder, "__call__", lambda self, s, **k: embedded.append(len(s)) or call(self, s, **k))
    embed(files, out)
    assert embedded == [64, 64, 64, 44]  # of five parts, the first was kept
    assert out.read_bytes() == (tmp_path / "straight.npy").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("in.txt", "gone.txt"), "gone.txt does not exist"),
        (("out.npy", "out.txt"), "out.txt should end in one of .npy, .parquet, .jsonl"),
        (("out.npy", "gone/out.npy"), "gone does not exist: make it"),
        (("out.npy", "there.npy"), "there.npy exists: it is not overwritten"),
        (("in.txt", "holes.txt"), "holes.txt, line 2: expected a sentence, got ''"),
        (("in.txt", "table.csv"), "there is no column 'sentence', only 'text'"),
        (("model", "nomodel"), "nomodel"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    change: tuple[str, str], message: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.npy").touch()
    (tmp_path / "holes.txt").write_text("one\n\nthree\n")
    (tmp_path / "table.csv").write_text("text\none\n")
    names = {"in.txt": files / "in.txt", "out.npy": tmp_path / "out.npy", "model": files / "model"}
    names[change[0]] = tmp_path / change[1]
    arguments = ["embed", str(names["in.txt"]), str(names["out.npy"]), "--model", str(names["model"])]
    assert main([*arguments, "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"there.npy", "holes.txt", "table.csv"}


def test_a_full_disk_stops_it_before_it_begins(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = file_embedding.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(file_embedding.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CacheError, match="need 76,800 bytes more, but the disk has 1,000 left"):
        embed(files, tmp_path / "out.npy")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_disk_that_fills_up_keeps_what_is_finished(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.npy"
    with monkeypatch.context() as patch:
        (tmp_path / f"out.npy.{os.getpid()}.tmp").symlink_to("/dev/full")
        with pytest.raises(CacheError, match="could not be written: No space left on device. Finished files are kept"):
            embed(files, out)
        patch.undo()
    assert not out.exists()
    assert len(list((tmp_path / "out.npy.parts").glob("part-*"))) == 5
    assert embed(files, out) == (300, 32)


def test_a_revision_of_a_folder_is_refused(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["embed", str(files / "in.txt"), str(tmp_path / "out.npy"), "--model", str(files / "model")]
    assert main([*arguments, "--revision", "v1"]) == 1
    assert "is a folder here: leave out --revision" in capsys.readouterr().err
