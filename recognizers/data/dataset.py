"""What a data set is: labelled images of one size, wholly in memory."""

from dataclasses import dataclass

import torch

from recognizers.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images, checked on construction.

    Attributes:
        name: how messages and reports call it.
        train_images: uint8 [N, C, H, W].
        train_labels: int64 [N], in 0 .. classes - 1.
        test_images: uint8 [M, C, H, W].
        test_labels: int64 [M].
        classes: number of classes.
        val_images: uint8 [V, C, H, W] where the data set has validation data of its own.
        val_labels: int64 [V], present together with ``val_images``.
        class_names: one per class, where known.

    Raises:
        DataError: a tensor is empty, or has another type, shape or label than said above.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: int
    val_images: torch.Tensor | None = None
    val_labels: torch.Tensor | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check("train", self.train_images, self.train_labels)
        self._check("test", self.test_images, self.test_labels)
        if self.val_images is not None and self.val_labels is not None:
            self._check("val", self.val_images, self.val_labels)
        elif self.val_images is not None or self.val_labels is not None:
            raise DataError(f"{self.name}: val images and val labels must come together")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise DataError(f"{self.name}: {len(self.class_names)} class names for {self.classes} classes")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    def _check(self, part: str, images: torch.Tensor, labels: torch.Tensor) -> None:
        where = f"{self.name}: {part}"
        if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
            raise DataError(f"{where} images must be uint8 [N, C, H, W] and not empty, got {_describe(images)}")
        if images.shape[1:] != self.train_images.shape[1:]:
            raise DataError(
                f"{where} images are {list(images.shape[1:])}, those of train {list(self.train_images.shape[1:])}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(f"{where} labels must be int64 [{len(images)}] like the images, got {_describe(labels)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.classes:
            raise DataError(f"{where} labels must lie in 0..{self.classes - 1}, found {low}..{high}")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
