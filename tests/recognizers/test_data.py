"""Data sets are read, checked, split and transformed as documented."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from recognizers import data
from recognizers.data import (
    Dataset,
    Mixing,
    Normalization,
    Splits,
    augment,
    dataset_files,
    load_dataset,
    split,
    stratified_choice,
)
from recognizers.data.formats import read_idx
from recognizers.errors import ConfigurationError, DataError, UnknownNameError


def make_dataset(counts: list[int], *, val: int = 0, seed: int = 0) -> Dataset:
    """A data set whose every image carries its own number, so that parts can be compared."""
    labels = torch.from_numpy(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)))
    numbers = torch.arange(len(labels))
    images = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
    own = (images[:val], labels[:val]) if val else (None, None)
    return Dataset("numbers", images, labels, images[:4], labels[:4], len(counts), *own)


def numbers(images: torch.Tensor) -> list[int]:
    return (images.view(-1, 2).int() @ torch.tensor([256, 1], dtype=torch.int32)).tolist()


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    content = {
        "train_images": np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4),
        "train_labels": np.array([[0], [1], [2], [0], [1], [2]]),
        "test_images": np.zeros((2, 4, 4), np.uint8),
        "test_labels": np.array([0, 1], np.uint8),
    }
    merged = {**content, **changes}
    return {key: value for key, value in merged.items() if value is not None}


class TestDigits:
    def test_shapes_range_and_determinism(self) -> None:
        digits = load_dataset("digits")
        assert digits.image_shape == (1, 8, 8)
        assert len(digits.train_labels) + len(digits.test_labels) == 1797
        assert len(digits.test_labels) == round(0.2 * 1797)
        assert (digits.train_images.min(), digits.train_images.max()) == (0, 255)
        assert torch.equal(digits.test_images, load_dataset("digits").test_images)

    def test_test_part_is_stratified(self) -> None:
        digits = load_dataset("digits")
        total = torch.bincount(torch.cat([digits.train_labels, digits.test_labels]))
        assert ((torch.bincount(digits.test_labels) - 0.2 * total).abs() < 1).all()


class TestNpz:
    def test_grey_and_column_labels(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", **arrays())
        dataset = load_dataset(f"npz:{tmp_path / 'd.npz'}")
        assert dataset.image_shape == (1, 4, 4) and dataset.classes == 3 and dataset.val_images is None
        assert dataset.train_labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert dataset.train_images[1, 0, 0].tolist() == [16, 17, 18, 19]

    def test_colour_and_validation(self, tmp_path: Path) -> None:
        colour = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
        changes = arrays(train_images=colour, test_images=colour[:2], val_images=colour[:1], val_labels=np.array([[2]]))
        np.savez_compressed(tmp_path / "d.npz", **changes)
        dataset = load_dataset(f"npz:{tmp_path / 'd.npz'}")
        assert dataset.image_shape == (3, 4, 5) and dataset.val_labels is not None
        assert torch.equal(dataset.train_images, torch.from_numpy(colour).permute(0, 3, 1, 2))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"test_labels": None}, "lacks 'test_labels'"),
            ({"train_images": np.zeros((6, 4, 4), np.float32)}, "'train_images' must be uint8"),
            ({"train_images": np.zeros((6, 16), np.uint8)}, "'train_images' must be uint8"),
            ({"train_images": np.zeros((6, 3, 4, 40), np.uint8)}, "channels last"),
            ({"train_images": np.zeros((0, 4, 4), np.uint8), "train_labels": np.zeros(0, int)}, "not empty"),
            ({"train_labels": np.zeros((6, 2), int)}, "'train_labels' must be one integer per image"),
            ({"train_labels": np.zeros(6)}, "'train_labels' must be one integer per image"),
            ({"train_labels": np.zeros(5, int)}, "train labels must be int64"),
            ({"train_labels": np.full(6, -1)}, "must lie in 0"),
            ({"test_images": np.zeros((2, 5, 4), np.uint8)}, "test images are"),
            ({"val_images": np.zeros((2, 4, 4), np.uint8)}, "must come together"),
        ],
    )
    def test_malformed(self, tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
        np.savez(tmp_path / "d.npz", **arrays(**changes))
        with pytest.raises(DataError, match=message):
            load_dataset(f"npz:{tmp_path / 'd.npz'}")

    def test_truncated_pickled_and_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "d.npz"
        np.savez(path, **arrays())
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="not a readable npz"):
            load_dataset(f"npz:{path}")
        np.savez(path, **arrays(train_labels=np.array([{}] * 6, dtype=object)))
        with pytest.raises(DataError, match="not a readable npz"):
            load_dataset(f"npz:{path}")
        np.save(tmp_path / "one.npy", np.zeros(3))
        with pytest.raises(DataError, match="not a readable npz"):
            load_dataset(f"npz:{tmp_path / 'one.npy'}")
        with pytest.raises(DataError, match="no such data file"):
            load_dataset(f"npz:{tmp_path / 'absent.npz'}")


class TestNamed:
    def test_npz_in_root_and_in_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        np.savez(tmp_path / "fashion_mnist.npz", **arrays())
        by_argument = load_dataset("fashion_mnist", root=tmp_path)
        monkeypatch.setenv("ZEROOUT_DATA_DIR", str(tmp_path))
        assert torch.equal(load_dataset("fashion_mnist").train_images, by_argument.train_images)
        assert by_argument.classes == 10 and by_argument.class_names is not None

    def test_missing_names_every_place_and_remedy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data.sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
        with pytest.raises(DataError) as caught:
            load_dataset("fashion_mnist", root=tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        for part in (tmp_path / "fashion_mnist.npz", tmp_path / "debian", "--download", "npz:PATH", "apt install"):
            assert str(part) in message

    def test_failed_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(root: Path, train: bool, download: bool) -> None:
            raise ConnectionError("no route") if download else RuntimeError("Dataset not found")

        monkeypatch.setattr(data.sources.torchvision.datasets, "CIFAR10", refuse)
        with pytest.raises(DataError, match=r"cannot download data set 'cifar10'.*no route"):
            load_dataset("cifar10", root=tmp_path, download=True)

    def test_torchvision_layout(self, tmp_path: Path) -> None:
        raw = tmp_path / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        write_idx_set(raw, compress=False)
        dataset = load_dataset("fashion_mnist", root=tmp_path)
        assert dataset.train_images.shape == (5, 1, 4, 3) and dataset.test_labels.tolist() == [9, 8]
        assert set(raw.iterdir()) <= set(dataset_files("fashion_mnist", root=tmp_path))

    def test_debian_layout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data.sources, "DEBIAN_FASHION_MNIST", tmp_path)
        write_idx_set(tmp_path, compress=True)
        dataset = load_dataset("fashion_mnist", root=tmp_path / "nothing")
        assert dataset.train_images.shape == (5, 1, 4, 3) and dataset.test_labels.tolist() == [9, 8]
        assert dataset_files("fashion_mnist", root=tmp_path / "nothing") == sorted(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("spec", "error"),
        [
            ("cifar", UnknownNameError),
            ("", UnknownNameError),
            ("zip:x", UnknownNameError),
            ("npz:", DataError),
            ("imagefolder", DataError),
            ("digits:x", DataError),
        ],
    )
    def test_malformed_specs(self, spec: str, error: type[Exception]) -> None:
        with pytest.raises(error):
            load_dataset(spec)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_set(folder: Path, *, compress: bool) -> None:
    content = {
        "train-images-idx3-ubyte": np.zeros((5, 4, 3)),
        "train-labels-idx1-ubyte": np.arange(5),
        "t10k-images-idx3-ubyte": np.ones((2, 4, 3)),
        "t10k-labels-idx1-ubyte": np.array([9, 8]),
    }
    for name, array in content.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))


class TestFiles:
    """What :func:`dataset_files` names, so that a change on disk is noticed."""

    def test_npz(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        assert dataset_files(f"npz:{path}") == []
        np.savez(path, **arrays())
        assert dataset_files(f"npz:{path}") == [path]

    def test_image_folder(self, tmp_path: Path) -> None:
        for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert len(dataset_files(f"imagefolder:{tmp_path}")) == 3

    def test_named_in_root_and_in_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        archive, batch = tmp_path / "cifar10.npz", tmp_path / "cifar-10-batches-py" / "data_batch_1"
        assert dataset_files("cifar10", root=tmp_path) == []
        batch.parent.mkdir()
        for path in (archive, batch, tmp_path / "cifar100.npz"):
            path.touch()
        assert dataset_files("cifar10", root=tmp_path) == sorted([archive, batch])
        monkeypatch.setenv("ZEROOUT_DATA_DIR", str(tmp_path))
        assert dataset_files("cifar10") == sorted([archive, batch])

    @pytest.mark.parametrize("spec", ["digits", "nonsense", "npz:", "cifar10:x"])
    def test_none(self, spec: str, tmp_path: Path) -> None:
        assert dataset_files(spec, root=tmp_path) == []


def test_read_idx(tmp_path: Path) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(array)))
    assert read_idx(path).tolist() == array.tolist()
    for content in (b"", b"\x00\x00\x08", b"\x00\x00\x08\x03\x00", idx(array)[:-1], idx(array) + b"x", b"PNG" * 9):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError):
            read_idx(path)
    for raw in (b"not gzip", gzip.compress(idx(array))[:-9]):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="cannot read"):
            read_idx(path)


class TestImageFolder:
    @staticmethod
    def save(path: Path, value: int, *, size: tuple[int, int] = (5, 4), mode: str = "L") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = value if mode in ("L", "I;16") else (value, 0, 1)
        Image.new(mode, size, colour).save(path)

    def fill(self, root: Path, *, parts: tuple[str, ...] = ("train", "test"), mode: str = "L") -> None:
        for part in parts:
            for value, name in ((10, "ant"), (20, "bee")):
                self.save(root / part / name / "0.png", value + len(part), mode=mode)
        (root / "train" / "ant" / "notes.txt").write_text("not an image")

    def test_grey(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        dataset = load_dataset(f"imagefolder:{tmp_path}")
        assert dataset.class_names == ("ant", "bee") and dataset.image_shape == (1, 4, 5)
        assert dataset.train_images[:, 0, 0, 0].tolist() == [15, 25] and dataset.train_labels.tolist() == [0, 1]
        assert dataset.val_images is None

    def test_one_colour_image_makes_all_colour(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        self.save(tmp_path / "test" / "bee" / "1.png", 99, mode="RGB")
        dataset = load_dataset(f"imagefolder:{tmp_path}")
        assert dataset.image_shape == (3, 4, 5) and dataset.test_images[2, :, 0, 0].tolist() == [99, 0, 1]

    def test_val_alone_is_the_test_part_and_beside_test_is_validation(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "two", parts=("train", "val"))
        dataset = load_dataset(f"imagefolder:{tmp_path / 'two'}")
        assert dataset.test_images[0, 0, 0, 0] == 13 and dataset.val_images is None
        self.fill(tmp_path / "three", parts=("train", "val", "test"))
        dataset = load_dataset(f"imagefolder:{tmp_path / 'three'}")
        assert dataset.test_images[0, 0, 0, 0] == 14
        assert dataset.val_images is not None and dataset.val_images[0, 0, 0, 0] == 13

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda root: TestImageFolder.save(root / "test/ant/1.png", 1, size=(9, 4)), "resize all images"),
            (lambda root: TestImageFolder.save(root / "test/cat/1.png", 1), "class 'cat'"),
            (lambda root: TestImageFolder.save(root / "test/ant/1.png", 1, mode="I;16"), "8 bits"),
            (lambda root: (root / "test/ant/1.png").write_bytes(b"nonsense"), "cannot read image"),
            (
                lambda root: (root / "test/ant/0.png").write_bytes((root / "test/ant/0.png").read_bytes()[:-30]),
                "cannot read image",
            ),
            (lambda root: [(root / f"test/{name}/0.png").unlink() for name in ("ant", "bee")], "holds no images"),
            (lambda root: (root / "train").rename(root / "training"), "must hold the folders"),
        ],
    )
    def test_malformed(self, tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
        self.fill(tmp_path)
        spoil(tmp_path)
        with pytest.raises(DataError, match=message):
            load_dataset(f"imagefolder:{tmp_path}")


class TestSplit:
    @settings(max_examples=40, deadline=None)
    @given(
        counts=st.lists(st.integers(8, 90), min_size=1, max_size=6),
        held_out=st.floats(0.1, 0.8),
        share=st.floats(0.3, 0.7),
        seed=st.integers(0, 2**32),
    )
    def test_disjoint_complete_stratified_deterministic(
        self, counts: list[int], held_out: float, share: float, seed: int
    ) -> None:
        dataset = make_dataset(counts)
        assume(round(sum(counts) * held_out) >= 4)
        splits = split(dataset, held_out=held_out, selection_share=share, seed=seed)
        parts = torch.cat([splits.train.images, splits.reward.images, splits.selection.images])
        assert sorted(numbers(parts)) == list(range(sum(counts)))
        held = torch.cat([splits.reward.labels, splits.selection.labels])
        assert len(held) == round(sum(counts) * held_out)
        per_class = torch.bincount(held, minlength=len(counts))
        assert ((per_class - held_out * torch.tensor(counts)).abs() < 1).all()
        chosen = torch.bincount(splits.selection.labels, minlength=len(counts))
        assert ((chosen - share * per_class).abs() < 1).all()
        for part in (splits.train, splits.reward, splits.selection):
            assert torch.equal(part.labels, dataset.train_labels[numbers(part.images)])
        again = split(dataset, held_out=held_out, selection_share=share, seed=seed)
        assert torch.equal(again.reward.images, splits.reward.images)

    def test_seeds_differ(self) -> None:
        dataset = make_dataset([50, 50])
        first, second = (numbers(split(dataset, seed=seed).reward.images) for seed in (0, 1))
        assert first != second

    def test_own_validation_data_are_the_held_out_ones(self) -> None:
        dataset = make_dataset([40, 40], val=20)
        splits = split(dataset, seed=1)
        assert len(splits.train.labels) == 80
        held = numbers(splits.reward.images) + numbers(splits.selection.images)
        assert sorted(held) == list(range(20))

    def test_too_few_and_bad_fractions(self) -> None:
        with pytest.raises(DataError, match="reward split would be empty"):
            split(make_dataset([10]), held_out=0.01)
        for fraction in (0.0, 1.0, -1.0, float("nan")):
            with pytest.raises(ConfigurationError, match="held_out"):
                split(make_dataset([10]), held_out=fraction)

    @settings(max_examples=40, deadline=None)
    @given(counts=st.lists(st.integers(20, 60), min_size=1, max_size=5), seed=st.integers(0, 2**32), draw=st.data())
    def test_validation_images_are_a_fixed_stratified_subset_of_the_reward_split(
        self, counts: list[int], seed: int, draw: st.DataObject
    ) -> None:
        dataset = make_dataset(counts)
        whole = split(dataset, held_out=0.5, seed=seed)
        available = len(whole.reward.labels)
        count = draw.draw(st.integers(1, available))
        part = split(dataset, held_out=0.5, seed=seed, validation_images=count)
        chosen = numbers(part.reward.images)
        assert len(chosen) == len(set(chosen)) == count
        assert set(chosen) <= set(numbers(whole.reward.images))
        assert torch.equal(part.reward.labels, dataset.train_labels[chosen])
        share = torch.bincount(whole.reward.labels, minlength=len(counts)) * (count / available)
        assert ((torch.bincount(part.reward.labels, minlength=len(counts)) - share).abs() < 1).all()
        for name in ("train", "selection", "test"):
            assert torch.equal(getattr(part, name).images, getattr(whole, name).images)
        again = split(dataset, held_out=0.5, seed=seed, validation_images=count)
        assert numbers(again.reward.images) == chosen

    def test_validation_images_follow_the_seed(self) -> None:
        dataset = make_dataset([100], val=100)
        chosen = [numbers(split(dataset, seed=seed, validation_images=20).reward.images) for seed in (0, 1)]
        assert chosen[0] != chosen[1]

    @pytest.mark.parametrize("count", [0, 21, 1000])
    def test_more_validation_images_than_there_are(self, count: int) -> None:
        message = f"validation_images={count}, but the reward split has 20 images: ask for 1 to 20"
        with pytest.raises(ConfigurationError, match=message):
            split(make_dataset([80]), held_out=0.5, validation_images=count)

    def test_to_device(self) -> None:
        splits = split(make_dataset([40])).to("meta")
        assert isinstance(splits, Splits) and splits.selection.images.device.type == "meta"


@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), fraction=st.floats(0.0, 1.0))
@settings(max_examples=50, deadline=None)
def test_stratified_choice_takes_the_rounded_total(counts: list[int], fraction: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    chosen = stratified_choice(labels, fraction, np.random.default_rng(0))
    assert int(chosen.sum()) == round(len(labels) * fraction)


class TestNormalization:
    def test_normalised_images_have_zero_mean_and_unit_variance(self) -> None:
        images = torch.randint(0, 200, (50, 3, 9, 9), dtype=torch.uint8)
        normalization = Normalization.of(images)
        scaled = images.double() / 255
        torch.testing.assert_close(torch.tensor(normalization.mean).double(), scaled.mean((0, 2, 3)))
        torch.testing.assert_close(
            torch.tensor(normalization.std).double(), scaled.std((0, 2, 3), correction=0), atol=1e-6, rtol=0
        )
        inputs = normalization.normalize(images)
        assert inputs.dtype == torch.float32 and inputs.shape == images.shape
        torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)

    def test_constant_channel_is_finite(self) -> None:
        images = torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)
        assert Normalization.of(images).normalize(images).isfinite().all()

    def test_wrong_channels_and_values(self) -> None:
        with pytest.raises(ConfigurationError, match="channels"):
            Normalization((0.5,), (0.2,)).normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
        for mean, std in (((0.5,), (0.0,)), ((0.5, 0.1), (0.2,)), ((), ())):
            with pytest.raises(ConfigurationError):
                Normalization(mean, std)


class TestAugment:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    @pytest.mark.parametrize(("flip", "padding"), [(True, 0), (False, 2), (True, 3)])
    def test_equals_a_loop_over_images(self, dtype: torch.dtype, flip: bool, padding: int) -> None:
        images = torch.randint(1, 255, (16, 3, 6, 5)).to(dtype)
        out = augment(images, flip=flip, padding=padding, generator=torch.Generator().manual_seed(5))
        generator = torch.Generator().manual_seed(5)
        offsets = torch.randint(2 * padding + 1, (2, 16, 1), generator=generator)
        flips = (torch.rand((16, 1), generator=generator) < 0.5) & flip
        for image, result, top, left, mirrored in zip(images, out, *offsets, flips, strict=True):
            framed = torch.nn.functional.pad(image, (padding,) * 4)
            crop = framed[:, int(top) : int(top) + 6, int(left) : int(left) + 5]
            assert torch.equal(result, crop.flip(2) if mirrored else crop)
        assert out.dtype == dtype and not torch.equal(out, images)

    def test_deterministic_and_does_nothing_when_off(self) -> None:
        images = torch.randint(0, 255, (8, 1, 6, 6), dtype=torch.uint8)
        outs = [augment(images, flip=True, padding=1, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
        assert torch.equal(*outs)
        assert augment(images, flip=False, padding=0, generator=None) is images

    def test_half_are_flipped(self) -> None:
        images = torch.tensor([1, 0], dtype=torch.uint8).view(1, 1, 1, 2).repeat(2000, 1, 1, 1)
        out = augment(images, flip=True, padding=0, generator=torch.Generator().manual_seed(0))
        assert 900 < int(out[:, 0, 0, 1].sum()) < 1100


class TestMixing:
    def test_by_hand(self) -> None:
        values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 2.0]])
        mixed = Mixing(0.75, torch.tensor([1, 0, 2]))(values)
        assert mixed.tolist() == [[0.75, 0.25], [0.25, 0.75], [4.0, 2.0]]

    def test_inputs_keep_their_layout_and_probabilities_their_sum(self) -> None:
        torch.manual_seed(0)
        mixing = Mixing.draw(6, 1.0, torch.device("cpu"))
        images = torch.rand(6, 3, 4, 4).to(memory_format=torch.channels_last)
        assert mixing(images).is_contiguous(memory_format=torch.channels_last)
        labels = torch.nn.functional.one_hot(torch.arange(6) % 3, 3).float()
        mixed = mixing(labels)
        torch.testing.assert_close(mixed.sum(1), torch.ones(6))
        assert torch.equal(mixed.argmax(1), labels.argmax(1)), "an example's own label stays the main one"

    def test_shares_follow_the_strength(self) -> None:
        torch.manual_seed(0)
        means = {}
        for strength in (0.1, 1.0, 100.0):
            drawn = [Mixing.draw(5, strength, torch.device("cpu")) for _ in range(300)]
            assert all(
                0.5 <= mixing.share <= 1 and sorted(mixing.partners.tolist()) == list(range(5)) for mixing in drawn
            )
            means[strength] = float(np.mean([mixing.share for mixing in drawn]))
        # Of a uniform share the larger part is 3/4 on average.
        assert means[0.1] > 0.9 and means[1.0] == pytest.approx(0.75, abs=0.03) and means[100.0] < 0.55
