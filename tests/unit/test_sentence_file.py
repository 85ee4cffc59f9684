import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdmcse_hf.sentence_file import SentenceFile

SENTENCES = ["a cat, and a dog", 'she said "no"', "tea\u2028time", "Ünusual 🚲", "the last"]


def write(path: Path, sentences: list[object], column: str = "sentence") -> SentenceFile:
    """The sentences in the format that the name ends in."""
    if path.suffix == ".txt":
        path.write_text("\n".join(map(str, sentences)) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in sentences))
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(sentences)), column: sentences}), path)
    else:
        quoted = ['"' + str(text).replace('"', '""') + '"' for text in sentences]
        delimiter = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join(delimiter.join(row) for row in [("id", column), *(("1", q) for q in quoted)]))
    return SentenceFile(path, column)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_holds_the_same_sentences(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"in{suffix}", SENTENCES)
    assert list(file) == SENTENCES
    assert list(file.parts(2)) == [SENTENCES[:2], SENTENCES[2:4], SENTENCES[4:]]
    assert file.describe()["rows"] == 5


def test_line_ends_and_a_byte_order_mark_are_no_part_of_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert list(SentenceFile(tmp_path / "in.txt")) == ["one", "two"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_an_empty_sentence_is_named_by_its_line(suffix: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"in{suffix}", ["one", "two", " ", "four"])
    place = {".txt": "line 3", ".jsonl": "line 3", ".parquet": "row 3"}.get(suffix, "line 4")  # below the head
    with pytest.raises(ValueError, match=rf"in{suffix}, {place}: expected a sentence, got ' '\. Remove such"):
        list(file)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_missing_column_is_named_beside_those_there_are(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"in{suffix}", ["one"], column="caption")
    with pytest.raises(ValueError, match="there is no column 'sentence', only 'id', 'caption'. Name the column"):
        list(SentenceFile(tmp_path / f"in{suffix}"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b'{"sentence": "one"}\nsentence\n', "line 2: not JSON"),
        ("in.jsonl", b'{"sentence": "one"}\n["two"]\n', "line 2: not JSON .expected an object"),
        ("in.jsonl", b'{"sentence": "one"}\n{"sentence": "\\ud800"}\n', "line 2: not valid Unicode"),
        ("in.jsonl", b'{"sentence": 7}\n', "line 1: expected a sentence, got 7"),
        ("in.txt", b"one\ntw\xff\n", "line 2: not UTF-8"),
        ("in.csv", b"id,sentence\n1\n", "line 2: expected a sentence, got None"),
        ("in.csv", b'sentence\n"one\n', "line 2: not a table"),
        ("in.parquet", b"sentence\none\n", "cannot be read as Parquet"),
        ("in.txt", b"", "holds no sentence"),
        ("in.pdf", b"one\n", "should end in one of .txt, "),
    ],
)
def test_a_damaged_file_is_refused_by_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SentenceFile(tmp_path / name).describe()
    with pytest.raises(FileNotFoundError, match=r"gone\.txt does not exist"):
        SentenceFile(tmp_path / "gone.txt")
