"""Mask files: what is written comes back, and everything that does not belong to the network is refused."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recognizers.errors import FileError, MaskError, ZeroOutError
from recognizers.files import read_tensors, write_tensors
from recognizers.masks import MaskMetadata, check_mask, load_mask, save_mask, weights_sha256
from recognizers.units import Layer, UnitTable

TABLE = UnitTable((Layer("features.a", ("features.a",), 0, 3), Layer("b", ("b",), 3, 5)), {})
MASK = np.array([1, 0, 1, 0, 1], dtype=np.int8)
SHA = "0123456789abcdef" * 4
METADATA = MaskMetadata(
    architecture="convnet",
    task="digits/convnet",
    base_sha256=SHA,
    policy="uniform:l1",
    seed=3,
    baseline_validation_accuracy=0.1 + 0.2,
    validation_accuracy=0.95,
    parameter_reduction=1 / 3,
    macs_reduction=0.25,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "best.mask.safetensors"
    save_mask(path, TABLE, MASK, METADATA)
    return path


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)


class TestRoundTrip:
    def test_mask_and_metadata(self, path: Path) -> None:
        mask, metadata = load_mask(path, TABLE, SHA)
        assert mask.dtype == np.int8
        assert mask.tolist() == MASK.tolist()
        assert metadata == METADATA  # to the last bit of each fraction

    def test_format(self, path: Path) -> None:
        tensors, texts = read_tensors(path)
        assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in tensors.items()} == {
            "features.a": (torch.uint8, [1, 0, 1]),
            "b": (torch.uint8, [0, 1]),
        }
        assert texts["schema_version"] == "1"
        assert texts["policy"] == "uniform:l1"

    @given(
        bits=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6).filter(any), min_size=1, max_size=4),
        texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=3, max_size=3),
        fractions=st.lists(st.floats(0, 1), min_size=4, max_size=4),
        seed=st.integers(0, 2**63),
    )
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any(
        self, tmp_path: Path, bits: list[list[int]], texts: list[str], fractions: list[float], seed: int
    ) -> None:
        starts = np.cumsum([0, *map(len, bits)])
        table = UnitTable(
            tuple(Layer(f"l{i}", (f"l{i}",), int(starts[i]), int(starts[i + 1])) for i in range(len(bits))), {}
        )
        mask = np.array([bit for layer in bits for bit in layer], dtype=np.int8)
        names = dict(zip(("architecture", "task", "policy"), texts, strict=True))
        numbers = dict(
            zip(
                ("baseline_validation_accuracy", "validation_accuracy", "parameter_reduction", "macs_reduction"),
                fractions,
                strict=True,
            )
        )
        metadata = MaskMetadata(base_sha256=SHA, seed=seed, **names, **numbers)
        save_mask(tmp_path / "m.safetensors", table, mask, metadata)
        loaded, read = load_mask(tmp_path / "m.safetensors", table, SHA)
        assert np.array_equal(loaded, mask)
        assert read == metadata


class TestRefusals:
    def test_other_base_weights(self, path: Path) -> None:
        with pytest.raises(MaskError, match=r"other base weights.*digits/convnet.*012345"):
            load_mask(path, TABLE, "f" * 64)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="no such file"):
            load_mask(tmp_path / "none.safetensors", TABLE, SHA)

    def test_truncated_anywhere(self, path: Path) -> None:
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(FileError, match="truncated or corrupt"):
                load_mask(path, TABLE, SHA)

    def test_a_flipped_byte_is_an_error_or_a_mask_never_a_crash(self, path: Path) -> None:
        content = path.read_bytes()
        refused = 0
        for position in range(len(content)):
            for flip in (0x01, 0x80):
                path.write_bytes(content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :])
                try:
                    mask, _ = load_mask(path, TABLE, SHA)
                except ZeroOutError:
                    refused += 1
                else:
                    check_mask(mask, TABLE)
        assert refused > len(content) / 4

    @pytest.mark.parametrize(
        "table",
        [
            UnitTable((Layer("features.a", ("features.a",), 0, 3),), {}),
            UnitTable((Layer("features.a", ("features.a",), 0, 2), Layer("b", ("b",), 2, 5)), {}),
            UnitTable((Layer("features.a", ("features.a",), 0, 3), Layer("c", ("c",), 3, 5)), {}),
            UnitTable((*TABLE.layers, Layer("c", ("c",), 5, 6)), {}),
        ],
        ids=["one less", "other sizes", "other name", "one more"],
    )
    def test_other_layers(self, path: Path, table: UnitTable) -> None:
        with pytest.raises(MaskError, match="layers and their sizes differ"):
            load_mask(path, table, SHA)

    def test_a_tensor_that_is_no_layer(self, path: Path) -> None:
        _rewrite(path, lambda tensors, _: tensors.update(extra=torch.zeros(2, 2)))
        with pytest.raises(MaskError, match="does not fit"):
            load_mask(path, TABLE, SHA)

    def test_empty_layer(self, path: Path) -> None:
        _rewrite(path, lambda tensors, _: tensors["b"].zero_())
        with pytest.raises(MaskError, match="'b' would lose its last unit"):
            load_mask(path, TABLE, SHA)

    @pytest.mark.parametrize(
        "values",
        [
            torch.tensor([2, 1], dtype=torch.uint8),
            torch.tensor([255, 1], dtype=torch.uint8),
            torch.tensor([-1, 1], dtype=torch.int64),
            torch.tensor([257, 1], dtype=torch.int64),  # 1 modulo 256
            torch.tensor([0.5, 1.0]),
            torch.tensor([float("nan"), 1.0]),
            torch.tensor([1.5, 1.0], dtype=torch.bfloat16),
        ],
        ids=str,
    )
    def test_wrong_values(self, path: Path, values: torch.Tensor) -> None:
        _rewrite(path, lambda tensors, _: tensors.update(b=values))
        with pytest.raises(MaskError):
            load_mask(path, TABLE, SHA)

    def test_other_schema_version(self, path: Path) -> None:
        _rewrite(path, lambda _, texts: texts.update(schema_version="2"))
        with pytest.raises(MaskError, match="schema version '2'; this zeroout reads '1'"):
            load_mask(path, TABLE, SHA)

    def test_weights_instead_of_a_mask(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "weights.safetensors", {"w": torch.ones(2)}, {"format": "zeroout-weights"})
        with pytest.raises(MaskError, match="not a zeroout mask"):
            load_mask(tmp_path / "weights.safetensors", TABLE, SHA)

    @pytest.mark.parametrize("key", MaskMetadata.model_fields)
    def test_missing_metadata(self, path: Path, key: str) -> None:
        _rewrite(path, lambda _, texts: texts.pop(key) and None)
        with pytest.raises(FileError, match=key):
            load_mask(path, TABLE, SHA)

    def test_metadata_of_another_type(self, path: Path) -> None:
        _rewrite(path, lambda _, texts: texts.update(seed=json.dumps("three")))
        with pytest.raises(FileError, match="seed"):
            load_mask(path, TABLE, SHA)


class TestCheck:
    def test_good(self) -> None:
        check_mask(MASK, TABLE)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.ones(4), "shape"),
            (np.ones((1, 5)), "shape"),
            (np.array([1, 0, 0.5, 1, 1]), "values other than"),
            (np.array([1, 0, np.nan, 1, 1]), "values other than"),
            (np.array([0, 0, 0, 1, 1]), "'features.a' would lose its last unit"),
            (np.array([1, 0, 0, 0, 0]), "'b' would lose its last unit"),
        ],
    )
    def test_bad(self, mask: np.ndarray, message: str) -> None:
        with pytest.raises(MaskError, match=message):
            check_mask(mask, TABLE)


class TestFailedWrites:
    @pytest.mark.parametrize("exists", [True, False])
    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
        path = tmp_path / "m.safetensors"
        if exists:
            save_mask(path, TABLE, MASK, METADATA)

        def disk_full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", disk_full)
            with pytest.raises(FileError, match="No space left"):
                save_mask(path, TABLE, np.ones(5, dtype=np.int8), METADATA)
        assert list(tmp_path.iterdir()) == ([path] if exists else [])
        if exists:
            assert load_mask(path, TABLE, SHA)[0].tolist() == MASK.tolist()


STATE = {"a": torch.arange(4.0), "n": torch.tensor(3)}


class TestSha256:
    def test_order_and_memory_layout_do_not_matter(self) -> None:
        matrix = torch.arange(6.0).reshape(2, 3)
        assert weights_sha256({"a": matrix, "n": torch.tensor(3)}) == weights_sha256(
            {"n": torch.tensor(3), "a": matrix.T.contiguous().T}
        )

    @pytest.mark.parametrize(
        "other",
        [
            {"a": torch.arange(4.0), "n": torch.tensor(4)},
            {"b": torch.arange(4.0), "n": torch.tensor(3)},
            {"a": torch.arange(4.0).reshape(2, 2), "n": torch.tensor(3)},
            {"a": torch.arange(4.0).double(), "n": torch.tensor(3)},
            {"a": torch.arange(4.0)},
        ],
    )
    def test_everything_else_does(self, other: dict[str, torch.Tensor]) -> None:
        assert weights_sha256(STATE) != weights_sha256(other)

    def test_says_what_it_hashes(self) -> None:
        """Masks written by an older version must stay readable."""
        content = (
            b"a|torch.float32|(4,)|" + struct.pack("<4f", 0, 1, 2, 3) + b"n|torch.int64|()|" + struct.pack("<q", 3)
        )
        assert weights_sha256(STATE) == hashlib.sha256(content).hexdigest()
