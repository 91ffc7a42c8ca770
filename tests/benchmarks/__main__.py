"""Command line of the benchmarks: ``python -m tests.benchmarks``."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from recognizers.errors import ZeroOutError
from recognizers.evaluation import Precision
from recognizers.files import write_text
from tests.benchmarks.cases import KEY, RECOVERIES, TASKS, Case, precisions, slug
from tests.benchmarks.pictures import draw_pictures
from tests.benchmarks.probing import time_probe
from tests.benchmarks.processes import in_own_process
from tests.benchmarks.profiling import profile_case
from tests.benchmarks.sources import find_sources
from tests.benchmarks.stepping import time_steps, verify_steps
from tests.benchmarks.tables import Row, replace_rows, rounded

RESULTS = Path(__file__).parent / "results"


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Time steps of the environment against a naive loop: the dense masked network, in float32, over "
        "all validation images. Both play the same random episode up to 90 % of the MACs. Prints a line of JSON per "
        "case and writes tables and pictures; a case that is measured again replaces its rows.",
        epilog="examples:\n"
        "  make benchmark\n"
        "  python -m tests.benchmarks --task cifar10/resnet56 --recovery bn --data npz:cifar10.npz --naive-every 1\n"
        "  python -m tests.benchmarks --verify --task cifar10/vgg16_bn --precision float32\n"
        "  python -m tests.benchmarks --profile --task cifar10/resnet56 --recovery 'finetune(1)'\n"
        "  python -m tests.benchmarks --task digits/convnet --max-steps 3 --out /tmp/trial",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_mutually_exclusive_group()
    for flag, text in {
        "steps": "time episodes only (without any of these flags: episodes, then probes)",
        "probe": "time probes of all actions of the complete network against single steps, only",
        "verify": "compare predictions with the dense masked network at every step; no times",
        "profile": "write profile-TASK-RECOVERY.md: seconds by phase, operator and function",
        "pictures": "draw the pictures of the existing tables anew",
    }.items():
        modes.add_argument(f"--{flag}", dest="mode", action="store_const", const=flag, help=text)
    cases = parser.add_argument_group("cases (each flag can be given several times)")
    cases.add_argument("--task", action="append", metavar="TASK", help=f"default: {', '.join(TASKS)}")
    cases.add_argument("--recovery", action="append", metavar="KIND", help=f"default: {', '.join(RECOVERIES)}")
    cases.add_argument(
        "--precision", action="append", choices=get_args(Precision), help="default: the task's own, and float32"
    )
    parser.add_argument(
        "--data", metavar="SPEC", help="images in place of cifar10, e.g. npz:PATH; random ones where there are none"
    )
    parser.add_argument(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        help="holds ARCHITECTURE.safetensors (default: $ZEROOUT_WEIGHTS_DIR; without weights, random ones)",
    )
    parser.add_argument("--naive-every", type=_positive, default=10, metavar="K", help="naive steps: every K-th (10)")
    parser.add_argument("--max-steps", type=_positive, metavar="N", help="stop episodes early, for trials")
    parser.add_argument("--repeats", type=_positive, default=5, metavar="N", help="full steps without caches (5)")
    parser.add_argument(
        "--sample", type=_positive, default=40, metavar="N", help="actions stepped by a probe case (40)"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: PyTorch's)")
    parser.add_argument("--seed", type=int, default=0, help="of the episode (0)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="results (default: tests/benchmarks/results)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the tasks, dotted")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks.

    Returns:
        The exit status: 0; 1 where a step and a probe gave different figures; 2 for bad input; 130 after an interrupt.
    """
    parsed = build_parser().parse_intermixed_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="zeroout-benchmark-") as folder:
            return _run(parsed, Path(folder))
    except ZeroOutError as error:
        sys.stderr.write(f"benchmarks: error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"benchmarks: interrupted; the cases that were finished are in {parsed.out}\n")
        return 130


def _run(parsed: argparse.Namespace, folder: Path) -> int:
    out: Path = parsed.out
    status = 0
    if parsed.mode in (None, "steps"):
        play = partial(
            time_steps,
            seed=parsed.seed,
            naive_every=parsed.naive_every,
            max_steps=parsed.max_steps,
            repeats=parsed.repeats,
        )
        for case in _cases(parsed, folder, TASKS, RECOVERIES):
            row, steps = in_own_process(case, play)
            _publish(row, out / "steps.csv")
            replace_rows(out / "per_step.csv", KEY, [rounded(step) for step in steps])
    if parsed.mode in (None, "probe"):
        probe = partial(time_probe, seed=parsed.seed, sample=parsed.sample)
        for case in _cases(parsed, folder, TASKS[:2], RECOVERIES[:2], own_precision=True):
            row = in_own_process(case, probe)
            _publish(row, out / "probe.csv")
            status = 1 if row["unequal"] else status
    if parsed.mode == "verify":
        compare = partial(verify_steps, seed=parsed.seed, max_steps=parsed.max_steps)
        for case in _cases(parsed, folder, TASKS, RECOVERIES):
            row, steps = in_own_process(case, compare)
            _publish(row, out / "verify.csv")
            replace_rows(out / "verify_per_step.csv", KEY, [rounded(step) for step in steps])
    if parsed.mode == "profile":
        for case in _cases(parsed, folder, TASKS, RECOVERIES, own_precision=True):
            page = in_own_process(case, partial(profile_case, seed=parsed.seed, max_steps=parsed.max_steps))
            write_text(out / f"profile-{slug(case.task)}-{slug(case.recovery)}-{case.precision}.md", page)
    if parsed.mode in (None, "steps", "pictures"):
        draw_pictures(out)
    return status


def _cases(
    parsed: argparse.Namespace,
    folder: Path,
    tasks: Sequence[str],
    recoveries: Sequence[str],
    *,
    own_precision: bool = False,
) -> list[Case]:
    """The cases that the flags name; where they name none, the given ones, in the task's own precision or in both."""
    cases = []
    for task in parsed.task or tasks:
        sources = find_sources(
            task, data=parsed.data, weights_dir=parsed.weights_dir, overrides=parsed.overrides, folder=folder
        )
        cases += [
            Case(task, recovery, precision, sources, parsed.threads)
            for recovery in parsed.recovery or recoveries
            for precision in parsed.precision or precisions(task)[: 1 if own_precision else None]
        ]
    return cases


def _publish(row: Row, table: Path) -> None:
    """Print the row of a case as a line of JSON, and put it into its table."""
    row = rounded(row)
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()
    replace_rows(table, KEY, [row])


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
