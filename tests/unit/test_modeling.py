import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ENCODER_CONFIGS, make_sentences, make_tokenizer
from transformers import AutoConfig, AutoModel, FunnelConfig

from kdmcse_hf import KDMCSEConfig, KDMCSEModel, SentenceEncoder
from kdmcse_hf.conversion import load_published
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.tokenizer import load_tokenizer

KINDS = sorted(ENCODER_CONFIGS)


def batch(token_types: bool = False) -> dict[str, torch.Tensor]:
    encoded = make_tokenizer()(make_sentences(5), padding=True, return_tensors="pt")
    inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    if token_types:
        inputs["token_type_ids"] = torch.zeros_like(encoded["input_ids"])
    return inputs


@pytest.fixture
def model(encoder_folder) -> KDMCSEModel:
    return KDMCSEModel.from_encoder(
        encoder_folder("bert"), image_embed_dim=12, caption_embed_dim=9, projection_dim=7
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_types", [False, True])
def test_the_embedding_is_the_plain_encoder_s_cls_to_the_bit(kind: str, token_types: bool, encoder_folder) -> None:
    inputs = batch(token_types)
    plain = AutoModel.from_pretrained(encoder_folder(kind)).eval()
    if kind in ("distilbert", "mpnet", "modernbert"):
        expected = plain(**{k: v for k, v in inputs.items() if k != "token_type_ids"})
    else:
        expected = plain(**inputs)
    found = KDMCSEModel.from_encoder(encoder_folder(kind)).eval()(**inputs).pooler_output
    assert torch.equal(found, expected.last_hidden_state[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_loads_to_the_same_bits_through_automodel(kind: str, encoder_folder, tmp_path: Path) -> None:
    model = KDMCSEModel.from_encoder(encoder_folder(kind), image_embed_dim=12, caption_embed_dim=9).eval()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(loaded, KDMCSEModel)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert torch.equal(model(**batch()).pooler_output, loaded.eval()(**batch()).pooler_output)


def test_the_config_round_trips_with_its_encoder_s_type(model: KDMCSEModel, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, KDMCSEConfig)
    assert config.text_config.model_type == "bert"
    assert (config.image_embed_dim, config.caption_embed_dim, config.projection_dim) == (12, 9, 7)
    assert config.to_diff_dict() == model.config.to_diff_dict()


def test_mean_pooling_leaves_padding_out(encoder_folder) -> None:
    model = KDMCSEModel.from_encoder(encoder_folder("bert"), pooling="mean").eval()
    inputs = batch()
    hidden = model(**inputs).last_hidden_state
    lengths = inputs["attention_mask"].sum(dim=1)
    expected = torch.stack([row[:n].mean(dim=0) for row, n in zip(hidden, lengths, strict=True)])
    torch.testing.assert_close(model(**inputs).pooler_output, expected)


def test_heads_start_as_stated_even_in_a_model_built_in_one_piece() -> None:
    torch.manual_seed(0)
    config = KDMCSEConfig(text_config=ENCODER_CONFIGS["bert"].to_dict(), image_embed_dim=400, projection_dim=300)
    model = KDMCSEModel(config)
    assert model.pooler.dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.pooler.dense.bias.any()
    for head in (model.grounding_head, model.image_projection):
        bound = head.in_features**-0.5
        assert head.weight.abs().max() <= bound
        assert head.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert head.bias.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_views_are_dropout_views_and_neighbours(model: KDMCSEModel) -> None:
    inputs = batch()
    single = model(**inputs, num_views=1).text_embeds
    assert torch.equal(model(**inputs, num_views=2).text_embeds[:, 1], single[:, 0])  # no dropout: equal
    model.train()
    views = model(**inputs, num_views=2).text_embeds
    assert not torch.equal(views[:, 0], views[:, 1])


def test_only_batches_with_features_use_the_cross_modal_heads(model: KDMCSEModel) -> None:
    output = model(**batch(), num_views=2)
    assert output.grounded_embeds is None
    output.text_embeds.sum().backward()
    assert model.grounding_head.weight.grad is None
    output = model(**batch(), num_views=2, teacher_image_embeds=torch.randn(5, 12))
    assert output.grounded_embeds.shape == (5, 2, 7)
    assert output.image_embeds.shape == (5, 7)
    assert output.caption_embeds is None


def test_features_of_another_width_are_refused_with_both_widths(model: KDMCSEModel) -> None:
    with pytest.raises(ValueError, match=r"image features are 13 wide.*image_embed_dim` is 12"):
        model(**batch(), num_views=2, teacher_image_embeds=torch.randn(5, 13))


def test_normalised_features_forget_their_length(encoder_folder) -> None:
    model = KDMCSEModel.from_encoder(encoder_folder("bert"), image_embed_dim=12, normalize_teacher_embeds=True)
    features = torch.randn(5, 12)
    first = model(**batch(), num_views=1, teacher_image_embeds=features).image_embeds
    scaled = model(**batch(), num_views=1, teacher_image_embeds=20 * features).image_embeds
    torch.testing.assert_close(scaled, first)


def test_a_half_precision_checkpoint_trains_in_float32(model: KDMCSEModel, tmp_path: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).dtype == torch.bfloat16  # transformers' own default
    again = KDMCSEModel.from_encoder(tmp_path, image_embed_dim=12, caption_embed_dim=9, projection_dim=7)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_a_checkpoint_of_another_architecture_is_refused_by_field(model: KDMCSEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has projection_dim=7, but projection_dim=256 was asked for"):
        KDMCSEModel.from_encoder(tmp_path, image_embed_dim=12, caption_embed_dim=9)


@pytest.mark.parametrize(
    "fields", [{"projection_dim": 0}, {"image_embed_dim": "512"}, {"caption_embed_dim": True}, {"pooling": "max"}]
)
def test_a_senseless_config_is_refused_by_field(fields: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}`"):
        KDMCSEConfig(**fields)


def test_the_attention_implementation_reaches_the_encoder(encoder_folder) -> None:
    model = KDMCSEModel.from_encoder(encoder_folder("bert"), attn_implementation="eager")
    layer = model.encoder.encoder.layer[0].attention.self
    assert layer.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert layer.config._attn_implementation == "sdpa"
    assert layer.config is model.encoder.config is model.config.text_config
    model.set_attn_implementation("eager")
    assert len(model(**batch(), output_attentions=True).attentions) == 2


def test_activation_checkpointing_leaves_gradients_as_they_are(encoder_folder) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = KDMCSEModel.from_encoder(encoder_folder("bert"))
        model.train()
        if checkpointing:
            # the older name, deprecated since
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        torch.manual_seed(0)
        model(**batch(), num_views=2).text_embeds.square().sum().backward()
        gradients.append(model.encoder.embeddings.word_embeddings.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_encoders_without_the_pooler_switch_build(tmp_path: Path) -> None:
    shape = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1], "num_decoder_layers": 1}
    config = FunnelConfig(vocab_size=40, architectures=["FunnelModel"], **shape)
    assert KDMCSEModel(KDMCSEConfig(text_config=config)).config.hidden_size == 16


def test_a_saved_checkpoint_carries_its_two_source_files(model: KDMCSEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {"configuration_kdmcse.py", "modeling_kdmcse.py"}
    assert set(json.loads((tmp_path / "config.json").read_text())["auto_map"]) == {"AutoConfig", "AutoModel"}
    for path in tmp_path.glob("*.py"):
        imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        roots = {line.split()[1].split(".")[0] for line in imports}
        assert roots <= {*sys.stdlib_module_names, "torch", "transformers", ""}


def test_without_this_package_a_checkpoint_gives_the_same_vectors(model: KDMCSEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    torch.save({"inputs": batch(), "vectors": model(**batch()).pooler_output}, tmp_path / "expected.pt")
    encoded = model.encode("the cat runs", tokenizer=make_tokenizer()).tolist()
    program = f"""
import sys
sys.modules["kdmcse_hf"] = None  # importing it now fails
import torch
from transformers import AutoModel
expected = torch.load({str(tmp_path / "expected.pt")!r})
model = AutoModel.from_pretrained({str(tmp_path / "model")!r}, trust_remote_code=True).eval()
assert torch.equal(model(**expected["inputs"]).pooler_output, expected["vectors"])
assert model.encode("the cat runs").tolist() == {encoded}
"""
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_encoder_without_tokenizer_is_refused_with_the_remedy(encoder_folder, tmp_path: Path) -> None:
    AutoModel.from_pretrained(encoder_folder("bert")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="No tokenizer could be loaded.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"version": "1.0", "model": {"type": "WordLevel"', "[1]"])
def test_a_damaged_tokenizer_is_refused_by_its_folder(content: str, model: KDMCSEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=f"No tokenizer could be loaded from '{tmp_path}'"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=f"No tokenizer could be loaded from '{tmp_path}'"):
        KDMCSEModel.from_pretrained(tmp_path).encode("a cat")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What anybody was asked at the keyboard."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    return asked


def test_custom_code_is_neither_run_nor_asked_for_unless_the_caller_wants_it(
    encoder_folder, tmp_path: Path, asked: list[str]
) -> None:
    folder = shutil.copytree(encoder_folder("bert"), tmp_path / "encoder")
    code = "from transformers import BertConfig, BertModel, BertTokenizer\nclass {name}({base}): {body}\n"
    (folder / "own.py").write_text(
        code.format(name="Config", base="BertConfig", body="model_type = 'own'")
        + code.format(name="Model", base="BertModel", body="config_class = Config")
    )
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    says = r"without code of its own, and none is run unasked.*trust_remote_code=True"
    for load in (KDMCSEModel.from_encoder, SentenceEncoder.from_pretrained, Teacher.from_pretrained):
        with pytest.raises(ValueError, match=says):
            load(folder)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]}, tokenizer_class="Own")
    with pytest.raises(ValueError, match="No tokenizer could be loaded.*trust_remote_code"):
        load_tokenizer(folder)
    assert asked == []
    assert type(KDMCSEModel.from_encoder(folder, trust_remote_code=True).encoder).__name__ == "Model"


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_attention_code_that_a_config_names_is_refused_unless_the_caller_chooses(
    name: str, model: KDMCSEModel, encoder_folder, tmp_path: Path
) -> None:
    encoder = shutil.copytree(encoder_folder("bert"), tmp_path / "encoder")
    edit(encoder / "config.json", **{name: "evil/kernel"})
    model.save_pretrained(tmp_path / "ours")
    text_config = json.loads((tmp_path / "ours" / "config.json").read_text())["text_config"]
    edit(tmp_path / "ours" / "config.json", text_config={**text_config, name: {"": "paged|evil/kernel"}})
    loaders = (KDMCSEModel.from_encoder, KDMCSEModel.from_pretrained, SentenceEncoder.from_pretrained)
    for folder in (encoder, tmp_path / "ours"):
        for load in (*loaders, Teacher.from_pretrained, load_published):
            with pytest.raises(ValueError, match=f"names code on the Hub, {name}=.*evil/kernel"):
                load(folder)
    if name.startswith("_"):
        with pytest.raises(ValueError, match="names code on the Hub"):  # transformers would prefer it to the caller's
            KDMCSEModel.from_encoder(encoder, attn_implementation="eager")
    else:
        model = KDMCSEModel.from_encoder(encoder, attn_implementation="eager")
        assert model.encoder.config._attn_implementation == "eager"
    edit(encoder / "config.json", **{name: "sdpa"})
    assert KDMCSEModel.from_encoder(encoder).encoder.config._attn_implementation == "sdpa"


def test_an_unreadable_checkpoint_is_refused_by_file(model: KDMCSEModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{tmp_path}.*cannot be read"):
        KDMCSEModel.from_encoder(tmp_path, image_embed_dim=12, caption_embed_dim=9, projection_dim=7)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}.*cannot be read"):
        SentenceEncoder.from_pretrained(tmp_path)
