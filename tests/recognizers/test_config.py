"""A recognizer from its settings: which weights it takes, and what it says when they are missing or do not fit."""

import gc
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from recognizers import config
from recognizers.blueprint import Blueprint
from recognizers.config import (
    DataConfig,
    RecognizerConfig,
    build_recognizer,
    find_weights,
    load_weights,
    prepare,
    save_weights,
)
from recognizers.data import Dataset, load_dataset
from recognizers.data.formats import read_npz
from recognizers.errors import ConfigurationError, FileError, WeightsError, ZeroOutError
from recognizers.recognizer import Recognizer
from recognizers.recovery import BatchNormRecovery, NoRecovery
from recognizers.training import EpochRecord, TrainingConfig

DATA = DataConfig(spec="digits", held_out=0.4)
WIDTHS = {"widths": [6, 8, 8]}
CONVNET = RecognizerConfig(architecture="convnet", arguments=WIDTHS)
ON_DEMAND = CONVNET.model_copy(update={"train_on_demand": True, "training": TrainingConfig(epochs=2)})
BLUEPRINT = Blueprint("convnet", 10, 1, WIDTHS)


@pytest.fixture
def weights(tmp_path: Path, trained: nn.Module) -> Path:
    path = tmp_path / "convnet.safetensors"
    save_weights(path, trained.state_dict(), BLUEPRINT)
    return path


@pytest.fixture(autouse=True)
def no_weights_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.WEIGHTS_VARIABLE, raising=False)


class TestPrepare:
    def test_fresh_weights_follow_from_the_seed_alone(self) -> None:
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        first = prepare(CONVNET, DATA)
        assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are left alone"
        torch.manual_seed(2)
        second = prepare(CONVNET, DATA)
        other = prepare(CONVNET.model_copy(update={"training": TrainingConfig(seed=1)}), DATA)
        assert torch.equal(first.network.linear.weight, second.network.linear.weight)
        assert not torch.equal(first.network.linear.weight, other.network.linear.weight)

    def test_division_and_normalisation(self) -> None:
        parts = prepare(CONVNET, DATA.model_copy(update={"mean": (0.25,), "std": (0.5,)}))
        assert (parts.normalization.mean, parts.normalization.std) == ((0.25,), (0.5,))
        train, reward, selection = (
            len(getattr(parts.splits, name).labels) for name in ("train", "reward", "selection")
        )
        assert (reward + selection) / (train + reward + selection) == pytest.approx(0.4, abs=0.01)
        assert abs(reward - selection) <= 1
        normalised = prepare(CONVNET, DATA).normalization.normalize(parts.splits.train.images)
        assert normalised.mean().item() == pytest.approx(0, abs=1e-4)
        assert normalised.std().item() == pytest.approx(1, abs=1e-3)

    @pytest.mark.parametrize("half", [{"mean": [0.5]}, {"std": [0.5]}])
    def test_mean_without_std_is_refused_rather_than_ignored(self, half: dict[str, list[float]]) -> None:
        with pytest.raises((ValueError, ConfigurationError), match=r"mean|std"):
            prepare(CONVNET, DataConfig(spec="digits", **half))

    @pytest.mark.parametrize("arguments", [{"widht": [3]}, {"classes": 5}])
    def test_arguments_that_the_architecture_does_not_take(self, arguments: dict[str, object]) -> None:
        with pytest.raises(ConfigurationError, match="convnet"):
            prepare(RecognizerConfig(architecture="convnet", arguments=arguments), DATA)


