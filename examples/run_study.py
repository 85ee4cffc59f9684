"""Run a grid of trainings from one YAML file, score each, and report means, intervals, comparisons and plots.

    python examples/run_study.py examples/studies/main.yaml --output_dir results
    python examples/run_study.py examples/studies/main.yaml --output_dir results --rows kdmcse mcse_dual --seeds 0 1
    python examples/run_study.py examples/studies/main.yaml --output_dir results --runs_at_once 8
    python examples/run_study.py examples/studies/main.yaml --output_dir results --report_only

Killed, it goes on with the same command. `KDMCSE_DATA` names the data kit that the studies here read. A row is flags
of `train_kdmcse.py`; each run is a process of its own, and one that fails is reported and tried again next time. The
study's `evaluations` of these runs come last.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from studies.evaluations import evaluate_finished
from studies.grid import load_study
from studies.material import prepare
from studies.report import write_report
from studies.results import Results
from studies.runs import do_runs


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the YAML file")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder of results; several studies may share it"
    )
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    parser.add_argument("--set", nargs="+", default=[], metavar="FLAG=VALUE", help="overrules a flag of every row")
    parser.add_argument("--work_dir", type=Path, help="${WORK}: what is prepared (default: work in --output_dir)")
    parser.add_argument("--runs_at_once", type=int, default=1, help="each has one GPU, or its share of the cores")
    parser.add_argument("--report_only", action="store_true", help="write the report of what is done")
    parser.add_argument("--list", action="store_true", help="print the runs and their commands")
    args = parser.parse_args(argv)
    if odd := [change for change in args.set if "=" not in change]:
        parser.error(f"--set {' '.join(odd)}: expected FLAG=VALUE")
    try:
        study = load_study(args.study, dict(change.split("=", 1) for change in args.set))
        results = Results(args.output_dir)
        runs = study.runs(args.rows, args.seeds)
        if args.list:
            for run in runs:
                flags = " ".join(f"--{flag} {value}" for flag, value in run.row.flags.items())
                print(f"{run.name}: {flags if run.row.train else 'not trained'}")
            return 0
        results.check_same_flags(list(study.rows.values()), study.tasks)
        failed: list[str] = []
        places = {"WORK": str(args.work_dir or os.environ.get("WORK") or args.output_dir / "work")}
        if not args.report_only:
            with results.locked():
                prepare(study.preparation(runs), places)
                failed = do_runs(runs, results, study.tasks, places, args.runs_at_once)
                failed += evaluate_finished(study, runs, results, places, args.runs_at_once)
        print(write_report(study, results, places))
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: run the same command again to go on\n")
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}. The same command tries them again.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
