"""Every family of teachers, tiny and random, saved and loaded as a user's would be."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tiny import VOCABULARY, make_tokenizer
from torch.nn.functional import normalize

from kdmcse_hf.teacher.encoder import Teacher, preprocess

SIDE = 32
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": SIDE, "patch_size": 8, "projection_dim": 24}
TEXT = {**TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": 20, "pad_token_id": 0, "projection_dim": 24}
CLIP_TEXT = {**TEXT, "bos_token_id": 2, "eos_token_id": 3}
CAPTIONS = ["a cat sits on the mat", "the red bird jumps", "a house", "a dog"]


def processor(kind: str = "CLIPImageProcessor", **changes: object) -> hf.BaseImageProcessor:
    size = {"height": SIDE, "width": SIDE}
    return getattr(hf, kind)(**{"size": size, "do_center_crop": False, **changes})


def vision_text_config() -> hf.VisionTextDualEncoderConfig:
    vision, text = hf.ViTConfig(**VISION), hf.BertConfig(**TEXT)
    return hf.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)


DUAL_ENCODERS = {
    "clip": (hf.CLIPModel, lambda: hf.CLIPConfig(text_config=CLIP_TEXT, vision_config=VISION, projection_dim=24)),
    "siglip": (hf.SiglipModel, lambda: hf.SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "siglip2": (
        hf.Siglip2Model,
        lambda: hf.Siglip2Config(text_config=TEXT, vision_config={**VISION, "num_patches": 16}),
    ),
    "chinese_clip": (
        hf.ChineseCLIPModel,
        lambda: hf.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24),
    ),
    "altclip": (
        hf.AltCLIPModel,
        lambda: hf.AltCLIPConfig(text_config={**TEXT, "project_dim": 24}, vision_config=VISION, projection_dim=24),
    ),
    "vision_text": (hf.VisionTextDualEncoderModel, vision_text_config),
}
IMAGE_ENCODERS = {
    "resnet": lambda: hf.ResNetModel(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "vit": lambda: hf.ViTModel(hf.ViTConfig(**VISION)),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**VISION)),
    "clip_vision": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION)),
}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 30 + 5 * n, 3), dtype=np.uint8)) for n in range(4)]


def save_dual_encoder(kind: str, folder: Path) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    model_class, config = DUAL_ENCODERS[kind]
    model = model_class(config()).eval()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    if kind == "siglip2":
        processor("Siglip2ImageProcessor", patch_size=8, max_num_patches=16).save_pretrained(folder)
    else:
        processor().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", DUAL_ENCODERS)
def test_features_of_every_dual_encoder_are_those_that_its_own_forward_compares(
    kind: str, pictures: list[Image.Image], tmp_path: Path
) -> None:
    model = save_dual_encoder(kind, tmp_path)
    teacher = Teacher.from_pretrained(tmp_path)
    inputs = preprocess(teacher.image_processor, pictures)
    padding = {"padding": "max_length", "max_length": 20} if kind.startswith("siglip") else {"padding": True}
    with torch.no_grad():
        expected = model(**teacher.tokenizer(CAPTIONS, return_tensors="pt", **padding), **inputs)
    images, texts = teacher.embed_pictures(inputs), teacher.embed_captions(CAPTIONS)
    assert images.shape == texts.shape == (4, expected.image_embeds.shape[-1])
    torch.testing.assert_close(normalize(images), expected.image_embeds)
    torch.testing.assert_close(normalize(texts), expected.text_embeds)
    assert (images.std(dim=0) > 0).any()


@pytest.mark.parametrize("kind", IMAGE_ENCODERS)
def test_features_of_image_encoders_are_their_pooled_output(
    kind: str, pictures: list[Image.Image], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = IMAGE_ENCODERS[kind]().eval()
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    teacher = Teacher.from_pretrained(tmp_path)
    inputs = preprocess(teacher.image_processor, pictures)
    with torch.no_grad():
        expected = model(**inputs).pooler_output.flatten(1)
    features = teacher.embed_pictures(inputs)
    torch.testing.assert_close(features, expected)
    assert features.ndim == 2
    assert not teacher.embeds_captions
    with pytest.raises(ValueError, match="embeds pictures only"):
        teacher.embed_captions(CAPTIONS)


def test_a_pooler_that_was_never_trained_is_not_used(pictures: list[Image.Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf.ViTForImageClassification(hf.ViTConfig(**VISION)).eval()  # has no pooler: AutoModel would draw one
    model.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    teacher = Teacher.from_pretrained(tmp_path)
    inputs = preprocess(teacher.image_processor, pictures)
    with torch.no_grad():
        expected = model.vit(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(teacher.embed_pictures(inputs), expected)
    assert teacher.describe()["features"] == "first token"


def test_a_checkpoint_without_some_weights_is_refused_rather_than_drawn_at_random(tmp_path: Path) -> None:
    model = save_dual_encoder("clip", tmp_path)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "text_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks weights of its CLIPModel, such as 'text_projection.weight' \(1 in"):
        Teacher.from_pretrained(tmp_path)


def test_a_text_encoder_is_refused_as_a_teacher(tmp_path: Path) -> None:
    hf.BertModel(hf.BertConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a BertModel, which embeds no pictures"):
        Teacher.from_pretrained(tmp_path)


@pytest.mark.parametrize(("kind", "tokens"), [("clip", 20), ("altclip", 19), ("vision_text", 20)])
def test_captions_are_cut_at_the_context_and_keep_their_end_token(kind: str, tokens: int, tmp_path: Path) -> None:
    save_dual_encoder(kind, tmp_path)
    teacher = Teacher.from_pretrained(tmp_path)
    assert teacher.max_caption_tokens == tokens
    words = "the cat runs on green grass under a blue house " * 3
    fitting = " ".join(words.split()[: tokens - 2])
    whole, cut, shorter = teacher.embed_captions([fitting, words, "the cat"])
    torch.testing.assert_close(whole, cut)
    assert not torch.allclose(whole, shorter)


def test_the_description_follows_weights_and_preprocessing_but_not_the_place(tmp_path: Path) -> None:
    first = save_dual_encoder("clip", tmp_path / "one" / "teacher")
    described = Teacher.from_pretrained(tmp_path / "one" / "teacher").describe()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "teacher").rename(tmp_path / "two" / "teacher")
    moved = Teacher.from_pretrained(tmp_path / "two" / "teacher")
    assert moved.describe() == described
    assert described["name"] == "teacher"
    with torch.no_grad():
        first.visual_projection.weight[0, 0] += 1e-3
    assert Teacher(first, moved.image_processor, moved.tokenizer, name="teacher").describe() != described
    other = processor(size={"height": 24, "width": 24})
    assert Teacher(moved.model, other, moved.tokenizer).describe() != described
