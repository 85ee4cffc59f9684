import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdmcse_hf.teacher.annotations import Annotation, read_annotations, read_caption_table, read_split

ROWS = [("a.jpg", "null", "train"), ("ü.jpg", "two\nlines, 'quoted' and \"quoted\"", "test")]

TOKENS = """\
1000268201_693b08cb0e.jpg#0\tA child in a pink dress is climbing up a set of stairs in an entry way .
1000268201_693b08cb0e.jpg#1\tA girl going into a wooden building , "alone" .
2258277193_2586949c62.jpg.1#0\tpeople waiting for the subway
"""
KAGGLE_30K = """\
image_name| comment_number| comment
1000092795.jpg| 0| Two young guys with shaggy hair look at their hands while hanging out in the yard .
1000092795.jpg| 1| "Two" young , White males | are outside .
2199200615.jpg| 4   A dog runs across the grass .
"""
HUB = """\
raw,sentids,split,filename,img_id
"[""Two young guys , one with \\""shaggy\\"" hair ."", ""Caf\\u00e9 .""]","[0, 1]",train,1000092795.jpg,0
"[""Several men .""]","[2]",val,10002456.jpg,1
"""
COCO = {
    "info": {"year": 2017},
    "licenses": [],
    "images": [
        {"id": 179765, "file_name": "000000179765.jpg", "height": 480, "width": 640},
        {"id": 190236, "file_name": "000000190236.jpg", "height": 480, "width": 640},
    ],
    "annotations": [
        {"image_id": 190236, "id": 47, "caption": "An office cubicle with four different types of computers."},
        {"image_id": 179765, "id": 38, "caption": "A black Honda motorcycle parked in front of a garage."},
    ],
}


def karpathy(*images: dict) -> dict:
    return {"images": list(images), "dataset": "coco"}


def karpathy_image(name: str, split: str, *captions: str, **more: str) -> dict:
    sentences = [
        {"tokens": caption.lower().split(), "raw": caption, "imgid": 0, "sentid": n}
        for n, caption in enumerate(captions)
    ]
    return {"sentids": [], "imgid": 0, "sentences": sentences, "split": split, "filename": name, **more}


KARPATHY = karpathy(
    karpathy_image("COCO_val2014_000000391895.jpg", "test", "A man.", "A bike.", filepath="val2014", cocoid="391895"),
    karpathy_image("COCO_train2014_000000522418.jpg", "train", "A cake.", filepath="train2014"),
    karpathy_image("COCO_val2014_000000184613.jpg", "restval", "A cow.", filepath="val2014"),
)


def write(path: Path, content: str | dict | list) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_table(path: Path, header: list[str], rows: list[tuple]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[i] for row in rows] for i, name in enumerate(header)}), path)
    elif path.suffix == ".jsonl":
        write(path, "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows))
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def pairs(path: Path, split: str | None = None) -> list[tuple[str, str]]:
    return [(annotation.image, annotation.caption) for annotation in read_annotations(path, split)]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".CSV"])
def test_all_tables_read_the_same_with_and_without_splits(suffix: str, tmp_path: Path) -> None:
    plain = write_table(tmp_path / f"plain{suffix}", ["caption", "image"], [(c, i) for i, c, _ in ROWS])
    assert read_caption_table(plain) == ([i for i, _, _ in ROWS], [c for _, c, _ in ROWS])
    assert {annotation.split for annotation in read_annotations(plain)} == {None}
    more = write_table(
        tmp_path / f"more{suffix}", ["image", "id", "caption", "split"], [(i, 7, c, s) for i, c, s in ROWS]
    )
    place = "row" if suffix == ".parquet" else "line"
    first = 1 if suffix in (".parquet", ".jsonl") else 2
    assert list(read_annotations(more)) == [Annotation(f"{place} {first + n}", *row) for n, row in enumerate(ROWS)]
    assert pairs(more, "test") == [ROWS[1][:2]]


