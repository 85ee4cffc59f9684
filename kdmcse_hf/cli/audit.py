"""`kdmcse audit`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdmcse_hf.audit.batches import Truth
    from kdmcse_hf.audit.report import Audit, MapAudit
    from kdmcse_hf.teacher.cache import TeacherCache


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "audit",
        help="show what the noisy-negative filter removes",
        description="Show what a teacher cache makes of the negatives of training: the teacher's cosines, the margins, "
        "what thresholds remove, and with --html the pairs themselves.",
    )
    parser.add_argument("cache", help="folder of a teacher cache")
    parser.add_argument("--preset", default="kdmcse", help="whose switches hold (default: kdmcse)")
    parser.add_argument(
        "--thresholds",
        nargs="+",
        metavar="MAP=THRESHOLD",
        help="such as text_image=relative:0.85 text_text=cosine:0.6 text_text=rate:0.005 (default: the preset's)",
    )
    parser.add_argument(
        "--filter_rate",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help="find thresholds that remove it: 0.005",
    )
    parser.add_argument("--margin", type=float, help="largest angular margin, radians (default: the preset's)")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs of a batch (default: 64)")
    parser.add_argument("--num_batches", type=int, default=200, help="batches to look at (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the training run (default: 0)")
    parser.add_argument("--images", help="folder of the pictures, to show them on the page")
    parser.add_argument("--world", help="folder of a built-in world, whose truth gives precision and recall")
    parser.add_argument("--json", metavar="FILE", help="write the figures for programs")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from kdmcse_hf.audit.page import render_page
    from kdmcse_hf.audit.report import audit_pairs
    from kdmcse_hf.presets import PRESETS
    from kdmcse_hf.teacher.cache import TeacherCache
    from kdmcse_hf.teacher.pairs import TeacherPairs

    if arguments.preset not in PRESETS:
        raise ValueError(f"Unknown preset {arguments.preset!r}: expected one of {', '.join(PRESETS)}.")
    if arguments.images and not arguments.html:
        raise ValueError("--images shows pictures on the page: add --html FILE, or leave it out.")
    objective = PRESETS[arguments.preset]
    thresholds = None if arguments.thresholds is None else _thresholds(arguments.thresholds)
    open_picture = None
    if arguments.images:
        from kdmcse_hf.teacher.pictures import PictureFolder

        open_picture = PictureFolder(arguments.images).open
    cache = TeacherCache(arguments.cache)
    audit = audit_pairs(
        TeacherPairs(cache, captions_per_image=objective.captions_per_image, seed=arguments.seed),
        objective,
        thresholds=thresholds,
        filter_rates=arguments.filter_rate,
        margin=arguments.margin,
        batch_size=arguments.batch_size,
        num_batches=arguments.num_batches,
        seed=arguments.seed,
        truth=_truth(arguments.world, cache) if arguments.world else None,
    )
    sys.stdout.write(_report(audit))
    if arguments.json:
        Path(arguments.json).write_text(
            json.dumps(asdict(audit), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    if arguments.html:
        page = render_page(audit, open_picture)
        Path(arguments.html).write_text(page, encoding="utf-8")


def _thresholds(texts: list[str]) -> dict[str, list[str]]:
    thresholds: dict[str, list[str]] = {}
    for text in texts:
        source, equals, threshold = text.partition("=")
        if not equals:
            raise ValueError(f"--thresholds has {text!r}: expected MAP=THRESHOLD, such as text_image=relative:0.85.")
        thresholds.setdefault(source, []).append(threshold)
    return thresholds


def _truth(world: str, cache: "TeacherCache") -> "Truth":
    from kdmcse_hf.world import load_truth

    truth = load_truth(world)
    if truth.image_of_caption.tolist() != cache.captions["image_row"][:]:
        raise ValueError(
            f"{world} is not the world that {cache.folder} was made from: its captions belong to other pictures. Name "
            "the folder that `write_world` wrote, or extract its features again."
        )
    return truth.caption_true_of_image


def _report(audit: "Audit") -> str:
    lines = [
        f"{audit.cache}: teacher {audit.teacher['name'] or 'not named'}",
        f"{audit.num_images:,} pictures, {audit.num_captions:,} captions, {audit.num_pairs:,} training pairs",
        f"{audit.num_batches} batches of {audit.batch_size}, seed {audit.seed}, preset "
        f"{audit.preset}, margin {audit.margin:g} rad",
        *audit.notes,
    ]
    for source, cosines in audit.maps.items():
        lines += ["", *_report_map(source, cosines)]
    return "\n".join(lines) + "\n"


def _report_map(source: str, cosines: "MapAudit") -> list[str]:
    from kdmcse_hf.audit.page import number, percent

    lines = [
        f"{source}: {number(cosines.negatives_per_batch)} negatives a batch; positive pairs' median cosine "
        f"{cosines.positives[0.5]:.3f}; {percent(cosines.same_image_share)} of the pairs are of one picture",
        f"  {'quantile':18}" + "".join(f"{f'{100 * share:g} %':>9}" for share in cosines.negatives),
    ]
    for name, values, digits in (
        ("negatives", cosines.negatives, 3),
        ("positive pairs", cosines.positives, 3),
        ("margin, radians", cosines.margin_radians, 4),
        ("margin, degrees", cosines.margin_degrees, 2),
    ):
        lines.append(f"  {name:18}" + "".join(f"{value:9.{digits}f}" for value in values.values()))
    known = cosines.noisy_share is not None
    if cosines.filters:
        truth = f"{'precision':>12}{'recall':>9}" if known else ""
        lines.append(f"  {'threshold':18}{'cosine':>9}{'removed a batch':>18}{'share':>11}{'one picture':>14}{truth}")
    for threshold in cosines.filters:
        truth = f"{percent(threshold.precision):>12}{percent(threshold.recall):>9}" if known else ""
        removed = f"{number(threshold.removed_per_batch)} of {number(cosines.negatives_per_batch)}"
        lines.append(
            f"  {threshold.threshold:18}{threshold.limits[0.5]:9.3f}{removed:>18}{percent(threshold.filter_rate):>11}"
            f"{percent(threshold.same_image_share):>14}{truth}"
        )
    for rate in cosines.rates:
        relative = f"or {rate.relative} ({percent(rate.relative_filter_rate)})" if rate.relative else ""
        lines.append(
            f"  to remove {percent(rate.rate)}: {rate.cosine} ({percent(rate.cosine_filter_rate)}) {relative}".rstrip()
        )
    return lines + [f"  warning: {threshold.warning}" for threshold in cosines.filters if threshold.warning]
