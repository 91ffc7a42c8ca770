"""Exported networks compute what the masked network computes; what does not fit is refused."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from recognizers import zoo
from recognizers.blueprint import Blueprint
from recognizers.compact_file import load_compact
from recognizers.compaction import compact
from recognizers.data import Normalization
from recognizers.dependency import build_unit_table
from recognizers.errors import ConfigurationError, FileError, WeightsError, ZeroOutError
from recognizers.export import (
    PrunedNetwork,
    export_compact,
    export_onnx,
    export_torch_prune,
    load_pruned,
    load_torch_prune,
    parameter_masks,
    rebuild,
    round_up,
)
from recognizers.export.kept import KeptChannels, kept_modules, read_kept
from recognizers.export.onnx_file import onnx_runner, to_onnx
from recognizers.files import read_tensors, write_tensors
from recognizers.units import UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask

QUICK = ("convnet", "resnet20", "serial_resnet20", "mobilenet_v2")
SLOW = [*(name for name in zoo.available() if name not in QUICK), "densenet121", "efficientnet_b0"]
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}; they come with the extra 'onnx'")


def _pixels(size: int, batch: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)


def _prune(network: nn.Module, blueprint: Blueprint, mask: Callable[[UnitTable], np.ndarray]) -> PrunedNetwork:
    table = build_unit_table(network, NORMALIZATION.normalize(_pixels(32, 2)))
    return PrunedNetwork(network, table, mask(table), blueprint, NORMALIZATION, "of the base", _pixels(32))


def _masked(pruned: PrunedNetwork, images: torch.Tensor) -> torch.Tensor:
    network = pruned.blueprint.create().eval()
    network.load_state_dict(pruned.complete.state_dict())
    insert_zero_outs(network, pruned.table)
    set_mask(network, pruned.mask)
    with torch.no_grad():
        logits: torch.Tensor = network(images)
        assert (logits - pruned.complete(images)).abs().mean() > 0.1, "the mask would have no effect"
    return logits


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def pruned(
    request: pytest.FixtureRequest, enliven: Callable[..., nn.Module], random_mask: Callable[..., np.ndarray]
) -> PrunedNetwork:
    torch.manual_seed(0)
    blueprint = Blueprint(request.param, 10, 3)
    network = enliven(blueprint.create(), NORMALIZATION.normalize(_pixels(32, 8)))
    return _prune(network, blueprint, lambda table: random_mask(table, 0))


class TestEveryArchitecture:
    def test_original_class_with_buffers_and_rebuilt_one(self, pruned: PrunedNetwork, tmp_path: Path) -> None:
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        expected = _masked(pruned, images)
        export_torch_prune(tmp_path / "buffers.safetensors", pruned)
        export_compact(tmp_path / "compact.safetensors", pruned)
        buffers = load_torch_prune(tmp_path / "buffers.safetensors", pruned.blueprint.create()).eval()
        rebuilt = load_pruned(tmp_path / "compact.safetensors", pruned.blueprint.create())
        with torch.no_grad():
            torch.testing.assert_close(buffers(images), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(rebuilt(images), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.slow
    @needs_onnx
    def test_onnx(self, pruned: PrunedNetwork, tmp_path: Path) -> None:
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        export_onnx(tmp_path / "network.onnx", pruned)
        actual = onnx_runner((tmp_path / "network.onnx").read_bytes())(images)
        torch.testing.assert_close(actual, _masked(pruned, images), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def small(enliven: Callable[..., nn.Module], random_mask: Callable[..., np.ndarray]) -> PrunedNetwork:
    torch.manual_seed(0)
    blueprint = Blueprint("convnet", 4, 3, {"widths": [5, 6, 7]})
    network = enliven(blueprint.create(), NORMALIZATION.normalize(_pixels(32, 8)))
    return _prune(network, blueprint, lambda table: random_mask(table, 1))


class Grouped(nn.Module):
    """Depthwise and grouped convolutions, biases and a PReLU between the filters and their consumers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.PReLU(6),
            nn.Conv2d(6, 8, 1),
            nn.BatchNorm2d(8),
            nn.Sigmoid(),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.Flatten(),
            nn.Linear(8 * 26 * 26, 4),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(images)
        return logits


