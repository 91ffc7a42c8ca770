"""Allocations that plan whole masks, and PRO's plans against exhaustive search."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agents.baselines.allocations import GlobalAllocation, UniformAllocation, meets, removal_mask
from agents.baselines.pro import FRACTIONS, Polyline, ProAllocation, _interpolated, measure, share_out
from agents.policy import make_policy, suited
from agents.running import run_policy
from envs.actions import ActionsConfig
from envs.episodes import play, validate
from envs.objectives import Budget, Tolerance
from envs.pruning import PruningEnv
from envs.tasks import TaskConfig, make_recognizer
from recognizers.baseline import Baseline
from recognizers.criteria import criterion
from recognizers.data import Examples, Splits
from recognizers.errors import ConfigurationError
from recognizers.recognizer import Recognizer
from recognizers.recovery import FinetuneRecovery, NoRecovery, ReconstructRecovery, Recovery

ALLOCATIONS = ("uniform", "global", "pro")


def _task(task: TaskConfig, kind: str = "mask", recovery: Recovery | None = None, **objective: Any) -> TaskConfig:
    update: dict[str, Any] = {
        "actions": ActionsConfig(kind=kind, per_layer=4),  # type: ignore[arg-type]
        "objective": Budget(**objective) if objective else Tolerance(),
        "recovery": recovery or task.recovery,
    }
    return task.model_copy(update=update)


class TestTargets:
    """On 1x1 convolutions of 60 channels, of which one takes less than 0.5 % of the MACs or parameters with it."""

    @pytest.fixture(scope="class")
    def recognizer(self, task: TaskConfig) -> Recognizer:
        part = make_recognizer(task).baseline
        few = Examples(part.splits.reward.images[:20], part.splits.reward.labels[:20])
        layers = [layer for width in (1, *[60] * 8) for layer in (nn.Conv2d(width, 60, 1), nn.ReLU())]
        torch.manual_seed(0)
        network = nn.Sequential(nn.AvgPool2d(4), *layers, nn.Flatten(), nn.Linear(240, 10))
        splits = Splits(few, few, few, few)
        return Recognizer(Baseline(network, splits, part.normalization, device=torch.device("cpu")))

    @pytest.mark.parametrize("measure", ["macs", "parameters"])
    @pytest.mark.parametrize("remaining", [0.9, 0.5, 0.1])
    @pytest.mark.parametrize("name", ALLOCATIONS)
    def test_they_are_met_closely_in_one_step(
        self, task: TaskConfig, recognizer: Recognizer, name: str, remaining: float, measure: str
    ) -> None:
        target: dict[str, Any] = {measure: remaining}
        env = PruningEnv(_task(task, recovery=NoRecovery(), **target), recognizer=recognizer)
        policy = make_policy(f"{name}:l1")
        policy.reset(env)
        episode = play(env, policy.act, seed=0, policy=name)
        assert len(episode.actions) == 1 and episode.terminated
        reduction = env.measurement.reduction(env.objective.measure)
        assert 1 - remaining - 1e-9 <= reduction < 1 - remaining + 0.005
        assert min(recognizer.kept_units.values()) >= 1
        validate(env, episode)

    @pytest.mark.parametrize("name", ALLOCATIONS)
    def test_at_the_limit_every_layer_keeps_a_unit(self, task: TaskConfig, recognizer: Recognizer, name: str) -> None:
        mask = np.zeros(recognizer.n_units, dtype=np.int8)
        mask[[layer.start for layer in recognizer.table.layers]] = 1
        remaining = 1 - recognizer.costs.reductions(mask)[1]
        env = PruningEnv(_task(task, recovery=NoRecovery(), macs=remaining), recognizer=recognizer)
        policy = make_policy(f"{name}:random")
        policy.reset(env)
        play(env, policy.act, seed=0, policy=name)
        assert set(recognizer.kept_units.values()) == {1}


class TestCounts:
    """What each layer loses; units of 6, 8 and 8."""

    @pytest.mark.parametrize("macs", [0.8, 0.5, 0.2])
    def test_uniform_takes_equal_shares(self, task: TaskConfig, macs: float) -> None:
        env = PruningEnv(_task(task, macs=macs))
        policy = UniformAllocation(criterion("l1"))
        policy.reset(env)
        counts, sizes = policy.counts(env, Budget(macs=macs)), np.array([6, 8, 8])
        plain = [np.minimum((sizes * share).astype(int), sizes - 1) for share in np.linspace(0, 1, 2000)]
        fewer = max((one for one in plain if not meets(env, Budget(macs=macs), one)), key=lambda one: int(one.sum()))
        assert (counts >= fewer).all() and (counts <= fewer + 1).all()
        assert meets(env, Budget(macs=macs), counts)
        last = np.flatnonzero(counts > fewer)[-1]
        counts[last] -= 1
        assert not meets(env, Budget(macs=macs), counts), "no more than needed"

    def test_global_takes_the_lowest_scores_of_all(self, task: TaskConfig) -> None:
        env = PruningEnv(_task(task, macs=0.5))
        policy = GlobalAllocation(criterion("l1"))
        policy.reset(env)
        counts = policy.counts(env, Budget(macs=0.5))
        gone = np.flatnonzero(removal_mask(policy._order(env), counts) == 0)
        layers = env.recognizer.table.layers
        kept = set(range(22)) - set(gone) - {int(policy._order(env)[layer][-1]) for layer in range(len(layers))}
        assert policy._scores[gone].max() <= policy._scores[list(kept)].min()
        highest = gone[policy._scores[gone].argmax()]
        counts[env.recognizer.table.layer_of_unit[highest]] -= 1
        assert meets(env, Budget(macs=0.5), counts) is False

    @pytest.mark.parametrize("name", ALLOCATIONS)
    @pytest.mark.parametrize("kind", ["mask", "block"])
    def test_a_tolerance_is_no_target(self, task: TaskConfig, name: str, kind: str) -> None:
        env = PruningEnv(_task(task, kind))
        policy = make_policy(f"{name}:l1")
        if kind == "block" and name != "pro":
            policy.reset(env)
            assert play(env, policy.act, seed=0, policy=name).actions, "these need none"
            return
        with pytest.raises(ConfigurationError, match=r"for a budget: set --target-macs, or objective\.kind=budget"):
            policy.reset(env)
            play(env, policy.act, seed=0, policy=name)


@st.composite
def separable(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray, float]:
    """Never falling errors of up to three layers, the cost of a unit in each, and what of the cost may remain."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    tables = []
    for size in sizes:
        steps = draw(st.lists(st.floats(0, 10), min_size=size - 1, max_size=size - 1))
        tables.append(np.concatenate([[0.0], np.cumsum(steps)]))
    prices = np.array(draw(st.lists(st.floats(0.01, 1), min_size=len(sizes), max_size=len(sizes))))
    prices /= prices @ np.array(sizes)
    most = float(prices @ (np.array(sizes) - 1))
    return tables, prices, 1 - most * draw(st.floats(0.01, 1 - 1e-6))


