"""The world's own teacher: a small `CLIPModel`, trained with CLIP's own loss on pictures and captions of other seeds.

    python -m kdmcse_hf.world.teacher OUT_DIR

makes the folder that the package ships as `TEACHER_FOLDER`; it loads like any CLIP, with
`CLIPModel.from_pretrained(folder)` and `CLIPProcessor.from_pretrained(folder)`.
"""

import argparse
import json
import math
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdmcse_hf.world.captions import caption
from kdmcse_hf.world.drawing import draw
from kdmcse_hf.world.quality import TeacherQuality, measure_quality
from kdmcse_hf.world.scenes import Scene, sample_scene
from kdmcse_hf.world.sentences import sentence

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, CLIPProcessor

TEACHER_FOLDER = Path(__file__).with_name("teacher_weights")
_IMAGE_SIZE = 48
_MAX_TOKENS = 64
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789?.,-'"
_MAX_LOGIT_SCALE = math.log(100)  # as CLIP's own training clips it

_README = """# The built-in world's teacher

A `CLIPModel` of {parameters:,} parameters (float16 on disk, loaded as float32) with its `CLIPProcessor`. Our own
weights, trained from random initialisation on pictures and captions that the package generates; no other data.

    python -m kdmcse_hf.world.teacher OUT_DIR {options}

Wall time {minutes:.1f} minutes on {threads} CPU threads. Reached on 500 other pictures with one caption each, through
the files in this folder ({true_share:.1%} of the pairs not made for each other are true as well):

| figure | value |
|---|---|
| text to image, a true picture first | {recall_at_1:.3f} |
| text to image, a true picture among the first 10 | {recall_at_10:.3f} |
| AUC of the text-image cosine, true against false pairs | {text_image_auc:.3f} |
| AUC of the text-text cosine, true against false pairs | {text_text_auc:.3f} |
"""


def _stream(name: str, seed: int) -> random.Random:
    # `write_world` draws from streams of other names: no seed of a world meets a seed of the teacher.
    return random.Random(f"kdmcse_hf.world.teacher/{seed}/{name}")


