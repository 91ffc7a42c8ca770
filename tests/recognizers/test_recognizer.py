"""The recognizer: zeroing out, measuring, recovering, and coming back to the bit."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers import zoo
from recognizers.baseline import Baseline
from recognizers.costs import count_cost
from recognizers.data import Normalization, Splits
from recognizers.errors import ConfigurationError, MaskError
from recognizers.evaluation import accuracy, predict
from recognizers.execution.convolution import FusedConvolution
from recognizers.execution.engine import Engine
from recognizers.recognizer import Recognizer
from recognizers.recovery import BatchNormRecovery, FinetuneRecovery, NoRecovery, Recovery

MakeRecognizer = Callable[..., Recognizer]
RECOVERIES = {
    "none": NoRecovery(),
    "bn": BatchNormRecovery(images=64),
    "finetune": FinetuneRecovery(steps=2, images=64, batch_size=32),
}


@pytest.fixture(params=RECOVERIES)
def recovery(request: pytest.FixtureRequest) -> Recovery:
    return RECOVERIES[request.param]


@pytest.fixture
def recognizer(make_recognizer: MakeRecognizer) -> Recognizer:
    return make_recognizer()


def _state(recognizer: Recognizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in recognizer.network.state_dict().items()}


def _assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def _advance(recognizer: Recognizer, *units: int, seed: int = 0) -> float:
    recognizer.zero_out(np.array(units))
    recognizer.recover(torch.Generator().manual_seed(seed))
    return recognizer.accuracy("reward")


class TestBeginning:
    def test_is_complete(self, recognizer: Recognizer, trained: nn.Module) -> None:
        assert recognizer.n_units == 22
        assert recognizer.mask.tolist() == [1] * 22
        assert (recognizer.parameter_reduction, recognizer.macs_reduction) == (0.0, 0.0)
        assert recognizer.kept_units == {"features.conv1": 6, "features.conv2": 8, "features.conv3": 8}
        _assert_same(_state(recognizer), trained.state_dict())

    def test_accuracy_is_that_of_the_plain_network(
        self, recognizer: Recognizer, trained: nn.Module, digits: tuple[Splits, Normalization]
    ) -> None:
        splits, normalization = digits
        for name in ("train", "reward", "selection", "test"):
            images, labels = getattr(splits, name)
            expected = accuracy(predict(trained, images, normalization, precision="float32"), labels)
            assert recognizer.accuracy(name) == expected
            assert recognizer.baseline_accuracy(name) == expected
        assert recognizer.accuracy("test") > 0.5, "the network knows something"

    def test_mask_is_a_copy(self, recognizer: Recognizer) -> None:
        recognizer.mask[:] = 0
        assert recognizer.mask.all()


class TestZeroOut:
    def test_marks_units_and_reduces(self, recognizer: Recognizer) -> None:
        recognizer.zero_out(np.array([0, 6, 21]))
        assert np.flatnonzero(recognizer.mask == 0).tolist() == [0, 6, 21]
        assert recognizer.kept_units == {"features.conv1": 5, "features.conv2": 7, "features.conv3": 7}
        cost = count_cost(recognizer.compact(), torch.zeros(1, 1, 8, 8))
        assert recognizer.cost == cost
        baseline = recognizer.costs.baseline
        assert recognizer.parameter_reduction == 1 - cost.parameters / baseline.parameters
        assert recognizer.macs_reduction == 1 - cost.macs / baseline.macs

    @pytest.mark.parametrize(
        ("units", "message"),
        [
            ([22], r"units must be in 0\.\.21"),
            ([-1], r"units must be in 0\.\.21"),
            ([3, 100], r"units must be in 0\.\.21"),
            ([1], r"\[1\] are zeroed out already"),
            ([2, 1], r"\[1\] are zeroed out already"),
            ([0, 2, 3, 4, 5], "'features.conv1' would lose its last unit"),
            (list(range(14, 22)), "'features.conv3' would lose its last unit"),
        ],
    )
    def test_refusals_change_nothing(self, recognizer: Recognizer, units: list[int], message: str) -> None:
        recognizer.zero_out(np.array([1]))
        mask, state, score = recognizer.mask, _state(recognizer), recognizer.accuracy()
        with pytest.raises(MaskError, match=message):
            recognizer.zero_out(np.array(units))
        assert np.array_equal(recognizer.mask, mask)
        _assert_same(_state(recognizer), state)
        assert recognizer.accuracy() == score

    def test_down_to_one_unit_a_layer(self, recognizer: Recognizer) -> None:
        recognizer.zero_out(np.array([*range(1, 6), *range(7, 14), *range(15, 22)]))
        assert set(recognizer.kept_units.values()) == {1}
        assert 0 <= recognizer.accuracy() <= 1
        for unit in (0, 6, 14):
            with pytest.raises(MaskError, match="last unit"):
                recognizer.zero_out(np.array([unit]))

    def test_nothing(self, recognizer: Recognizer) -> None:
        recognizer.zero_out(np.array([], dtype=np.int64))
        assert recognizer.mask.all()


def _episode(recognizer: Recognizer, images: torch.Tensor, steps: int, seed: int) -> None:
    """Random steps; after each one the masked network, the compact one and the closed-form cost must agree."""
    generator = np.random.default_rng(seed)
    table = recognizer.table
    with torch.no_grad():
        before = recognizer.network(images)
    assert before.std(dim=0).mean() > 0.1
    for _ in range(steps):
        layer = table.layers[generator.integers(len(table.layers))]
        kept = layer.units[recognizer.mask[layer.units] == 1]
        if len(kept) > 1:
            recognizer.zero_out(generator.choice(kept, size=int(generator.integers(1, len(kept))), replace=False))
        recognizer.recover(torch.Generator().manual_seed(int(generator.integers(99))))
        with torch.no_grad():
            masked, compact = recognizer.network(images), recognizer.compact()(images)
        torch.testing.assert_close(compact, masked, rtol=1e-4, atol=1e-4 * float(masked.abs().max()))
        assert recognizer.cost == count_cost(recognizer.compact(), images)
    assert (masked - before).abs().max() > 0.05


class TestEpisodes:
    @pytest.mark.parametrize("seed", [0, 1])
    def test_small(self, make_recognizer: MakeRecognizer, recovery: Recovery, seed: int) -> None:
        recognizer = make_recognizer(recovery)
        images = recognizer.normalization.normalize(recognizer.splits.reward.images[:32])
        _episode(recognizer, images, 8, seed)
        # What measured the accuracy is the network that followed step by step.
        images, labels = recognizer.splits.reward
        masked = predict(recognizer.network, images, recognizer.normalization, precision="float32")
        assert recognizer.accuracy() == pytest.approx(accuracy(masked, labels), abs=1.01 / len(labels))

    @pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
    @pytest.mark.parametrize("kind", ["none", "finetune"])
    def test_deep(
        self, name: str, kind: str, digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]
    ) -> None:
        splits, normalization = digits
        large = Splits(
            *(
                type(part)(part.images[:24].repeat_interleave(4, 2).repeat_interleave(4, 3), part.labels[:24])
                for part in (splits.train, splits.reward, splits.selection, splits.test)
            )
        )
        images = normalization.normalize(large.reward.images)  # [24, 1, 32, 32]
        torch.manual_seed(0)
        network = enliven(zoo.create(name, classes=10, in_channels=1), images)
        recovery = {"none": NoRecovery(), "finetune": FinetuneRecovery(steps=1, images=16, batch_size=16)}[kind]
        recognizer = Recognizer(Baseline(network, large, normalization, device=torch.device("cpu")), recovery=recovery)
        _episode(recognizer, images[:8], 3, 0)

    @given(st.lists(st.integers(0, 21), unique=True, max_size=22), st.integers(1, 5))
    @settings(max_examples=25, deadline=None)
    def test_the_order_does_not_matter_without_recovery(
        self, shared: Recognizer, units: list[int], pieces: int
    ) -> None:
        mask = np.ones(22, dtype=np.int8)
        mask[units] = 0
        if not all(mask[layer.start : layer.stop].any() for layer in shared.table.layers):
            with pytest.raises(MaskError):
                shared.load_mask(mask)
            return
        shared.load_mask(mask)
        at_once = shared.accuracy()
        shared.reset()
        for piece in np.array_split(np.array(units, dtype=np.int64), pieces):
            shared.zero_out(piece)
            shared.accuracy()
        assert np.array_equal(shared.mask, mask)
        assert shared.accuracy() == at_once

    @pytest.fixture(scope="class")
    def shared(self, make_recognizer: MakeRecognizer) -> Recognizer:
        return make_recognizer()

    def test_memoryless_recoveries_forget_the_way(self, make_recognizer: MakeRecognizer) -> None:
        recognizer = make_recognizer(RECOVERIES["bn"])
        for units in ([3], [8, 9], [20]):
            _advance(recognizer, *units)
        stepwise = recognizer.compact().state_dict()
        recognizer.load_mask(recognizer.mask)
        _assert_same(recognizer.compact().state_dict(), stepwise)


class TestComingBack:
    def test_reset(self, make_recognizer: MakeRecognizer, recovery: Recovery, trained: nn.Module) -> None:
        recognizer = make_recognizer(recovery)
        before = recognizer.accuracy()
        for units in ([0, 1], [6, 7, 8], [14]):
            _advance(recognizer, *units)
        recognizer.reset()
        assert recognizer.mask.all()
        _assert_same(_state(recognizer), trained.state_dict())
        _assert_same(recognizer.compact().state_dict(), trained.state_dict())
        assert recognizer.accuracy() == before

    def test_snapshot_and_restore(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        _advance(recognizer, 0, 9)
        snapshot, state, mask, score = recognizer.snapshot(), _state(recognizer), recognizer.mask, recognizer.accuracy()
        first = _advance(recognizer, 1, 2, 15, seed=3), _state(recognizer)
        for _ in range(2):  # a snapshot can be used again
            recognizer.restore(snapshot)
            assert np.array_equal(recognizer.mask, mask)
            _assert_same(_state(recognizer), state)
            assert recognizer.accuracy() == score
            again = _advance(recognizer, 1, 2, 15, seed=3), _state(recognizer)
            assert again[0] == first[0]
            _assert_same(again[1], first[1])

    def test_restore_after_reset(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        score = _advance(recognizer, 0, 9, 17)
        snapshot, state = recognizer.snapshot(), _state(recognizer)
        recognizer.reset()
        _advance(recognizer, 5)
        recognizer.restore(snapshot)
        _assert_same(_state(recognizer), state)
        assert recognizer.accuracy() == score

    def test_a_snapshot_is_apart_from_what_follows(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        snapshot = recognizer.snapshot()
        values = copy.deepcopy(snapshot.values.tensors) if snapshot.values else {}
        _advance(recognizer, 0, 9, 17)
        assert snapshot.mask.all()
        _assert_same(snapshot.values.tensors if snapshot.values else {}, values)


class TestBaseline:
    def test_does_not_depend_on_the_state(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        fresh = make_recognizer(recovery).baseline_accuracy("test")
        recognizer = make_recognizer(recovery)
        _advance(recognizer, *range(5), *range(7, 14))
        state, mask, score = _state(recognizer), recognizer.mask, recognizer.accuracy("test")
        assert recognizer.baseline_accuracy("test") == fresh
        assert score != fresh
        assert np.array_equal(recognizer.mask, mask)
        _assert_same(_state(recognizer), state)
        assert recognizer.accuracy("test") == score

    def test_base_weights_and_their_sum_are_stable(
        self, make_recognizer: MakeRecognizer, recovery: Recovery, trained: nn.Module
    ) -> None:
        untouched = make_recognizer(recovery).base_sha256
        recognizer = make_recognizer(recovery)
        _advance(recognizer, 0, 9, 17)
        assert recognizer.base_sha256 == untouched
        _assert_same(recognizer.base_state, trained.state_dict())

    def test_other_weights_have_another_sum(self, make_recognizer: MakeRecognizer, trained: nn.Module) -> None:
        other = copy.deepcopy(trained)
        with torch.no_grad():
            other.linear.bias[0] += 1e-4
        assert make_recognizer(network=other).base_sha256 != make_recognizer().base_sha256


class TestLoadMask:
    MASK = np.array([1, 0] * 11, dtype=np.int8)

    def test_comes_from_the_base_weights_whatever_was_before(
        self, make_recognizer: MakeRecognizer, recovery: Recovery
    ) -> None:
        fresh, used = make_recognizer(recovery), make_recognizer(recovery)
        _advance(used, 0, 9, 17)
        for recognizer in (fresh, used):
            recognizer.load_mask(self.MASK, torch.Generator().manual_seed(1))
        assert np.array_equal(used.mask, self.MASK)
        _assert_same(used.compact().state_dict(), fresh.compact().state_dict())
        assert used.accuracy() == fresh.accuracy()

    def test_any_dtype(self, recognizer: Recognizer) -> None:
        recognizer.load_mask(self.MASK.astype(bool))
        assert recognizer.mask.dtype == np.int8
        assert np.array_equal(recognizer.mask, self.MASK)

    @pytest.mark.parametrize("mask", [np.ones(21), np.full(22, 0.5), np.zeros(22), np.array([0] * 6 + [1] * 16)])
    def test_refusals_change_nothing(
        self, make_recognizer: MakeRecognizer, recovery: Recovery, mask: np.ndarray
    ) -> None:
        recognizer = make_recognizer(recovery)
        _advance(recognizer, 0, 9, 17)
        state, before = _state(recognizer), recognizer.mask
        with pytest.raises(MaskError):
            recognizer.load_mask(mask)
        assert np.array_equal(recognizer.mask, before)
        _assert_same(_state(recognizer), state)

    def test_the_mask_given_is_copied(self, recognizer: Recognizer) -> None:
        mask = self.MASK.copy()
        recognizer.load_mask(mask)
        mask[:] = 1
        assert np.array_equal(recognizer.mask, self.MASK)


class TestCompact:
    def test_is_a_plain_network_of_its_own(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        _advance(recognizer, 0, 9, 17)
        network = recognizer.compact()
        assert not network.training
        assert "zero_out" not in dict(network.named_modules())
        assert not any(module._forward_pre_hooks for module in network.modules())
        assert all(value.dtype in (torch.float32, torch.int64) for value in network.state_dict().values())
        state = _state(recognizer)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(7)
        _assert_same(_state(recognizer), state)
        assert (recognizer.compact().linear.bias != 7).all()

    def test_trains_and_saves_like_any_module(self, recognizer: Recognizer, tmp_path: object) -> None:
        recognizer.zero_out(np.array([0, 9, 17]))
        network = recognizer.compact()
        network(torch.randn(4, 1, 8, 8)).sum().backward()
        assert all(parameter.grad is not None and parameter.is_leaf for parameter in network.parameters())
        clone = copy.deepcopy(network)
        clone.load_state_dict(network.state_dict())


class TestNetwork:
    def test_follows_the_state(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        images = recognizer.normalization.normalize(recognizer.splits.reward.images)
        for units in ([0, 9], [17]):
            _advance(recognizer, *units)
            with torch.no_grad():
                torch.testing.assert_close(recognizer.network(images), recognizer.logits(), rtol=1e-4, atol=1e-4)

    def test_shows_what_was_zeroed_out_but_not_recovered(
        self, make_recognizer: MakeRecognizer, recovery: Recovery
    ) -> None:
        recognizer = make_recognizer(recovery)
        _advance(recognizer, 0, 9)
        recognizer.zero_out(np.array([1, 2, 15]))
        images = recognizer.normalization.normalize(recognizer.splits.reward.images)
        with torch.no_grad():
            torch.testing.assert_close(recognizer.network(images), recognizer.logits(), rtol=1e-4, atol=1e-4)

    def test_changing_it_has_no_effect(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        _advance(recognizer, 0, 9)
        base, state, logits = copy.deepcopy(recognizer.base_state), _state(recognizer), recognizer.logits()
        with torch.no_grad():
            for value in recognizer.network.state_dict().values():
                value.add_(1)
        _assert_same(recognizer.base_state, base)
        recognizer.forget()
        assert torch.equal(recognizer.logits(), logits)
        _assert_same(_state(recognizer), state)


class TestProbe:
    UNITS = tuple(np.array([unit]) for unit in range(22))

    def _steps(self, recognizer: Recognizer, selections: Sequence[np.ndarray], seed: int) -> list[float]:
        """What steps give, each from the same state and measured anew."""
        figures = []
        for units in selections:
            snapshot = recognizer.snapshot()
            recognizer.zero_out(units)
            recognizer.recover(torch.Generator().manual_seed(seed))
            recognizer.forget()
            figures.append(recognizer.accuracy())
            recognizer.restore(snapshot)
        return figures

    @pytest.mark.parametrize("zeroed", [[], [3]], ids=["recovered", "not recovered"])
    @pytest.mark.parametrize("before", [[], [2, 9, 10, 20]], ids=["complete", "pruned"])
    def test_says_what_every_step_gives_and_leaves_no_trace(
        self, make_recognizer: MakeRecognizer, recovery: Recovery, before: list[int], zeroed: list[int]
    ) -> None:
        recognizer = make_recognizer(recovery)
        if before:
            _advance(recognizer, *before)
        recognizer.zero_out(np.array(zeroed, dtype=np.int64))
        selections = [units for units in self.UNITS if recognizer.mask[units].all()]
        expected = self._steps(recognizer, selections, seed=4)
        assert len(set(expected)) > 1
        mask, state, logits = recognizer.mask, _state(recognizer), recognizer.logits()
        recognizer.forget()
        generator = torch.Generator().manual_seed(4)
        assert recognizer.probe(selections, generator) == expected
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(4).get_state())
        assert np.array_equal(recognizer.mask, mask)
        assert torch.equal(recognizer.logits(), logits)
        _assert_same(_state(recognizer), state)

    def test_selections_of_any_kind_and_order(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        """Several units, of several layers, the same twice, none, the last layer first."""
        recognizer = make_recognizer(recovery)
        selections = [np.array(units, dtype=np.int64) for units in ([21], [0, 7, 14], [], [0], [21], [8, 9, 10], [0])]
        expected = self._steps(recognizer, selections, seed=0)
        recognizer.forget()
        assert recognizer.probe(selections) == expected

    def test_nothing_to_probe(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        logits = recognizer.logits()
        assert recognizer.probe([]) == []
        assert torch.equal(recognizer.logits(), logits)

    def test_after_episodes_and_resets(self, make_recognizer: MakeRecognizer, recovery: Recovery) -> None:
        recognizer = make_recognizer(recovery)
        first = recognizer.probe(self.UNITS)
        _advance(recognizer, 0, 9, 17)
        recognizer.probe([np.array([1]), np.array([21])])
        recognizer.reset()
        recognizer.forget()
        assert recognizer.probe(self.UNITS) == first

    @pytest.mark.parametrize("wrong", [[22], [1], list(range(14, 22))])
    def test_refuses_all_where_one_is_wrong(
        self, make_recognizer: MakeRecognizer, measurements: list[int], wrong: list[int]
    ) -> None:
        recognizer = make_recognizer()
        _advance(recognizer, 1)
        mask, before = recognizer.mask, len(measurements)
        with pytest.raises(MaskError):
            recognizer.probe([np.array([0]), np.array(wrong)])
        assert len(measurements) == before, "nothing was measured"
        assert np.array_equal(recognizer.mask, mask)

    @pytest.mark.parametrize("megabytes", [0, 64])
    def test_what_selections_have_in_common_is_computed_once(
        self, make_recognizer: MakeRecognizer, monkeypatch: pytest.MonkeyPatch, megabytes: int
    ) -> None:
        recognizer = Recognizer(make_recognizer().baseline, cache_megabytes=megabytes)
        convolutions: list[int] = []
        forward = FusedConvolution.forward

        def counted(self: FusedConvolution, features: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
            convolutions.append(len(features))
            return forward(self, features, *others)

        monkeypatch.setattr(FusedConvolution, "forward", counted)
        recognizer.probe(self.UNITS[14:])  # eight of the last convolution: two before it
        assert len(convolutions) == 2 + 8


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever an engine computes logits."""
    seen: list[int] = []
    logits = Engine.logits

    def counted(self: Engine) -> torch.Tensor:
        seen.append(1)
        return logits(self)

    monkeypatch.setattr(Engine, "logits", counted)
    return seen


