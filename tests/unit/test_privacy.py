"""What must not be published is found in every file, and an ordinary vocabulary is no alarm."""

import json
from pathlib import Path

import pytest
from tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from kdmcse_hf.privacy import check_private

PRIVATE = [
    "/home/anna/x.txt", "from /data/x", "~/x", "~anna/x", "C:\\Users\\anna", "file:///x", "a hf_abcdefghijklmnop",
    "[/home/anna/x]", "run,/home/anna/x", "x|/home/anna", "path;/home/anna/x", "<~/x>", "</home/anna/x>", "/scratch",
    "\\\\server\\anna\\x", "//server/anna/x", "/my disk/anna/x", "cache=/scratch", "model:/home/anna", "{/data/x}",
]  # fmt: skip
PUBLIC = [
    "https://huggingface.co/user/model", "s3://a/b", "user/model", "1/2 of 3/4", "a / b", "</s>", "[/INST]", "and/or",
    "kdmcse_hf_is_no_token", "./x", "../x", "+/-", "~0.5", "(?i:\\p{L}+)|[^\\s/]+", "10 km/h", "kdmcse/config.json",
]  # fmt: skip


def write(folder: Path, name: str, content: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("text", PRIVATE)
@pytest.mark.parametrize("name", ["README.md", "sts.yaml", "config.json", "trainer_state.json", "tokenizer.json"])
def test_a_place_or_a_token_is_found_in_any_file(name: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, name, f"see: \n{text}\n" if name.endswith((".md", ".yaml")) else {"notes": [{"made": text}]})
    with pytest.raises(ValueError, match=f"{name} holds .* names a place on this machine, its user or itself"):
        check_private(tmp_path)


def test_a_key_is_read_as_a_value_is(tmp_path: Path) -> None:
    write(tmp_path, "special_tokens_map.json", {"notes": {"/home/anna/x": 1}})
    with pytest.raises(ValueError, match="special_tokens_map.json holds '/home/anna/x'"):
        check_private(tmp_path)


def test_what_only_looks_like_it_stops_nothing(tmp_path: Path) -> None:
    write(tmp_path, "README.md", "\n".join(PUBLIC))
    write(tmp_path, "config.json", {text: [text] for text in PUBLIC})
    check_private(tmp_path)


def test_a_vocabulary_may_have_any_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "maria")
    tokenizer: PreTrainedTokenizerFast = make_tokenizer()
    tokenizer.add_tokens(["/home", "/home/anna/x", "~/", "maria", "</s>"])
    tokenizer.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"/home/": 90, "C:\\": 91, "maria": 92}
    write(tmp_path, "tokenizer.json", content)
    write(tmp_path, "vocab.txt", "/home/anna/\nmaria\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    check_private(tmp_path)
    content["normalizer"] = {"type": "Precompiled", "from": "/home/anna/x"}
    write(tmp_path, "tokenizer.json", content)
    with pytest.raises(ValueError, match="tokenizer.json holds '/home/anna/x'"):
        check_private(tmp_path)
    write(tmp_path, "tokenizer.json", {})
    write(tmp_path, "tokenizer_config.json", {**config, "made_by": "maria"})
    with pytest.raises(ValueError, match="tokenizer_config.json holds 'maria'"):
        check_private(tmp_path)


def test_the_user_the_machine_the_home_the_folders_and_the_token_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "plantedanna")
    monkeypatch.setenv("HOME", "/planted home")
    monkeypatch.setenv("HF_TOKEN", "planted-token")
    monkeypatch.setattr("platform.node", lambda: "plantedhost")
    place = tmp_path / "runs" / "secret run"
    for text in ("plantedanna", "by plantedanna.", "plantedhost:8", "{/planted home}", "planted-token", f"x{place}"):
        write(tmp_path / "out", "config.json", {"notes": text})
        if text.startswith("x"):  # not a word of its own
            check_private(tmp_path / "out", [place])
            text = f"_{place}_"
            write(tmp_path / "out", "modeling_kdmcse.py", f"# {place}")
        with pytest.raises(ValueError, match="its user or itself"):
            check_private(tmp_path / "out", [place])
    write(tmp_path / "out", "config.json", {"base_model": "plantedanna/encoder", "n": "unplantedhosts"})
    (tmp_path / "out" / "modeling_kdmcse.py").unlink()
    check_private(tmp_path / "out", [place])


@pytest.mark.parametrize("user", ["roberta", "root", "user", "ann"])
def test_an_account_s_name_that_says_nothing_or_is_a_model_s_stops_nothing(
    user: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", user)
    write(tmp_path, "config.json", {"model_type": "roberta", "note": f"{user} tokens"})
    check_private(tmp_path)