@pytest.fixture(scope="module")
def grouped(enliven: Callable[..., nn.Module], random_mask: Callable[..., np.ndarray]) -> PrunedNetwork:
    torch.manual_seed(0)
    network = enliven(Grouped(), NORMALIZATION.normalize(_pixels(32, 8)))
    pruned = _prune(network, Blueprint("of the user", 4, 3), lambda table: random_mask(table, 2))
    assert {"body.1", "body.3", "body.6"} <= pruned.table.slots.keys()
    return pruned


class TestTorchPrune:
    def test_masks_count_what_the_compact_network_has(self, small: PrunedNetwork, grouped: PrunedNetwork) -> None:
        for pruned in (small, grouped):
            masks = parameter_masks(pruned.complete, pruned.table, pruned.mask)
            sizes = {name: parameter.numel() for name, parameter in pruned.compact.named_parameters()}
            for name, parameter in pruned.complete.named_parameters():
                ones = int(masks[name].sum()) if name in masks else parameter.numel()
                assert ones == sizes[name], name

    def test_an_entry_is_masked_where_slicing_removes_it(self, small: PrunedNetwork) -> None:
        """Numbering the entries shows which of them the compact network has."""
        numbered = small.blueprint.create()
        for parameter in numbered.parameters():
            parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).view(parameter.shape)
        masks = parameter_masks(numbered, small.table, small.mask)
        sliced = dict(compact(numbered, small.table, small.mask).named_parameters())
        assert masks
        for name, bits in masks.items():
            assert bits.flatten().nonzero().flatten().tolist() == sliced[name].flatten().tolist(), name

    def test_groups_and_biases(self, grouped: PrunedNetwork) -> None:
        network = Grouped().eval()
        network.load_state_dict(grouped.complete.state_dict())
        for name, bits in parameter_masks(network, grouped.table, grouped.mask).items():
            path, _, parameter = name.rpartition(".")
            prune.custom_from_mask(network.get_submodule(path), parameter, bits)
        assert grouped.check_network(network, "buffers") < 1e-5

    def test_filters_alone_would_not_do(self, small: PrunedNetwork) -> None:
        """Else masking the consumers' input slices would be of no use."""
        network = small.blueprint.create().eval()
        network.load_state_dict(small.complete.state_dict())
        for name, bits in parameter_masks(network, small.table, small.mask).items():
            if ".conv" in name:
                rows = bits.flatten(1).any(1)
                path, _, parameter = name.rpartition(".")
                shape = (-1, *[1] * (bits.ndim - 1))
                prune.custom_from_mask(network.get_submodule(path), parameter, rows.view(shape).expand_as(bits))
        with pytest.raises(WeightsError, match="other logits"):
            small.check_network(network, "the network")

    def test_the_library_alone_reads_it(self, small: PrunedNetwork, tmp_path: Path) -> None:
        export_torch_prune(tmp_path / "file.safetensors", small)
        state = safetensors.torch.load_file(tmp_path / "file.safetensors")
        network = small.blueprint.create().eval()
        for name in [name.removesuffix("_mask") for name in state if name.endswith("_mask")]:
            path, _, parameter = name.rpartition(".")
            prune.identity(network.get_submodule(path), parameter)
        network.load_state_dict(state)
        assert small.check_network(network, "the network") < 1e-5
        for module in network.modules():
            for name in [hook._tensor_name for hook in module._forward_pre_hooks.values()]:  # type: ignore[union-attr]
                prune.remove(module, name)
        assert network.state_dict().keys() == small.complete.state_dict().keys()
        assert small.check_network(network, "the network") < 1e-5

    def test_other_architectures_and_files_are_refused(self, small: PrunedNetwork, tmp_path: Path) -> None:
        path = tmp_path / "file.safetensors"
        export_torch_prune(path, small)
        for other in (Grouped(), zoo.create("convnet", classes=4, in_channels=3, widths=[5, 6, 8])):
            with pytest.raises(WeightsError, match="does not fit"):
                load_torch_prune(path, other)
        state, metadata = read_tensors(path)
        name = next(name for name in state if name.endswith("_mask"))
        for wrong in (state[name] * 0.5, state[name][:1]):
            write_tensors(tmp_path / "wrong.safetensors", {**state, name: wrong}, metadata)
            with pytest.raises(WeightsError, match="mask of"):
                load_torch_prune(tmp_path / "wrong.safetensors", small.blueprint.create())
        write_tensors(path, state, {"format": "something"})
        with pytest.raises(WeightsError, match="buffers"):
            load_torch_prune(path, small.blueprint.create())
        path.write_bytes(path.read_bytes()[:300])
        with pytest.raises(FileError, match="truncated"):
            load_torch_prune(path, small.blueprint.create())


