"""Published checkpoints: trees of random tensors under the published names, and a plain-torch forward over them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import VOCABULARY, make_sentences, make_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from kdmcse_hf import KDMCSEModel
from kdmcse_hf.cli import main
from kdmcse_hf.conversion import POOLER_NOTE, convert_checkpoint, from_published, load_published, to_published

HIDDEN, LAYERS, ATTENTION_HEADS, INNER, POSITIONS, SPACE = 16, 2, 2, 120, 40, 6
WIDTHS = {"none": {}, "mcse": {"mlp": 10}, "kdmcse": {"vmlp": 8, "tmlp": 8}}
Tensors = dict[str, Tensor]


def text_tensors(kind: str, head: str) -> Tensors:
    """What the published training scripts save of their text model, older transformers' extras among it."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> Tensor:
        return 0.4 * torch.randn(*shape, generator=generator)

    tensors = {f"{kind}.embeddings.position_ids": torch.arange(POSITIONS)[None]}

    def linear(name: str, inputs: int, outputs: int) -> None:
        tensors.update({f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)})

    def norm(name: str) -> None:
        tensors.update({f"{name}.weight": 1 + random(HIDDEN), f"{name}.bias": random(HIDDEN)})

    rows = {"word": VOCABULARY, "position": POSITIONS, "token_type": 2 if kind == "bert" else 1}
    for name, count in rows.items():
        tensors[f"{kind}.embeddings.{name}_embeddings.weight"] = random(count, HIDDEN)
    norm(f"{kind}.embeddings.LayerNorm")
    for layer in (f"{kind}.encoder.layer.{number}" for number in range(LAYERS)):
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", HIDDEN, HIDDEN)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", HIDDEN, INNER)
        linear(f"{layer}.output.dense", INNER, HIDDEN)
        norm(f"{layer}.output.LayerNorm")
    if head == "pooler":  # MCSE's code builds the encoder with its own pooler, SimCSE's without
        linear(f"{kind}.pooler.dense", HIDDEN, HIDDEN)
    linear(f"{head}.dense", HIDDEN, HIDDEN)
    return tensors


def head_tensors(heads: str) -> dict[str, Tensors]:
    """The content of `mcse.pt`."""
    generator = torch.Generator().manual_seed(4)

    def linear(name: str, inputs: int) -> Tensors:
        weight, bias = torch.randn(SPACE, inputs, generator=generator), torch.randn(SPACE, generator=generator)
        return {f"{name}.weight": weight, f"{name}.bias": bias}

    vision: Tensors = {}
    for name, width in WIDTHS[heads].items():
        vision.update(linear(f"{name}.dense", width))
    return {"visn_model": vision, "grounding": linear("dense", HIDDEN)} if vision else {}


def as_their_script_converts(tensors: Tensors, kind: str) -> Tensors:
    """No prefix, `mlp` is called `pooler`; the head comes after the encoder's own pooler and takes its place."""
    return {name.replace("mlp.", "pooler.").removeprefix(f"{kind}."): tensor for name, tensor in tensors.items()}


