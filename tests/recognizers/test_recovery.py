"""Recovery changes what it says, as it says, and draws from its generator alone."""

import copy
from collections.abc import Callable

import pytest
import torch
from reference import PlainSubject
from torch import nn

from recognizers.baseline import Baseline
from recognizers.data import Normalization, Splits
from recognizers.recovery import (
    RECOVERIES,
    BatchNormRecovery,
    FinetuneRecovery,
    NoRecovery,
    Recovery,
    recalibrate,
)


@pytest.fixture(scope="module")
def baseline(digits: tuple[Splits, Normalization], trained: nn.Module) -> Baseline:
    return Baseline(copy.deepcopy(trained), *digits, device=torch.device("cpu"))


@pytest.fixture
def network(trained: nn.Module) -> nn.Module:
    return copy.deepcopy(trained)


FINETUNE = FinetuneRecovery(steps=3, images=64, batch_size=32)


def _apply(recovery: Recovery, network: nn.Module, baseline: Baseline, seed: int = 0) -> dict[str, torch.Tensor]:
    result = copy.deepcopy(network)
    recovery(PlainSubject(result, baseline), torch.Generator().manual_seed(seed))
    return result.state_dict()


def _changed(before: nn.Module, after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}


STATISTICS = {
    f"features.bn{layer}.{name}"
    for layer in (1, 2, 3)
    for name in ("running_mean", "running_var", "num_batches_tracked")
}


def test_none_changes_nothing(network: nn.Module, baseline: Baseline) -> None:
    assert _changed(network, _apply(NoRecovery(), network, baseline)) == set()


class TestBatchNorm:
    def test_changes_the_statistics_alone(self, network: nn.Module, baseline: Baseline) -> None:
        assert _changed(network, _apply(BatchNormRecovery(images=100), network, baseline)) == STATISTICS

    def test_equals_mean_and_variance_computed_by_hand(self, network: nn.Module, baseline: Baseline) -> None:
        state = _apply(BatchNormRecovery(images=100), network, baseline)
        features = baseline.calibration(100)
        assert features.shape == (100, 1, 8, 8)
        plain = copy.deepcopy(network).eval()
        with torch.no_grad():
            for number in (1, 2, 3):
                convolution, norm = (
                    plain.features.get_submodule(f"conv{number}"),
                    plain.features.get_submodule(f"bn{number}"),
                )
                features = convolution(features)
                values = features.transpose(0, 1).flatten(1).double()  # [C, N * H * W]
                mean, variance = values.mean(1), values.var(1)  # the running variance is the unbiased one
                torch.testing.assert_close(
                    state[f"features.bn{number}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5
                )
                torch.testing.assert_close(
                    state[f"features.bn{number}.running_var"].double(), variance, rtol=1e-4, atol=1e-5
                )
                biased = values.var(1, unbiased=False)
                scale = norm.weight.double() / (biased + norm.eps).sqrt()
                shift = norm.bias.double() - mean * scale
                features = (features.double() * scale[:, None, None] + shift[:, None, None]).relu().float()
                if number <= 2:
                    features = nn.functional.max_pool2d(features, 2)

    def test_several_batches_are_averaged(self, network: nn.Module, baseline: Baseline) -> None:
        """The first layer's input does not depend on other statistics, so its means average exactly."""
        images = baseline.calibration(60)
        recalibrate(network, images, 20, "float32")
        with torch.no_grad():
            values = network.features.conv1(images).transpose(0, 1).flatten(1)
        torch.testing.assert_close(network.features.bn1.running_mean, values.mean(1), rtol=1e-4, atol=1e-5)
        assert int(network.features.bn1.num_batches_tracked) == 3

    def test_no_batch_is_so_small_that_it_distorts_the_average(self, network: nn.Module, baseline: Baseline) -> None:
        sizes: list[int] = []
        network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        for count, batch_size in ((21, 20), (41, 20), (7, 2), (3, 1), (2, 50)):
            sizes.clear()
            recalibrate(network, baseline.calibration(count), batch_size, "float32")
            assert sum(sizes) == count
            assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2

    def test_more_images_than_there_are_means_all(self, network: nn.Module, baseline: Baseline) -> None:
        assert len(baseline.calibration(10**6)) == len(baseline.splits.train.images)

    def test_repeating_it_changes_nothing_more(self, network: nn.Module, baseline: Baseline) -> None:
        recovery = BatchNormRecovery(images=50)
        recovery(PlainSubject(network, baseline), torch.Generator())
        assert _changed(network, _apply(recovery, network, baseline)) == set()

    def test_momentum_and_mode_come_back_and_dropout_stays_off(self, baseline: Baseline) -> None:
        network = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.9), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        )
        states = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            recalibrate(network, baseline.calibration(40), 64, "float32")
            states.append(copy.deepcopy(network.state_dict()))
        assert network[1].momentum == 0.3
        assert not any(module.training for module in network.modules())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_momentum_comes_back_after_an_error(self, network: nn.Module) -> None:
        with pytest.raises(RuntimeError):
            recalibrate(network, torch.zeros(4, 7, 8, 8), 4, "float32")
        assert network.features.bn1.momentum == 0.1
        assert not network.features.bn1.training

    def test_network_without_batch_norm(self, baseline: Baseline) -> None:
        network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout())
        before = copy.deepcopy(network)
        recalibrate(network, baseline.calibration(10), 10, "float32")
        assert _changed(before, network.state_dict()) == set()


