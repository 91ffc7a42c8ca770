"""The summary table."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from agents.report.pictures.seconds import total
from agents.report.run import Entry, Run
from agents.report.words import grouped, signed
from agents.results import Finetuned, Result

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A cell; ``best`` where no other policy that meets the objective has a better value."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A policy's row."""

    entry: Entry
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        group: heading over neighbouring columns.
        title: heading.
        unit: under the heading.
        explanation: shown on hovering.
        value: of a policy, the higher the better where ``sign`` is 1; None where there is none.
        text: of a value.
        baseline: the text in the row of the complete network.
        sign: -1 where lower is better.
    """

    group: str
    title: str
    unit: str
    explanation: str
    value: Callable[[Result], float | None]
    text: Callable[[float], str]
    baseline: str = NONE
    sign: int = 1


@dataclass(frozen=True)
class Table:
    """Columns, the row of the complete network, and a row per policy."""

    columns: tuple[Column, ...]
    baseline: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over columns, each with the number of columns it spans."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans

    def starts(self, index: int) -> bool:
        """Whether a new group starts at a column."""
        return index == 0 or self.columns[index].group != self.columns[index - 1].group


def summary_table(run: Run) -> Table:
    """The table of a run."""
    finetuned = any(entry.result.finetuned for entry in run.entries)
    columns = (*_columns(run.baseline), *(_finetuned_columns() if finetuned else ()), *_cost_columns())
    rows = [Row(entry, tuple(_cell(column, entry) for column in columns)) for entry in run.entries]
    for index, column in enumerate(columns):
        rows = _emphasise(rows, index, column)
    return Table(columns, tuple(column.baseline for column in columns), tuple(rows))


def _cell(column: Column, entry: Entry) -> Cell:
    value = column.value(entry.result)
    return Cell(NONE if value is None else column.text(value))


def _emphasise(rows: list[Row], index: int, column: Column) -> list[Row]:
    values = [column.value(row.entry.result) if row.entry.score is not None else None for row in rows]
    present = [column.sign * value for value in values if value is not None]
    if len(rows) < 2 or not present:
        return rows
    best = column.text(column.sign * max(present))

    def emphasised(row: Row, value: float | None) -> Row:
        # Equal as shown is equal: the digits that the table hides decide nothing.
        if value is None or row.cells[index].text != best:
            return row
        cells = list(row.cells)
        cells[index] = replace(cells[index], best=True)
        return replace(row, cells=tuple(cells))

    return [emphasised(row, value) for row, value in zip(rows, values, strict=True)]


def _columns(baseline: Result) -> tuple[Column, ...]:
    accuracy, removed = "Accuracy", "Removed"
    latency = Column(removed, "Latency", "%", "Latency by the table that is gone",
                     lambda result: result.latency_reduction, _percent, "0.0")  # fmt: skip
    return (
        Column(removed, "Parameters", "%", "Parameters of the physically sliced network that are gone",
               lambda result: result.parameter_reduction, _percent, "0.0"),
        Column(removed, "MACs", "%", "Multiply-accumulates of the physically sliced network that are gone",
               lambda result: result.macs_reduction, _percent, "0.0"),
        *(() if baseline.latency_reduction is None else (latency,)),
        Column(accuracy, "Validation", "%", "On the reward split, which policies and rewards see",
               lambda result: result.validation_accuracy, _accuracy,
               _accuracy(baseline.baseline_validation_accuracy)),
        Column(accuracy, "Selection", "%", "On the selection split, which chooses among finished masks",
               lambda result: result.selection_accuracy, _accuracy, _accuracy(baseline.baseline_selection_accuracy)),
        Column(accuracy, "Test", "%", "On the test set, measured once, on the final mask",
               lambda result: result.test_accuracy, _accuracy, _accuracy(baseline.baseline_test_accuracy)),
        Column(accuracy, "Change", "points", "Test accuracy minus that of the complete network",
               lambda result: result.test_accuracy - result.baseline_test_accuracy, signed),
    )  # fmt: skip


def _finetuned_columns() -> tuple[Column, ...]:
    def of(value: Callable[[Result, Finetuned], float]) -> Callable[[Result], float | None]:
        return lambda result: None if result.finetuned is None else value(result, result.finetuned)

    group = "After fine-tuning"
    return (
        Column(group, "Test", "%", "On the test set, after fine-tuning",
               of(lambda _, finetuned: finetuned.test_accuracy), _accuracy),
        Column(group, "Change", "points", "Test accuracy after fine-tuning minus that of the complete network",
               of(lambda result, finetuned: finetuned.test_accuracy - result.baseline_test_accuracy), signed),
    )  # fmt: skip


def _cost_columns() -> tuple[Column, ...]:
    cost = "Cost of the search"
    return (
        Column(cost, "Steps", "", "Environment steps spent by the policy, searches and training included",
               lambda result: result.environment_steps, grouped, sign=-1),
        Column(cost, "Evaluations", "", "Measurements of accuracy: environment steps and probes",
               lambda result: result.evaluations, grouped, sign=-1),
        Column(cost, "Seconds", "", "By the clock, for the whole search",
               total, _seconds, sign=-1),
    )  # fmt: skip


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _accuracy(value: float) -> str:
    return f"{100 * value:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else grouped(value)
