"""Learning from another network: the losses by hand, and which feature maps are compared."""

import copy
from collections.abc import Callable

import numpy as np
import odd_networks
import pytest
import torch
from reference import few
from torch import nn

from recognizers import zoo
from recognizers.baseline import Baseline
from recognizers.compaction import compact
from recognizers.data import Examples, Normalization, Splits
from recognizers.errors import ConfigurationError
from recognizers.evaluation import predict
from recognizers.training import TrainingConfig, train
from recognizers.training.distillation import Lesson, distillation_loss, hint_loss, run_chain
from recognizers.units import UnitTable

Data = tuple[Splits, Normalization]
CONFIG = TrainingConfig(epochs=4, batch_size=32, warmup_epochs=1, precision="float32", padding=0)


def baseline_of(network: nn.Module, data: Data) -> Baseline:
    return Baseline(copy.deepcopy(network), *data, device=torch.device("cpu"), batch_size=100)


def removed(table: UnitTable, share: float = 0.5) -> np.ndarray:
    """A mask without the first units of every layer, ``[n_units]``."""
    mask = np.ones(table.n_units, dtype=np.int8)
    for layer in table.layers:
        mask[layer.start : layer.start + int(share * len(layer))] = 0
    return mask


@pytest.fixture(scope="module")
def small(digits: Data) -> Data:
    return few(digits[0], 200), digits[1]


@pytest.fixture(scope="module")
def start(small: Data, trained: nn.Module) -> tuple[Baseline, np.ndarray]:
    baseline = baseline_of(trained, small)
    return baseline, removed(baseline.table)


def compact_of(baseline: Baseline, mask: np.ndarray) -> nn.Module:
    return compact(baseline.network, baseline.table, mask)


def test_distillation_is_the_divergence_of_softened_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    expected = 0.0
    for student, teacher in zip(logits / 2, wanted / 2, strict=True):
        p, q = teacher.softmax(0), student.softmax(0)
        expected += float((p * (p / q).log()).sum()) * 4 / 5
    assert float(distillation_loss(logits, wanted, 2.0)) == pytest.approx(expected)
    assert float(distillation_loss(wanted, wanted, 2.0)) == pytest.approx(0, abs=1e-12)


def test_hints_are_relative_squared_differences() -> None:
    features = [torch.tensor([[[1.0, 2.0]]]), torch.tensor([[3.0], [0.0]], dtype=torch.bfloat16)]
    wanted = [torch.tensor([[[3.0, 1.0]]]), torch.tensor([[4.0], [0.0]], dtype=torch.bfloat16)]
    # ((1 - 3)^2 + (2 - 1)^2) / (3^2 + 1^2), and (3 - 4)^2 / 4^2
    assert float(hint_loss(features, wanted)) == pytest.approx((5 / 10 + 1 / 16) / 2)
    assert float(hint_loss(wanted, wanted)) == 0
    dead = [torch.zeros(2, 3)]
    assert float(hint_loss(dead, dead)) == 0


