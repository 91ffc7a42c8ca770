"""Files are written whole or not at all, and unreadable ones are named."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recognizers import files
from recognizers.errors import FileError
from recognizers.files import atomic_path, read_json, read_tensors, read_text, write_json, write_tensors, write_text


def _disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


class TestAtomicPath:
    def test_writes_and_leaves_nothing_beside(self, tmp_path: Path) -> None:
        target = tmp_path / "new folder" / "file.txt"
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent  # a rename across file systems would not be atomic
            temporary.write_text("one")
            assert not target.exists()
        assert target.read_text() == "one"
        assert list(target.parent.iterdir()) == [target]

    @pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt(), SystemExit(1)])
    def test_other_errors_pass_and_the_old_file_stays(self, tmp_path: Path, error: BaseException) -> None:
        target = tmp_path / "file.txt"
        target.write_text("old")
        with pytest.raises(type(error)), atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
    def test_a_full_disk_is_a_file_error_and_the_old_file_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
    ) -> None:
        target = tmp_path / "file.txt"
        target.write_text("old")
        monkeypatch.setattr(*((os, "fsync") if function == "fsync" else (Path, function)), _disk_full)
        with pytest.raises(FileError, match=r"cannot write .*file\.txt.*No space left"):
            write_text(target, "new")
        assert target.read_text() == "old"
        assert list(tmp_path.iterdir()) == [target]

    def test_the_content_is_synced_before_the_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "file.txt"
        seen: list[tuple[int, bool]] = []
        fsync: Callable[[int], None] = os.fsync

        def record(handle: int) -> None:
            seen.append((os.fstat(handle).st_size, target.exists()))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", record)
        write_text(target, "12345")
        assert seen[0] == (5, False)
        assert len(seen) == 2  # the file, then its directory, so that the new name is on the disk, too
        assert seen[1][1]

    def test_follows_the_umask_like_any_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        write_text(tmp_path / "atomic", "")
        assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(FileError, match="cannot write"):
            write_text(tmp_path / "file" / "below", "")

    def test_target_that_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(FileError, match="cannot write"):
            write_text(tmp_path / "folder", "")
        assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


class TestText:
    def test_round_trip(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a", "Zürich\n→")
        assert read_text(tmp_path / "a") == "Zürich\n→"

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match=r"no such file: .*nowhere"):
            read_text(tmp_path / "nowhere")

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"\xff\xfe")
        with pytest.raises(FileError, match="cannot read"):
            read_text(tmp_path / "a")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="cannot read"):
            read_text(tmp_path)


class TestJson:
    def test_round_trip(self, tmp_path: Path) -> None:
        value = {"a": [1, 2.5, None], "b": {"c": "d"}}
        write_json(tmp_path / "a.json", value)
        assert read_json(tmp_path / "a.json") == value

    def test_truncated(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"a": [1,')
        with pytest.raises(FileError, match=r"a\.json is not valid JSON"):
            read_json(tmp_path / "a.json")

    def test_what_is_no_json_never_reaches_the_disk(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError):
            write_json(tmp_path / "a.json", object())
        assert not list(tmp_path.iterdir())


TENSORS = {"a.b": torch.arange(6).reshape(2, 3), "c": torch.tensor([0.5])}


class TestTensors:
    def test_round_trip(self, tmp_path: Path) -> None:
        write_tensors(tmp_path / "a.safetensors", TENSORS, {"key": "value"})
        tensors, metadata = read_tensors(tmp_path / "a.safetensors")
        assert metadata == {"key": "value"}
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())

    def test_transposed_and_trainable_tensors(self, tmp_path: Path) -> None:
        weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
        write_tensors(tmp_path / "a.safetensors", {"w": weight.T, "part": weight[:, 1]}, {})
        tensors, metadata = read_tensors(tmp_path / "a.safetensors")
        assert metadata == {}
        assert tensors["w"].tolist() == weight.T.tolist()
        assert tensors["part"].tolist() == [1.0, 4.0]

    def test_tensors_that_share_memory(self, tmp_path: Path) -> None:
        """A network with tied weights has such a state dict."""
        weight = torch.arange(6.0)
        write_tensors(tmp_path / "a.safetensors", {"one": weight, "other": weight}, {})
        tensors, _ = read_tensors(tmp_path / "a.safetensors")
        assert torch.equal(tensors["one"], weight)
        assert torch.equal(tensors["other"], weight)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="no such file"):
            read_tensors(tmp_path / "a.safetensors")

    def test_truncated_anywhere(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        write_tensors(path, TENSORS, {"key": "value"})
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(FileError, match="truncated or corrupt"):
                read_tensors(path)

    def test_a_failed_write_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.safetensors"
        write_tensors(path, TENSORS, {})
        content = path.read_bytes()

        def half_written(tensors: object, temporary: Path, metadata: object) -> None:
            temporary.write_bytes(content[:20])
            _disk_full()

        monkeypatch.setattr(files.safetensors.torch, "save_file", half_written)
        with pytest.raises(FileError, match="No space left"):
            write_tensors(path, TENSORS, {})
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]
