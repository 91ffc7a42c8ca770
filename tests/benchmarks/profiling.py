"""Profiles: where the time of an episode goes, by phase, by PyTorch operator and by Python function, as Markdown."""

import cProfile
import pstats
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from envs.pruning import PruningEnv
from tests.benchmarks.cases import Case
from tests.benchmarks.episode import plan_episode
from tests.benchmarks.stepping import PHASES

ROWS = 25
"""Entries of a table. Fewer than 21 can take 5 % or more each, so all of those are in it."""
_LARGE = 0.05

Line = tuple[str, int, float]
"""Name, calls, seconds."""


def profile_case(case: Case, *, seed: int, max_steps: int | None) -> str:
    """Play the episode of a case three times, plain and under either profiler, and return a Markdown page."""
    env = case.environment()
    plain = sum(_steps(case, env, "plain", nullcontext, seed, max_steps))
    phases: list[Line] = [(phase, env.environment_steps, getattr(env.seconds, phase)) for phase in PHASES]
    phases.append(("rest of `step`", env.environment_steps, plain - sum(seconds for _, _, seconds in phases)))
    operators, operators_total = _operators(case, seed, max_steps)
    functions, functions_total = _functions(case, seed, max_steps)
    return "\n".join(
        [
            f"# Where the time goes: {case.task}, recovery {case.recovery}, precision {case.precision}",
            "",
            f"{env.environment_steps} steps, {plain:.3g} s without a profiler. "
            + "; ".join(f"{key} {value}" for key, value in case.circumstances(env).items())
            + ".",
            "Shares are of the seconds of all steps under the same profiler; 5 % and more in bold.",
            "",
            *_table("Phases", "phase", phases, plain),
            *_table("Operators (torch.profiler, self CPU time)", "operator", operators, operators_total),
            *_table("Python functions (cProfile, own time)", "function", functions, functions_total),
        ]
    )


def _operators(case: Case, seed: int, max_steps: int | None) -> tuple[list[Line], float]:
    """Self CPU time by operator, and seconds of all steps."""
    calls: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    total = 0.0
    profiles: list[Any] = []

    def one_step() -> profile:
        # A profile per step: that of a whole episode would hold millions of events.
        current = profile(activities=[ProfilerActivity.CPU])
        profiles.append(current)
        return current

    for spent in _steps(case, case.environment(), "operators", one_step, seed, max_steps):
        total += spent
        for event in profiles.pop().key_averages():
            calls[event.key] += event.count
            seconds[event.key] += event.self_cpu_time_total / 1e6
    lines = [(f"`{name}`", calls[name], seconds[name]) for name in seconds]
    return [*lines, ("in no operator", 0, total - sum(seconds.values()))], total


def _functions(case: Case, seed: int, max_steps: int | None) -> tuple[list[Line], float]:
    """Own time by Python function, and their sum."""
    profiler = cProfile.Profile()
    for _ in _steps(case, case.environment(), "functions", lambda: profiler, seed, max_steps):
        pass
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    lines = [(_function(*key), calls, own) for key, (_, calls, own, _, _) in stats.items()]
    return lines, sum(own for _, _, own in lines)


def _steps(case: Case, env: PruningEnv, what: str, around: Any, seed: int, max_steps: int | None) -> Iterator[float]:
    """Play the episode; seconds of each step, taken within the context that ``around()`` makes."""
    plan = plan_episode(env, seed=seed, max_steps=max_steps)
    env.reset(seed=seed)
    for action in tqdm(plan.actions, desc=f"{case.name} {what}", unit="step"):
        context: AbstractContextManager[object] = around()
        with context:
            started = time.perf_counter()
            env.step(action)
            spent = time.perf_counter() - started
        yield spent


def _function(file: str, line: int, name: str) -> str:
    """A function as people write it: built-in, or with the end of its file's path."""
    if file == "~":
        return f"`{name}`"
    return f"`{'/'.join(Path(file).parts[-2:])}:{line} {name}`"


def _table(title: str, column: str, lines: Sequence[Line], total: float) -> list[str]:
    rows = [f"## {title}", "", f"| {column} | calls | seconds | share |", "|---|---:|---:|---:|"]
    for name, calls, seconds in sorted(lines, key=lambda line: -line[2])[:ROWS]:
        share = seconds / total
        text = f"{share:.1%}"
        rows.append(f"| {name} | {calls or ''} | {seconds:.4f} | {f'**{text}**' if share >= _LARGE else text} |")
    return [*rows, ""]
