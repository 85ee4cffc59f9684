"""`kdmcse import-json`."""

import argparse
import sys


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "import-json",
        help="make a teacher cache from KDMCSE's published features",
        description="Make a teacher cache from a JSON file {image: {image_feat, captions, lang_feat}} of any size.",
    )
    parser.add_argument("cache", help="folder to make")
    parser.add_argument("json_file", help="the published file")
    parser.add_argument("--teacher_name", required=True, help="what made the features, for the manifest")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from kdmcse_hf.teacher.json_import import import_json

    cache = import_json(arguments.cache, arguments.json_file, teacher_name=arguments.teacher_name, progress=True)
    sys.stdout.write(f"{cache.folder}: {len(cache.images):,} images, {len(cache.captions):,} captions\n")
