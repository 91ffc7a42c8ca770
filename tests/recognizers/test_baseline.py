"""What recognizers share: a plain network, its images as it takes them, and figures by mask."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import odd_networks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import few
from torch import nn

from recognizers.baseline import Baseline, Memo, even_batches
from recognizers.compaction import compact
from recognizers.data import Normalization, Splits
from recognizers.errors import ConfigurationError
from recognizers.evaluation import accuracy, predict
from recognizers.masks import weights_sha256
from recognizers.recognizer import Recognizer
from recognizers.recovery import BatchNormRecovery, FinetuneRecovery, NoRecovery, Recovery
from recognizers.zoo import create

Data = tuple[Splits, Normalization]
CPU = torch.device("cpu")


@pytest.fixture
def baseline(trained: nn.Module, digits: Data) -> Baseline:
    return Baseline(copy.deepcopy(trained), *digits, batch_size=100, device=CPU)


class TestNetwork:
    def test_is_taken_over_and_made_plain(self, digits: Data) -> None:
        network = odd_networks.InPlaceModules().train()
        baseline = Baseline(network, *digits, device=CPU)
        assert baseline.network is network
        assert not any(module.training or getattr(module, "inplace", False) for module in network.modules())

    def test_names_it_without_a_blueprint(self, digits: Data) -> None:
        baseline = Baseline(odd_networks.Odd(), *digits, device=CPU)
        assert baseline.architecture == "Odd"
        with pytest.raises(ConfigurationError, match="Odd was not created by name"):
            _ = baseline.blueprint

    def test_state_and_its_sum(self, baseline: Baseline, trained: nn.Module) -> None:
        state = trained.state_dict()
        assert list(baseline.state) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in baseline.state.items())
        assert baseline.sha256 == weights_sha256(state)

    def test_macs_of_the_stages_are_all_macs(self, baseline: Baseline) -> None:
        assert sum(stage.macs for stage in baseline.stages) == baseline.costs.baseline.macs

    @pytest.mark.parametrize(
        "recovery",
        [NoRecovery(), BatchNormRecovery(images=40), FinetuneRecovery(images=40, steps=2)],
        ids=lambda recovery: recovery.kind,
    )
    def test_recognizers_never_write_to_it(self, baseline: Baseline, recovery: Recovery) -> None:
        before = {name: value.clone() for name, value in baseline.state.items()}
        places = {name: value.data_ptr() for name, value in baseline.state.items()}
        recognizer = Recognizer(baseline, recovery=recovery)
        for units in ([0], [9, 15], [1, 2, 16]):
            recognizer.probe([np.array([20]), np.array([13])])
            recognizer.zero_out(np.array(units))
            recognizer.recover()
            recognizer.accuracy()
            _ = recognizer.network
        snapshot = recognizer.snapshot()
        recognizer.reset()
        recognizer.logits()
        recognizer.restore(snapshot)
        recognizer.accuracy("test")
        assert all(torch.equal(value, before[name]) for name, value in baseline.state.items())
        assert {name: value.data_ptr() for name, value in baseline.state.items()} == places


class TestImages:
    def test_of_the_reward_split(self, baseline: Baseline) -> None:
        """All of them, in order, in batches of nearly equal size, normalised."""
        images = baseline.splits.reward.images
        sizes = [len(batch) for batch in baseline.reward]
        assert len(sizes) == round(len(images) / 100) > 1
        assert max(sizes) - min(sizes) <= 3
        assert torch.equal(torch.cat(baseline.reward), baseline.normalization.normalize(images))

    @given(count=st.integers(1, 60), batch_size=st.integers(1, 70))
    def test_batches_are_even_and_nearly_equal(self, count: int, batch_size: int) -> None:
        images = torch.arange(count)
        batches = even_batches(images, batch_size)
        sizes = [len(batch) for batch in batches]
        assert torch.equal(torch.cat(batches), images)
        assert len(sizes) == max(1, round(count / batch_size))
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 3
        if 2 * len(sizes) <= count:
            assert not any(size % 2 for size in sizes[:-1])

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_are_of_the_type_that_is_computed_in(self, trained: nn.Module, digits: Data, precision: str) -> None:
        baseline = Baseline(copy.deepcopy(trained), *digits, precision=precision, device=CPU)  # type: ignore[arg-type]
        assert baseline.dtype == getattr(torch, precision)
        assert {batch.dtype for batch in (*baseline.reward, baseline.calibration(10))} == {baseline.dtype}

    def test_of_a_calibration_are_training_images_and_always_the_same(
        self, baseline: Baseline, trained: nn.Module
    ) -> None:
        other = Baseline(copy.deepcopy(trained), baseline.splits, baseline.normalization, device=CPU)
        chosen = baseline.calibration(30)
        assert torch.equal(chosen, other.calibration(30))
        training = {image.numpy().tobytes() for image in baseline.normalization.normalize(baseline.splits.train.images)}
        assert {image.contiguous().numpy().tobytes() for image in chosen} <= training
        assert len(torch.unique(chosen.flatten(1), dim=0)) > 25, "not the same image again and again"

    def test_may_be_used_for_gradients_whoever_asked_for_them_first(self, baseline: Baseline) -> None:
        recognizer = Recognizer(baseline, recovery=BatchNormRecovery(images=30))
        recognizer.recover()
        recognizer.logits()
        recognizer.compact()(baseline.calibration(30)).sum().backward()
        recognizer.compact()(baseline.reward[0]).sum().backward()

    def test_default_batches_keep_the_widest_operation_small(self, digits: Data) -> None:
        small, large = (
            Baseline(create("convnet", classes=10, in_channels=1, widths=[width] * 2), *digits, device=CPU)
            for width in (4, 64)
        )
        assert 16 <= large.batch_size <= small.batch_size <= 1024
        uncut = Baseline(odd_networks.DataDependent(), *digits, device=CPU)
        assert 16 <= uncut.batch_size <= 1024


class TestMeasuring:
    def test_any_network_on_any_split(self, baseline: Baseline) -> None:
        mask = np.ones(22, dtype=np.int8)
        mask[[0, 7, 15]] = 0
        network = compact(baseline.network, baseline.table, mask)
        for name in ("train", "reward", "selection", "test"):
            images, labels = getattr(baseline.splits, name)
            logits = predict(network, images, baseline.normalization, precision="float32")
            assert baseline.measure(network, name) == accuracy(logits, labels)

    def test_other_splits_are_measured_in_float32(self, trained: nn.Module, digits: Data) -> None:
        baseline = Baseline(copy.deepcopy(trained), *digits, precision="bfloat16", device=CPU)
        types: list[torch.dtype] = []
        baseline.network.features.conv2.register_forward_hook(
            lambda _module, _inputs, output: types.append(output.dtype)
        )
        baseline.measure(baseline.network, "test")
        assert set(types) == {torch.float32}

    def test_accuracy_of_the_complete_network_is_measured_once(
        self, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = Recognizer(baseline), Recognizer(baseline, recovery=FinetuneRecovery(images=40, steps=1))
        second.zero_out(np.array([0]))
        figure = first.baseline_accuracy("test")
        monkeypatch.delattr(baseline.__class__, "measure")
        assert second.baseline_accuracy("test") == figure


class TestMemo:
    OPERATIONS = st.lists(
        st.tuples(st.sampled_from(["get", "put", "clear"]), st.sampled_from([b"a", b"b", b"c", b"d"]), st.floats(0, 1)),
        max_size=30,
    )

    @given(st.integers(1, 4), OPERATIONS)
    def test_remembers_what_was_used_last(self, entries: int, operations: list[tuple[str, bytes, float]]) -> None:
        memo, expected = Memo(entries), OrderedDict[bytes, float]()
        for name, key, figure in operations:
            if name == "put":
                memo.put(key, figure)
                expected.pop(key, None)
                expected[key] = figure
                while len(expected) > entries:
                    del expected[next(iter(expected))]
            elif name == "get":
                assert memo.get(key) == expected.get(key)
                if key in expected:
                    expected.move_to_end(key)
            else:
                memo.clear()
                expected.clear()
            assert len(memo) == len(expected)

    def test_one_for_each_recovery(self, baseline: Baseline) -> None:
        assert baseline.memo(BatchNormRecovery(images=40)) is baseline.memo(BatchNormRecovery(images=40))
        memos = [baseline.memo(recovery) for recovery in (NoRecovery(), BatchNormRecovery(), FinetuneRecovery())]
        assert len({id(memo) for memo in memos}) == 3

    def test_fine_tuning_is_never_remembered(self, baseline: Baseline) -> None:
        recovery = FinetuneRecovery(images=40, steps=1)
        recognizer = Recognizer(baseline, recovery=recovery)
        recognizer.probe([np.array([0]), np.array([7])])
        recognizer.zero_out(np.array([3]))
        recognizer.recover()
        recognizer.accuracy()
        assert len(baseline.memo(recovery)) == 0

    def test_forgetting_empties_all(self, baseline: Baseline) -> None:
        recoveries = (NoRecovery(), BatchNormRecovery(images=40))
        for recovery in recoveries:
            recognizer = Recognizer(baseline, recovery=recovery)
            recognizer.recover()
            recognizer.accuracy()
        assert [len(baseline.memo(recovery)) for recovery in recoveries] == [1, 1]
        baseline.forget()
        assert [len(baseline.memo(recovery)) for recovery in recoveries] == [0, 0]


def test_a_network_that_stores_what_it_saw(digits: Data, make_stored: Callable[[], nn.Module]) -> None:
    """Looking into such a network leaves stand-ins behind that must not come into the way of copies."""
    splits, normalization = few(digits[0], 20), digits[1]
    network = make_stored()
    recognizer = Recognizer(Baseline(network, splits, normalization, device=CPU), recovery=BatchNormRecovery(images=10))
    recognizer.zero_out(np.array([0]))
    recognizer.recover()
    expected = predict(recognizer.compact(), splits.reward.images, normalization, precision="float32")
    torch.testing.assert_close(recognizer.logits(), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["traced", "not traced"])
def make_stored(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    class Stored(odd_networks.Odd):
        def between(self, features: torch.Tensor) -> torch.Tensor:
            self.seen = features.detach()
            return features.relu() if request.param == "traced" or features.mean() > -1e6 else features

    return Stored