def test_a_row_has_the_line_on_which_it_starts(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b'image, caption\r\na.jpg,"two\r\nlines"\r\n\r\nb.jpg,x\r\n')
    assert list(read_annotations(path)) == [
        Annotation("line 2", "a.jpg", "two\r\nlines"),
        Annotation("line 5", "b.jpg", "x"),
    ]


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.token", "results.csv"])
def test_blank_lines_are_no_rows(name: str, tmp_path: Path) -> None:
    lines = {
        "c.csv": ["image,caption", "a.jpg,x", "", "b.jpg,y", ""],
        "c.jsonl": ["", '{"image": "a.jpg", "caption": "x"}', "", '{"image": "b.jpg", "caption": "y"}', " "],
        "c.token": ["a.jpg#0\tx", " ", "b.jpg#0\ty", ""],
        "results.csv": ["image_name| comment_number| comment", "a.jpg| 0| x", "", "b.jpg| 0| y", " "],
    }[name]
    assert pairs(write(tmp_path / name, "\n".join(lines) + "\n")) == [("a.jpg", "x"), ("b.jpg", "y")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".token"])
def test_a_byte_order_mark_is_no_part_of_the_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"c{suffix}"
    write(
        path,
        {
            ".csv": "image,caption\na.jpg,x\n",
            ".jsonl": '{"image": "a.jpg", "caption": "x"}\n',
            ".json": json.dumps(karpathy(karpathy_image("a.jpg", "train", "x"))),
            ".token": "a.jpg#0\tx\n",
        }[suffix],
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert pairs(path) == [("a.jpg", "x")]


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "results_20130124.token"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_flickr_s_token_files(name: str, newline: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, "")
    path.write_bytes(TOKENS.replace("\n", newline).encode())
    assert list(read_annotations(path)) == [
        Annotation(
            "line 1",
            "1000268201_693b08cb0e.jpg",
            "A child in a pink dress is climbing up a set of stairs in an entry way .",
        ),
        Annotation("line 2", "1000268201_693b08cb0e.jpg", 'A girl going into a wooden building , "alone" .'),
        Annotation("line 3", "2258277193_2586949c62.jpg.1", "people waiting for the subway"),
    ]


def test_kaggle_s_flickr8k_with_and_without_quoted_commas(tmp_path: Path) -> None:
    content = 'image,caption\na.jpg,A dog .\na.jpg,"A dog , and a ""cat"" ."\nb.jpg,A dog , a cat , a bird .\n'
    captions = ["A dog .", 'A dog , and a "cat" .', "A dog , a cat , a bird ."]
    assert read_caption_table(write(tmp_path / "captions.txt", content)) == (["a.jpg", "a.jpg", "b.jpg"], captions)
    with pytest.raises(ValueError, match=r"c\.csv, line 4: 4 fields where the header has 2, \['b.jpg'"):
        read_caption_table(write(tmp_path / "c.csv", content))


def test_kaggle_s_flickr30k_with_its_broken_row(tmp_path: Path) -> None:
    assert list(read_annotations(write(tmp_path / "results.csv", KAGGLE_30K))) == [
        Annotation(
            "line 2",
            "1000092795.jpg",
            "Two young guys with shaggy hair look at their hands while hanging out in the yard .",
        ),
        Annotation("line 3", "1000092795.jpg", '"Two" young , White males | are outside .'),
        Annotation("line 4", "2199200615.jpg", "A dog runs across the grass ."),
    ]


def test_the_hub_s_flickr30k(tmp_path: Path) -> None:
    path = write(tmp_path / "flickr_annotations_30k.csv", HUB)
    assert list(read_annotations(path)) == [
        Annotation("line 2, caption 1", "1000092795.jpg", 'Two young guys , one with "shaggy" hair .', "train"),
        Annotation("line 2, caption 2", "1000092795.jpg", "Café .", "train"),
        Annotation("line 3, caption 1", "10002456.jpg", "Several men .", "val"),
    ]
    assert read_split(path, "val") == {"10002456.jpg"}


def test_a_table_may_have_the_hub_s_columns_beside_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "image,filename,raw,caption\na.jpg,b.jpg,not json,x\n")
    assert pairs(path) == [("a.jpg", "x")]


