"""What reconstructed networks are good for: other modes, precisions and networks, interruptions, further training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import odd_networks
import pytest
import torch
from fitted_networks import NETWORKS, SITES, Build, EveryPlace, make_baseline
from reference import random_units
from torch import Tensor, nn
from torch.nn import functional

from recognizers.baseline import Baseline
from recognizers.data import Normalization, Splits
from recognizers.errors import ConfigurationError
from recognizers.execution.strided import safe_strides
from recognizers.recognizer import Recognizer
from recognizers.reconstruction import layer as reconstruction_layer
from recognizers.recovery import NoRecovery, ReconstructRecovery, Recovery, UnifyRecovery, recalibrate

Make = Callable[..., Baseline]
KINDS = ("asymmetric", "symmetric", "independent", "unify")
IMAGES = 60


def _recovery(kind: str, **settings: Any) -> Recovery:
    common = {"images": IMAGES, "positions": 64, "batch_size": 30}
    if kind == "unify":
        return UnifyRecovery.model_validate(common | settings)
    return ReconstructRecovery.model_validate({"form": kind} | common | settings)


@pytest.fixture(scope="module")
def make(digits: tuple[Splits, Normalization], enliven: Callable[..., nn.Module]) -> Make:
    def baseline(build: Build, **arguments: Any) -> Baseline:
        return make_baseline(digits, enliven, build, **{"images": IMAGES, "batch_size": 30, **arguments})

    return baseline


def _half(baseline: Baseline, seed: int = 0) -> np.ndarray:
    """A mask that removes half of every layer."""
    generator, mask = np.random.default_rng(seed), np.ones(baseline.table.n_units, dtype=np.int8)
    for layer in baseline.table.layers:
        mask[generator.choice(layer.units, size=len(layer) // 2, replace=False)] = 0
    return mask


def _pruned(baseline: Baseline, recovery: Recovery, mask: np.ndarray) -> Recognizer:
    recognizer = Recognizer(baseline, recovery=recovery)
    recognizer.load_mask(mask)
    return recognizer


def _error(recognizer: Recognizer) -> float:
    """Squared error of the logits on the calibration images."""
    images = recognizer.baseline.calibration(IMAGES)
    with torch.no_grad():
        difference = recognizer.compact()(images) - recognizer.baseline.network(images)
    return float(difference.square().sum(1).mean())


def _same_values(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def _same_statistics(one: nn.Module, other: nn.Module) -> bool:
    """As close as sums in another order are."""
    pairs = zip(one.buffers(), other.buffers(), strict=True)
    return all(torch.allclose(value, right, rtol=1e-4, atol=1e-5) for value, right in pairs)


class TestStatistics:
    @pytest.mark.parametrize("kind", ["asymmetric", "symmetric"])
    @pytest.mark.parametrize("name", ["chain", "residual", "dense", "grouped"])
    def test_norms_of_fitted_layers_compute_the_same_in_training_mode(self, make: Make, name: str, kind: str) -> None:
        """On the images that they were fitted to. The base statistics are off, as norms that were not written show."""
        baseline = make(NETWORKS[name])
        network = _pruned(baseline, _recovery(kind), _half(baseline)).compact()
        changes = {}
        for path, norm in network.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                outputs: list[Tensor] = []
                handle = norm.register_forward_hook(lambda _, __, output, seen=outputs: seen.append(output))
                with torch.no_grad():
                    norm.momentum = 0.0
                    for training in (False, True):
                        norm.train(training)
                        network(baseline.calibration(IMAGES))
                handle.remove()
                norm.eval()
                changes[path] = float((outputs[1] - outputs[0]).abs().max() / outputs[0].std())
        (_, first, _), *others = SITES[name]
        slots = baseline.table.slots
        fitted = {norm for path, norm, _ in others if norm and path in slots and slots[path].in_units is not None}
        assert fitted and max(changes[norm] for norm in fitted) < 1e-4
        assert kind == "asymmetric" or (first and changes[first] > 0.1)

    @pytest.mark.parametrize("kind", ["asymmetric", "independent"])
    def test_recalibration_on_demand(self, make: Make, kind: str) -> None:
        baseline = make(NETWORKS["residual"])
        plain, recalibrated = (
            _pruned(baseline, _recovery(kind, recalibrate=on), _half(baseline)).compact() for on in (False, True)
        )
        assert not _same_statistics(plain, recalibrated)
        recalibrate(plain, baseline.calibration(IMAGES), 30, "float32")
        assert _same_statistics(plain, recalibrated)
        assert all(map(torch.equal, plain.parameters(), recalibrated.parameters()))


class TestSingularLayers:
    """Without a ridge, on units that are dead, constant, or copies of each other."""

    @pytest.mark.parametrize("ridge", [0.0, 1e-4])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("what", ["dead", "constant", "copies"])
    def test_it_costs_nothing_to_remove_one(self, make: Make, what: str, kind: str, ridge: float) -> None:
        def build() -> nn.Module:
            return nn.Sequential(
                *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)),
                *(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
            )

        baseline = make(build)
        norm, convolution = baseline.network.get_submodule("1"), baseline.network.get_submodule("0")
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d)
        with torch.no_grad():
            if what == "copies":
                convolution.weight[2], convolution.bias[2] = convolution.weight[4], convolution.bias[4]  # type: ignore[index]
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    assert tensor is not None
                    tensor[2] = tensor[4]
            else:
                norm.weight[2], norm.bias[2] = 0.0, -0.5 if what == "dead" else 0.7
        mask = np.ones(baseline.table.n_units, dtype=np.int8)
        mask[2] = 0
        recovery = _recovery(kind, **({} if kind == "unify" else {"ridge": ridge}))
        untreated = _error(_pruned(baseline, NoRecovery(), mask))
        assert (untreated > 1) == (what != "dead")
        assert _error(_pruned(baseline, recovery, mask)) < 1e-4


ODD: dict[str, Build] = {
    **odd_networks.CUT,
    **odd_networks.OTHERS,
    "late": odd_networks.LateInPlace,
    "flat": EveryPlace,
}
UNKNOWN: dict[str, Build] = {**odd_networks.UNCUT, "in place": odd_networks.LateInPlaceFunction}


class TestOddNetworks:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ODD)
    def test_they_mean_the_same_masked_and_sliced(self, make: Make, name: str, kind: str) -> None:
        baseline = make(ODD[name])
        recognizer = _pruned(baseline, _recovery(kind), _half(baseline))
        images = torch.cat(baseline.reward)
        with torch.no_grad():
            masked, sliced = recognizer.network(images), recognizer.compact()(images)
        assert sliced.isfinite().all()
        for logits in (masked, recognizer.logits()):
            torch.testing.assert_close(logits, sliced, rtol=1e-3, atol=1e-3 * float(sliced.abs().max()))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_layer_with_a_hook_keeps_its_weights(self, make: Make, kind: str) -> None:
        """Its outputs are not what its weights say."""
        baseline = make(odd_networks.Hooked)
        mask = _half(baseline)
        plain = _pruned(baseline, NoRecovery(), mask).compact()
        fitted = _pruned(baseline, _recovery(kind), mask).compact()
        assert torch.equal(fitted.get_parameter("second.weight"), plain.get_parameter("second.weight"))
        assert not torch.equal(fitted.get_parameter("head.2.weight"), plain.get_parameter("head.2.weight"))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", UNKNOWN)
    def test_what_cannot_be_traced_is_refused(self, make: Make, name: str, kind: str) -> None:
        recognizer = Recognizer(make(UNKNOWN[name]), recovery=_recovery(kind))
        recognizer.zero_out(np.array([1]))
        with pytest.raises(ConfigurationError, match=f"{type(recognizer.baseline.network).__name__} cannot be recon"):
            recognizer.recover()
        recognizer.reset()
        assert recognizer.accuracy() == recognizer.baseline_accuracy()


@pytest.mark.parametrize("kind", KINDS)
class TestUse:
    def test_in_bfloat16(self, make: Make, kind: str) -> None:
        exact, rounded = (make(NETWORKS["residual"], precision=precision) for precision in ("float32", "bfloat16"))
        assert rounded.dtype == torch.bfloat16
        logits = [_pruned(baseline, _recovery(kind), _half(baseline)).logits() for baseline in (exact, rounded)]
        torch.testing.assert_close(logits[1], logits[0], rtol=0.1, atol=0.1 * float(logits[0].abs().max()))

    def test_what_comes_out_can_be_trained(self, make: Make, kind: str) -> None:
        baseline = make(NETWORKS["residual"])
        recognizer = _pruned(baseline, _recovery(kind), _half(baseline))
        images, labels = torch.cat(baseline.reward), baseline.splits.reward.labels
        for network in (recognizer.compact(), recognizer.network):
            optimiser = torch.optim.SGD(network.train().parameters(), 0.05)
            losses = []
            for _ in range(10):
                optimiser.zero_grad()
                with safe_strides(network.modules()):
                    loss = functional.cross_entropy(network(images), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                losses.append(float(loss.detach()))
            assert losses[-1] < losses[0]

    @pytest.mark.parametrize("megabytes", [0, 1])
    def test_memory_stays_within_the_setting(self, make: Make, kind: str, megabytes: int) -> None:
        recognizer = Recognizer(
            make(lambda: odd_networks.Residual(width=40)),
            recovery=_recovery(kind, positions=4),
            cache_megabytes=megabytes,
        )
        generator, logits = np.random.default_rng(0), recognizer.logits().nbytes  # those are kept in any case
        for _ in range(2):
            recognizer.probe([random_units(recognizer.table, recognizer.mask, generator) for _ in range(3)])
            recognizer.zero_out(random_units(recognizer.table, recognizer.mask, generator))
            recognizer.recover()
            recognizer.logits()
            kept = recognizer.cached_bytes - logits
            assert 0.4 * megabytes * 2**20 <= kept <= megabytes * 2**20
        recognizer.forget()
        assert recognizer.cached_bytes == 0

    def test_an_interruption_leaves_no_trace(self, make: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        baseline = make(NETWORKS["residual"])
        before = _half(baseline)
        after = before.copy()
        after[np.flatnonzero(before)[0]] = 0
        expected = [_pruned(baseline, _recovery(kind), mask).compact() for mask in (before, after)]
        module = "walk" if kind in ("asymmetric", "symmetric") else "downdate"
        for stop in (0, 1, 3, 5):
            recognizer = _pruned(baseline, _recovery(kind), before)
            recognizer.compact()
            snapshot, calls = recognizer.snapshot(), list[int]()

            def write(*arguments: Any, calls: list[int] = calls, stop: int = stop) -> None:
                calls.append(1)
                if len(calls) > stop:
                    raise KeyboardInterrupt
                reconstruction_layer.write(*arguments)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(f"recognizers.reconstruction.{module}.write", write)
                recognizer.load_mask(after)
                recognizer.compact()
            recognizer.restore(snapshot)
            assert _same_values(recognizer.compact(), expected[0])
            recognizer.load_mask(after)
            assert _same_values(recognizer.compact(), expected[1])
