"""The page of a fine-tuning run."""

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from agents.report import words
from agents.report.files import listing
from agents.report.pictures import training
from agents.report.rendering import render
from agents.report.run import read_history, validated
from recognizers.files import read_json, read_text, write_text


class FinetuningSummary(BaseModel):
    """``summary.json`` of ``zeroout finetune``. Keys that the page does not need are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    task: str
    policy: str
    epochs: int
    parameter_reduction: float
    macs_reduction: float
    baseline_test_accuracy: float
    validation_accuracy_before: float
    selection_accuracy_before: float
    validation_accuracy: float
    selection_accuracy: float
    test_accuracy: float
    total_seconds: float
    created: datetime


def write_finetuning_report(directory: Path) -> Path:
    """Write ``report.html`` into the run directory of a fine-tuning: one page that needs no other file and no network.

    Returns:
        The path of the page.

    Raises:
        FileError: an input is missing or malformed, or the page cannot be written.
    """
    path = directory / "summary.json"
    summary: FinetuningSummary = validated(TypeAdapter(FinetuningSummary), read_json(path), path)
    section = training.section(read_history(directory / "finetuning.jsonl"), "finetuning")
    page = directory / "report.html"
    write_text(
        page,
        render(
            "finetuning.html.j2",
            summary=summary,
            took=words.duration(summary.total_seconds),
            created=summary.created.strftime("%Y-%m-%d %H:%M"),
            figures=_figures(summary),
            splits=_splits(summary),
            sections=[] if section is None else [section],
            files=listing(directory),
            configuration=read_text(directory / "config.yaml"),
        ),
    )
    return page


def _figures(summary: FinetuningSummary) -> list[tuple[str, str]]:
    """Values and labels of the headline numbers."""
    return [
        (words.percent(summary.parameter_reduction), "parameters removed"),
        (words.percent(summary.macs_reduction), "MACs removed"),
        (words.percent(summary.test_accuracy, 2), "test accuracy, fine-tuned"),
        (words.signed(summary.test_accuracy - summary.baseline_test_accuracy), "points, test against baseline"),
    ]


def _splits(summary: FinetuningSummary) -> list[tuple[str, str, str]]:
    """Splits that were measured before and after, with their accuracies."""
    rows = [
        ("reward", summary.validation_accuracy_before, summary.validation_accuracy),
        ("selection (it chose the epoch)", summary.selection_accuracy_before, summary.selection_accuracy),
    ]
    return [(name, words.percent(before, 2), words.percent(after, 2)) for name, before, after in rows]
