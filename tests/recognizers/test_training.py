"""Training learns, resumes to the same result, and reports what it did."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from recognizers import zoo
from recognizers.data import Examples, Mixing, Normalization, Splits, load_dataset, split
from recognizers.errors import ConfigurationError, FileError
from recognizers.evaluation import accuracy, predict
from recognizers.training import EpochRecord, TrainingConfig, TrainingResult, sgd_steps, train

SHORT = TrainingConfig(epochs=4, batch_size=32, warmup_epochs=1, precision="float32", flip=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> tuple[Splits, Normalization]:
    dataset = load_dataset("digits")
    return split(dataset), Normalization.of(dataset.train_images)


@pytest.fixture(scope="module")
def small(digits: tuple[Splits, Normalization]) -> tuple[Splits, Normalization]:
    splits, normalization = digits
    part = Examples(splits.train.images[:300], splits.train.labels[:300])
    return Splits(part, splits.reward, splits.selection, splits.test), normalization


def small_network(seed: int = 0) -> nn.Module:
    """A network with dropout, which draws from the global random state."""
    torch.manual_seed(seed)
    network = zoo.create("convnet", classes=10, in_channels=1, widths=(8, 12))
    network.flatten = nn.Sequential(nn.Flatten(), nn.Dropout(0.2))
    return network


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def figures(result: TrainingResult) -> list[tuple[float, ...]]:
    return [(r.epoch, r.loss, r.train_accuracy, r.held_out_accuracy, r.learning_rate) for r in result.history]


def test_convnet_learns_digits(digits: tuple[Splits, Normalization]) -> None:
    splits, normalization = digits
    torch.manual_seed(0)
    network = zoo.create("convnet", classes=10, in_channels=1)
    result = train(network, splits, normalization, TrainingConfig(epochs=15))
    test = accuracy(predict(network, splits.test.images, normalization), splits.test.labels)
    assert test >= 0.97 and result.best.held_out_accuracy >= 0.95
    assert result.history[-1].loss < result.history[0].loss


def test_result_records_every_epoch_and_restores_the_best(small: tuple[Splits, Normalization], tmp_path: Path) -> None:
    splits, normalization = small
    network, seen = small_network(), list[EpochRecord]()
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def keep(record: EpochRecord) -> None:
        seen.append(record)
        kept[record.epoch] = weights(network)

    result = train(network, splits, normalization, SHORT, on_epoch=keep, progress=True)
    assert result.history == tuple(seen) and [record.epoch for record in seen] == [1, 2, 3, 4]
    best = max(seen, key=lambda record: (record.held_out_accuracy, record.epoch))
    assert result.best == best
    assert_same(weights(network), kept[best.epoch])
    held_out = predict(network, splits.selection.images, normalization, precision="float32")
    assert accuracy(held_out, splits.selection.labels) == best.held_out_accuracy
    assert all(record.seconds > 0 and 0 <= record.train_accuracy <= 1 for record in seen)


def test_training_is_reproducible_and_leaves_the_global_random_state_alone(small: tuple[Splits, Normalization]) -> None:
    outcomes = []
    for _ in range(2):
        network = small_network()
        before = torch.get_rng_state()
        train(network, *small, SHORT)
        assert torch.equal(torch.get_rng_state(), before)
        outcomes.append(weights(network))
        torch.rand(3)
    assert_same(*outcomes)
    other = small_network()
    train(other, *small, SHORT.model_copy(update={"seed": 1}))
    assert not torch.equal(other.get_submodule("linear").weight, outcomes[0]["linear.weight"])


MIXED = SHORT.model_copy(update={"optimizer": "adamw", "learning_rate": 0.01, "mixup": 0.5})
MUON = SHORT.model_copy(update={"optimizer": "muon", "learning_rate": 0.003})


@pytest.mark.parametrize(("stop", "config"), [(1, SHORT), (3, SHORT), (4, SHORT), (2, MIXED), (2, MUON)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    small: tuple[Splits, Normalization], tmp_path: Path, stop: int, config: TrainingConfig
) -> None:
    whole, cut = small_network(), small_network()
    expected = train(whole, *small, config)

    def interrupt(record: EpochRecord) -> None:
        if record.epoch == stop:
            raise KeyboardInterrupt

    path = tmp_path / "run" / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        train(cut, *small, config, checkpoint=path, on_epoch=interrupt)
    resumed = small_network(seed=9)  # another process would start from other weights
    result = train(resumed, *small, config, checkpoint=path, resume=True)
    assert_same(weights(resumed), weights(whole))
    assert figures(result) == figures(expected) and result.best_epoch == expected.best_epoch
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_resume_without_a_checkpoint_starts_anew(small: tuple[Splits, Normalization], tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    config = SHORT.model_copy(update={"epochs": 1, "warmup_epochs": 0.5})
    assert len(train(small_network(), *small, config, checkpoint=path, resume=True).history) == 1
    assert torch.load(path, weights_only=True)["config"]["epochs"] == 1


@pytest.mark.parametrize("damage", ["truncate", "header", "bit", "empty", "other", "plain"])
def test_corrupt_checkpoints_are_refused(small: tuple[Splits, Normalization], tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.pt"
    config = SHORT.model_copy(update={"epochs": 1, "warmup_epochs": 0})
    train(small_network(), *small, config, checkpoint=path)
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        weight = torch.load(path, weights_only=True)["network"]["linear.weight"]
        position = content.index(weight.numpy().tobytes())
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    elif damage == "header":
        path.write_bytes(b"\0" * 64 + content[64:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        torch.save({"weights": torch.ones(2)}, path)
    else:
        path.write_text("not a checkpoint")
    with pytest.raises(FileError, match=r"c\.pt"):
        train(small_network(), *small, config, checkpoint=path, resume=True)


def test_a_checkpoint_of_other_settings_or_another_network_is_refused(
    small: tuple[Splits, Normalization], tmp_path: Path
) -> None:
    path = tmp_path / "c.pt"
    config = SHORT.model_copy(update={"epochs": 1, "warmup_epochs": 0})
    train(small_network(), *small, config, checkpoint=path)
    with pytest.raises(ConfigurationError, match="learning_rate, seed"):
        changed = config.model_copy(update={"seed": 5, "learning_rate": 0.2})
        train(small_network(), *small, changed, checkpoint=path, resume=True)
    other = zoo.create("convnet", classes=10, in_channels=1, widths=(9, 12))
    with pytest.raises(FileError, match="does not fit this network"):
        train(other, *small, config, checkpoint=path, resume=True)


def test_divergence_is_reported(small: tuple[Splits, Normalization]) -> None:
    config = TrainingConfig(epochs=2, learning_rate=1e20, precision="float32", warmup_epochs=0)
    with pytest.raises(ConfigurationError, match="diverged"):
        train(small_network(), *small, config)


def test_fewer_images_than_a_batch_train_as_one_batch(small: tuple[Splits, Normalization]) -> None:
    result = train(small_network(), *small, SHORT.model_copy(update={"batch_size": 1000}))
    assert len(result.history) == 4


class TestConfig:
    @pytest.mark.parametrize(
        "values",
        [
            {"epoch": 3},
            {"epochs": 0},
            {"epochs": 2, "warmup_epochs": 2},
            {"schedule": "step"},
            {"milestones": (3,)},
            {"schedule": "step", "milestones": (4, 4)},
            {"momentum": 0.0},
            {"learning_rate": float("inf")},
            {"precision": "float16"},
        ],
    )
    def test_unusable_values(self, values: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            TrainingConfig(**values)

    def test_every_field_is_described(self) -> None:
        assert all(field.description for field in TrainingConfig.model_fields.values())

    def test_cosine_with_warmup(self) -> None:
        config = TrainingConfig(epochs=10, learning_rate=1.0, warmup_epochs=2)
        rates = [config.learning_rate_at(step, 5) for step in range(50)]
        assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
        assert rates[10] == 1.0 and rates[30] == pytest.approx(0.5)
        assert all(later < sooner for sooner, later in itertools.pairwise(rates[10:])) and rates[-1] > 0

    def test_step_and_constant(self) -> None:
        step = TrainingConfig(epochs=6, learning_rate=1.0, warmup_epochs=0, schedule="step", milestones=(2, 4))
        rates = [step.learning_rate_at(index, 3) for index in range(18)]
        assert rates == pytest.approx([1.0] * 6 + [0.1] * 6 + [0.01] * 6)
        constant = TrainingConfig(epochs=6, learning_rate=1.0, warmup_epochs=0, schedule="constant")
        assert {constant.learning_rate_at(index, 3) for index in range(18)} == {1.0}


class TestSgdSteps:
    OPTIONS: dict[str, Any] = {  # noqa: RUF012
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "flip": False,
        "padding": 1,
        "precision": "float32",
    }

    def run(self, network: nn.Module, small: tuple[Splits, Normalization], steps: int, seed: int = 0) -> float:
        splits, normalization = small
        generator = torch.Generator().manual_seed(seed)
        return sgd_steps(network, *splits.train, normalization, steps=steps, generator=generator, **self.OPTIONS)

    def test_learns_and_restores_modes(self, small: tuple[Splits, Normalization]) -> None:
        network = small_network().eval()
        first = self.run(network, small, 2)
        self.run(network, small, 40)
        assert self.run(network, small, 2) < first
        assert not any(module.training for module in network.modules())

    def test_deterministic_with_the_generator(self, small: tuple[Splits, Normalization]) -> None:
        outcomes = []
        for seed in (0, 0, 1):
            torch.manual_seed(0)
            network = zoo.create("convnet", classes=10, in_channels=1, widths=(8,))
            self.run(network, small, 12, seed)  # 12 steps of 32 are more than the 300 images
            outcomes.append(weights(network))
        assert_same(outcomes[0], outcomes[1])
        assert not torch.equal(outcomes[0]["linear.weight"], outcomes[2]["linear.weight"])

    def test_a_chain_is_called_in_place_of_the_network(self, small: tuple[Splits, Normalization]) -> None:
        splits, normalization = small
        outcomes = []
        for chained in (False, True):
            network = small_network()
            chain = list(network.children()) if chained else None
            if chained:
                network.forward = None  # type: ignore[assignment]
            generator = torch.Generator().manual_seed(0)
            options = {**self.OPTIONS, "chain": chain}
            sgd_steps(network, *splits.train, normalization, steps=2, generator=generator, **options)
            outcomes.append(weights(network))
        assert_same(*outcomes)

    def test_no_steps_change_nothing(self, small: tuple[Splits, Normalization]) -> None:
        network = small_network()
        before = weights(network)
        assert self.run(network, small, 0) != self.run(network, small, 0)  # nan
        assert_same(weights(network), before)

    def test_one_step_is_plain_sgd(self, small: tuple[Splits, Normalization]) -> None:
        splits, normalization = small
        images, labels = splits.train.images[:16], splits.train.labels[:16]
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        weight = network[1].weight.detach().clone().requires_grad_()
        inputs = normalization.normalize(images).flatten(1)
        nn.functional.cross_entropy(inputs @ weight.T + network[1].bias.detach(), labels).backward()
        options = {**self.OPTIONS, "batch_size": 16, "padding": 0}
        sgd_steps(network, images, labels, normalization, steps=1, generator=torch.Generator(), **options)
        assert weight.grad is not None
        torch.testing.assert_close(network[1].weight, weight - 0.05 * (weight.grad + 1e-4 * weight))


def test_adamw_moves_every_weight_by_the_learning_rate_first(small: tuple[Splits, Normalization]) -> None:
    splits, normalization = small
    part = Examples(splits.train.images[:16], splits.train.labels[:16])
    one_step = Splits(part, splits.reward, splits.selection, splits.test)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = weights(network)
    config = TrainingConfig(
        epochs=1, batch_size=16, optimizer="adamw", learning_rate=1e-3, weight_decay=0, warmup_epochs=0, padding=0
    )
    train(network, one_step, normalization, config)
    moved = (network[1].bias - before["1.bias"]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-3, atol=0)


def test_mixtures_are_trained_on_their_mixed_labels(
    small: tuple[Splits, Normalization], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step on a batch that is mixed in a known way is a step down the mean loss of both labels, by their shares."""
    splits, normalization = small
    part = Examples(splits.train.images[:8], splits.train.labels[:8])
    partners = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    monkeypatch.setattr(Mixing, "draw", lambda *_: Mixing(0.7, partners))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    weight = network[1].weight.detach().clone().requires_grad_()
    inputs, order = (
        normalization.normalize(part.images).flatten(1),
        torch.randperm(8, generator=torch.Generator().manual_seed(0)),
    )
    inputs, labels = inputs[order], part.labels[order]
    logits = (0.7 * inputs + 0.3 * inputs[partners]) @ weight.T + network[1].bias.detach()
    loss = 0.7 * nn.functional.cross_entropy(logits, labels)
    (loss + 0.3 * nn.functional.cross_entropy(logits, labels[partners])).backward()
    config = TrainingConfig(
        epochs=1, batch_size=8, learning_rate=0.1, momentum=0, nesterov=False, weight_decay=0, warmup_epochs=0,
        schedule="constant", padding=0, mixup=1.0, precision="float32",
    )  # fmt: skip
    train(network, Splits(part, splits.reward, splits.selection, splits.test), normalization, config)
    assert weight.grad is not None
    torch.testing.assert_close(network[1].weight, weight - 0.1 * weight.grad)
