"""The report's picture of what PRO measured."""

import json
from pathlib import Path

import pytest

from agents.baselines.pro import Plan, Polyline
from agents.report import write_report
from recognizers.errors import FileError
from tests.agents.test_report import page_of, result, write_run


def plan(*chosen: int) -> Plan:
    lines = tuple(
        Polyline(
            layer=f"stage.{index}.conv", units=16, removed=(1, 8, 15), errors=(0.01, 0.5, 9.0), macs=(0.01, 0.1, 0.2)
        )
        for index in range(len(chosen))
    )
    return Plan(polylines=lines, chosen=chosen)


def run_with(directory: Path, *plans: Plan) -> Path:
    write_run(directory, [result("pro:reap", 0.5)])
    (directory / "polylines.json").write_text(json.dumps([entry.model_dump() for entry in plans]))
    return directory


def test_two_panels_with_a_circle_for_every_layer_that_loses_units(tmp_path: Path) -> None:
    page = page_of(run_with(tmp_path, plan(4, 0, 15)))
    assert "polylines" in page.sections()
    for name, label in (("share", "share of the layer"), ("macs", "share of all macs")):
        panel = next(part for part in page.source.split("<svg")[1:] if f'id="polylines-{name}-' in part)
        panel = panel[: panel.index("</svg>")]
        assert f"error of the logits by layer: {label}" in panel.lower()
        # The axes' ticks are drawn with <use>, too: those of two more circles than where no layer loses any.
        empty = page_of(run_with(tmp_path, plan(0, 0, 0)))
        bare = next(part for part in empty.source.split("<svg")[1:] if f'id="polylines-{name}-' in part)
        assert panel.count("<use") == bare[: bare.index("</svg>")].count("<use") + 2
    assert "in 2 rounds" not in page.text


def test_says_how_many_rounds_there_were(tmp_path: Path) -> None:
    assert "Measured anew in 2 rounds" in page_of(run_with(tmp_path, plan(1, 1), plan(3, 2))).text


def test_a_layer_that_could_not_be_pruned_has_no_line(tmp_path: Path) -> None:
    fixed = Polyline(layer="stem", units=1, removed=(), errors=(), macs=())
    other = plan(2)
    page = page_of(run_with(tmp_path, Plan(polylines=(fixed, *other.polylines), chosen=(0, 2))))
    assert "polylines" in page.sections()


def test_without_pro_there_is_no_section(tmp_path: Path) -> None:
    assert "polylines" not in page_of(write_run(tmp_path, [result("uniform:l1", 0.5)])).sections()


def test_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    write_run(tmp_path, [result("pro:reap", 0.5)])
    (tmp_path / "polylines.json").write_text('[{"polylines": 3}]')
    with pytest.raises(FileError, match=r"polylines\.json is no record of PRO"):
        write_report(tmp_path)
