"""Quality of a teacher on a fresh sample of the world: retrieval, and telling true pairs from false ones."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdmcse_hf.world.captions import caption
from kdmcse_hf.world.drawing import draw
from kdmcse_hf.world.meaning import describes
from kdmcse_hf.world.scenes import sample_scene

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor


@dataclass(frozen=True, slots=True)
class TeacherQuality:
    """How well a teacher does on pictures it has not seen; every figure is in [0, 1].

    `recall_at_1` and `recall_at_10` rank all pictures for every caption; a caption counts as found when a picture that
    it is true of is among the first 1 or 10. `text_image_auc` and `text_text_auc` are the probabilities that a true
    pair gets a higher cosine than a false one; a pair of captions is true when either is true of the other's picture.
    `true_share` is the share of true pairs among captions and pictures that were not made for each other.
    """

    recall_at_1: float
    recall_at_10: float
    text_image_auc: float
    text_text_auc: float
    true_share: float


def area_under_curve(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> float:
    """Probability that a true entry scores higher than a false one; `scores` and `truth` of one shape (N,)."""
    positives = int(truth.sum())
    negatives = truth.size - positives
    if not positives or not negatives:
        raise ValueError(f"The area needs true and false pairs, got {positives} true and {negatives} false.")
    ranks = np.empty(truth.size)
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, truth.size + 1)
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def measure_quality(
    model: "CLIPModel", processor: "CLIPProcessor", rng: random.Random, num_images: int = 500
) -> TeacherQuality:
    """Measure `model` on `num_images` new pictures with one caption each, through `processor`."""
    import torch

    scenes = [sample_scene(rng) for _ in range(num_images)]
    pictures = [draw(scene, rng) for scene in scenes]
    texts, meanings = zip(*(caption(scene, rng) for scene in scenes), strict=True)
    model.train(False)
    with torch.inference_mode():
        inputs = processor(text=list(texts), images=pictures, padding=True, truncation=True, return_tensors="pt")
        output = model(**inputs)
    images, captions = output.image_embeds.float().numpy(), output.text_embeds.float().numpy()

    truth = np.array([[describes(meaning, scene) for scene in scenes] for meaning in meanings])
    cosine, text_cosine = captions @ images.T, captions @ captions.T
    found = np.take_along_axis(truth, np.argsort(-cosine, axis=1), axis=1)
    others = ~np.eye(num_images, dtype=np.bool_)
    either = truth | truth.T
    return TeacherQuality(
        recall_at_1=float(found[:, 0].mean()),
        recall_at_10=float(found[:, :10].any(axis=1).mean()),
        text_image_auc=area_under_curve(cosine.ravel(), truth.ravel()),
        text_text_auc=area_under_curve(text_cosine[others], either[others]),
        true_share=float(truth[others].mean()),
    )
