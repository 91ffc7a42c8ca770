"""A baseline in Ray's object store: data and weights lie there once per node, and runners read them without copies."""

from __future__ import annotations

import uuid
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from recognizers.baseline import Baseline
from recognizers.blueprint import Blueprint
from recognizers.compact_file import shape_like
from recognizers.data import Examples, Normalization, Splits
from recognizers.errors import ConfigurationError
from recognizers.evaluation import Precision
from recognizers.preparation import Provenance
from recognizers.recognizer import Recognizer
from recognizers.sharing import shared
from recognizers.units import UnitTable

NAMESPACE = "zeroout"
_PARTS = ("train", "reward", "selection", "test")


class Publication:
    """The baseline of a recognizer, within reach of environments elsewhere until it is closed.

    A reference into the object store must not get into an algorithm's configuration, which is pickled into
    checkpoints. So the configuration carries a name; a small actor of that name knows the reference, and hands it to
    runners on any node, be they new or restarted.

    Args:
        recognizer: whose baseline to publish; it must have been created by name, so that it can be built elsewhere.
        to_runners: publish it to other processes; within this one it is shared as it is.

    Attributes:
        name: what :func:`fetch` knows it by.

    Raises:
        ConfigurationError: the network was not created by name.
    """

    def __init__(self, recognizer: Recognizer, *, to_runners: bool) -> None:
        self.name = f"baseline-{uuid.uuid4().hex}"
        self._baseline = shared(self.name, lambda: recognizer.baseline)
        self._reference: Any = None
        self._keeper: Any = None
        if to_runners:
            options = {"name": self.name, "namespace": NAMESPACE, "num_cpus": 0}
            # Calls that find it dead wait for its return.
            keeper = _keeper_class().options(**options, max_restarts=-1, max_task_retries=-1)
            # Held here, too: between the death of the actor and its return nobody else might.
            self._reference = ray.put(pack(recognizer))
            # In a list: an argument that is itself a reference would be resolved into what it refers to.
            self._keeper = keeper.remote([self._reference])

    def close(self) -> None:
        """Withdraw it: the actor goes, and with it the data, as soon as no runner reads them any more."""
        if self._keeper is not None and ray.is_initialized():
            ray.kill(self._keeper)
        self._keeper = self._reference = None


def fetch(name: str) -> Baseline:
    """The baseline that was published under ``name``; in any process, all that ask for it share one.

    In another process than the publisher's its images and weights lie in the object store, and must not be written to.

    Raises:
        ConfigurationError: it is published no more.
    """
    return shared(name, lambda: unpack(_read(name)))


def _keeper_class() -> Any:
    # Local, so that Ray ships the class itself: its process would else import this module, and PyTorch with it.
    class Keeper:
        """Knows the references; they are arguments of its constructor, so that it has them after a restart, too."""

        def __init__(self, references: list[ray.ObjectRef]) -> None:
            self._references = references

        def references(self) -> list[ray.ObjectRef]:
            return self._references

    return ray.remote(Keeper)


def _read(name: str) -> Contents:
    try:
        keeper = ray.get_actor(name, namespace=NAMESPACE)
        (reference,) = ray.get(keeper.references.remote())
    except (ValueError, ray.exceptions.ActorDiedError) as error:
        raise ConfigurationError(
            f"{name} is published no more: the training that it belongs to has ended; `zeroout train --resume` goes on"
        ) from error
    contents: Contents = ray.get(reference)
    return contents


@dataclass(frozen=True)
class _Array:
    """A tensor as NumPy array, which Ray hands out without copying, of bytes, as NumPy lacks bfloat16."""

    data: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Array:
        flat = tensor.detach().cpu().contiguous().view(-1)
        return cls(flat.view(torch.uint8).numpy(), tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        """The tensor on the same memory."""
        with warnings.catch_warnings():
            # The memory is read-only, and PyTorch has no such tensors. Nothing writes into a baseline.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return torch.from_numpy(self.data).view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Contents:
    """All that a baseline is built from. Images in ``inputs`` are ``[N, H, W, C]``, as they lie in memory."""

    splits: dict[str, tuple[_Array, _Array]]
    state: dict[str, _Array]
    inputs: dict[str, _Array]
    normalization: Normalization
    precision: Precision
    batch_size: int | None
    blueprint: Blueprint
    table: UnitTable
    provenance: Provenance


def pack(recognizer: Recognizer) -> Contents:
    """The baseline of a recognizer, with the images that its recovery takes in.

    Raises:
        ConfigurationError: the network was not created by name.
    """
    baseline = recognizer.baseline
    baseline.prepare(recognizer.recovery)
    on_cpu = baseline.device.type == "cpu"
    parts = {name: getattr(baseline.splits, name) for name in _PARTS}
    return Contents(
        splits={name: (_Array.of(part.images), _Array.of(part.labels)) for name, part in parts.items()},
        state={name: _Array.of(tensor) for name, tensor in baseline.state.items()},
        inputs={name: _Array.of(images.permute(0, 2, 3, 1)) for name, images in baseline.inputs.items()},
        normalization=baseline.normalization,
        # One precision on all nodes, and equal batches, give equal figures. But what suits a GPU does not suit the
        # processors that runners have.
        precision=baseline.resolved_precision if on_cpu else baseline.precision,
        batch_size=baseline.batch_size if on_cpu else None,
        blueprint=baseline.blueprint,
        table=baseline.table,
        provenance=baseline.provenance,
    )


def unpack(contents: Contents) -> Baseline:
    """A baseline on the memory of its contents, which must not be written to."""
    with torch.random.fork_rng(devices=[]):
        network = contents.blueprint.create()
    shape_like(network, {name: array.shape for name, array in contents.state.items()})
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in contents.state:  # which lacks buffers that are not persistent
            tensor.data = contents.state[name].tensor()  # in place, so that tied parameters stay tied
    parts = {name: Examples(images.tensor(), labels.tensor()) for name, (images, labels) in contents.splits.items()}
    return Baseline(
        network,
        Splits(**parts),
        contents.normalization,
        precision=contents.precision,
        batch_size=contents.batch_size,
        blueprint=contents.blueprint,
        table=contents.table,
        provenance=contents.provenance,
        inputs={name: array.tensor().permute(0, 3, 1, 2) for name, array in contents.inputs.items()},
    )
