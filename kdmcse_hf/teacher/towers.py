"""A teacher of our own: a text tower and a projection of some frozen teacher's image features, into one space.

The two towers are a [`KDMCSEModel`]: its grounding head ends the text tower, its image projection is the other one.
They are trained by [`TowerTrainer`]; `examples/train_teacher.py` does so.

A text tower knows its training captions by heart, the wrong ones included, and so finds no noise among them. Folds are
the remedy: each is a text tower that was trained without a share of the pictures, towards the picture side of the
towers that saw all, so that the vectors of all folds lie in one space. They embed the training captions; any other
text is embedded by the tower that saw all.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from kdmcse_hf.embedding import SentenceEncoder
from kdmcse_hf.modeling_kdmcse import KDMCSEModel
from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.cache_writer import write_cache
from kdmcse_hf.teacher.pairs import TeacherPairs
from kdmcse_hf.teacher.shard import CacheError, sha256
from kdmcse_hf.tokenizer import load_tokenizer

logger = logging.get_logger(__name__)

RECORD = "teacher.json"
_ROWS = 4096


class Towers:
    """The two towers, frozen: sentences and image features in, unit vectors of one space out.

    Args:
        model: has an image projection; left in the mode that it is in.
        tokenizer: its `model_max_length` is where sentences are cut.
        record: how the towers were made, for the manifest of caches; `None` while they are being made.
        folder: where their folds are.
    """

    def __init__(
        self,
        model: KDMCSEModel,
        tokenizer: PreTrainedTokenizerBase,
        record: dict[str, Any] | None = None,
        *,
        folder: Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.record, self.folder = model, tokenizer, record, folder
        self._encode = SentenceEncoder(model, tokenizer, batch_size=256, max_length=tokenizer.model_max_length)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> "Towers":
        """Opens the folder that [`Towers.save`] wrote.

        Raises:
            ValueError: it holds something else, or towers whose folds have not been trained yet.
        """
        path = Path(folder) / RECORD
        if not path.is_file():
            raise ValueError(f"{folder} holds no trained teacher: it has no {RECORD}. Train one there first.")
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if missing := record.get("folds_to_train"):
            raise ValueError(
                f"The towers in {folder} are without their {missing} folds, so they would embed their training "
                "captions by heart: run the command that trains them again, with `--resume_from_checkpoint true`."
            )
        found = _digests(Path(folder), record["folds"])
        if record["files"] != found:
            raise ValueError(
                f"{path} was written for other files than lie beside it: {record['files']!r}, found {found!r}. Copy "
                "the whole folder again."
            )
        model = KDMCSEModel.from_pretrained(folder, dtype=torch.float32)
        record["name"] = Path(folder).resolve().name  # never the path: caches are shared
        return cls(model.eval().to(device), load_tokenizer(folder), record, folder=Path(folder))

    def save(self, folder: str | os.PathLike[str], record: dict[str, Any]) -> None:
        """Writes weights, tokenizer, and last the record.

        Args:
            folder: where to; the towers of `fold-0`, `fold-1`, ... are below it.
            record: `base` (the teacher whose features these towers take), `captions` (`checksum` of the cache that
                they were trained on), `folds` (how many there are), `folds_to_train` if there will be more, and all
                that a manifest should say.
        """
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.record = {
            **record,
            "max_length": self.tokenizer.model_max_length,
            "files": _digests(folder, record["folds"]),
        }
        temporary = folder / f"{RECORD}.tmp"
        temporary.write_text(json.dumps(self.record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(folder / RECORD)

    @property
    def width(self) -> int:
        """P of the space that both towers share."""
        return self.model.config.projection_dim

    def embed_sentences(self, sentences: list[str]) -> NDArray[np.float32]:
        """(N, P) unit vectors of any text: captions, or plain sentences."""
        return self._project(self.model.grounding_head, self._encode(sentences))

    def embed_features(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """(N, P) unit vectors of the frozen teacher's image features (N, D).

        Raises:
            ValueError: they have another width than those that the towers were trained on.
        """
        return self._project(lambda rows: self.model._project(self.model.image_projection, rows, "image"), features)

    @torch.inference_mode()
    def _project(self, head: Any, vectors: NDArray[Any]) -> NDArray[np.float32]:
        parameter = next(self.model.parameters())
        result = np.empty((len(vectors), self.width), dtype=np.float32)
        for start in range(0, len(vectors), _ROWS):
            rows = torch.from_numpy(vectors[start : start + _ROWS]).to(parameter.device, parameter.dtype)
            projected = torch.nn.functional.normalize(head(rows).float(), dim=-1)
            result[start : start + _ROWS] = projected.cpu().numpy()
        return result

    def write_cache(self, folder: str | os.PathLike[str], base: TeacherCache) -> TeacherCache:
        """The pictures and captions of `base` in the towers' space, as a cache of its own, for any preset.

        Args:
            folder: the new cache.
            base: image features of the teacher that the towers were trained on; caption features are not read.
                Pictures and captions that its teacher could not read are left out.

        Raises:
            CacheError: its features are of another teacher, or `folder` holds a cache.
            ValueError: these towers have not been saved.
        """
        if self.record is None or self.folder is None:
            raise ValueError("These towers have no record of how they were made: save them, and open them again.")
        expected, found = (teacher["digest"] for teacher in (self.record["base"], base.manifest["teacher"]))
        if found != expected:
            raise CacheError(
                f"{base.folder} holds features of teacher {base.manifest['teacher']['name']!r} (digest {found}), but "
                f"these towers were trained on {self.record['base']['name']!r} (digest {expected}). Use that teacher's."
            )
        pairs = TeacherPairs(base)
        images = np.setdiff1d(np.arange(len(base.images)), base.skipped_images)
        captions = base.captions.select(pairs.caption_rows)["caption"][:]
        folds = self.record["folds"]
        if folds and base.manifest["checksum"] != self.record["captions"]["checksum"]:
            logger.warning(
                f"{base.folder} is not the cache that these towers were trained on: its captions are embedded by the "
                "tower that saw all training captions, and should not be among those."
            )
            folds = 0
        if folds:
            vectors = np.empty((len(captions), self.width), dtype=np.float32)
            fold = fold_of_images(len(base.images), folds)[pairs.image_rows]
            for number in range(folds):
                rows = np.flatnonzero(fold == number)
                towers = Towers.from_pretrained(self.folder / f"fold-{number}", self.model.device)
                vectors[rows] = towers.embed_sentences([captions[row] for row in rows])
        else:
            vectors = self.embed_sentences(captions)
        return write_cache(
            folder,
            images=base.images.select(images)["image"][:],
            captions=captions,
            image_rows=np.searchsorted(images, pairs.image_rows).tolist(),
            image_features=[self.embed_features(base.image_features.rows(images))],
            caption_features=[vectors],
            teacher={
                "name": self.record["name"],
                "type": "towers",
                "weights": self.record["files"],
                "trained": {key: value for key, value in self.record.items() if key not in ("name", "files")},
            },
            source={**base.manifest["source"], "base": base.manifest["checksum"], "captions_held_out": bool(folds)},
        )


def fold_of_images(num_images: int, folds: int) -> NDArray[np.int64]:
    """(num_images,) which fold's tower never saw a caption of each picture: shares of one size, at random."""
    return np.random.default_rng((folds, 5)).permutation(num_images) % folds


def _digests(folder: Path, folds: int) -> dict[str, str]:
    """SHA-256 of all weights, and of what turns text into ids."""
    folders = [folder, *(folder / f"fold-{number}" for number in range(folds))]
    paths = [folder / "tokenizer.json", *(path for each in folders for path in sorted(each.glob("model*.safetensors")))]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths if path.is_file()}