def test_coco_s_captions_get_their_file_names(tmp_path: Path) -> None:
    assert list(read_annotations(write(tmp_path / "captions_val2017.json", COCO))) == [
        Annotation("annotation 1", "000000190236.jpg", "An office cubicle with four different types of computers."),
        Annotation("annotation 2", "000000179765.jpg", "A black Honda motorcycle parked in front of a garage."),
    ]


def test_karpathy_s_names_have_their_folder_where_there_is_one(tmp_path: Path) -> None:
    assert list(read_annotations(write(tmp_path / "dataset_coco.json", KARPATHY)))[1:3] == [
        Annotation("image 1, sentence 2", "val2014/COCO_val2014_000000391895.jpg", "A bike.", "test"),
        Annotation("image 2, sentence 1", "train2014/COCO_train2014_000000522418.jpg", "A cake.", "train"),
    ]
    flickr = write(tmp_path / "dataset_flickr8k.json", karpathy(karpathy_image("1.jpg", "train", "x")))
    assert pairs(flickr) == [("1.jpg", "x")]


def test_restval_comes_only_to_those_who_ask_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    assert [caption for _, caption in pairs(path, "train")] == ["A cake."]
    assert [caption for _, caption in pairs(path, "train+restval")] == ["A cake.", "A cow."]
    assert read_split(path, "restval + test") == {
        "val2014/COCO_val2014_000000391895.jpg",
        "val2014/COCO_val2014_000000184613.jpg",
    }


def test_a_large_table_is_not_read_before_it_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", "image,caption\na.jpg,x\nbroken\n")
    rows = read_annotations(path)
    assert next(rows) == Annotation("line 2", "a.jpg", "x")
    with pytest.raises(ValueError, match="line 3: 1 fields where the header has 2"):
        next(rows)


