"""The report in words: numbers as text, the objective, and the conclusion."""

from agents.report.run import Entry, Run
from envs.objectives import Budget, Objective, Tolerance
from recognizers.costs import Measure

MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NO-BREAK SPACE}"
_COUNTED = {"parameters": "parameters", "macs": "MACs", "latency": "latency"}
_REMOVED = {"parameters": "parameters removed", "macs": "MACs removed", "latency": "latency reduction"}


def counted(measure: Measure) -> str:
    """What a reduction counts, as written in text."""
    return _COUNTED[measure]


def removed(measure: Measure) -> str:
    """A reduction, as an axis is called."""
    return _REMOVED[measure]


def sentence(text: str) -> str:
    """The text with a capital letter in front; unlike ``capitalize`` it leaves MACs alone."""
    return text[:1].upper() + text[1:]


def shortened(text: str, most: int) -> str:
    """The text, or its beginning where it has more characters than that."""
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def grouped(value: float, digits: int = 0) -> str:
    """A number with its thousands set apart."""
    return f"{value:,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as per cent."""
    return f"{100 * fraction:.{digits}f}{_SPACE}%"


def points(fraction: float, digits: int = 1) -> str:
    """A difference of fractions, without sign, in percentage points."""
    value = f"{abs(100 * fraction):.{digits}f}"
    return f"{value}{_SPACE}{'point' if float(value) == 1 else 'points'}"


def signed(fraction: float, digits: int = 2) -> str:
    """A difference of fractions, with sign, in percentage points."""
    text = f"{100 * fraction:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", MINUS)


def duration(seconds: float) -> str:
    """Seconds, or minutes, or hours."""
    if seconds < 1:
        return f"{seconds:.2f}{_SPACE}s"
    if seconds < 600:
        return f"{seconds:.0f}{_SPACE}s" if seconds >= 10 else f"{seconds:.1f}{_SPACE}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}{_SPACE}min"
    return f"{seconds / 3600:.1f}{_SPACE}h"


def goal(objective: Objective) -> str:
    """An objective as a sentence."""
    what = counted(objective.measure)
    if isinstance(objective, Tolerance):
        many = "much" if objective.measure == "latency" else "many"
        return (
            f"Remove as {many} {what} as possible while accuracy on the reward split stays within "
            f"{_exact(objective.drop)} of the baseline."
        )
    if isinstance(objective, Budget):
        return f"Keep as much accuracy as possible with {_rounded(objective.target)} of the {what} removed."
    return f"Reach the highest score of the objective {objective.model_dump().get('kind')}, which counts {what}."


def score(run: Run, value: float) -> str:
    """A score of the run's objective."""
    if isinstance(run.objective, Tolerance):
        return percent(value)
    return percent(value, 2) if isinstance(run.objective, Budget) else f"{value:.4g}"


def conclusion(run: Run) -> str:
    """One sentence: which policy reached the best score, how far ahead of the next, and where the controller is."""
    scored = [(entry, entry.score) for entry in run.entries if entry.score is not None]
    if not scored:
        return (
            "No policy met the objective." if len(run.entries) > 1 else f"{run.entries[0].label} missed the objective."
        )
    (first, top), rest = scored[0], scored[1:]
    text = _opening(run, first) + _achievement(run, top)
    if rest:
        second, following = rest[0]
        text += f", {_lead(run, top, following)}{_named(second)} ({score(run, following)})"
    elif len(run.entries) > 1:
        text += "; no other policy met the objective"
    return text + _controllers_place(run, scored) + "."


def on_the_test_set(run: Run, entry: Entry) -> str:
    """A sentence on the test set, which no policy saw."""
    result = entry.result
    baseline = result.baseline_test_accuracy
    text = f"On the test set, which no policy saw, its mask gives {percent(result.test_accuracy, 2)}, "
    text += f"{_beside(result.test_accuracy - baseline)} the baseline ({percent(baseline, 2)})"
    if isinstance(run.objective, Tolerance) and result.test_accuracy < baseline - run.objective.drop - 1e-9:
        text += f"; that is outside the tolerance of {_exact(run.objective.drop)}"
    if result.finetuned is not None:
        after, trained = result.finetuned.test_accuracy, _epochs(result.finetuned.epochs)
        text += f". After {trained} of fine-tuning it is {percent(after, 2)}, {_beside(after - baseline)} the baseline"
    return text + "."


def _opening(run: Run, first: Entry) -> str:
    name = f"The R2D2 controller ({first.label})" if first.controller else first.label
    if len(run.entries) == 1:
        return name
    return f"{name} comes first: it" if first.controller else f"A baseline policy comes first: {name}"


def _achievement(run: Run, value: float) -> str:
    goal = run.objective
    what = counted(goal.measure)
    if isinstance(goal, Tolerance):
        return f" removes {percent(value)} of the {what} within {_exact(goal.drop)} of the baseline accuracy"
    if isinstance(goal, Budget):
        return f" keeps {percent(value, 2)} accuracy with {_rounded(goal.target)} of the {what} removed"
    return f" reaches a score of {value:.4g}"


def _lead(run: Run, top: float, following: float) -> str:
    digits = 2 if isinstance(run.objective, Budget) else 1
    known = isinstance(run.objective, (Tolerance, Budget))
    ahead = points(top - following, digits) if known else f"{top - following:.4g}"
    if float(ahead.split(_SPACE)[0]) == 0:
        return "level with "
    return f"{ahead} ahead of "


def _named(entry: Entry) -> str:
    return f"the R2D2 controller {entry.label}" if entry.controller else entry.label


def _controllers_place(run: Run, scored: list[tuple[Entry, float]]) -> str:
    """Where the controller ended, if the sentence has not said so yet."""
    if any(entry.controller for entry, _ in scored[:2]):
        return ""
    for place, (entry, value) in enumerate(scored, start=1):
        if entry.controller:
            return (
                f"; the R2D2 controller {entry.label} is in place {place} of {len(run.entries)} ({score(run, value)})"
            )
    missed = next((entry for entry in run.entries if entry.controller), None)
    return "" if missed is None else f"; the R2D2 controller {missed.label} missed the objective"


def _beside(difference: float) -> str:
    text = points(difference, 2)
    if float(text.split(_SPACE)[0]) == 0:
        return "equal to"
    return f"{text} {'above' if difference > 0 else 'below'}"


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _exact(fraction: float) -> str:
    value = f"{100 * fraction:.4g}"
    return f"{value}{_SPACE}{'point' if value == '1' else 'points'}"


def _rounded(fraction: float) -> str:
    return f"{100 * fraction:.4g}{_SPACE}%"
