"""What the lines of a fault come to, and a node that dies in earnest."""

import pytest

from tests.benchmarks import faults
from tests.benchmarks.tables import read_rows


def iteration(seconds, steps, alive=2, at=0.0):
    return {"seconds": seconds, "steps": steps, "alive": alive, "at": at}


def test_recovery_is_when_all_runners_are_back():
    lines = [{"begins": 0, "at": 0.0}, iteration(9.0, 200), iteration(1.0, 400), iteration(3.0, 600)]
    lines += [{"killed": "runner", "at": 10.0}, iteration(1.5, 800, at=12.0), iteration(4.0, 1000, 1, 16.0)]
    lines += [iteration(2.0, 1200, 2, 18.0), iteration(1.0, 1400), iteration(1.2, 1600), iteration(1.4, 1800)]
    assert faults.figures(lines) == {
        "iteration before (s)": 2.0,
        "longest iteration during (s)": 4.0,
        "iteration after (s)": 1.2,
        "until recovery (s)": 8.0,
        "steps done again": 0,
    }


def test_recovery_is_when_the_training_is_no_less_far():
    lines = [{"begins": 0, "at": 0.0}, iteration(9.0, 200), iteration(1.0, 400), iteration(1.0, 600)]
    lines += [{"killed": "driver", "at": 10.0}, {"begins": 200, "at": 20.0}, iteration(2.0, 400, at=22.0)]
    lines += [iteration(1.0, 600, 2, 23.0), iteration(1.0, 800)]
    figures = faults.figures(lines)
    assert (figures["steps done again"], figures["until recovery (s)"]) == (400, 13.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "phase"), [("node", "sampling"), ("learner", "learning"), ("driver", "checkpointing")]
)
def test_a_training_survives(victim, phase, tmp_path):
    table = tmp_path / "faults.csv"
    faults.main(["--kill", victim, "--while", phase, "--out", str(table)])
    (row,) = read_rows(table)
    assert int(row["steps done again"]) <= (0 if victim == "node" else 1000)
    # A dead node is waited for in no iteration: RLlib's own probes would take 30 seconds of each.
    assert float(row["longest iteration during (s)"]) < 20