MISSING = [
    ("c.csv", 'image,caption\na.jpg,x\n,y\nb.jpg,""\n'),
    ("c.jsonl", '{"image": "a.jpg", "caption": "x"}\n{"image": null, "caption": "y"}\n{"image": "b.jpg"}\n'),
    ("c.token", "a.jpg#0\tx\n#0\ty\nb.jpg#0\t\n"),
    ("results.csv", "image_name| comment_number| comment\na.jpg| 0| x\n| 0| y\nb.jpg| 0|\n"),
    ("c.json", {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2}, {"id": 3, "file_name": "b.jpg"}],
                "annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}, {"image_id": 3}]}),
    ("d.json", {"images": [{"filename": "a.jpg", "sentences": [{"raw": "x"}]},
                           {"filepath": "val", "sentences": [{"raw": "y"}]},
                           {"filename": "b.jpg", "sentences": [{}]}]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), MISSING)
def test_an_empty_image_or_caption_is_the_caller_s_to_judge(name: str, content: str | dict, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    assert pairs(path) == [("a.jpg", "x"), ("", "y"), ("b.jpg", "")]
    place = [annotation.place for annotation in read_annotations(path)][1]
    with pytest.raises(ValueError, match=f"{path}, {place}: the image is empty. Fill it in, or remove the row"):
        read_caption_table(path)


def test_missing_values_in_parquet_are_empty(tmp_path: Path) -> None:
    path = write_table(tmp_path / "c.parquet", ["image", "caption"], [("a.jpg", None), (None, "x")])
    assert pairs(path) == [("a.jpg", ""), ("", "x")]
    with pytest.raises(ValueError, match="row 1: the caption is empty"):
        read_caption_table(path)


def test_a_caption_of_spaces_is_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: the caption is empty"):
        read_caption_table(write(tmp_path / "c.csv", "image,caption\na.jpg,  \n"))


def test_names_may_be_numbers(tmp_path: Path) -> None:
    assert pairs(write_table(tmp_path / "c.parquet", ["image", "caption"], [(7, "x")])) == [("7", "x")]


def test_a_parquet_column_that_nobody_needs_is_not_read(tmp_path: Path) -> None:
    no_date = pa.array([2**62], pa.timestamp("us"))  # Python has no such year
    pq.write_table(pa.table({"image": ["a.jpg"], "taken": no_date, "caption": ["x"]}), tmp_path / "c.parquet")
    assert pairs(tmp_path / "c.parquet") == [("a.jpg", "x")]


def test_text_in_parquet_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    latin = pa.array(["Café".encode("latin-1")]).view(pa.string())
    pq.write_table(pa.table({"image": ["a.jpg"], "caption": latin}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet cannot be read as parquet: .*0xe9"):
        list(read_annotations(tmp_path / "c.parquet"))


@pytest.mark.parametrize("name", ["c.csv", "c.txt", "c.jsonl"])
def test_a_file_without_rows_gives_nothing_and_no_caption_table(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, "")
    assert pairs(path) == []
    with pytest.raises(ValueError, match=f"{path} has no rows: expected at least one image with a caption"):
        read_caption_table(path)


TOKEN_LAYOUT = r"expected NAME#NUMBER<TAB>CAPTION"
BAD = {
    "a long row": ("c.csv", "image,caption\na.jpg,A dog, a cat\n", r"line 2: 3 fields where the header has 2, .*','"),
    "a short row": ("c.tsv", "image\tcaption\na.jpg\n", r"line 2: 1 fields where the header has 2, \['a.jpg'\]"),
    "a short row of text": ("c.txt", "image,caption\na.jpg\n", "line 2: 1 fields where the header has 2"),
    "an open quote": ("c.csv", 'image,caption\na.jpg,"x\nb.jpg,y\n', "line 2: unexpected end of data. Put a field"),
    "text after a quote": ("c.csv", 'image,caption\na.jpg,"x" y\n', "line 2: .* expected after .*double quotes"),
    "no caption column": ("c.csv", "image,text\na.jpg,x\n", r"line 1: .*'caption', found \['image', 'text'\]"),
    "two caption columns": ("c.csv", "image,caption,caption\n", r"line 1: expected one column 'caption', found \["),
    "no layout of text": ("c.txt", "a.jpg: A dog\n", r"line 1: .*'image', found \['a.jpg: A dog'\]. .*token file"),
    "no layout of csv": ("c.csv", "image;caption\n", r"line 1: .*found \['image;caption'\]. Known layouts: a table"),
    "a broken token": ("c.token", "a.jpg#0\tx\na.jpg y\n", f"line 2: 'a.jpg y.*', {TOKEN_LAYOUT}"),
    "a token without number": ("c.token", "a.jpg#0\tx\na.jpg#\ty\n", f"line 2: .*{TOKEN_LAYOUT}"),
    "a broken kaggle row": ("c.csv", KAGGLE_30K + "b.jpg| A dog\n", r"line 5: 'b.jpg\| A dog.*expected NAME\| NUMBER"),
    "a kaggle row without caption": ("c.csv", KAGGLE_30K + "b.jpg| 12\n", r"line 5: .*expected NAME\| NUMBER"),
    "a python list": ("c.csv", "filename,raw\na.jpg,['x']\n", r"line 2: 'raw' is .*\['x'\].*expected a JSON list"),
    "a list of numbers": ("c.csv", "filename,raw\na.jpg,[1]\n", r"line 2: 'raw' is '\[1\]', expected a JSON list"),
    "broken json lines": ("c.jsonl", '{"image": "a", "caption": "b"}\n{\n', "line 2: not valid JSON .*one object"),
    "a line with a list": ("c.jsonl", '["a.jpg", "x"]\n', r"line 1: \['a.jpg', 'x'\], expected an object with image"),
    "a line without captions": ("c.jsonl", '{"image": "a"}\n', r"line 1: .*'caption', found \['image'\]"),
    "a list for a caption": ("c.jsonl", '{"image": "a", "caption": ["x"]}\n', r"line 1: 'caption' is \['x'\]"),
    "no parquet": ("c.parquet", "image,caption\n", "cannot be read as parquet"),
    "broken json": ("c.json", '{"images": [', "is not valid JSON .*JSON lines belong in a .jsonl file"),
    "a list": ("c.json", [{"image": "a.jpg"}], r"is \[\{'image': 'a.jpg'\}\]: expected a table .*Karpathy"),
    "other keys": ("c.json", {"data": [], "info": 1}, r"has the keys \['data', 'info'\]: expected a table .*COCO"),
    "images that are no list": ("c.json", {"images": {"1": "a.jpg"}}, "'images' is {'1': 'a.jpg'}, expected a list"),
    "an image that is no object": ("c.json", {"images": ["a.jpg"]}, "image 1: 'a.jpg', expected an object"),
    "no sentences": ("c.json", {"images": [{"filename": "a"}]}, "image 1, 'sentences' is None, expected a list"),
    "an unknown image": (
        "c.json",
        COCO | {"annotations": [*COCO["annotations"], {"image_id": 5, "caption": "x"}]},
        "annotation 3: image_id '5' is not in 'images'. Add the image",
    ),
    "coco's boxes": (
        "instances_val2017.json",
        COCO | {"annotations": [{"image_id": 179765, "bbox": [1, 2]}]},
        r"annotation 1: expected one column 'caption', found \['image_id', 'bbox'\]",
    ),
    "another ending": ("c.xlsx", "", r"ends in '.xlsx': expected a table \(.csv .tsv .jsonl .parquet\)"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_a_broken_file_is_refused_by_name_and_place(
    name: str, content: str | dict | list, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        list(read_annotations(path))


def test_a_table_without_captions_or_with_pictures_inside_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "c.parquet", ["image", "text"], [("a", "b")])
    with pytest.raises(ValueError, match=r"the schema: expected one column 'caption', found \['image', 'text'\]"):
        read_caption_table(path)
    path = write_table(tmp_path / "d.parquet", ["image", "caption"], [({"bytes": b"\xff", "path": "a"}, "b")])
    with pytest.raises(ValueError, match="row 1: 'image' is {'bytes'.*expected text"):
        read_caption_table(path)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("c.csv", "image,caption\n" + "a.jpg,x\n" * 5000),
        ("c.jsonl", '{"image": "a", "caption": "x"}\n' * 5001),
        ("c.json", "\n" * 5001),
        ("c.token", "a.jpg#0\tx\n" * 5001),
    ],
)
def test_bytes_that_are_not_utf_8_are_named_with_their_line(name: str, lines: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(f"{lines}Café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{path}, line 5002: not UTF-8 \(.*b'\\xe9'\). Convert the file"):
        list(read_annotations(path))


@pytest.mark.parametrize(("image", "caption", "column"), [("a", "x \ud83d", "caption"), ("a\ude00", "x", "image")])
def test_half_of_a_surrogate_pair_is_named_with_its_place(
    image: str, caption: str, column: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "c.jsonl", json.dumps({"image": image, "caption": caption}))
    with pytest.raises(ValueError, match=rf"{path}, line 1: the {column} is not valid Unicode \('\\ud.* at character"):
        read_caption_table(path)


@pytest.mark.parametrize("name", ["gone.csv", ""])
def test_a_file_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / name} does not exist or is a folder"):
        list(read_annotations(tmp_path / name))


def test_an_unknown_split_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset_coco.json", KARPATHY)
    for split in ("val", "train+val"):
        with pytest.raises(ValueError, match=f"{path} has no image in split 'val': it has 'restval', 'test', 'train'"):
            list(read_annotations(path, split))
    with pytest.raises(ValueError, match="no image in split 'train': it has no splits"):
        list(read_annotations(write(tmp_path / "c.token", TOKENS), "train"))


def test_a_table_of_splits_needs_no_captions(tmp_path: Path) -> None:
    path = write(tmp_path / "splits.csv", "image,split\na.jpg,train\nb.jpg,test\nc.jpg,train\nd.jpg,\n")
    assert read_split(path, "train") == {"a.jpg", "c.jpg"}
    with pytest.raises(ValueError, match="no image in split 'dev': it has 'test', 'train'"):
        read_split(path, "dev")
    with pytest.raises(ValueError, match="line 1: expected one column 'split', found"):
        read_split(write(tmp_path / "c.csv", "image,caption\na.jpg,x\n"), "train")