class TestShareOut:
    @given(separable())
    @settings(max_examples=150, deadline=None)
    def test_nothing_that_costs_as_little_has_less_error(
        self, problem: tuple[list[np.ndarray], np.ndarray, float]
    ) -> None:
        """Against all allocations; beyond that the target may be missed by less than the steps of a price."""
        tables, prices, remaining = problem
        start = np.arange(len(tables))

        def cost(counts: np.ndarray) -> float:
            return 1 - float(prices @ (counts - start))

        counts = share_out(tables, start, cost, remaining) - start

        def error(extra: tuple[int, ...]) -> float:
            return float(sum(table[number] for table, number in zip(tables, extra, strict=True)))

        assert cost(start + counts) <= remaining
        assert all(0 <= number < len(table) for number, table in zip(counts, tables, strict=True))
        least = min(
            error(extra)
            for extra in itertools.product(*(range(len(table)) for table in tables))
            if cost(start + np.array(extra)) <= cost(start + counts) + 1e-12
        )
        assert error(tuple(counts)) <= least + 1e-6 * max(1.0, error(tuple(counts)))

    @pytest.mark.parametrize("removed", range(1, 24))
    def test_where_errors_grow_ever_faster_it_ends_at_the_target(self, removed: int) -> None:
        tables = [np.arange(15) ** 2.0, 1.37 * np.arange(11) ** 2.0]
        counts = share_out(tables, np.zeros(2, dtype=np.int64), lambda counts: 1 - counts.sum() / 26, 1 - removed / 26)
        assert counts.sum() == removed

    def test_out_of_reach(self) -> None:
        with pytest.raises(ConfigurationError, match=r"0\.3 of the cost is out of reach"):
            share_out([np.arange(4.0)], np.zeros(1, dtype=np.int64), lambda counts: 1 - counts.sum() / 5, 0.3)