class TestKept:
    def test_weights_are_those_that_the_zoo_reads(self, small: PrunedNetwork, tmp_path: Path) -> None:
        export_compact(tmp_path / "file.safetensors", small)
        assert small.check_network(load_compact(tmp_path / "file.safetensors"), "the network") < 1e-5

    def test_indices_slice_the_original_weights(self, small: PrunedNetwork, tmp_path: Path) -> None:
        export_compact(tmp_path / "file.safetensors", small)
        kept = read_kept(tmp_path / "file.json").modules["features.conv2"]
        assert kept.outputs is not None or kept.inputs is not None
        weight = small.complete.get_parameter("features.conv2.weight")
        rows = slice(None) if kept.outputs is None else list(kept.outputs)
        weight = weight[rows][:, slice(None) if kept.inputs is None else list(kept.inputs)]
        assert torch.equal(weight, small.compact.get_parameter("features.conv2.weight"))

    def test_groups_and_biases(self, grouped: PrunedNetwork) -> None:
        network = Grouped()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        rebuilt = rebuild(network, grouped.compact.state_dict(), kept_modules(grouped))
        assert grouped.check_network(rebuilt, "the network") < 1e-5
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

    def test_what_does_not_fit_is_refused(self, small: PrunedNetwork, tmp_path: Path) -> None:
        path = tmp_path / "file.safetensors"
        export_compact(path, small)
        for other in (Grouped(), zoo.create("convnet", classes=5, in_channels=3, widths=[5, 6, 7])):
            with pytest.raises(WeightsError, match=type(other).__name__):
                load_pruned(path, other)
        with pytest.raises(WeightsError, match=r"features\.conv1"):
            rebuild(small.complete, {}, {"features.conv1": KeptChannels(outputs=(0, 5))})
        state, metadata = read_tensors(path)
        write_tensors(path, {name: value + 1 for name, value in state.items()}, metadata)
        with pytest.raises(WeightsError, match="other weights"):
            load_pruned(path, small.blueprint.create())

    @pytest.mark.parametrize(
        "change",
        [{"format": "x"}, {"schema_version": 2}, {"extra": 1}, {"modules": {"a": {"outputs": [1, 0]}}}, {"modules": 1}],
    )
    def test_malformed_indices_are_refused(
        self, change: dict[str, object], small: PrunedNetwork, tmp_path: Path
    ) -> None:
        export_compact(tmp_path / "file.safetensors", small)
        path = tmp_path / "file.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(FileError, match=next(iter(change))):
            load_pruned(tmp_path / "file.safetensors", small.blueprint.create())
        path.write_text("{")
        with pytest.raises(FileError, match="not valid JSON"):
            read_kept(path)


class TestOtherWeights:
    def test_of_a_compact_network_under_the_same_mask(self, small: PrunedNetwork) -> None:
        state = {name: value * 2 if value.is_floating_point() else value for name, value in _state(small).items()}
        tuned = small.with_weights(state, "tuned")
        assert all(torch.equal(value, state[name]) for name, value in tuned.compact.state_dict().items())
        assert not torch.equal(tuned.logits, small.logits)
        torch.testing.assert_close(tuned.logits, _masked(tuned, NORMALIZATION.normalize(tuned.images)))

    def test_of_other_shapes_are_refused(self, small: PrunedNetwork) -> None:
        with pytest.raises(WeightsError, match="tuned"):
            small.with_weights(small.complete.state_dict(), "tuned")
        with pytest.raises(WeightsError, match="tuned"):
            small.with_weights({}, "tuned")


def _state(pruned: PrunedNetwork) -> dict[str, torch.Tensor]:
    return dict(pruned.compact.state_dict())


