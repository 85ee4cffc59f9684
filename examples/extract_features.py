"""Ask a frozen teacher about pictures and captions, once; the answers are a teacher cache to train on.

    python examples/extract_features.py --teacher openai/clip-vit-base-patch32 --captions results.token \
        --images flickr30k-images --cache cache/flickr30k --mixed_precision bf16
    accelerate launch examples/extract_features.py ...     # several GPUs or machines that share the disk

The same command goes on where a killed one stopped. `kdmcse extract` is the same as a command, with more options.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from accelerate import PartialState
from transformers import HfArgumentParser

from kdmcse_hf.teacher.cache import TeacherCache
from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.teacher.extraction_plan import ExtractionSettings


@dataclass
class InputArguments:
    teacher: str = field(metadata={"help": "CLIP, SigLIP, DINOv2, ...: a folder or a name on the Hub."})
    captions: str = field(metadata={"help": "Table with image and caption, or Flickr's, COCO's or Karpathy's file."})
    images: str = field(metadata={"help": "Folder of the pictures."})
    cache: str = field(metadata={"help": "Folder to make, or to go on with."})
    split: str | None = field(default=None, metadata={"help": "Keep only this split of the captions file."})


def main(argv: Sequence[str]) -> TeacherCache:
    parser = HfArgumentParser([InputArguments, ExtractionSettings])
    files, settings = parser.parse_args_into_dataclasses(list(argv))
    captioned = CaptionedPictures.from_files(files.captions, files.images, split=files.split)
    cache = extract_features(files.cache, captioned, Teacher.from_pretrained(files.teacher), settings)
    if PartialState().is_main_process:
        print(f"{cache.folder}: {len(cache.images):,} images, {len(cache.captions):,} captions")
    return cache


if __name__ == "__main__":
    main(sys.argv[1:])
