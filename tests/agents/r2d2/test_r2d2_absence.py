"""What is said when all runners stay away."""

import logging

import pytest

from agents.r2d2 import absence
from agents.r2d2.absence import Absence, lack


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told."""
    now = [100.0]
    monkeypatch.setattr(absence.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(absence.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    monkeypatch.setattr(absence.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(absence.ray, "available_resources", dict)
    return now


def test_it_warns_once_of_each_long_absence(clock, caplog):
    absent = Absence(3, {"CPU": 1.0, "GPU": 0.0})
    said = []
    for seconds, gone in ((0, True), (9, True), (0, False), (0, True), (9, True), (2, True), (50, True)):
        clock[0] += seconds
        absent.watch(all_gone=gone)
        said.append(len(caplog.records))
    assert said == [0, 0, 0, 0, 0, 1, 1]
    absent.watch(all_gone=False)
    for seconds in (0, 20):
        clock[0] += seconds
        absent.watch(all_gone=True)
    text = [record.getMessage() for record in caplog.records]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert text[0].startswith("all 3 runners have been gone for 11 s")
    assert "Each needs 1 CPU; free are 0 of 2 CPU (there is 1 node)" in text[0]


def test_it_names_what_is_lacking():
    said = lack({"CPU": 1.0, "GPU": 0.25}, {"CPU": 4.0, "memory": 9.0}, {"CPU": 3.5}, 2)
    assert said.startswith("Each needs 1 CPU and 0.25 GPU; free are 3.5 of 4 CPU and 0 of 0 GPU (there are 2 nodes)")


def test_a_training_without_any_runner_warns_and_waits(pruning_config, cluster, caplog, monkeypatch):
    monkeypatch.setattr(absence, "PATIENCE_S", 0.5)
    config = pruning_config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
    # Not restarted, as if no node had room for it.
    config.fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=True)
    algorithm = config.build_algo()
    try:
        algorithm.train()
        group = algorithm.env_runner_group
        group.foreach_env_runner(lambda _: __import__("os")._exit(1), local_env_runner=False)
        for _ in range(3):
            assert algorithm.restore_env_runners(group) == []
            algorithm.training_step()
            absence.time.sleep(0.3)
        (warning,) = [record.getMessage() for record in caplog.records if record.name == "zeroout.r2d2"]
        assert "Each needs 0.5 CPU" in warning
    finally:
        algorithm.stop()
