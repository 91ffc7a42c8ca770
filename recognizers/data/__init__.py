"""Image data sets: reading them, splitting held-out data off, normalising and augmenting batches."""

from recognizers.data.dataset import Dataset
from recognizers.data.sources import dataset_files, load_dataset
from recognizers.data.splits import Examples, Splits, split, stratified_choice
from recognizers.data.transforms import Mixing, Normalization, augment

__all__ = [
    "Dataset",
    "Examples",
    "Mixing",
    "Normalization",
    "Splits",
    "augment",
    "dataset_files",
    "load_dataset",
    "split",
    "stratified_choice",
]