def build_processor(seed: int = 0) -> "CLIPProcessor":
    """A `CLIPProcessor` for the world: CLIP's BPE trained on the world's text, pictures of 48 x 48 pixels."""
    from tokenizers.trainers import BpeTrainer
    from transformers import CLIPProcessor, CLIPTokenizer

    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    except ImportError:  # the first releases of transformers 5 have Pillow's under the plain name
        from transformers import CLIPImageProcessor as CLIPImageProcessorPil  # type: ignore[assignment]

    rng = _stream("tokenizer", seed)
    backend = CLIPTokenizer().backend_tokenizer  # CLIP's way of splitting words, without its 49k entries
    trainer = BpeTrainer(
        vocab_size=384,
        # Word-final letters are listed too: left to the trainer, their numbers and all ties differ from run to run.
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in _ALPHABET)],
        initial_alphabet=list(_ALPHABET),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator((sentence(rng) for _ in range(4000)), trainer)
    bpe = json.loads(backend.to_str())["model"]
    merges: Any = [tuple(pair) for pair in bpe["merges"]]  # the signature's list[str] would have to be split again
    tokenizer = CLIPTokenizer(vocab=bpe["vocab"], merges=merges, model_max_length=_MAX_TOKENS)
    side = {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": _IMAGE_SIZE}, crop_size=side)
    return CLIPProcessor(image_processor, tokenizer)


def build_model(processor: "CLIPProcessor", seed: int = 0) -> "CLIPModel":
    """A randomly initialised `CLIPModel` of about 0.4 million parameters for `processor`."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    tokenizer = processor.tokenizer
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": _MAX_TOKENS,
            "projection_dim": 64,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": _IMAGE_SIZE,
            "patch_size": 8,
            "projection_dim": 64,
        },
        projection_dim=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPModel(config)


def _draw_pixels(processor: "CLIPProcessor", scenes: list[Scene], rng: random.Random) -> "torch.Tensor":
    """(N, 3, 48, 48) float16 pixel values of a drawing of every scene, as the processor makes them."""
    import torch

    chunks = []
    for start in range(0, len(scenes), 500):
        pictures = [draw(scene, rng) for scene in scenes[start : start + 500]]
        # float16 halves what stays in memory; far finer than the pictures' grain
        chunks.append(processor.image_processor(pictures, return_tensors="pt")["pixel_values"].half())
    return torch.cat(chunks)


def train(
    model: "CLIPModel",
    processor: "CLIPProcessor",
    *,
    steps: int = 700,
    batch_size: int = 256,
    num_images: int = 16000,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train `model` in place with CLIP's symmetric contrastive loss; captions are drawn anew at every visit.

    Args:
        model (`CLIPModel`): from [`build_model`].
        processor (`CLIPProcessor`): from [`build_processor`].
        steps (`int`, *optional*, defaults to 700): number of updates.
        batch_size (`int`, *optional*, defaults to 256): pictures per update.
        num_images (`int`, *optional*, defaults to 16000): pictures in all.
        learning_rate (`float`, *optional*, defaults to 2e-3): peak of the cosine schedule.
        seed (`int`, *optional*, defaults to 0): seed of pictures, captions and order.
    """
    import torch
    from transformers.utils.logging import tqdm

    if not 2 <= batch_size <= num_images:
        raise ValueError(f"`batch_size` has to be from 2 to `num_images` ({num_images}), got {batch_size}.")
    rng = _stream("train", seed)
    scenes = [sample_scene(rng) for _ in range(num_images)]
    pixels = _draw_pixels(processor, scenes, rng)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.08)
    model.train()
    order: list[int] = []
    progress = tqdm(range(steps), desc="teacher")
    for step in progress:
        if len(order) < batch_size:
            order = rng.sample(range(num_images), num_images)
        rows, order = order[:batch_size], order[batch_size:]
        texts = [caption(scenes[row], rng)[0] for row in rows]
        tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        loss = model(**tokens, pixel_values=pixels[rows].float(), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=_MAX_LOGIT_SCALE)
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.train(False)


def save(model: "CLIPModel", processor: "CLIPProcessor", folder: Path) -> None:
    """Save weights in float16 and the processor; `from_pretrained(folder)` gives float32 again."""
    import torch

    model.to(torch.float16).save_pretrained(folder)  # type: ignore[arg-type]
    model.to(torch.float32)  # type: ignore[arg-type]
    model.config.dtype = "float32"  # else every user's teacher would compute in float16
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_teacher(folder: Path, *, steps: int, num_images: int, seed: int) -> TeacherQuality:
    """Build, train and save a teacher with its README; returns what the saved files reach."""
    import torch
    from transformers import CLIPModel, CLIPProcessor

    began = time.perf_counter()
    processor = build_processor(seed)
    model = build_model(processor, seed)
    train(model, processor, steps=steps, num_images=num_images, seed=seed)
    save(model, processor, folder)
    minutes = (time.perf_counter() - began) / 60
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    quality = measure_quality(model, processor, _stream("quality", seed))
    options = f"--steps {steps} --num_images {num_images} --seed {seed}"
    facts = {"parameters": model.num_parameters(), "threads": torch.get_num_threads(), "minutes": minutes}
    (folder / "README.md").write_text(_README.format(options=options, **facts, **asdict(quality)), encoding="utf-8")
    return quality


def main() -> None:
    """Command line: make a teacher folder."""
    parser = argparse.ArgumentParser(description="Train the built-in world's CLIP teacher.")
    parser.add_argument("folder", type=Path, metavar="OUT_DIR", help="Where the teacher is written.")
    parser.add_argument("--steps", type=int, default=700, help="Number of updates.")
    parser.add_argument("--num_images", type=int, default=16000, help="Number of pictures to train on.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of pictures, captions and weights.")
    arguments = parser.parse_args()
    make_teacher(arguments.folder, steps=arguments.steps, num_images=arguments.num_images, seed=arguments.seed)


if __name__ == "__main__":
    main()
