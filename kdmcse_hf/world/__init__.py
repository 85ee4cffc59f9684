"""A small generated world of coloured shapes: pictures, captions, gold similarities and a CLIP teacher, all offline.

Everything is made from a seed. Which captions are true of which pictures is known exactly, so noisy negatives can be
counted. Importing this package imports neither torch nor transformers.
"""

from kdmcse_hf.world.captions import caption, express
from kdmcse_hf.world.dataset import write_world
from kdmcse_hf.world.drawing import draw
from kdmcse_hf.world.meaning import Meaning, StatedObject, describes, similarity, state
from kdmcse_hf.world.scenes import Scene, SceneObject, sample_scene
from kdmcse_hf.world.sentences import sentence
from kdmcse_hf.world.sts import SentencePair, sentence_pairs
from kdmcse_hf.world.student import write_student
from kdmcse_hf.world.truth import Truth, load_truth

__all__ = [
    "Meaning",
    "Scene",
    "SceneObject",
    "SentencePair",
    "StatedObject",
    "Truth",
    "caption",
    "describes",
    "draw",
    "express",
    "load_truth",
    "sample_scene",
    "sentence",
    "sentence_pairs",
    "similarity",
    "state",
    "write_student",
    "write_world",
]
