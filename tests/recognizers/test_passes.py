"""Passes run what they must and nothing else, names tell apart what differs, and memory stays within its bound."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recognizers.execution.passes import Keys, StagedPass, choose_boundaries
from recognizers.execution.stages import Stage
from recognizers.units import Layer, Slot, UnitTable


def _stage(paths: Sequence[str] = (), macs: int = 0, outputs: int = 0) -> Stage:
    return Stage(None, frozenset(paths), macs, outputs, 0)


class TestKeys:
    # Units 0..2 leave "one" and enter "two", 3..4 leave "two" and enter "four" (tied with a channel that is fixed).
    TABLE = UnitTable(
        (Layer("one", ("one",), 0, 3), Layer("two", ("two",), 3, 5), Layer("three", ("three",), 5, 7)),
        {
            "one": Slot(np.array([0, 1, 2]), None),
            "norm": Slot(np.array([0, 1, 2]), None),
            "two": Slot(np.array([3, -1, 4]), np.array([0, 1, 2])),
            "three": Slot(np.array([5, 6]), None),
            "four": Slot(None, np.array([3, -1, 4, 5, 6])),
        },
    )
    STAGES = (_stage(["one", "norm", "relu"]), _stage(["relu2"]), _stage(["two", "three"]), _stage(["four", ""]))
    UNITS = ([0, 1, 2], [], [0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6])
    NAMES = st.lists(st.sampled_from([b"base", b"values 1", b"values 12"]), min_size=4, max_size=4)
    MASKS = st.lists(st.integers(0, 1), min_size=7, max_size=7).map(lambda bits: np.array(bits, dtype=np.int8))

    @given(MASKS, MASKS, NAMES, NAMES, st.integers(0, 4))
    @settings(max_examples=300, deadline=None)
    def test_equal_exactly_where_all_up_to_the_stage_is_equal(
        self, mask: np.ndarray, other: np.ndarray, names: list[bytes], others: list[bytes], common: int
    ) -> None:
        others = [*names[:common], *others[common:]]  # else they would hardly ever be equal
        units = sorted({unit for part in self.UNITS[:common] for unit in part})
        other[units] = mask[units]
        keys = Keys(self.STAGES, self.TABLE)
        one, two = keys(mask, names), keys(other, others)
        same = True
        for stage, part in enumerate(self.UNITS):
            same = same and names[stage] == others[stage] and np.array_equal(mask[part], other[part])
            assert (one[stage] == two[stage]) == same

    def test_stages_have_keys_of_their_own(self) -> None:
        keys = Keys(self.STAGES, self.TABLE)(np.ones(7, dtype=np.int8), [b"base"] * 4)
        assert len(set(keys)) == 4

    def test_the_first_stage_of_each_unit(self) -> None:
        assert Keys(self.STAGES, self.TABLE).first_stages(7).tolist() == [0, 0, 0, 2, 2, 2, 2]

    def test_a_network_without_units(self) -> None:
        keys = Keys((_stage(["a"]), _stage(["b"])), UnitTable((), {}))
        assert keys.first_stages(0).tolist() == []
        nothing = np.ones(0, dtype=np.int8)
        assert keys(nothing, [b"x", b"y"])[0] == keys(nothing, [b"x", b"z"])[0]


class Chain:
    """Four stages over two batches; what a stage computes follows from its version, and all calls are noted."""

    STAGES = 4
    BATCHES = (torch.tensor([1.0, 2.0]), torch.tensor([3.0]))

    def __init__(self, kept: frozenset[int] = frozenset()) -> None:
        self.versions = [0] * self.STAGES
        self.calls: list[int] = []
        self.consumed: list[int] = []
        self.watch: Callable[[int], None] = lambda _: None
        stages, consuming = ([partial(run, stage) for stage in range(self.STAGES)] for run in (self.run, self.consume))
        self.staged = StagedPass(self.BATCHES, stages, kept, consuming)

    @property
    def keys(self) -> list[bytes]:
        return [repr(self.versions[: stage + 1]).encode() for stage in range(self.STAGES)]

    def run(self, stage: int, tensor: torch.Tensor) -> torch.Tensor:
        self.calls.append(stage)
        self.watch(stage)
        return 3 * tensor + self.versions[stage] + 10 * stage

    def consume(self, stage: int, tensor: torch.Tensor) -> torch.Tensor:
        result = self.run(stage, tensor)
        tensor.fill_(torch.nan)
        self.consumed.append(stage)
        return result

    def expected(self, stop: int) -> list[torch.Tensor]:
        results = list(self.BATCHES)
        for stage in range(stop):
            results = [3 * tensor + self.versions[stage] + 10 * stage for tensor in results]
        return results

    def advance(self, stop: int = STAGES, *, keep: bool = True, pin: bool = False) -> tuple[int, list[torch.Tensor]]:
        """Where the pass began, and what it gave."""
        self.calls.clear()
        start = self.staged.start(self.keys, stop)
        results = self.staged.advance(self.keys, start, stop, keep=keep, pin=pin)
        assert self.calls == [*range(start, stop)] * len(self.BATCHES)
        return start, results


BOUNDARIES = st.frozensets(st.integers(1, Chain.STAGES))


def _operations() -> st.SearchStrategy[list[tuple[Any, ...]]]:
    change = st.tuples(st.just("change"), st.integers(0, Chain.STAGES - 1), st.integers(0, 2))
    advance = st.tuples(st.just("advance"), st.integers(0, Chain.STAGES), st.booleans(), st.booleans())
    keep = st.tuples(st.just("keep"), BOUNDARIES)
    others = st.sampled_from([("release",), ("release",), ("forget",)])
    return st.lists(st.one_of(change, advance, advance, keep, others), max_size=25)


class TestStagedPass:
    @given(BOUNDARIES, _operations())
    @settings(max_examples=200, deadline=None)
    def test_runs_what_changed_and_nothing_else(self, kept: frozenset[int], operations: list[tuple[Any, ...]]) -> None:
        chain = Chain(kept)
        held: dict[int, bytes] = {}  # by boundary, the name of what should be there
        for operation in operations:
            match operation:
                case ("change", stage, version):
                    chain.versions[stage] = version
                case ("release",):
                    chain.staged.release()
                    held = {boundary: key for boundary, key in held.items() if boundary in kept}
                case ("forget",):
                    chain.staged.forget()
                    held = {}
                case ("keep", boundaries):
                    chain.staged.keep(boundaries)
                    held = {boundary: key for boundary, key in held.items() if boundary not in kept - boundaries}
                    kept = boundaries
                case ("advance", stop, keep, pin):
                    keys = chain.keys
                    right = [
                        boundary for boundary, key in held.items() if boundary <= stop and keys[boundary - 1] == key
                    ]
                    start, results = chain.advance(stop, keep=keep, pin=pin)
                    assert start == max(right, default=0)
                    assert all(map(torch.equal, results, chain.expected(stop)))
                    passed = range(start + 1, stop + 1)
                    held |= {boundary: keys[boundary - 1] for boundary in passed if keep and boundary in kept}
                    held |= {stop: keys[stop - 1]} if pin and start < stop else {}
            assert chain.staged.nbytes == 3 * 4 * len(held), "three numbers of four bytes at each boundary"

    def test_a_change_costs_the_stages_behind_the_last_boundary_before_it(self) -> None:
        chain = Chain(frozenset({1, 3}))
        assert chain.advance()[0] == 0
        chain.versions[3] = 1
        assert chain.advance()[0] == 3
        chain.versions[2] = 1
        assert chain.advance()[0] == 1
        chain.versions[0] = 1
        assert chain.advance()[0] == 0

    def test_without_keeping_what_was_kept_stays(self) -> None:
        chain = Chain(frozenset({1, 2, 3}))
        chain.advance()
        chain.versions[1] = 7
        assert chain.advance(keep=False)[0] == 1
        assert chain.advance(keep=False)[0] == 1, "nothing of the other branch was kept"
        chain.versions[1] = 0
        assert chain.advance()[0] == 3

    def test_pinned_tensors_stay_until_released(self) -> None:
        chain = Chain()
        chain.advance(2, keep=False, pin=True)
        assert [chain.advance(keep=False)[0] for _ in range(2)] == [2, 2]
        chain.staged.release()
        assert chain.advance(keep=False)[0] == 0

    def test_release_leaves_what_is_kept_anyway(self) -> None:
        chain = Chain(frozenset({2}))
        chain.advance(2, pin=True)
        chain.staged.release()
        assert chain.advance()[0] == 2

    def test_stages_consume_what_lies_between_them_and_is_not_kept(self) -> None:
        chain = Chain(frozenset({2}))
        chain.advance()
        assert chain.consumed == [1, 3] * 2, "neither inputs nor what is kept"
        chain.consumed.clear()
        chain.versions[2] = 1
        chain.advance()
        assert chain.consumed == [3] * 2

    def test_views_of_what_is_needed_are_not_consumed(self) -> None:
        def consume(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.neg_()

        inputs = torch.tensor([1.0, 2.0])
        views: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda tensor: tensor, lambda tensor: tensor.view(2, 1)]
        staged = StagedPass([inputs], [*views, torch.neg, torch.neg], frozenset({1}), [*views, consume, consume])
        keys = [b"a", b"b", b"c", b"d"]
        for start in (0, 1):
            (result,) = staged.advance(keys, start, 4, keep=True)
            assert result.tolist() == [[1.0], [2.0]]
            assert inputs.tolist() == [1.0, 2.0]

    def test_what_is_to_be_kept_may_change(self) -> None:
        chain = Chain(frozenset({1, 2, 3}))
        chain.advance()
        chain.staged.keep(frozenset({1, 4}))
        assert chain.advance()[0] == 1
        assert chain.advance()[0] == 4

    def test_old_tensors_go_before_new_ones_come(self) -> None:
        """Else both would lie in memory side by side."""
        chain = Chain(frozenset({1, 2, 3, 4}))
        chain.advance()
        chain.versions[1] = 1
        sizes: list[int] = []
        chain.watch = lambda _: sizes.append(chain.staged.nbytes)
        chain.advance()
        assert set(sizes) == {12}, "what lies before the change, and nothing else"

    def test_an_error_on_the_way_leaves_nothing_wrong(self) -> None:
        chain = Chain(frozenset({1, 2, 3, 4}))
        chain.advance()
        chain.versions[1] = 1

        def fail(stage: int) -> None:
            if stage == 2:
                raise MemoryError

        chain.watch = fail
        with pytest.raises(MemoryError):
            chain.advance()
        chain.watch = lambda _: None
        start, results = chain.advance()
        assert start == 1
        assert all(map(torch.equal, results, chain.expected(4)))


STAGES = st.lists(
    st.builds(lambda macs, outputs: _stage((), macs, outputs), st.integers(0, 5000), st.integers(0, 30)),
    min_size=1,
    max_size=7,
)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[Stage], np.ndarray]:
    stages = draw(STAGES)
    units = draw(st.lists(st.integers(0, len(stages) - 1), max_size=8))
    return stages, np.array(units, dtype=np.int64)


def _size(stages: Sequence[Stage], chosen: frozenset[int]) -> int:
    return sum(stages[boundary - 1].outputs for boundary in chosen)


def _saved(stages: Sequence[Stage], first_stages: np.ndarray, chosen: frozenset[int]) -> int:
    """Work that need not be done, summed over one removal of each unit."""
    before = np.cumsum([0, *(stage.macs + 32 * stage.outputs for stage in stages)])
    return sum(
        int(before[max((boundary for boundary in chosen if boundary <= first), default=0)]) for first in first_stages
    )


class TestChoosingBoundaries:
    @given(_cases(), st.integers(0, 120), st.integers(1, 4), st.integers(1, 5))
    @settings(max_examples=200, deadline=None)
    def test_stays_within_the_budget(
        self, case: tuple[list[Stage], np.ndarray], budget: int, number: int, images: int
    ) -> None:
        stages, first_stages = case
        chosen = choose_boundaries(stages, first_stages, number, images, budget)
        assert _size(stages, chosen) * number * images <= budget
        assert all(0 < boundary < len(stages) for boundary in chosen)

    @given(_cases())
    @settings(max_examples=100, deadline=None)
    def test_without_a_budget_nothing(self, case: tuple[list[Stage], np.ndarray]) -> None:
        assert choose_boundaries(*case, 4, 100, 0) == frozenset()

    @given(_cases())
    @settings(max_examples=100, deadline=None)
    def test_with_any_budget_all_that_can_be_saved_is(self, case: tuple[list[Stage], np.ndarray]) -> None:
        stages, first_stages = case
        # A tensor of no known size (for one whose first dimension is not the image) cannot be kept.
        possible = frozenset(boundary for boundary in range(1, len(stages)) if stages[boundary - 1].outputs)
        chosen = choose_boundaries(stages, first_stages, 4, 100, 10**9)
        assert chosen <= possible
        assert _saved(stages, first_stages, chosen) == _saved(stages, first_stages, possible)

    @given(_cases())
    @settings(max_examples=100, deadline=None)
    def test_more_memory_never_saves_less(self, case: tuple[list[Stage], np.ndarray]) -> None:
        saved = [_saved(*case, choose_boundaries(*case, 1, 1, budget)) for budget in range(60)]
        assert saved == sorted(saved)

    @given(_cases(), st.integers(1, 60))
    @settings(max_examples=200, deadline=None)
    def test_the_best_per_byte_is_among_them(self, case: tuple[list[Stage], np.ndarray], budget: int) -> None:
        stages, first_stages = case
        rates = {
            boundary: _saved(stages, first_stages, frozenset({boundary})) / stages[boundary - 1].outputs
            for boundary in range(1, len(stages))
            if 0 < stages[boundary - 1].outputs <= budget
        }
        chosen = choose_boundaries(stages, first_stages, 1, 1, budget)
        best = max(rates.values(), default=0.0)
        assert best == 0 or any(rates[boundary] == pytest.approx(best) for boundary in chosen)

    def test_boundaries_that_no_unit_lies_behind_are_left_out(self) -> None:
        stages = [_stage((), 100, 10)] * 4
        assert choose_boundaries(stages, np.array([0, 0, 2]), 1, 1, 1000) == {2}

    def test_by_hand(self) -> None:
        """Of two tensors that fit one at a time, the one behind more work; of two equal ones, the smaller."""
        stages = [_stage((), 10_000, 8), _stage((), 90_000, 8), _stage((), 10, 1)]
        units = np.array([1, 2])  # boundary 1 saves stage 0 for both, boundary 2 both stages for one
        assert choose_boundaries(stages, units, 4, 10, 4 * 10 * 8) == {2}
        assert choose_boundaries(stages, units, 4, 10, 4 * 10 * 16) == {1, 2}
        assert choose_boundaries(stages, units, 4, 10, 4 * 10 * 8 - 1) == frozenset()
