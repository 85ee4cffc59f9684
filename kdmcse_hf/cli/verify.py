"""`kdmcse verify`."""

import argparse
import sys


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "verify",
        help="check a teacher cache against its manifest",
        description="Read every file of a teacher cache and compare it with the manifest. Exit status 1: one differs.",
    )
    parser.add_argument("cache", help="the folder")
    parser.add_argument("--captions", help="the captions file, to see whether it is the one the cache was made from")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from kdmcse_hf.teacher.cache import TeacherCache

    cache = TeacherCache(arguments.cache)
    cache.verify(progress=True)
    if arguments.captions:
        cache.check_captions_file(arguments.captions)
    teacher = cache.manifest["teacher"]
    sys.stdout.write(
        f"{cache.folder} is as its manifest says: {len(cache.images):,} images, {len(cache.captions):,} captions, "
        f"teacher {teacher['name']} (revision {teacher['revision']}, digest {teacher['digest']})\n"
    )