class TestPro:
    def test_errors_between_those_measured_are_interpolated_by_their_logarithm(self) -> None:
        def table(removed: tuple[int, ...], errors: tuple[float, ...], left: int) -> list[float]:
            line = Polyline(layer="layer", units=left, removed=removed, errors=errors, macs=(0.1,) * len(removed))
            return [float(error) for error in _interpolated(line, left)]

        assert table((1, 3, 4), (1.0, 100.0, 400.0), 7) == pytest.approx([0, 1, 10, 100, 400, 400, 400])
        assert table((1, 2), (5.0, 2.0), 3) == pytest.approx([0, 5, 5]), "never falling"
        assert table((1, 2), (-1.0, 2.0), 3) == pytest.approx([0, 0, 2], abs=1e-8)
        assert table((), (), 1) == [0]

    def test_polylines_are_what_removals_do_to_the_logits(self, task: TaskConfig) -> None:
        recognizer = make_recognizer(task)
        order = [layer.units[::-1] for layer in recognizer.table.layers]
        start = np.array([1, 0, 6])
        lines, measured = measure(recognizer, order, start)
        assert measured == 1 + sum(len(line.removed) for line in lines)
        recognizer.reset()
        reference, before = recognizer.logits(), recognizer.costs.reductions(removal_mask(order, start))[1]

        def error(mask: np.ndarray) -> float:
            recognizer.load_mask(mask)
            return float((recognizer.logits() - reference).square().sum(1).mean())

        base = error(removal_mask(order, start))
        for layer, line in enumerate(lines):
            left = len(order[layer]) - start[layer]
            assert line.units == left
            assert line.removed == tuple(sorted({1, *(round(left * part) for part in FRACTIONS)} - {0, left}))
            for number, rise, macs in zip(line.removed, line.errors, line.macs, strict=True):
                counts = start.copy()
                counts[layer] += number
                mask = removal_mask(order, counts)
                assert rise == pytest.approx(error(mask) - base, rel=1e-4, abs=1e-5)
                assert macs == pytest.approx(recognizer.costs.reductions(mask)[1] - before)

    @pytest.mark.parametrize("rounds", [1, 2, 3])
    def test_no_unit_can_be_given_back_and_evaluations_count(self, task: TaskConfig, rounds: int) -> None:
        env = PruningEnv(_task(task, macs=0.4))
        policy = ProAllocation(criterion("l1"), rounds=rounds)
        policy.reset(env)
        assert len(policy.plans) == rounds
        counts = np.zeros(3, dtype=np.int64)
        for number, plan in enumerate(policy.plans, start=1):
            assert [line.units for line in plan.polylines] == (np.array([6, 8, 8]) - counts).tolist()
            counts = counts + plan.chosen
            aim = Budget(macs=1 - 0.6 * number / rounds)
            assert meets(env, aim, counts)
            for layer in np.flatnonzero(plan.chosen):
                fewer = counts.copy()
                fewer[layer] -= 1
                assert not meets(env, aim, fewer)
        measured = sum(len(line.removed) for plan in policy.plans for line in plan.polylines) + rounds
        assert env.evaluations == measured
        assert env.environment_steps == 0
        mask = np.asarray(policy.act({}, {}))
        assert [int((mask[layer.units] == 0).sum()) for layer in env.recognizer.table.layers] == counts.tolist()

    @pytest.mark.parametrize("kind", ["unit", "block", "layer"])
    def test_discrete_actions_follow_the_plan(self, task: TaskConfig, kind: str) -> None:
        env = PruningEnv(_task(task, kind, macs=0.4))
        policy = ProAllocation(criterion("l1"))
        policy.reset(env)
        assert policy.plans == []
        episode = play(env, policy.act, seed=0, policy="pro")
        assert episode.terminated and env.objective.terminated(env.measurement, 0.0)
        lost = np.array([6, 8, 8]) - list(env.recognizer.kept_units.values())
        (plan,) = policy.plans
        if kind == "unit":
            assert lost.tolist() == list(plan.chosen)
        else:
            assert np.abs(lost - plan.chosen).max() <= 2, "a block or chunk of two"

    @pytest.mark.parametrize("form", ["asymmetric", "independent"])
    def test_with_reconstruction_end_to_end(self, task: TaskConfig, form: str) -> None:
        recovery = ReconstructRecovery(form=form, images=64)  # type: ignore[arg-type]
        env = PruningEnv(_task(task, recovery=recovery, macs=0.5))
        run = run_policy(env, make_policy("pro:reap", rounds=2), "pro:reap", seed=0)
        assert run.result.macs_reduction >= 0.5
        assert run.result.evaluations == env.evaluations > 30
        assert run.result.validation_accuracy > run.result.baseline_validation_accuracy - 0.4

    def test_of_a_recovery_that_depends_on_the_path_each_mask_starts_from_base_weights(self, task: TaskConfig) -> None:
        recovery = FinetuneRecovery(steps=1, images=40, batch_size=20)
        env = PruningEnv(_task(task, recovery=recovery, macs=0.5))
        policy = ProAllocation(criterion("l1"), images=10**6)
        policy.reset(env)
        (plan,), order = policy.plans, policy._order(env)
        reference = env.recognizer.logits()
        for layer, line in enumerate(plan.polylines):
            counts = np.zeros(3, dtype=np.int64)
            counts[layer] = line.removed[-1]
            env.recognizer.load_mask(removal_mask(order, counts))
            error = float((env.recognizer.logits() - reference).square().sum(1).mean())
            assert line.errors[-1] == pytest.approx(error, rel=1e-4)

    @pytest.mark.parametrize("settings", [{"images": 0}, {"rounds": 0}])
    def test_settings_that_make_no_sense(self, settings: dict[str, int]) -> None:
        with pytest.raises(ConfigurationError, match="images and rounds must be at least 1"):
            make_policy("pro:l1", **settings)

    def test_it_asks_for_masks(self, task: TaskConfig) -> None:
        assert suited(task, make_policy("pro:l1")).actions == task.actions.model_copy(update={"kind": "mask"})
        for name in ("uniform:l1", "lookahead"):
            assert suited(task, make_policy(name)) == task
