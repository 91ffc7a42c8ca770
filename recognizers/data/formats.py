"""Readers of the file formats: npz archives, IDX files, folders of images. Nothing here unpickles."""

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from recognizers.data.dataset import Dataset
from recognizers.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"})


def read_npz(path: Path, *, name: str, class_names: tuple[str, ...] | None = None) -> Dataset:
    """Read an archive in the layout of MedMNIST.

    It holds ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` and, optionally, ``val_images`` and
    ``val_labels``. Images are uint8, grey [N, H, W] or colour [N, H, W, C]; labels are integers [N] or [N, 1].

    Raises:
        DataError: the file is missing or corrupt, lacks a key, or an array has another shape or type.
    """
    arrays = _read_arrays(path)
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        if key not in arrays:
            raise DataError(f"{path} lacks {key!r}; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    images = {key: _channels_first(path, key, array) for key, array in arrays.items() if key.endswith("_images")}
    labels = {key: _flat_labels(path, key, array) for key, array in arrays.items() if key.endswith("_labels")}
    largest = max((int(part.max()) for part in labels.values() if part.numel()), default=0)
    return Dataset(
        name,
        **images,
        **labels,
        classes=len(class_names) if class_names is not None else largest + 1,
        class_names=class_names,
    )


def _read_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    parts = ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")
    if not path.is_file():
        raise DataError(f"no such data file: {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in parts if key in archive}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a readable npz archive of plain arrays: {error}") from error


def _channels_first(path: Path, key: str, array: npt.NDArray[np.generic]) -> torch.Tensor:
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise DataError(
            f"{path}: {key!r} must be uint8 [N, H, W] or [N, H, W, C], got {array.dtype} {list(array.shape)}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.ndim == 3:
        return tensor.unsqueeze(1)  # [N, H, W] -> [N, 1, H, W]
    if tensor.shape[3] not in (1, 2, 3, 4):
        raise DataError(f"{path}: {key!r} must have its 1 to 4 channels last, got {list(array.shape)}")
    return tensor.permute(0, 3, 1, 2).contiguous()  # [N, H, W, C] -> [N, C, H, W]


def _flat_labels(path: Path, key: str, array: npt.NDArray[np.generic]) -> torch.Tensor:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(
            f"{path}: {key!r} must be one integer per image, [N] or [N, 1], got {array.dtype} {list(array.shape)}"
        )
    return torch.from_numpy(array.astype(np.int64))


def read_idx(path: Path) -> torch.Tensor:
    """Read a gzipped IDX file of unsigned bytes (the format of MNIST) as a uint8 tensor.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit integer, the values. Source: https://yann.lecun.com/exdb/mnist/.

    Raises:
        DataError: the file is unreadable, or not such a file.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    values = np.frombuffer(content, np.uint8, offset=min(start, len(content)))
    if len(content) < start or values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path} is truncated: its header says {shape}, it holds {values.size} values")
    return torch.from_numpy(values.reshape(shape).copy())


def read_image_folder(path: Path, *, name: str) -> Dataset:
    """Read ``path/train/CLASS/*`` and ``path/test/CLASS/*`` or ``path/val/CLASS/*`` into memory.

    The classes are the folders in ``train``, in alphabetical order. Where both ``test`` and ``val`` exist, ``val`` is
    the validation data; a lone ``val`` is the test data. Images are read as grey if all are grey, else as RGB.

    Raises:
        DataError: a folder is missing or empty, a class is unknown, an image is unreadable or has another size.
    """
    present = {part: path / part for part in ("train", "val", "test") if (path / part).is_dir()}
    if "train" not in present or len(present) == 1:
        raise DataError(f"{path} must hold the folders 'train' and 'test' (or 'val'), each with one folder per class")
    class_names = tuple(sorted(entry.name for entry in present["train"].iterdir() if entry.is_dir()))
    files = {part: _list_images(folder, class_names) for part, folder in present.items()}
    size, colour = _common_format([file for part in files.values() for file, _ in part])
    parts = {part: _decode(listed, size, colour) for part, listed in files.items()}
    test = parts.pop("test", None) or parts.pop("val")
    val = parts.get("val")
    return Dataset(
        name,
        *parts["train"],
        *test,
        classes=len(class_names),
        val_images=val[0] if val else None,
        val_labels=val[1] if val else None,
        class_names=class_names,
    )


def _list_images(folder: Path, class_names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """List the images of a part with their labels, in a fixed order."""
    unknown = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name not in class_names)
    if unknown:
        raise DataError(f"{folder} has the class {unknown[0]!r}, which 'train' beside it lacks")
    listed = [
        (file, label)
        for label, class_name in enumerate(class_names)
        for file in sorted((folder / class_name).glob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not listed:
        raise DataError(f"{folder} holds no images (looked for CLASS/*{', CLASS/*'.join(sorted(IMAGE_SUFFIXES))})")
    return listed


def _common_format(files: list[Path]) -> tuple[tuple[int, int], bool]:
    """Return the (width, height) that all images share, and whether any is in colour, from the headers alone."""
    size: tuple[int, int] | None = None
    colour = False
    for file in files:
        try:
            with Image.open(file) as image:
                mode, this_size = image.mode, image.size
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot read image {file}: {error}") from error
        if mode not in _GREY_MODES | _COLOUR_MODES:
            raise DataError(f"{file} has pixels of type {mode!r}; save it with 8 bits per channel")
        colour = colour or mode in _COLOUR_MODES
        size = size or this_size
        if this_size != size:
            raise DataError(
                f"{file} is {this_size[0]}x{this_size[1]}, {files[0]} is {size[0]}x{size[1]}: "
                "resize all images to one size first"
            )
    if size is None:
        raise DataError("no images")
    return size, colour


def _decode(listed: list[tuple[Path, int]], size: tuple[int, int], colour: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Read images and labels: uint8 [N, C, H, W], int64 [N]."""
    width, height = size
    pixels = np.empty((len(listed), height, width, 3 if colour else 1), np.uint8)
    for index, (file, _) in enumerate(listed):
        try:
            with Image.open(file) as image:
                pixels[index] = np.asarray(image.convert("RGB" if colour else "L")).reshape(pixels.shape[1:])
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reports broken PNG chunks as SyntaxError
            raise DataError(f"cannot read image {file}: {error}") from error
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([label for _, label in listed])
