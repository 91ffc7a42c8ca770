"""The throughput benchmark's table."""

import pytest

from tests.benchmarks import throughput
from tests.benchmarks.faults import TASK
from tests.benchmarks.tables import read_rows


@pytest.mark.slow
def test_the_table_is_filled(tmp_path):
    table = tmp_path / "throughput.csv"
    throughput.main(["--seconds", "5", "--repetitions", "1", "--out", str(table), *TASK])
    rows = read_rows(table)
    assert [row["case"] for row in rows] == list(throughput.CASES)
    # All learn as often as they are told to.
    ratios = [float(row["updates per environment step"]) for row in rows]
    assert ratios == pytest.approx([throughput.UPDATES_PER_STEP] * 3, rel=0.2)
