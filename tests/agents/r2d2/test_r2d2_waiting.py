"""What is said when a training waits for its cluster."""

import logging
import os

import pytest

from agents.r2d2 import waiting
from agents.r2d2.config import R2D2Config
from agents.r2d2.waiting import Absence, all_needs_of, needs_of, warn_of_lack


@pytest.fixture
def cluster_of_two(monkeypatch):
    """Two CPUs, both taken, on one living node."""
    monkeypatch.setattr(waiting.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: {"CPU": 2.0, "memory": 9.0})
    monkeypatch.setattr(waiting.ray, "available_resources", dict)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told."""
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


def test_it_warns_once_of_each_long_absence(cluster_of_two, clock, caplog):
    absent = Absence(3, {"CPU": 1.0})
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
    assert text[0].startswith("all runners (3) have been gone for 11 s")
    assert "Each needs 1 CPU. Ray knows of 1 node with 0 of 2 CPU free" in text[0]


def test_more_than_the_cluster_has_is_said(cluster_of_two, caplog):
    warn_of_lack({"CPU": 2.0})
    warn_of_lack({})
    assert not caplog.records
    warn_of_lack({"CPU": 2.5})
    warn_of_lack({"CPU": 1.0, "GPU": 0.25})
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("the training reserves 2.5 CPU for its runners and learners, and waits")
    assert "reserves 1 CPU and 0.25 GPU" in second
    assert "1 node with 0 of 2 CPU and 0 of 0 GPU free" in second


def test_what_a_configuration_needs():
    config = R2D2Config().env_runners(num_env_runners=3, num_cpus_per_env_runner=0.5, num_gpus_per_env_runner=0.25)
    assert needs_of(config) == {"CPU": 0.5, "GPU": 0.25}
    assert all_needs_of(config) == {"CPU": 1.5, "GPU": 0.75}
    assert all_needs_of(config.learners(num_learners=2)) == {"CPU": 3.5, "GPU": 0.75}
    assert all_needs_of(config.learners(num_gpus_per_learner=1)) == {"CPU": 1.5, "GPU": 2.75}
    assert all_needs_of(R2D2Config().env_runners(num_env_runners=0)) == {}


def test_a_training_without_any_runner_warns_and_waits(pruning_config, cluster, caplog, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.5)
    config = pruning_config.env_runners(num_env_runners=1, num_cpus_per_env_runner=0.5)
    # Not restarted, as if no node had room for it.
    config.fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=True)
    algorithm = config.build_algo()
    try:
        algorithm.train()
        group = algorithm.env_runner_group
        group.foreach_env_runner(lambda _: os._exit(1), local_env_runner=False)
        for _ in range(3):
            assert algorithm.restore_env_runners(group) == []
            algorithm.training_step()
            waiting.time.sleep(0.3)
        (warning,) = [record.getMessage() for record in caplog.records if record.name == "zeroout.r2d2"]
        assert "Each needs 0.5 CPU" in warning
    finally:
        algorithm.stop()
