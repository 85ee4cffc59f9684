"""`kdmcse import-features`."""

import argparse
import sys


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import-features",
        help="make a teacher cache from feature files",
        description="Make a teacher cache from features that were extracted elsewhere.",
    )
    parser.add_argument("cache", help="folder to make")
    parser.add_argument("--captions", required=True, help="table, or Flickr's, COCO's or Karpathy's file")
    parser.add_argument("--image_features", required=True, help=".safetensors (tensor image_features), .npy or .hdf5")
    parser.add_argument("--image_names", help="the name of each image row, one a line (default: as in --captions)")
    parser.add_argument("--caption_features", help=".safetensors (tensor caption_features) or .npy, a row a caption")
    parser.add_argument("--teacher_name", required=True, help="what made the features, for the manifest")
    parser.add_argument("--splits", help="table with image and split, or Karpathy's file")
    parser.add_argument("--split", help="keep only this split of --splits")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from kdmcse_hf.teacher.feature_import import import_features

    if (arguments.splits is None) != (arguments.split is None):
        raise ValueError("--splits and --split go together: one names the table, the other the split to keep.")
    cache = import_features(
        arguments.cache,
        captions_file=arguments.captions,
        image_features_file=arguments.image_features,
        image_names_file=arguments.image_names,
        caption_features_file=arguments.caption_features,
        teacher_name=arguments.teacher_name,
        splits_file=arguments.splits,
        split=arguments.split,
    )
    sys.stdout.write(f"{cache.folder}: {len(cache.images):,} images, {len(cache.captions):,} captions\n")