@pytest.mark.parametrize("name", ["convnet", "resnet20", "vgg16_bn", "mobilenet_v2", "densenet121"])
def test_feature_maps_are_those_of_the_same_channels(
    name: str, enliven: Callable[..., nn.Module], masked_and_compact: Callable[..., tuple[nn.Module, nn.Module]]
) -> None:
    """Channel by channel, a compact network has the masked network's feature maps; ``kept`` says which they are."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    network = enliven(zoo.create(name, classes=10, in_channels=3), images)
    baseline = baseline_of(network, (random_splits(), Normalization((0.5,) * 3, (0.2,) * 3)))
    mask = removed(baseline.table, 0.3)
    masked, sliced = masked_and_compact(baseline.network, baseline.table, mask)
    teacher = baseline.teacher(mask)
    with torch.no_grad():
        wanted = run_chain([stage.module(masked) for stage in teacher.stages], images)
        features = run_chain([stage.module(sliced) for stage in teacher.stages], images)
    assert len(teacher.kept) == len(features) - 1 >= 3
    narrowed = sum(
        kept is not None and len(kept) < whole.shape[1]
        for kept, whole in zip([*teacher.kept, None], wanted, strict=True)
    )
    assert (narrowed > 0) == (name != "resnet20"), "which is pruned inside of its blocks only"
    for own, whole, kept in zip(features, wanted, [*teacher.kept, None], strict=True):
        shown = whole if kept is None else whole[:, kept]
        torch.testing.assert_close(own, shown, rtol=1e-3, atol=1e-3 * float(shown.abs().max()))


def random_splits() -> Splits:
    generator = torch.Generator().manual_seed(0)
    part = Examples(
        torch.randint(256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8),
        torch.randint(10, (4,), generator=generator),
    )
    return Splits(part, part, part, part)


@pytest.mark.parametrize("settings", [{"distillation": 0.5}, {"hints": 1.0}], ids=["distillation", "hints"])
def test_without_a_teacher_it_is_refused(settings: dict[str, float], small: Data, trained: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="learn from"):
        train(copy.deepcopy(trained), *small, CONFIG.model_copy(update=settings))


def test_hints_of_a_network_that_cannot_be_cut_are_refused(small: Data) -> None:
    baseline = baseline_of(odd_networks.Odd(), small)
    baseline.stages = baseline.stages[:1]
    with pytest.raises(ConfigurationError, match="set hints=0"):
        Lesson(baseline.teacher(), baseline.network, CONFIG.model_copy(update={"hints": 1.0}))


def test_distillation_alone_comes_close_to_the_teacher(small: Data, start: tuple[Baseline, np.ndarray]) -> None:
    splits, normalization = small
    baseline, mask = start
    network, kept = compact_of(baseline, mask), copy.deepcopy(baseline.state)

    def distance() -> float:
        outputs = [predict(module, splits.train.images, normalization) for module in (network, baseline.network)]
        return float(distillation_loss(outputs[0], outputs[1], 1.0))

    before = distance()
    train(network, *small, CONFIG.model_copy(update={"distillation": 1.0}), teacher=baseline.teacher(mask))
    assert distance() < 0.5 * before
    assert all(torch.equal(value, kept[name]) for name, value in baseline.state.items()), (
        "the teacher is left unchanged"
    )


def test_hints_bring_feature_maps_close_to_the_teachers(small: Data, start: tuple[Baseline, np.ndarray]) -> None:
    splits, normalization = small
    baseline, mask = start
    inputs = normalization.normalize(splits.train.images)

    def difference(network: nn.Module) -> float:
        lesson = Lesson(baseline.teacher(mask), network.eval(), CONFIG.model_copy(update={"hints": 1.0}))
        with torch.no_grad():
            return float(lesson(inputs, run_chain(lesson.chain, inputs), torch.zeros(())))

    losses = {}
    for hints in (0.0, 1.0):
        network = compact_of(baseline, mask)
        losses["before"] = difference(network)
        config = CONFIG.model_copy(update={"distillation": 1.0, "hints": hints})
        train(network, *small, config, teacher=baseline.teacher(mask))
        losses["with" if hints else "without"] = difference(network)
    assert losses["with"] < 0.8 * losses["without"]
    assert losses["with"] < losses["before"]


def test_a_complete_network_has_nothing_to_learn(small: Data, trained: nn.Module) -> None:
    baseline = baseline_of(trained, small)
    inputs = small[1].normalize(small[0].train.images)
    lesson = Lesson(baseline.teacher(), baseline.network, CONFIG.model_copy(update={"distillation": 1.0, "hints": 1.0}))
    with torch.no_grad():
        loss = lesson(inputs, run_chain(lesson.chain, inputs), torch.tensor(3.0))
    assert float(loss) == pytest.approx(0, abs=1e-6)
