"""Reconstruction follows from base weights and mask alone, whatever was kept, probed, pruned or brought back before."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fitted_networks import NETWORKS, Build, make_baseline
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reference import random_units
from torch import Tensor, nn

from recognizers.baseline import Baseline
from recognizers.data import Normalization, Splits
from recognizers.evaluation import accuracy
from recognizers.recognizer import Recognizer, Snapshot
from recognizers.recovery import ReconstructRecovery, Recovery, UnifyRecovery

COMMON = {"images": 30, "positions": 12, "batch_size": 20}
RECOVERIES: dict[str, Recovery] = {
    form: ReconstructRecovery.model_validate({"form": form, **COMMON})
    for form in ("asymmetric", "symmetric", "independent")
}
RECOVERIES["recalibrated"] = ReconstructRecovery.model_validate({"recalibrate": True, **COMMON})
RECOVERIES["unify"] = UnifyRecovery.model_validate(COMMON)
Make = Callable[..., Baseline]


@pytest.fixture(scope="module")
def make(digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]) -> Make:
    def baseline(build: Build, **arguments: Any) -> Baseline:
        return make_baseline(digits, enliven, build, **{"images": 30, "batch_size": 15, **arguments})

    return baseline


def _mask(baseline: Baseline, seed: int, share: float = 0.4) -> np.ndarray:
    """A mask that removes about a share of every layer, one unit at least."""
    generator, mask = np.random.default_rng(seed), np.ones(baseline.table.n_units, dtype=np.int8)
    for layer in baseline.table.layers:
        mask[generator.choice(layer.units, size=max(1, int(share * len(layer))), replace=False)] = 0
    return mask


def _assert_same(one: nn.Module, other: nn.Module) -> None:
    values = other.state_dict()
    assert [name for name, value in one.state_dict().items() if not torch.equal(value, values[name])] == []


def _inputs(recognizer: Recognizer) -> Tensor:
    return torch.cat(recognizer.baseline.reward).float()


class Duo:
    """A recognizer, and a new one for each question, which begins with nothing."""

    def __init__(self, subject: Recognizer, baseline: Baseline) -> None:
        self.subject, self.baseline = subject, baseline
        self.recovered: np.ndarray | None = None
        self.mask = subject.mask
        self.snapshots: list[tuple[Snapshot, np.ndarray, np.ndarray | None]] = []

    def fresh(self, mask: np.ndarray, recovered: np.ndarray | None) -> Recognizer:
        self.baseline.forget()
        recognizer = Recognizer(self.baseline, recovery=self.subject.recovery, cache_megabytes=0)
        if recovered is not None:
            recognizer.load_mask(recovered)
        recognizer.zero_out(np.flatnonzero(recognizer.mask > mask))
        return recognizer

    def do_step(self, seed: int) -> None:
        self.do_zero_out(seed)
        self.do_recover(seed)

    def do_zero_out(self, seed: int) -> None:
        units = self._units(seed)
        self.subject.zero_out(units)
        self.mask = self.mask.copy()
        self.mask[units] = 0

    def do_recover(self, seed: int) -> None:
        self.subject.recover()
        self.recovered = self.mask

    def do_accuracy(self, seed: int) -> None:
        fresh = self.fresh(self.mask, self.recovered)
        assert self.subject.accuracy() == accuracy(fresh.logits(), fresh.splits.reward.labels)

    def do_values(self, seed: int) -> None:
        fresh = self.fresh(self.mask, self.recovered)
        assert np.array_equal(self.subject.mask, self.mask)
        _assert_same(self.subject.compact(), fresh.compact())
        assert torch.equal(self.subject.logits(), fresh.logits())

    def do_network(self, seed: int) -> None:
        """The dense network with ZeroOut layers means the same as the compact one."""
        inputs = _inputs(self.subject)
        with torch.no_grad():
            dense, sliced = self.subject.network(inputs), self.subject.compact()(inputs)
        torch.testing.assert_close(dense, sliced, rtol=1e-3, atol=1e-3 * float(sliced.abs().max()))
        torch.testing.assert_close(self.subject.logits(), sliced, rtol=1e-3, atol=1e-3 * float(sliced.abs().max()))

    def do_probe(self, seed: int) -> None:
        """What steps would give."""
        selections = [self._units(seed + index) for index in range(3)]
        figures = self.subject.probe(selections)
        for units, figure in zip(selections, figures, strict=True):
            after = self.mask.copy()
            after[units] = 0
            fresh = self.fresh(after, after)
            assert figure == accuracy(fresh.logits(), fresh.splits.reward.labels)

    def do_probe_logits(self, seed: int) -> None:
        """Of any masks, also such with units that are gone now."""
        masks = [_mask(self.baseline, seed + index, 0.1) for index in range(3)] + [self.mask]
        for mask, logits in zip(masks, self.subject.probe_logits(masks), strict=True):
            assert torch.equal(logits, self.fresh(mask, mask).logits())

    def do_reset(self, seed: int) -> None:
        self.subject.reset()
        self.mask, self.recovered = np.ones_like(self.mask), None
        _assert_same(self.subject.compact(), self.baseline.network)

    def do_load_mask(self, seed: int) -> None:
        self.mask = self.recovered = _mask(self.baseline, seed)
        self.subject.load_mask(self.mask)

    def do_snapshot(self, seed: int) -> None:
        self.snapshots.append((self.subject.snapshot(), self.mask, self.recovered))

    def do_restore(self, seed: int) -> None:
        if self.snapshots:
            snapshot, self.mask, self.recovered = self.snapshots[seed % len(self.snapshots)]
            self.subject.restore(snapshot)

    def do_forget(self, seed: int) -> None:
        self.subject.forget()

    def _units(self, seed: int) -> np.ndarray:
        return random_units(self.subject.table, self.mask, np.random.default_rng(seed))


KINDS = sorted(name.removeprefix("do_") for name in vars(Duo) if name.startswith("do_"))
OPERATIONS = st.lists(st.tuples(st.sampled_from([*KINDS, "step", "probe"]), st.integers(0, 999)), max_size=8)


class TestSequences:
    @pytest.fixture(scope="class", params=["residual", "chain"])
    def baselines(self, request: pytest.FixtureRequest, make: Make) -> list[Baseline]:
        """Two of the same network, so that a recognizer that writes to its base weights is found out."""
        return [make(NETWORKS[request.param]) for _ in range(2)]

    @pytest.mark.parametrize("kind", RECOVERIES)
    @given(operations=OPERATIONS, megabytes=st.sampled_from([0, 1, 1024]))
    @example(operations=[("probe", 0), ("probe", 1)], megabytes=1)
    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_every_figure_is_that_of_a_new_recognizer(
        self, baselines: list[Baseline], kind: str, operations: list[tuple[str, int]], megabytes: int
    ) -> None:
        baselines[0].forget()
        duo = Duo(Recognizer(baselines[0], recovery=RECOVERIES[kind], cache_megabytes=megabytes), baselines[1])
        for name, seed in [*operations, ("accuracy", 0), ("values", 0), ("network", 0)]:
            getattr(duo, f"do_{name}")(seed)
        _assert_same(baselines[0].network, baselines[1].network)

    @pytest.mark.parametrize("kind", RECOVERIES)
    @pytest.mark.parametrize("name", ["no norm", "dense", "grouped"])
    def test_other_networks(self, make: Make, name: str, kind: str) -> None:
        duo = Duo(Recognizer(make(NETWORKS[name]), recovery=RECOVERIES[kind]), make(NETWORKS[name]))
        first = ("step", "values", "probe", "snapshot", "step", "values", "network", "probe_logits")
        for seed, operation in enumerate((*first, "restore", "values", "reset", "step", "values")):
            getattr(duo, f"do_{operation}")(seed)


@pytest.mark.parametrize("kind", RECOVERIES)
@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    def test_with_nothing_pruned_nothing_changes(self, make: Make, name: str, kind: str) -> None:
        baseline = make(NETWORKS[name])
        recognizer = Recognizer(baseline, recovery=RECOVERIES[kind])
        expected = Recognizer(baseline).logits()
        recognizer.recover()
        if kind != "recalibrated":
            _assert_same(recognizer.compact(), baseline.network)
            assert torch.equal(recognizer.logits(), expected)
        recognizer.load_mask(_mask(baseline, 0))
        assert not torch.equal(recognizer.logits(), expected)
        recognizer.reset()
        assert torch.equal(recognizer.logits(), expected)
        _assert_same(recognizer.compact(), baseline.network)

    def test_every_way_to_a_mask_gives_the_same_network(self, make: Make, name: str, kind: str) -> None:
        baseline = make(NETWORKS[name])
        mask = _mask(baseline, 1)
        direct, stepwise, backwards = (Recognizer(baseline, recovery=RECOVERIES[kind]) for _ in range(3))
        direct.load_mask(mask)
        for unit in reversed(np.flatnonzero(mask == 0)):
            stepwise.zero_out(np.array([unit]))
            stepwise.recover()
            stepwise.compact()
        backwards.load_mask(_mask(baseline, 2, share=0.8))
        backwards.compact()
        backwards.load_mask(mask)
        for other in (stepwise, backwards):
            _assert_same(direct.compact(), other.compact())
            assert torch.equal(direct.logits(), other.logits())


@pytest.mark.parametrize("change", [{"batch_size": 7}, {"positions": 3}, {"images": 17}, {"form": "unify"}])
def test_recoveries_of_one_baseline_do_not_disturb_each_other(make: Make, change: dict[str, Any]) -> None:
    """Whatever one gathers on the base network, the other must not take for its own."""
    first = RECOVERIES["independent"]
    second = RECOVERIES["unify"] if "form" in change else first.model_copy(update=change)
    shared, *others = (make(NETWORKS["chain"]) for _ in range(3))
    mask = _mask(shared, 3)
    for recovery, other in zip((first, second), others, strict=True):
        together, alone = Recognizer(shared, recovery=recovery), Recognizer(other, recovery=recovery)
        together.load_mask(mask)
        alone.load_mask(mask)
        _assert_same(together.compact(), alone.compact())