class TestFindWeights:
    def test_configured_path_goes_first(self, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
        monkeypatch.setenv(config.WEIGHTS_VARIABLE, str(weights.parent))
        assert find_weights(CONVNET) == weights
        assert find_weights(CONVNET.model_copy(update={"weights": "x.pt"})) == Path("x.pt")

    def test_none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert find_weights(CONVNET) is None
        monkeypatch.setenv(config.WEIGHTS_VARIABLE, str(tmp_path))
        assert find_weights(CONVNET) is None


class TestBuild:
    def test_with_weights(self, weights: Path, trained: nn.Module) -> None:
        recognizer = build_recognizer(
            CONVNET.model_copy(update={"weights": str(weights), "batch_size": 77, "precision": "float32"}),
            DATA,
            BatchNormRecovery(images=32),
        )
        assert all(torch.equal(recognizer.base_state[name], tensor) for name, tensor in trained.state_dict().items())
        assert recognizer.baseline_accuracy("test") > 0.5
        assert recognizer.architecture == "convnet"
        assert (recognizer.batch_size, recognizer.baseline.precision) == (77, "float32")
        assert recognizer.recovery == BatchNormRecovery(images=32)

    def test_trained_on_demand_twice_the_same(self) -> None:
        first = build_recognizer(ON_DEMAND, DATA, NoRecovery())
        sha256, gone = first.base_sha256, weakref.ref(first.baseline)
        assert first.baseline_accuracy("train") > 0.2  # chance is 0.1
        del first
        gc.collect()
        assert gone() is None
        assert build_recognizer(ON_DEMAND, DATA, NoRecovery()).base_sha256 == sha256

    def test_weights_are_preferred_to_training(self, weights: Path, trained: nn.Module) -> None:
        settings = CONVNET.model_copy(update={"train_on_demand": True, "weights": str(weights)})
        recognizer = build_recognizer(settings, DATA, NoRecovery())
        assert torch.equal(recognizer.base_state["linear.bias"], trained.state_dict()["linear.bias"])

    def test_missing_weights_say_what_to_do(self) -> None:
        with pytest.raises(WeightsError, match=r"--weights PATH.*\$ZEROOUT_WEIGHTS_DIR.*zeroout recognizer train"):
            build_recognizer(CONVNET, DATA, NoRecovery())

    def test_configured_weights_that_do_not_exist(self) -> None:
        with pytest.raises(FileError, match="no such file"):
            build_recognizer(CONVNET.model_copy(update={"weights": "no.safetensors"}), DATA, NoRecovery())


@pytest.mark.parametrize(
    ("gains", "precision", "warned"), [(False, "bfloat16", 1), (False, "auto", 0), (True, "bfloat16", 0)]
)
def test_a_precision_that_only_costs_time_is_told(
    weights: Path, monkeypatch: pytest.MonkeyPatch, gains: bool, precision: str, warned: int
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: gains)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    settings = CONVNET.model_copy(update={"weights": str(weights), "precision": precision})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build_recognizer(settings, DATA, NoRecovery())
    assert len([warning for warning in caught if "slower than float32" in str(warning.message)]) == warned


class TestSharing:
    """Equal settings stand on one baseline."""

    @pytest.fixture
    def settings(self, weights: Path) -> RecognizerConfig:
        return CONVNET.model_copy(update={"weights": str(weights)})

    @pytest.fixture
    def first(self, settings: RecognizerConfig) -> Recognizer:
        return build_recognizer(settings, DATA, BatchNormRecovery(images=32))

    @pytest.mark.parametrize(
        "changes",
        [
            {"cache_megabytes": 0},
            {"threads": 1},
            {"finetuning": TrainingConfig(epochs=3)},
            {"training": TrainingConfig(epochs=3)},  # the weights are given
            {"train_on_demand": True},
            {"arguments": {"widths": (6, 8, 8)}},
        ],
    )
    def test_what_leaves_the_baseline_as_it_is(
        self, first: Recognizer, settings: RecognizerConfig, changes: dict[str, object]
    ) -> None:
        second = build_recognizer(settings.model_copy(update=changes), DATA, NoRecovery())
        assert second is not first
        assert second.baseline is first.baseline

    @pytest.mark.parametrize("changes", [{"batch_size": 7}, {"precision": "bfloat16"}])
    def test_other_settings_of_the_network(
        self, first: Recognizer, settings: RecognizerConfig, changes: dict[str, object]
    ) -> None:
        second = build_recognizer(settings.model_copy(update=changes), DATA, NoRecovery())
        assert second.baseline is not first.baseline

    @pytest.mark.parametrize(
        "changes",
        [
            {"seed": 1},
            {"held_out": 0.3},
            {"selection_share": 0.4},
            {"validation_images": 50},
            {"mean": [0], "std": [1]},
        ],
    )
    def test_other_settings_of_the_data(
        self, first: Recognizer, settings: RecognizerConfig, changes: dict[str, object]
    ) -> None:
        other = DataConfig.model_validate(DATA.model_dump() | changes)
        assert build_recognizer(settings, other, NoRecovery()).baseline is not first.baseline

    def test_changed_weights(
        self, first: Recognizer, settings: RecognizerConfig, weights: Path, trained: nn.Module
    ) -> None:
        state = {name: tensor + 1 for name, tensor in trained.state_dict().items()}
        save_weights(weights, state, BLUEPRINT)
        second = build_recognizer(settings, DATA, NoRecovery())
        assert torch.equal(second.base_state["linear.bias"], state["linear.bias"])
        assert torch.equal(first.base_state["linear.bias"], trained.state_dict()["linear.bias"])

    def test_weights_by_another_way(self, first: Recognizer, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
        monkeypatch.setenv(config.WEIGHTS_VARIABLE, str(weights.parent))
        assert build_recognizer(CONVNET, DATA, NoRecovery()).baseline is first.baseline

    def test_changed_data(self, settings: RecognizerConfig, tmp_path: Path) -> None:
        path = tmp_path / "digits.npz"
        data = DataConfig(spec=f"npz:{path}", held_out=0.4)
        write_digits(path)
        first = build_recognizer(settings, data, NoRecovery())
        assert build_recognizer(settings, data, NoRecovery()).baseline is first.baseline
        write_digits(path, brightness=1)
        second = build_recognizer(settings, data, NoRecovery())
        assert not torch.equal(second.splits.train.images, first.splits.train.images)

    def test_a_download_is_shared_with_whoever_finds_the_file(
        self, settings: RecognizerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def download(spec: str, *, root: Path, download: bool) -> Dataset:
            path = root / "cifar10.npz"
            if not path.exists():
                assert download
                write_digits(path)
            return read_npz(path, name=spec)

        monkeypatch.setattr(config, "load_dataset", download)
        data = DataConfig(spec="cifar10", root=str(tmp_path), download=True, held_out=0.4)
        first = build_recognizer(settings, data, NoRecovery())
        monkeypatch.undo()
        found = build_recognizer(settings, data.model_copy(update={"download": False}), NoRecovery())
        assert found.baseline is first.baseline

    def test_training_happens_once_and_all_hear_of_it(self) -> None:
        heard: list[list[EpochRecord]] = [[], [], []]
        first, second = (build_recognizer(ON_DEMAND, DATA, NoRecovery(), on_epoch=heard[i].append) for i in (0, 1))
        assert first.baseline is second.baseline
        assert [record.epoch for record in heard[0]] == [1, 2]
        assert heard[0] == heard[1]
        longer = ON_DEMAND.model_copy(update={"training": TrainingConfig(epochs=3)})
        third = build_recognizer(longer, DATA, NoRecovery(), on_epoch=heard[2].append)
        assert third.baseline is not first.baseline
        assert len(heard[2]) == 3

    def test_figures_belong_to_the_recovery(self, first: Recognizer, settings: RecognizerConfig) -> None:
        second = build_recognizer(settings, DATA, NoRecovery())
        for recognizer in (first, second):
            recognizer.zero_out(np.arange(5))
            recognizer.recover()
        figures = [recognizer.accuracy() for recognizer in (first, second)]
        assert figures[0] != figures[1]
        first.forget()
        assert [recognizer.accuracy() for recognizer in (first, second)] == figures


def test_validation_images_are_all_that_rewards_see(weights: Path) -> None:
    settings = CONVNET.model_copy(update={"weights": str(weights)})
    recognizer = build_recognizer(settings, DATA.model_copy(update={"validation_images": 37}), BatchNormRecovery())
    assert recognizer.logits().shape == (37, 10)
    assert recognizer.accuracy() * 37 == pytest.approx(round(recognizer.accuracy() * 37))
    with pytest.raises(ConfigurationError, match=r"validation_images=5000, but the reward split has \d+ images"):
        build_recognizer(settings, DATA.model_copy(update={"validation_images": 5000}), NoRecovery())


def test_threads(weights: Path) -> None:
    settings = CONVNET.model_copy(update={"weights": str(weights)})
    before = torch.get_num_threads()
    try:
        shared = [
            build_recognizer(settings.model_copy(update={"threads": threads}), DATA, NoRecovery())
            for threads in (2, None)
        ]
        assert torch.get_num_threads() == 2
        shared.append(build_recognizer(settings.model_copy(update={"threads": 1}), DATA, NoRecovery()))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert len({id(recognizer.baseline) for recognizer in shared}) == 1


def write_digits(path: Path, *, brightness: int = 0) -> None:
    digits = load_dataset("digits")
    np.savez(
        path,
        train_images=np.minimum(digits.train_images.numpy()[:, 0], 250) + np.uint8(brightness),
        train_labels=digits.train_labels.numpy(),
        test_images=digits.test_images.numpy()[:, 0],
        test_labels=digits.test_labels.numpy(),
    )


class TestLoadWeights:
    @pytest.mark.parametrize(
        "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
    )
    @pytest.mark.parametrize("suffix", ["pt", "pth"])
    def test_state_dict_of_torch(self, tmp_path: Path, trained: nn.Module, wrap: object, suffix: str) -> None:
        path = tmp_path / f"w.{suffix}"
        torch.save(wrap(trained.state_dict()), path)  # type: ignore[operator]
        network = BLUEPRINT.create()
        load_weights(network, path, "convnet")
        assert torch.equal(network.linear.weight, trained.linear.weight)

    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return Path.touch, (tmp_path / "hacked",)  # type: ignore[return-value]

        path = tmp_path / "w.pt"
        torch.save({"state_dict": Evil()}, path)
        with pytest.raises(FileError, match=r"w\.pt"):
            load_weights(BLUEPRINT.create(), path, "convnet")
        assert not (tmp_path / "hacked").exists()

    @pytest.mark.parametrize("value", [3, [torch.ones(1)], {"linear.weight": 3}, {"state_dict": 3}])
    def test_no_state_dict(self, tmp_path: Path, value: object) -> None:
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="state dict"):
            load_weights(BLUEPRINT.create(), tmp_path / "w.pt", "convnet")

    @pytest.mark.parametrize("classes,widths", [(3, [6, 8, 8]), (10, [5, 8, 8]), (10, [6, 8])])
    def test_of_another_network(self, weights: Path, classes: int, widths: list[int]) -> None:
        network = Blueprint("convnet", classes, 1, {"widths": widths}).create()
        with pytest.raises(WeightsError, match=r"does not hold weights for convnet: .*(linear|features)") as caught:
            load_weights(network, weights, "convnet")
        assert "\n" not in str(caught.value)

    def test_truncated_at_many_points(self, tmp_path: Path, weights: Path, trained: nn.Module) -> None:
        torch.save(trained.state_dict(), tmp_path / "w.pt")
        for path in (weights, tmp_path / "w.pt"):
            content = path.read_bytes()
            for length in range(0, len(content), max(1, len(content) // 40)):
                path.write_bytes(content[:length])
                with pytest.raises(ZeroOutError, match=path.name):
                    load_weights(BLUEPRINT.create(), path, "convnet")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="no such file"):
            load_weights(BLUEPRINT.create(), tmp_path / "w.pt", "convnet")