def published_forward(text: Tensors, heads: dict[str, Tensors], kind: str, ids: Tensor, mask: Tensor) -> Tensors:
    """What the published model computes, in plain torch, from the layout before conversion."""

    def linear(name: str, x: Tensor, tensors: Tensors = text) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        epsilon = 1e-12 if kind == "bert" else 1e-5
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * text[f"{name}.weight"] + text[f"{name}.bias"]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2)

    # BERT counts positions from 0; RoBERTa from behind its padding id, and padding keeps that id
    positions = torch.arange(ids.shape[1]).expand_as(ids) if kind == "bert" else mask.cumsum(1) * mask
    start = f"{kind}.embeddings"
    x = text[f"{start}.word_embeddings.weight"][ids] + text[f"{start}.position_embeddings.weight"][positions]
    x = norm(f"{start}.LayerNorm", x + text[f"{start}.token_type_embeddings.weight"][0])
    hidden = torch.where(mask[:, None, None, :].bool(), 0.0, -torch.inf)
    for layer in (f"{kind}.encoder.layer.{number}" for number in range(LAYERS)):
        query, key, value = (split(linear(f"{layer}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        weights = (query @ key.transpose(-1, -2) / (HIDDEN // ATTENTION_HEADS) ** 0.5 + hidden).softmax(-1)
        attended = (weights @ value).transpose(1, 2).flatten(2)
        x = norm(f"{layer}.attention.output.LayerNorm", x + linear(f"{layer}.attention.output.dense", attended))
        inner = F.gelu(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    cls = x[:, 0]
    outputs = {
        "cls": cls,
        "text": torch.tanh(linear("mlp.dense" if "mlp.dense.weight" in text else "pooler.dense", cls)),
    }
    if heads:
        outputs["grounded"] = F.normalize(torch.tanh(linear("dense", cls, heads["grounding"])), dim=-1)
        for name in WIDTHS["kdmcse" if "vmlp.dense.weight" in heads["visn_model"] else "mcse"]:
            projected = torch.tanh(linear(f"{name}.dense", features(name), heads["visn_model"]))
            outputs[name] = F.normalize(projected, dim=-1)
    return outputs


def features(name: str) -> Tensor:
    """What the teacher says to one head, a row a sentence."""
    width = {**WIDTHS["mcse"], **WIDTHS["kdmcse"]}[name]
    return 3 * torch.randn(5, width, generator=torch.Generator().manual_seed(len(name)))


def write_checkpoint(
    folder: Path, text: Tensors, heads: dict[str, Tensors], kind: str = "bert", safetensors: bool = False
) -> Path:
    folder.mkdir(parents=True)
    config = {
        "architectures": ["BertForCL" if kind == "bert" else "RobertaForCL"],
        "gradient_checkpointing": False,
        "hidden_act": "gelu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "layer_norm_eps": 1e-12 if kind == "bert" else 1e-5,
        "max_position_embeddings": POSITIONS,
        "model_type": kind,
        "num_attention_heads": ATTENTION_HEADS,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "transformers_version": "4.8.2",
        "type_vocab_size": 2 if kind == "bert" else 1,
        "vocab_size": VOCABULARY,
    }
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save_pretrained(folder)
    if safetensors:
        save_file(text, folder / "model.safetensors")
    else:
        torch.save(text, folder / "pytorch_model.bin")
    if heads:
        torch.save(heads, folder / "mcse.pt")
    return folder


def whole(text: Tensors, heads: dict[str, Tensors]) -> Tensors:
    """The state dict of the published code's whole model."""
    tensors = {f"lang_model.{name}": tensor for name, tensor in text.items()}
    return tensors | {f"{part}.{name}": tensor for part, its in heads.items() for name, tensor in its.items()}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("code", ["simcse", "mcse", "kdmcse"])
@pytest.mark.parametrize("written", ["as trained", "converted", "whole", "safetensors"])
def test_a_converted_model_computes_what_the_published_one_does(
    kind: str, code: str, written: str, tmp_path: Path
) -> None:
    text = text_tensors(kind, "mlp" if code == "simcse" else "pooler")
    heads = head_tensors("none" if code == "simcse" else code)
    tokens = make_tokenizer()(make_sentences(5), padding=True, return_tensors="pt")
    expected = published_forward(text, heads, kind, tokens["input_ids"], tokens["attention_mask"])
    if written == "whole":
        source = write_checkpoint(tmp_path / "theirs", whole(text, heads), {}, kind)
    else:
        saved = as_their_script_converts(text, kind) if written == "converted" else text
        source = write_checkpoint(tmp_path / "theirs", saved, heads, kind, safetensors=written == "safetensors")
    report = convert_checkpoint(source, tmp_path / "ours")

    model = AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert isinstance(model, KDMCSEModel)
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    torch.testing.assert_close(model(**inputs).pooler_output, expected["cls"])
    image = next((features(name) for name in ("mlp", "vmlp") if name in expected), None)
    caption = features("tmlp") if "tmlp" in expected else None
    output = model(**inputs, num_views=1, teacher_image_embeds=image, teacher_text_embeds=caption)
    torch.testing.assert_close(output.text_embeds[:, 0], expected["text"])
    if code == "simcse":
        assert output.grounded_embeds is None
    else:
        torch.testing.assert_close(F.normalize(output.grounded_embeds[:, 0], dim=-1), expected["grounded"])
        images = expected["mlp" if code == "mcse" else "vmlp"]
        torch.testing.assert_close(F.normalize(output.image_embeds, dim=-1), images)
    if code == "kdmcse":
        torch.testing.assert_close(F.normalize(output.caption_embeds, dim=-1), expected["tmlp"])
    assert len(report.used) == len(model.state_dict())


def test_the_report_names_every_tensor_once_and_says_why_one_is_left_out() -> None:
    text = text_tensors("bert", "pooler") | {"lm_head.bias": torch.zeros(3)}
    tensors = whole(text, head_tensors("kdmcse"))
    _, report = from_published(tensors, bert_config())
    assert report.used.keys() | report.left_out.keys() == tensors.keys()
    assert not report.used.keys() & report.left_out.keys()
    assert report.left_out == {
        "lang_model.bert.embeddings.position_ids": "the numbers 0, 1, 2, ... that older transformers saved",
        "lang_model.bert.pooler.dense.weight": "the encoder's own pooler, which that code neither trained nor used",
        "lang_model.bert.pooler.dense.bias": "the encoder's own pooler, which that code neither trained nor used",
        "lang_model.lm_head.bias": "the masked-language head of SimCSE's auxiliary loss",
    }
    lines = report.lines()
    assert len(lines) == len(tensors) + 3
    assert lines.count("renamed   visn_model.tmlp.dense.bias -> caption_projection.bias") == 1
    assert lines[-1] == POOLER_NOTE
    kept = from_published(as_their_script_converts(text_tensors("bert", "mlp"), "bert"), bert_config())[1].lines()
    assert "kept      pooler.dense.weight" in kept


def bert_config() -> AutoConfig:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": ATTENTION_HEADS}
    rest = {"intermediate_size": INNER, "max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY}
    return AutoConfig.for_model("bert", **sizes, **rest, pad_token_id=0)


@pytest.mark.parametrize(
    ("head", "heads", "layout"),
    [
        ("mlp", "none", "simcse"),
        ("pooler", "mcse", "mcse"),
        ("pooler", "kdmcse", "mcse"),
        ("pooler", "kdmcse", "converted"),
    ],
)
def test_the_key_map_is_the_same_in_both_directions(head: str, heads: str, layout: str) -> None:
    text, files = text_tensors("bert", head), {"pytorch_model.bin": {}, "mcse.pt": head_tensors(heads)}
    text = as_their_script_converts(text, "bert") if layout == "converted" else text
    model, report = from_published(text | whole({}, files["mcse.pt"]), bert_config())
    files["pytorch_model.bin"] = {name: tensor for name, tensor in text.items() if name in report.used}
    theirs = to_published(model, layout)
    assert flat(theirs) == flat({name: content for name, content in files.items() if content})
    again, _ = from_published(theirs["pytorch_model.bin"] | whole({}, theirs.get("mcse.pt", {})), bert_config())
    assert flat(again.state_dict()) == flat(model.state_dict())


def flat(content: dict) -> dict:
    """Tensors as lists, to compare whole trees."""
    return {k: flat(v) if isinstance(v, dict) else (v.dtype, v.tolist()) for k, v in content.items()}


def with_tensor(name: str, *shape: int) -> Tensors:
    return whole(text_tensors("bert", "pooler"), head_tensors("mcse")) | {name: torch.zeros(*shape)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            with_tensor("lang_model.cls.predictions.bias", 3),
            r"1 tensors have unknown names.*'lang_model.cls.predictions",
        ),
        (with_tensor("lang_model.encoder.layer.0.output.dense.bias", 3), "unknown names.*'lang_model.encoder.layer.0"),
        (with_tensor("visn_model.logit_scale", 1), "unknown names, such as 'visn_model.logit_scale'"),
        (
            with_tensor("grounding.dense.weight", SPACE, 99),
            r"'grounding.dense.weight' has the shape \(6, 99\).*\(6, 16\)",
        ),
        (with_tensor("visn_model.mlp.dense.weight", 7, 10), r"'visn_model.mlp.dense.weight' has the shape \(7, 10\)"),
        (with_tensor("visn_model.mlp.dense.bias", 7), r"'visn_model.mlp.dense.bias' has the shape \(7,\).*\(6,\)"),
        (with_tensor("bert.encoder.layer.0.output.dense.bias", HIDDEN), "both 'lang_model.bert.* and 'bert.enc"),
        ({k: v for k, v in with_tensor("x", 1).items() if "pooler" not in k and k != "x"}, "missing.*'pooler.dense"),
        (
            {k: v for k, v in with_tensor("x", 1).items() if "grounding" not in k and k != "x"},
            "missing.*'grounding_head",
        ),
        ({"lang_model.bert.x": torch.zeros(1)}, "unknown names, such as 'lang_model.bert.x'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_tensor(tensors: Tensors, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_published(tensors, bert_config())


class Exploit:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "mcse.pt"])
def test_a_pickle_with_code_in_it_is_refused_and_not_executed(name: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "theirs", text_tensors("bert", "pooler"), head_tensors("mcse"))
    content = torch.load(source / name)
    torch.save({**content, "more": Exploit(tmp_path / "executed")}, source / name)
    torch.load(source / name, weights_only=False)  # that it would have been
    (tmp_path / "executed").rmdir()
    with pytest.raises(ValueError, match=f"{name} is refused.*Nothing in it was executed"):
        convert_checkpoint(source, tmp_path / "ours")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


def test_a_damaged_file_and_one_of_other_things_are_refused_by_name(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "theirs", text_tensors("bert", "pooler"), head_tensors("mcse"))
    torch.save({"grounding": {"dense.weight": [1.0, 2.0]}}, source / "mcse.pt")
    with pytest.raises(ValueError, match=r"mcse.pt holds a list under 'grounding.dense.weight': expected a state dict"):
        load_published(source)
    weights = source / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match="pytorch_model.bin is refused: it is damaged"):
        load_published(source)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no weights: expected model.safetensors or pytorch_model.bin"):
        load_published(source)
    (source / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="model.safetensors is refused: it is damaged"):
        load_published(source)


def test_a_half_precision_checkpoint_becomes_float32(tmp_path: Path) -> None:
    text = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in text_tensors("bert", "mlp").items()
    }
    source = write_checkpoint(tmp_path / "theirs", text, {})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "torch_dtype": "float16"}))
    convert_checkpoint(source, tmp_path / "ours")
    assert {parameter.dtype for parameter in AutoModel.from_pretrained(tmp_path / "ours").parameters()} == {
        torch.float32
    }


