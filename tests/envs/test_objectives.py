"""Objectives: rewards, ends, scores, trimming; and objectives of the user's own."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from envs import Budget, Measurement, Objective, PruningEnv, TaskConfig, Tolerance, objectives, register_objective
from recognizers.costs import Measure
from recognizers.errors import ConfigurationError
from recognizers.recognizer import Recognizer

START = Measurement(0.9, 0.0, 0.0)
fractions = st.floats(0, 1)
measurements = st.builds(Measurement, fractions, fractions, fractions)


class TestTolerance:
    OBJECTIVE = Tolerance(drop=0.02)

    @pytest.mark.parametrize(
        ("accuracy", "ends"), [(0.95, False), (0.9, False), (0.88, False), (0.8799, True), (0.0, True)]
    )
    def test_ends_outside_the_tolerance(self, accuracy: float, ends: bool) -> None:
        after = Measurement(accuracy, 0.3, 0.2)
        assert self.OBJECTIVE.terminated(after, 0.9) is ends
        assert self.OBJECTIVE.reward(START, after, 0.9) == (0.0 if ends else 0.3)
        assert self.OBJECTIVE.score(after, 0.9) == (-np.inf if ends else 0.3)

    def test_rounding_does_not_decide_at_the_edge(self) -> None:
        """Of 200 images, exactly as many may be lost as the drop says."""
        for right in range(3, 201):
            assert not self.OBJECTIVE.model_copy(update={"drop": 3 / 200}).terminated(
                Measurement((right - 3) / 200, 0, 0), right / 200
            )

    def test_counts_macs_if_told(self) -> None:
        objective = Tolerance(drop=0.02, count="macs")
        assert objective.measure == "macs"
        assert objective.reward(START, Measurement(0.9, 0.3, 0.2), 0.9) == 0.2
        assert objective.score(Measurement(0.9, 0.3, 0.2), 0.9) == 0.2

    def test_greedy_prefers_cheap_steps_and_never_one_that_ends(self) -> None:
        def efficiency(accuracy: float, reduction: float) -> float:
            return self.OBJECTIVE.efficiency(START, Measurement(accuracy, reduction, 0), 0.9)

        assert efficiency(0.9, 0.2) > efficiency(0.9, 0.1), "of two that cost nothing the larger one"
        assert efficiency(0.89, 0.2) > efficiency(0.89, 0.1)
        assert efficiency(0.895, 0.1) > efficiency(0.885, 0.1)
        assert efficiency(0.88, 1e-4) > efficiency(0.87, 0.9)

    @pytest.mark.parametrize("drop", [-0.1, 1.0, "much"])
    def test_refuses(self, drop: object) -> None:
        with pytest.raises(ValidationError):
            Tolerance(drop=drop)  # type: ignore[arg-type]


class TestBudget:
    OBJECTIVE = Budget(macs=0.4)

    def test_ends_at_the_target(self) -> None:
        assert self.OBJECTIVE.measure == "macs"
        assert self.OBJECTIVE.target == pytest.approx(0.6)
        assert self.OBJECTIVE.terminated(Measurement(0.1, 0, 0.6), 0.9)
        assert not self.OBJECTIVE.terminated(Measurement(0.1, 0.9, 0.5999), 0.9)
        assert Budget(parameters=0.4).terminated(Measurement(0.1, 0.6, 0), 0.9)

    def test_rewards_the_change_of_accuracy(self) -> None:
        assert self.OBJECTIVE.reward(START, Measurement(0.7, 0, 0.1), 0.9) == pytest.approx(-0.2)
        assert self.OBJECTIVE.score(Measurement(0.7, 0, 0.6), 0.9) == 0.7
        assert self.OBJECTIVE.score(Measurement(0.7, 0, 0.5), 0.9) == -np.inf

    @pytest.mark.parametrize("targets", [{}, {"macs": 0.5, "parameters": 0.5}, {"macs": 0}, {"macs": 1}, {"macs": 2}])
    def test_refuses(self, targets: dict[str, float]) -> None:
        with pytest.raises(ValidationError):
            Budget(**targets)


@pytest.fixture(scope="module")
def recognizer(make_env: Callable[..., PruningEnv]) -> Recognizer:
    return make_env().recognizer


@given(
    layer=st.integers(0, 2), order=st.randoms(use_true_random=False), remaining=st.floats(0.05, 0.95),
    measure=st.sampled_from(["macs", "parameters"]), gone=st.lists(st.integers(0, 21), max_size=12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_trimming_takes_the_shortest_leading_part(
    recognizer: Recognizer, layer: int, order: Any, remaining: float, measure: str, gone: list[int]
) -> None:
    objective, costs = Budget(**{measure: remaining}), recognizer.costs
    index = ["parameters", "macs"].index(measure)
    mask = np.ones(22, dtype=np.int8)
    mask[gone] = 0
    assume(all(mask[part.start : part.stop].any() for part in recognizer.table.layers))
    assume(costs.reductions(mask)[index] < objective.target)
    units = recognizer.table.layers[layer].units
    units = units[mask[units] == 1]
    units = np.array(order.sample(units.tolist(), len(units) - 1), dtype=np.int64)
    assume(len(units))

    def reduction(count: int) -> float:
        trial = mask.copy()
        trial[units[:count]] = 0
        return costs.reductions(trial)[index]

    trimmed = objective.trim(units, mask, costs)
    assert trimmed.tolist() == units[: len(trimmed)].tolist()
    enough = [count for count in range(1, len(units) + 1) if reduction(count) >= objective.target - 1e-12]
    assert len(trimmed) == (enough[0] if enough else len(units))


def test_tolerance_trims_nothing(recognizer: Recognizer) -> None:
    units = np.array([3, 1])
    assert Tolerance().trim(units, np.ones(22, dtype=np.int8), recognizer.costs).tolist() == [3, 1]


@given(st.sampled_from([Tolerance(drop=0.1), Tolerance(count="macs"), Budget(macs=0.3)]), measurements, measurements)
def test_figures_are_plain_numbers(objective: Objective, before: Measurement, after: Measurement) -> None:
    assert isinstance(objective.terminated(after, 0.9), bool)
    assert np.isfinite(objective.reward(before, after, 0.9))
    assert np.isfinite(objective.efficiency(before, after, 0.9))
    assert not np.isnan(objective.score(after, 0.9))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Objective]]:
    copy = dict(objectives._OBJECTIVES._entries)
    monkeypatch.setattr(objectives._OBJECTIVES, "_entries", copy)
    return copy


def _countdown() -> type[Objective]:
    class Countdown(Objective):
        """Ends once a number of per cent is gone."""

        kind: Literal["countdown"] = "countdown"
        percent: int = 10

        @property
        def measure(self) -> Measure:
            return "macs"

        def reward(self, before: Measurement, after: Measurement, baseline: float) -> float:
            return 1.0

        def terminated(self, after: Measurement, baseline: float) -> bool:
            return after.macs_reduction * 100 >= self.percent

        def score(self, state: Measurement, baseline: float) -> float:
            return 0.0

        def efficiency(self, before: Measurement, after: Measurement, baseline: float) -> float:
            return 0.0

    return Countdown


class TestRegistration:
    def test_an_objective_of_the_users_own(
        self,
        registry: dict[str, type[Objective]],
        make_env: Callable[..., PruningEnv],
        play_randomly: Callable[..., Any],
    ) -> None:
        own = register_objective("countdown")(_countdown())
        env = make_env(objective={"kind": "countdown", "percent": 30})
        assert isinstance(env.objective, own)
        steps = play_randomly(env, 0)
        assert sum(reward for _, _, reward, *_ in steps) == len(steps)
        assert steps[-1][-1]["macs_reduction"] >= 0.3
        assert TaskConfig.model_validate(env.task.model_dump()) == env.task
        assert env.task.model_dump(mode="json")["objective"] == {"kind": "countdown", "percent": 30}

    def test_its_unknown_keys_are_refused(
        self, registry: dict[str, type[Objective]], make_env: Callable[..., PruningEnv]
    ) -> None:
        register_objective("countdown")(_countdown())
        with pytest.raises((ValidationError, ConfigurationError), match="percnt"):
            make_env(objective={"kind": "countdown", "percnt": 30})

    @pytest.mark.parametrize("kind", ["tolerance", "budget"])
    def test_names_are_taken_once(self, registry: dict[str, type[Objective]], kind: str) -> None:
        with pytest.raises(ConfigurationError, match=f"{kind!r} is registered already"):
            register_objective(kind)(_countdown())
        assert registry["tolerance"] is Tolerance

    def test_unknown_kind_is_refused_with_a_suggestion(self, make_env: Callable[..., PruningEnv]) -> None:
        with pytest.raises(
            (ValidationError, ConfigurationError), match="unknown objective 'tolerence': did you mean 'tol"
        ):
            make_env(objective={"kind": "tolerence"})