class TestMemo:
    def test_a_mask_that_was_seen_is_not_measured_again(
        self, make_recognizer: MakeRecognizer, measurements: list[int], recovery: Recovery
    ) -> None:
        recognizer = make_recognizer(recovery)
        figure = _advance(recognizer, 0, 9)
        for units in ([[0, 9]], [[9], [0]]):
            recognizer.reset()
            measurements.clear()
            for part in units:
                recognizer.zero_out(np.array(part))
                recognizer.recover(torch.Generator().manual_seed(0))
            again = recognizer.accuracy()
            if recovery.memoryless:
                assert (again, measurements) == (figure, [])
            else:  # it depends on the way
                assert measurements == [1]

    def test_a_step_that_was_probed_is_not_measured_again(
        self, make_recognizer: MakeRecognizer, measurements: list[int], recovery: Recovery
    ) -> None:
        recognizer = make_recognizer(recovery)
        (figure,) = recognizer.probe([np.array([0, 9])], torch.Generator().manual_seed(0))
        measurements.clear()
        assert _advance(recognizer, 0, 9) == figure
        assert len(measurements) == (0 if recovery.memoryless else 1)

    def test_forgetting(self, make_recognizer: MakeRecognizer, measurements: list[int]) -> None:
        recognizer = make_recognizer(RECOVERIES["bn"])
        figure = _advance(recognizer, 0, 9)
        recognizer.forget()
        measurements.clear()
        assert recognizer.accuracy() == figure
        assert measurements == [1]

    def test_a_figure_after_recovery_is_not_taken_for_one_without(self, make_recognizer: MakeRecognizer) -> None:
        recognizer = make_recognizer(RECOVERIES["bn"])
        units = np.array([*range(3), *range(6, 10), *range(14, 18)])

        def without() -> float:
            recognizer.reset()
            recognizer.zero_out(units)
            return recognizer.accuracy()

        before = without()
        recognizer.reset()
        after = _advance(recognizer, *units)
        assert after != before, "the comparison would mean nothing"
        assert without() == before
        recognizer.recover()
        assert recognizer.accuracy() == after

    def test_what_follows_a_figure_from_memory_is_computed(self, make_recognizer: MakeRecognizer) -> None:
        """Nothing was recovered when the figure was looked up; whatever is asked for next must not rely on it."""
        fresh, used = (make_recognizer(RECOVERIES["bn"]) for _ in range(2))
        used.probe([np.array([0, 9])])
        for recognizer in (fresh, used):
            _advance(recognizer, 0, 9)
        assert torch.equal(used.logits(), fresh.logits())
        assert used.accuracy("test") == fresh.accuracy("test")
        _assert_same(used.compact().state_dict(), fresh.compact().state_dict())

    def test_is_shared_by_recognizers_of_a_baseline_whose_states_are_not(
        self, make_recognizer: MakeRecognizer, measurements: list[int]
    ) -> None:
        first = make_recognizer(RECOVERIES["bn"])
        second = Recognizer(first.baseline, recovery=RECOVERIES["bn"])
        figure = _advance(first, 0, 9)
        state = _state(first)
        assert second.mask.all()
        measurements.clear()
        assert _advance(second, 0, 9) == figure
        assert measurements == []
        _advance(second, 1, 15)
        assert np.flatnonzero(first.mask == 0).tolist() == [0, 9]
        _assert_same(_state(first), state)

    def test_recoveries_do_not_mix(self, make_recognizer: MakeRecognizer, measurements: list[int]) -> None:
        baseline = make_recognizer().baseline
        recoveries = (NoRecovery(), BatchNormRecovery(images=64), BatchNormRecovery(images=65), RECOVERIES["finetune"])
        units = [*range(3), *range(6, 10), *range(14, 18)]
        shared = [_advance(Recognizer(baseline, recovery=recovery), *units) for recovery in recoveries]
        assert len(measurements) == 4
        assert shared == [_advance(make_recognizer(recovery), *units) for recovery in recoveries]
        again = [_advance(Recognizer(baseline, recovery=recovery), *units) for recovery in recoveries[::-1]]
        assert again[::-1] == shared

    def test_equal_recoveries_are_one(self, make_recognizer: MakeRecognizer, measurements: list[int]) -> None:
        baseline = make_recognizer().baseline
        for _ in range(2):
            _advance(Recognizer(baseline, recovery=BatchNormRecovery(images=64)), 0, 9)
        assert measurements == [1]


def test_network_that_cannot_be_traced(digits: tuple[Splits, Normalization]) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).mean((2, 3))).detach()

    with pytest.raises(ConfigurationError, match="Detached"):
        Baseline(Detached(), *digits, device=torch.device("cpu"))
