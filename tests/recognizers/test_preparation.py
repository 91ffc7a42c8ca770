"""Preparations of a recognizer: PCA at initialisation, where weights come from, and recognizers built with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fitted_networks import NETWORKS
from torch import nn

from recognizers import config
from recognizers.blueprint import Blueprint
from recognizers.compact_file import load_compact, save_compact, shape_like
from recognizers.config import (
    DataConfig,
    RecognizerConfig,
    build_recognizer,
    find_weights,
    load_weights,
    prepare,
    save_weights,
)
from recognizers.costs import Cost, count_cost
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError, FileError, UnknownNameError, WeightsError
from recognizers.files import write_tensors
from recognizers.preparation import FilterReplacement, PcaInit, Provenance
from recognizers.preparation.narrowing import narrowed_network
from recognizers.recognizer import Recognizer
from recognizers.recovery import NoRecovery
from recognizers.settings import override, validate
from recognizers.training import EpochRecord, RetrainingConfig, TrainingConfig
from recognizers.zoo import create

DATA = DataConfig(spec="digits", held_out=0.4)
WIDTHS = {"widths": [6, 8, 8]}
BLUEPRINT = Blueprint("convnet", 10, 1, WIDTHS)
BRIEF = TrainingConfig(epochs=2, precision="float32")
REPLACED = FilterReplacement(criterion="l1", rate=0.25, training=RetrainingConfig(epochs=2, precision="float32"))
NARROW = PcaInit(contribution=0.9, images=40)


@pytest.fixture(autouse=True)
def no_weights_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.WEIGHTS_VARIABLE, raising=False)


@pytest.fixture
def weights(tmp_path: Path, trained: nn.Module) -> Path:
    path = tmp_path / "convnet.safetensors"
    save_weights(path, trained.state_dict(), BLUEPRINT)
    return path


def _config(**changes: object) -> RecognizerConfig:
    settings = {"architecture": "convnet", "arguments": WIDTHS, "training": BRIEF, "precision": "float32"}
    return RecognizerConfig(**{**settings, **changes})


def _saved(recognizer: Recognizer, path: Path) -> Path:
    baseline = recognizer.baseline
    save_weights(path, baseline.state, baseline.blueprint, baseline.provenance)
    return path


def _fresh() -> nn.Module:
    return prepare(_config(), DATA).network


class TestPcaInit:
    def test_widths_by_hand(self) -> None:
        """Feature maps taken apart step by step, eigenvalues of their covariances by numpy."""
        torch.manual_seed(0)
        network = create("convnet", classes=10, in_channels=1, widths=[6, 8, 8]).eval()
        noise = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(5))
        expected, maps = [], noise
        with torch.no_grad():
            for number in (1, 2, 3):
                for part in ("conv", "bn", "relu", *(["pool"] if number < 3 else [])):
                    maps = network.features.get_submodule(f"{part}{number}")(maps)
                if number == 3:
                    maps = network.pool(maps)
                samples = maps.movedim(1, -1).flatten(0, 2).double().numpy()
                shares = np.sort(np.linalg.eigvalsh(np.cov(samples.T)))[::-1]
                expected.append(next(k for k in range(1, 9) if shares[:k].sum() >= 0.9 * shares.sum()))
        narrow = narrowed_network(network, (1, 8, 8), NARROW, seed=5)
        assert [len(narrow.features.get_submodule(f"conv{number}").weight) for number in (1, 2, 3)] == expected
        assert 3 < sum(expected) < 22
        kept = narrow.features.conv2.weight
        assert torch.equal(kept, network.features.conv2.weight[: len(kept), : kept.shape[1]])

    @pytest.mark.parametrize("name", NETWORKS)
    def test_tied_channels_go_together(self, name: str) -> None:
        torch.manual_seed(0)
        network, example = NETWORKS[name](), torch.randn(4, 1, 8, 8)
        narrow = narrowed_network(network, (1, 8, 8), PcaInit(contribution=0.5, images=8), seed=0)
        assert narrow(example).shape == (4, 10)
        assert count_cost(narrow, example).parameters < count_cost(network, example).parameters

    def test_everything_stays_where_all_variance_is_wanted(self) -> None:
        network = _fresh()
        narrow = narrowed_network(network, (1, 8, 8), PcaInit(contribution=1.0), seed=0)
        assert all(torch.equal(tensor, narrow.state_dict()[name]) for name, tensor in network.state_dict().items())


class TestBuild:
    def test_narrowed_then_trained(self, tmp_path: Path) -> None:
        wanted = _config(preparation=NARROW, train_on_demand=True)
        records: list[EpochRecord] = []
        recognizer = build_recognizer(wanted, DATA, NoRecovery(), on_epoch=records.append)
        baseline = recognizer.baseline
        assert len(records) == 2
        assert baseline.provenance == Provenance(preparation=NARROW)
        complete = _fresh()
        assert baseline.original_cost == count_cost(complete, torch.zeros(1, 1, 8, 8))
        assert baseline.costs.baseline.parameters < baseline.original_cost.parameters
        assert recognizer.parameter_reduction == 0
        removed = 1 - baseline.costs.baseline.parameters / baseline.original_cost.parameters
        assert recognizer.original_reductions[0] == pytest.approx(removed)
        recognizer.zero_out(np.array([0]))
        assert recognizer.original_reductions[0] > removed
        # Its file says how narrow it is; nothing is narrowed or trained again.
        path = _saved(recognizer, tmp_path / "narrow.safetensors")
        for settings in (wanted, _config()):
            again = build_recognizer(settings.model_copy(update={"weights": str(path)}), DATA, NoRecovery())
            assert again.base_sha256 == recognizer.base_sha256
            assert again.baseline.provenance == baseline.provenance
            assert again.baseline.history == ()
            assert again.baseline.original_cost == baseline.original_cost
        # So does that of a network which is compact twice over.
        save_compact(tmp_path / "compact.safetensors", recognizer.compact(), recognizer.blueprint)
        images = baseline.normalization.normalize(baseline.splits.test.images[:20])
        torch.testing.assert_close(load_compact(tmp_path / "compact.safetensors")(images), recognizer.compact()(images))

    def test_replaced_then_retrained(self, weights: Path, tmp_path: Path) -> None:
        wanted = _config(preparation=REPLACED, weights=str(weights))
        records: list[EpochRecord] = []
        recognizer = build_recognizer(wanted, DATA, NoRecovery(), on_epoch=records.append)
        plain = build_recognizer(_config(weights=str(weights)), DATA, NoRecovery())
        assert recognizer.base_sha256 != plain.base_sha256
        assert len(records) == 2
        assert recognizer.baseline.original_cost == recognizer.costs.baseline
        path = _saved(recognizer, tmp_path / "replaced.safetensors")
        again = build_recognizer(wanted.model_copy(update={"weights": str(path)}), DATA, NoRecovery())
        assert (again.base_sha256, again.baseline.history) == (recognizer.base_sha256, ())

    def test_trained_on_demand_replaced_and_retrained(self) -> None:
        recognizer = build_recognizer(_config(preparation=REPLACED, train_on_demand=True), DATA, NoRecovery())
        assert [record.epoch for record in recognizer.baseline.history] == [1, 2, 3, 4]

    def test_untrained(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
        monkeypatch.setenv(config.WEIGHTS_VARIABLE, str(weights.parent))  # trained ones are not taken by mistake
        wanted = _config(start="untrained")
        recognizer = build_recognizer(wanted, DATA, NoRecovery())
        assert all(torch.equal(tensor, recognizer.base_state[name]) for name, tensor in _fresh().state_dict().items())
        other = build_recognizer(_config(start="untrained", training=TrainingConfig(seed=1)), DATA, NoRecovery())
        assert other.base_sha256 != recognizer.base_sha256
        path = _saved(recognizer, tmp_path / "untrained.safetensors")
        again = build_recognizer(wanted.model_copy(update={"weights": str(path)}), DATA, NoRecovery())
        assert again.base_sha256 == recognizer.base_sha256
        assert again.baseline.provenance.start == "untrained"

    def test_untrained_and_narrowed(self) -> None:
        recognizer = build_recognizer(_config(start="untrained", preparation=NARROW), DATA, NoRecovery())
        assert recognizer.baseline.provenance == Provenance(start="untrained", preparation=NARROW)
        assert recognizer.original_reductions[0] > 0

    def test_equal_settings_share_one_and_others_do_not(self, weights: Path) -> None:
        def baseline(**changes: object) -> object:
            return build_recognizer(_config(weights=str(weights), **changes), DATA, NoRecovery()).baseline

        kept = [
            baseline(),
            baseline(preparation=REPLACED),
            baseline(preparation=REPLACED.model_copy(update={"rate": 0.5})),
            baseline(preparation=REPLACED, training=TrainingConfig(seed=1)),
        ]
        assert len(set(map(id, kept))) == 4
        assert baseline(preparation=REPLACED) is kept[1]

    def test_folder_of_weights(self, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(config.WEIGHTS_VARIABLE, str(weights.parent))
        assert find_weights(_config(preparation=REPLACED)) == weights
        assert find_weights(_config(preparation=NARROW)) is None


class TestRefused:
    def _build(self, **changes: object) -> None:
        build_recognizer(_config(**changes), DATA, NoRecovery())

    def test_weights_of_another_origin(self, weights: Path, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"trained weights, but recognizer\.start is untrained"):
            self._build(weights=str(weights), start="untrained")
        with pytest.raises(WeightsError, match=r"pca-init.*leave the weights out"):
            self._build(weights=str(weights), preparation=NARROW)
        fresh = tmp_path / "fresh.safetensors"
        save_weights(fresh, _fresh().state_dict(), BLUEPRINT, Provenance(start="untrained"))
        with pytest.raises(WeightsError, match=r"untrained weights, but recognizer\.start is trained"):
            self._build(weights=str(fresh))
        prepared = tmp_path / "prepared.safetensors"
        save_weights(prepared, _fresh().state_dict(), BLUEPRINT, Provenance(preparation=REPLACED))
        with pytest.raises(WeightsError, match="prepared in another way already"):
            self._build(weights=str(prepared), preparation=REPLACED.model_copy(update={"variant": "best"}))

    def test_no_weights_to_prepare(self) -> None:
        with pytest.raises(WeightsError, match=r"put convnet\.safetensors into"):
            self._build(preparation=REPLACED)
        with pytest.raises(WeightsError, match="pass --weights PATH, or train them"):
            self._build(preparation=NARROW)

    def test_unknown_criterion_is_told_before_the_training(self) -> None:
        records: list[EpochRecord] = []
        wanted = _config(preparation=REPLACED.model_copy(update={"criterion": "hrnk"}), train_on_demand=True)
        with pytest.raises(UnknownNameError, match="hrank"):
            build_recognizer(wanted, DATA, NoRecovery(), on_epoch=records.append)
        assert not records

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (["start=untrained", "preparation.kind=replace"], "start must be 'trained'"),
            (["start=untrained", "finetuning.distillation=0.5"], "start must be 'trained'"),
            (["preparation.kind=replcae"], "did you mean 'replace'"),
            (["preparation.kind=replace", "preparation.rat=0.1"], "did you mean 'rate'"),
            (["preparation.kind=replace", "preparation.rate=0.6"], r"preparation.*rate"),
            (["preparation.kind=pca-init", "preparation.contribution=0"], r"preparation.*contribution"),
            (["start=fresh"], "start"),
        ],
    )
    def test_settings(self, settings: list[str], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            validate(RecognizerConfig, override({"architecture": "convnet"}, settings), "test")

    def test_some_settings_of_the_retraining_leave_the_others_as_they_are(self) -> None:
        keys = ["preparation.kind=replace", "preparation.training.epochs=3", "finetuning.epochs=4"]
        changed = validate(RecognizerConfig, override({"architecture": "convnet"}, keys), "test")
        assert isinstance(changed.preparation, FilterReplacement)
        assert (changed.preparation.training.epochs, changed.preparation.training.learning_rate) == (3, 0.02)
        assert (changed.finetuning.epochs, changed.finetuning.learning_rate) == (4, 0.02)

    def test_settings_of_one_preparation_do_not_stay_with_another(self) -> None:
        tree = _config(preparation=REPLACED).model_dump()
        changed = validate(RecognizerConfig, override(tree, ["preparation.kind=pca-init"]), "test")
        assert changed.preparation == PcaInit()
        assert validate(RecognizerConfig, override(tree, ["preparation=null"]), "test").preparation is None


class TestFiles:
    def test_provenance(self, tmp_path: Path) -> None:
        for provenance in (
            Provenance(),
            Provenance(start="untrained", preparation=NARROW),
            Provenance(preparation=REPLACED),
        ):
            assert Provenance.from_metadata(provenance.to_metadata(), "file") == provenance
        assert Provenance.from_metadata({"architecture": "convnet"}, "file") == Provenance()

    @pytest.mark.parametrize("text", ["{", '{"start": "half"}', '{"preparation": {"kind": "magic"}}', '{"more": 1}'])
    def test_unusable_provenance(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        write_tensors(path, _fresh().state_dict(), {**BLUEPRINT.to_metadata(), "provenance": text})
        with pytest.raises(FileError, match=r"w\.safetensors has unusable metadata"):
            load_weights(_fresh(), path, "convnet")

    def test_complete_weights_of_another_width_are_refused(self, tmp_path: Path) -> None:
        """Only a preparation may narrow a network: else a wrong --weights would pass for a right one."""
        path, other = tmp_path / "w.safetensors", Blueprint("convnet", 10, 1, {"widths": [4, 4, 4]})
        save_weights(path, other.create().state_dict(), other)
        with pytest.raises(WeightsError, match="does not hold weights for convnet"):
            load_weights(_fresh(), path, "convnet")

    def test_narrowed_weights_of_another_depth_are_refused(self, tmp_path: Path) -> None:
        path, other = tmp_path / "w.safetensors", Blueprint("convnet", 10, 1, {"widths": [4, 4]})
        save_weights(path, other.create().state_dict(), other, Provenance(preparation=NARROW))
        with pytest.raises(WeightsError, match="does not hold weights for convnet"):
            load_weights(_fresh(), path, "convnet")

    def test_tensors_that_keep_their_shape_are_left_alone(self) -> None:
        network = _fresh()
        weight, narrow = network.linear.weight, network.features.conv1.weight[:4]
        shape_like(network, {"features.conv1.weight": narrow.shape, "linear.weight": weight.shape})
        assert network.linear.weight is weight
        assert network.features.conv1.weight.shape == narrow.shape
        assert network.features.conv1.out_channels == 4


def test_cost_of_a_network_without_blueprint(make_recognizer: object) -> None:
    baseline = make_recognizer().baseline
    table = build_unit_table(baseline.network, torch.zeros(2, 1, 8, 8))
    assert table.n_units == baseline.table.n_units
    assert baseline.original_cost == baseline.costs.baseline
    assert isinstance(baseline.original_cost, Cost)