@pytest.mark.parametrize("export", [export_torch_prune, export_compact, pytest.param(export_onnx, marks=needs_onnx)])
def test_no_wrong_file_is_left_behind(
    export: Callable[..., float], small: PrunedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(small)
    broken.__dict__["logits"] = small.logits + 0.1
    with pytest.raises(WeightsError, match="other logits"):
        export(tmp_path / "file.safetensors", broken)
    assert not list(tmp_path.iterdir())


@needs_onnx
class TestOnnx:
    def test_any_batch_size_and_metadata(self, small: PrunedNetwork, tmp_path: Path) -> None:
        runtime = importlib.import_module("onnxruntime")
        path = tmp_path / "network.onnx"
        export_onnx(path, small)
        run = onnx_runner(path.read_bytes(), threads=1)
        for batch in (1, 2, 7):
            images = torch.randn(batch, 3, 32, 32)
            torch.testing.assert_close(run(images), _masked(small, images), rtol=0, atol=1e-4)
        metadata = runtime.InferenceSession(path).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["mean"]) == list(NORMALIZATION.mean)
        assert metadata["architecture"] == "convnet" and "of the input" in metadata["normalization"]

    def test_with_its_normalization(self, small: PrunedNetwork, tmp_path: Path) -> None:
        path = tmp_path / "network.onnx"
        export_onnx(path, small, normalization=True)
        actual = onnx_runner(path.read_bytes())(small.images[:3])
        torch.testing.assert_close(actual, small.logits[:3], rtol=0, atol=1e-4)

    def test_what_onnx_cannot_express_is_refused(self) -> None:
        class Branching(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return images if images.sum() > 0 else -images

        with pytest.raises(ConfigurationError, match="Branching cannot be written as ONNX"):
            to_onnx(Branching(), torch.ones(2, 3, 4, 4), {})


def test_without_the_extra_its_name_is_told(
    small: PrunedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ZeroOutError, match=r"zeroout\[onnx\]"):
        export_onnx(tmp_path / "network.onnx", small)


class TestRounding:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 10_000), multiple=st.integers(1, 9))
    def test_multiples_by_the_highest_scores(
        self,
        seed: int,
        multiple: int,
        grouped: PrunedNetwork,
        residual: UnitTable,
        random_mask: Callable[..., np.ndarray],
    ) -> None:
        for table in (grouped.table, residual):
            mask = random_mask(table, seed)
            scores = np.random.default_rng(seed).random(table.n_units)
            rounded = round_up(table, mask, multiple, scores)
            assert (rounded >= mask).all()
            for layer in table.layers:
                back = layer.units[rounded[layer.units] > mask[layer.units]]
                gone = layer.units[rounded[layer.units] == 0]
                assert not len(back) or not len(gone) or scores[back].min() > scores[gone].max()
                for path in layer.producers:
                    units = table.slots[path].out_units
                    assert units is not None
                    count = np.sum((units < 0) | (rounded[units] != 0))
                    assert count % multiple == 0 or count == len(units), path
                    own = int(rounded[layer.units].sum())
                    channels = len(units) // len(layer)
                    if len(units) == channels * len(layer):  # nothing else shares the module: no unit too many
                        least = next(
                            n
                            for n in range(int(mask[layer.units].sum()), len(layer) + 1)
                            if n * channels % multiple == 0 or n == len(layer)
                        )
                        assert own == least
            assert np.array_equal(round_up(table, rounded, multiple, scores), rounded)

    def test_by_hand(self, small: PrunedNetwork) -> None:
        mask = np.ones(18, dtype=np.int8)
        mask[[0, 1, 5, 6, 7, 11]] = 0  # 3 of 5, 3 of 6, 6 of 7 remain
        scores = np.arange(18.0)
        expected = mask.copy()
        expected[[1, 7]] = 1  # 4 of 5, 4 of 6; 7 is no multiple of 4 and all that the layer had: one comes back
        expected[11] = 1
        assert np.array_equal(round_up(small.table, mask, 4, scores), expected)
        assert np.array_equal(round_up(small.table, mask, 1, scores), mask)


@pytest.fixture(scope="module")
def residual() -> UnitTable:
    return build_unit_table(zoo.create("resnet20", classes=4, in_channels=3).eval(), torch.randn(2, 3, 16, 16))