def test_the_command_writes_a_checkpoint_to_train_on_and_names_no_place_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(tmp_path / "theirs", text_tensors("bert", "pooler"), head_tensors("kdmcse"))
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 0
    output = capsys.readouterr().out
    assert "renamed   grounding.dense.weight -> grounding_head.weight\n" in output
    assert f"{POOLER_NOTE}\n" in output
    model = KDMCSEModel.from_encoder(tmp_path / "ours", image_embed_dim=8, caption_embed_dim=8, projection_dim=SPACE)
    assert model.config.pooling == "cls"
    assert model.config.text_config.architectures == ["BertModel"]
    assert AutoTokenizer.from_pretrained(tmp_path / "ours").model_max_length == POSITIONS
    for path in (tmp_path / "ours").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_conversion_that_fails_leaves_no_folder_and_overwrites_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(tmp_path / "theirs", text_tensors("bert", "pooler"), head_tensors("mcse"))
    for path in source.glob("tokenizer*"):
        path.unlink()
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 1
    assert "No tokenizer could be loaded" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}
    (tmp_path / "ours").mkdir()
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 1
    assert "ours exists already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "gone"), str(tmp_path / "new")]) == 1
    assert "gone is no folder, nor a model that can be had from the Hub" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "theirs", text_tensors("bert", "pooler"), head_tensors("mcse"))
    program = """
import resource
from kdmcse_hf.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))  # fits the code that travels, not the weights
print(main(["convert", "theirs", "ours"]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "1\n"
    assert "kdmcse convert: error: ours could not be written, and nothing is left of it: " in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"theirs"}


def test_a_tensor_that_two_files_hold_is_refused_by_name(tmp_path: Path) -> None:
    heads = head_tensors("mcse")
    source = write_checkpoint(tmp_path / "theirs", whole(text_tensors("bert", "pooler"), heads), heads)
    with pytest.raises(ValueError, match=r"pytorch_model.bin and .*mcse.pt both hold 4 tensors, such as 'grounding.de"):
        load_published(source)


def test_a_checkpoint_of_our_own_is_not_converted_again(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "theirs", text_tensors("bert", "mlp"), {})
    convert_checkpoint(source, tmp_path / "ours")
    with pytest.raises(ValueError, match="is a KDMCSE checkpoint already"):
        load_published(tmp_path / "ours")
