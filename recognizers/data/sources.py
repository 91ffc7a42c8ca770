"""Data sets by name: `load_dataset` and the places where it looks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

from recognizers.data.dataset import Dataset
from recognizers.data.formats import read_idx, read_image_folder, read_npz
from recognizers.data.splits import stratified_choice
from recognizers.errors import DataError, UnknownNameError
from recognizers.torchvision_compat import torchvision

DATA_DIR_VARIABLE = "ZEROOUT_DATA_DIR"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_DIGITS_TEST_SHARE = 0.2
_DIGITS_SEED = 0
_PATH_KINDS = ("imagefolder", "npz")
_FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_dataset(spec: str, *, root: Path | None = None, download: bool = False) -> Dataset:
    """Load a data set into memory.

    Args:
        spec: ``digits`` (comes with scikit-learn), ``fashion_mnist``, ``cifar10``, ``cifar100``,
            ``imagefolder:PATH`` (see `read_image_folder`) or ``npz:PATH`` (see `read_npz`).
        root: where the named data sets lie, as ``NAME.npz`` or in torchvision's layout; by default the directory in
            the environment variable ZEROOUT_DATA_DIR, else ``./data``.
        download: fetch a named data set through torchvision into ``root`` where it is missing.

    Raises:
        UnknownNameError: no such data set.
        DataError: the data set is missing or malformed, or its download failed.
    """
    kind, colon, path = spec.partition(":")
    if kind in _PATH_KINDS:
        if not path:
            raise DataError(f"data set {spec!r} lacks its path: write {kind}:PATH")
        if kind == "npz":
            return read_npz(Path(path), name=spec)
        return read_image_folder(Path(path), name=spec)
    if kind == "digits" or kind in _NAMED:
        if colon:
            raise DataError(f"data set {kind!r} takes no path; for data of your own write npz:PATH or imagefolder:PATH")
        return _load_digits() if kind == "digits" else _load_named(kind, _data_root(root), download)
    raise UnknownNameError("data set", spec, ["digits", *_NAMED, *(f"{known}:PATH" for known in _PATH_KINDS)])


def dataset_files(spec: str, *, root: Path | None = None) -> list[Path]:
    """The files from which :func:`load_dataset` may read a data set, as far as they exist.

    Args:
        spec: as there; one that is wrong has no files.
        root: as there.
    """
    kind, _, path = spec.partition(":")
    if kind in _PATH_KINDS:
        places = [Path(path)] if path else []
    elif kind in _NAMED:
        places = [_data_root(root) / f"{kind}.npz", _data_root(root) / _NAMED[kind].folder]
        if kind == "fashion_mnist":
            places.append(DEBIAN_FASHION_MNIST)
    else:
        places = []
    found = (place.rglob("*") if place.is_dir() else [place] for place in places)
    return sorted(path for paths in found for path in paths if path.is_file())


def _data_root(root: Path | None) -> Path:
    return Path(root or os.environ.get(DATA_DIR_VARIABLE) or "data")


def _load_digits() -> Dataset:
    """Load scikit-learn's embedded digits: 1,797 grey images of 8x8, a fixed stratified fifth of them as test data."""
    digits = load_digits()
    # Values are 0..16 in steps of 1; scaled to the full range of bytes.
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)  # [N, 1, 8, 8]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = stratified_choice(labels, _DIGITS_TEST_SHARE, np.random.default_rng(_DIGITS_SEED))
    return Dataset(
        "digits",
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        classes=10,
        class_names=tuple(map(str, range(10))),
    )


def _load_named(name: str, root: Path, download: bool) -> Dataset:
    archive = root / f"{name}.npz"
    fetch, _, class_names = _NAMED[name]
    looked = [str(archive), f"{root} (torchvision's layout)"]
    if archive.is_file():
        return read_npz(archive, name=name, class_names=class_names)
    remedies = [f"download it with download=True (--download) into {root}"]
    try:
        return fetch(root, False)
    except RuntimeError:  # torchvision: "Dataset not found or corrupted"
        pass
    if name == "fashion_mnist":
        if DEBIAN_FASHION_MNIST.is_dir():
            return _debian_fashion_mnist()
        looked.append(str(DEBIAN_FASHION_MNIST))
        remedies.append("apt install dataset-fashion-mnist")
    if not download:
        remedies.append("give a file of your own as npz:PATH")
        raise DataError(f"data set {name!r} not found in {', '.join(looked)}: {', or '.join(remedies)}")
    try:
        return fetch(root, True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"cannot download data set {name!r} into {root}: {error}") from error


def _cifar(dataset_class: Any, name: str, root: Path, download: bool) -> Dataset:
    # torchvision compares the MD5 of every batch file before it unpickles it.
    train = dataset_class(root, train=True, download=download)
    test = dataset_class(root, train=False, download=False)
    return Dataset(
        name,
        torch.from_numpy(train.data).permute(0, 3, 1, 2).contiguous(),  # [N, H, W, C] -> [N, C, H, W]
        torch.tensor(train.targets),
        torch.from_numpy(test.data).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(test.targets),
        classes=len(train.classes),
        class_names=tuple(train.classes),
    )


def _cifar10(root: Path, download: bool) -> Dataset:
    return _cifar(torchvision.datasets.CIFAR10, "cifar10", root, download)


def _cifar100(root: Path, download: bool) -> Dataset:
    return _cifar(torchvision.datasets.CIFAR100, "cifar100", root, download)


def _fashion_mnist(root: Path, download: bool) -> Dataset:
    train = torchvision.datasets.FashionMNIST(root, train=True, download=download)
    test = torchvision.datasets.FashionMNIST(root, train=False, download=False)
    return Dataset(
        "fashion_mnist",
        train.data.unsqueeze(1),  # [N, H, W] -> [N, 1, H, W]
        train.targets,
        test.data.unsqueeze(1),
        test.targets,
        classes=10,
        class_names=_FASHION_CLASSES,
    )


def _debian_fashion_mnist() -> Dataset:
    """Read the files of the Debian package dataset-fashion-mnist."""

    def read(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        images = read_idx(DEBIAN_FASHION_MNIST / f"{part}-images-idx3-ubyte.gz")
        labels = read_idx(DEBIAN_FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz")
        return images.unsqueeze(1), labels.long()

    return Dataset("fashion_mnist", *read("train"), *read("t10k"), classes=10, class_names=_FASHION_CLASSES)


class _Named(NamedTuple):
    """Where a named data set comes from.

    Attributes:
        fetch: reader of torchvision's layout, called with root and download.
        folder: where that layout has its files, in the root.
        class_names: where an npz needs them.
    """

    fetch: Callable[[Path, bool], Dataset]
    folder: str
    class_names: tuple[str, ...] | None


_NAMED = {
    "cifar10": _Named(_cifar10, "cifar-10-batches-py", _CIFAR10_CLASSES),
    "cifar100": _Named(_cifar100, "cifar-100-python", None),
    "fashion_mnist": _Named(_fashion_mnist, "FashionMNIST", _FASHION_CLASSES),
}
