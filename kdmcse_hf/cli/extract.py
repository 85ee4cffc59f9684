"""`kdmcse extract`."""

import argparse
import sys


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "extract",
        help="ask a frozen teacher about pictures and captions, once",
        description="Make a teacher cache of pictures and captions. The same command goes on where a killed one "
        "stopped; `accelerate launch -m kdmcse_cli extract ...` shares the work among processes and machines.",
    )
    parser.add_argument("cache", help="folder to make, or to go on with")
    parser.add_argument("--teacher", required=True, help="CLIP, SigLIP, DINOv2, ...: a folder or a name on the Hub")
    parser.add_argument("--revision", help="of the teacher on the Hub: branch, tag or commit")
    files = parser.add_argument_group("input: files")
    files.add_argument("--captions", help="table with image and caption, or Flickr's, COCO's or Karpathy's own file")
    files.add_argument("--images", help="folder of the pictures")
    files.add_argument("--splits", help="table with image and split, where the captions file has no splits")
    files.add_argument("--split", help="keep only this split; several are joined by +")
    dataset = parser.add_argument_group("input: instead, a dataset")
    dataset.add_argument("--dataset", help="name on the Hub or folder, loaded with `datasets`; --split applies")
    dataset.add_argument("--image_column", default="image", help="its Image column (default: %(default)s)")
    dataset.add_argument("--caption_column", default="caption", help="captions, one or a list (default: %(default)s)")
    work = parser.add_argument_group("work")
    work.add_argument("--batch_size", type=int, default=64, help="default: 64; on a CPU, 4 to 8 is often faster")
    work.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="of the teacher")
    work.add_argument("--feature_dtype", choices=("float16", "float32"), default="float16", help="as stored")
    work.add_argument("--num_workers", type=int, help="processes that decode pictures (default: one a core, up to 8)")
    work.add_argument("--rows_per_shard", type=int, default=4096, help="a kill loses at most these (default: 4096)")
    work.add_argument(
        "--on_error",
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a picture or caption that cannot be read: stop, or leave it out and list it in the manifest",
    )
    work.add_argument("--append", action="store_true", help="add to the finished cache what it lacks")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if bool(arguments.dataset) == bool(arguments.captions or arguments.images):
        raise ValueError("Give either --captions and --images, or --dataset.")
    if not arguments.dataset and not (arguments.captions and arguments.images):
        raise ValueError("--captions and --images go together: one names the pictures, the other has them.")

    from accelerate import PartialState

    from kdmcse_hf.teacher.captioned_pictures import CaptionedPictures
    from kdmcse_hf.teacher.encoder import Teacher
    from kdmcse_hf.teacher.extraction import extract_features
    from kdmcse_hf.teacher.extraction_plan import ExtractionSettings

    if arguments.dataset:
        from datasets import load_dataset

        dataset = load_dataset(arguments.dataset, split=arguments.split or "train")
        captioned = CaptionedPictures.from_dataset(
            dataset, image_column=arguments.image_column, caption_column=arguments.caption_column
        )
    else:
        captioned = CaptionedPictures.from_files(
            arguments.captions, arguments.images, splits_file=arguments.splits, split=arguments.split
        )
    names = ("batch_size", "mixed_precision", "feature_dtype", "num_workers", "rows_per_shard", "on_error")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    cache = extract_features(
        arguments.cache,
        captioned,
        Teacher.from_pretrained(arguments.teacher, revision=arguments.revision),
        ExtractionSettings(**given),
        append=arguments.append,
    )
    if not PartialState().is_main_process:
        return
    sys.stdout.write(
        f"{cache.folder}: {len(cache.images):,} images, {len(cache.captions):,} captions; skipped "
        f"{len(cache.skipped_images):,} images and {len(cache.skipped_captions):,} captions, cut "
        f"{len(cache.manifest['cut_captions']):,} captions at the teacher's context\n"
    )
