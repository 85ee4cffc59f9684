"""`kdmcse verify`."""

import argparse
import sys
from pathlib import Path


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "verify",
        help="check a teacher cache, or a release",
        description="Read every file of a teacher cache and compare it with the manifest; or check a release, a folder "
        "or a repository of the Hub: its files, its settings, and in each installed client the vectors of ten "
        "sentences. No code of it is run. Exit status 1: something differs.",
    )
    parser.add_argument("folder", help="a teacher cache or a release, or the Hub name of a release")
    parser.add_argument("--captions", help="the captions file, to see whether it is the one the cache was made from")
    parser.add_argument("--revision", help="of a release on the Hub: branch, tag or commit")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from kdmcse_hf.teacher.cache import MANIFEST

    if (Path(arguments.folder) / MANIFEST).exists():
        if arguments.revision:
            raise ValueError(f"{arguments.folder} is a teacher cache: leave out --revision, of a release on the Hub.")
        _verify_cache(arguments)
    else:
        if arguments.captions:
            raise ValueError(f"{arguments.folder} is no teacher cache: leave out --captions, which is of one.")
        if arguments.revision and Path(arguments.folder).exists():
            raise ValueError(f"{arguments.folder} is a folder here: leave out --revision, of a release on the Hub.")
        _verify_release(arguments)


def _verify_cache(arguments: argparse.Namespace) -> None:
    from kdmcse_hf.teacher.cache import TeacherCache

    cache = TeacherCache(arguments.folder)
    cache.verify(progress=True)
    if arguments.captions:
        cache.check_captions_file(arguments.captions)
    teacher = cache.manifest["teacher"]
    sys.stdout.write(
        f"{cache.folder} is as its manifest says: {len(cache.images):,} images, {len(cache.captions):,} captions, "
        f"teacher {teacher['name']} (revision {teacher['revision']}, digest {teacher['digest']})\n"
    )


def _verify_release(arguments: argparse.Namespace) -> None:
    from transformers.utils.logging import disable_progress_bar

    from kdmcse_hf.verification import download_release, verify_release

    disable_progress_bar()
    folder = Path(arguments.folder)
    checks = verify_release(folder if folder.exists() else download_release(arguments.folder, arguments.revision))
    for check in checks:
        sys.stdout.write(f"{'ok   ' if check.ok else 'WRONG'}  {check.name:<22} {check.found}\n")
    wrong = [check.name for check in checks if not check.ok]
    if wrong:
        raise ValueError(f"{arguments.folder} is not as it was exported: {', '.join(wrong)}")