class TestFinetune:
    def test_changes_everything(self, network: nn.Module, baseline: Baseline) -> None:
        assert _changed(network, _apply(FINETUNE, network, baseline)) == set(network.state_dict())

    def test_follows_from_the_generator(self, network: nn.Module, baseline: Baseline) -> None:
        torch.manual_seed(1)
        first = _apply(FINETUNE, network, baseline, seed=5)
        torch.manual_seed(2)
        again, other = _apply(FINETUNE, network, baseline, seed=5), _apply(FINETUNE, network, baseline, seed=6)
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert not torch.equal(first["linear.weight"], other["linear.weight"])

    @pytest.mark.parametrize("change", [{"flip": True}, {"padding": 1}, {"steps": 4}, {"learning_rate": 0.02}])
    def test_settings_count(self, network: nn.Module, baseline: Baseline, change: dict[str, object]) -> None:
        plain = _apply(FINETUNE, network, baseline)
        changed = _apply(FINETUNE.model_copy(update=change), network, baseline)
        assert not torch.equal(plain["linear.weight"], changed["linear.weight"])

    def test_successive_recoveries_draw_on(self, network: nn.Module, baseline: Baseline) -> None:
        generator = torch.Generator().manual_seed(0)
        one, other = copy.deepcopy(network), copy.deepcopy(network)
        FINETUNE(PlainSubject(one, baseline), generator)
        FINETUNE(PlainSubject(other, baseline), generator)
        assert not torch.equal(one.linear.weight, other.linear.weight)

    def test_lowers_the_loss(self, network: nn.Module, baseline: Baseline) -> None:
        images, labels = baseline.splits.train
        with torch.no_grad():
            network.linear.weight[:] = 0

        def loss() -> float:
            with torch.no_grad():
                logits = network(baseline.normalization.normalize(images))
            return float(nn.functional.cross_entropy(logits, labels))

        before = loss()
        recovery = FinetuneRecovery(steps=20, learning_rate=0.1, images=64)
        recovery(PlainSubject(network, baseline), torch.Generator().manual_seed(0))
        assert loss() < 0.8 * before

    def test_ends_recalibrated(self, network: nn.Module, baseline: Baseline) -> None:
        FINETUNE(PlainSubject(network, baseline), torch.Generator().manual_seed(0))
        recalibration = BatchNormRecovery(images=FINETUNE.images, batch_size=FINETUNE.batch_size)
        assert _changed(network, _apply(recalibration, network, baseline)) == set()
        assert not network.training


@pytest.mark.parametrize("kind", RECOVERIES)
def test_every_kind_keeps_its_promises(kind: str, network: nn.Module, baseline: Baseline) -> None:
    recovery: Recovery = RECOVERIES[kind]()
    assert recovery.kind == kind  # type: ignore[attr-defined]
    changed = _changed(network, _apply(recovery, network, baseline))
    parameters = {name for name, _ in network.named_parameters()}
    allowed: dict[str, Callable[[set[str]], bool]] = {
        "nothing": lambda names: not names,
        "statistics": lambda names: not names & parameters,
        "everything": lambda _: True,
    }
    assert allowed[recovery.changes](changed)


@pytest.mark.parametrize("kind", RECOVERIES)
def test_a_subject_hears_of_changes_before_it_is_recalibrated(
    kind: str, network: nn.Module, baseline: Baseline
) -> None:
    """Else it would take the statistics of the weights before for those of the weights after."""
    subject = PlainSubject(network, baseline)
    RECOVERIES[kind]()(subject, torch.Generator())
    asked = {
        "none": [],
        "bn": ["recalibrate"],
        "finetune": ["changed", "recalibrate"],
        "reconstruct": ["reconstruct"],
        "unify": ["reconstruct"],
    }
    assert subject.asked[-2:] == asked[kind]


@pytest.mark.parametrize("kind", RECOVERIES)
def test_calibration_images_are_told_beforehand(kind: str) -> None:
    recovery: Recovery = RECOVERIES[kind](**({} if kind == "none" else {"images": 77}))
    assert recovery.calibration_images == (0 if kind == "none" else 77)
