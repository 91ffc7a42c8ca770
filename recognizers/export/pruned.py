"""A pruned network that is about to be exported, and the check that what is exported computes the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from recognizers.blueprint import Blueprint
from recognizers.compaction import CompactNetwork, compact, make_plain
from recognizers.data import Normalization
from recognizers.errors import WeightsError
from recognizers.evaluation import predict
from recognizers.masks import check_mask
from recognizers.recognizer import Recognizer
from recognizers.units import UnitTable
from recognizers.zero_out import insert_zero_outs, set_mask

COMPARED_IMAGES = 16
TOLERANCE = 1e-4
"""Of the largest logit: float32 through dozens of layers stays far below, a mistake far above."""


@dataclass(frozen=True)
class PrunedNetwork:
    """A complete network with its mask.

    Attributes:
        complete: a plain network with the weights to export, in float32 on the CPU; removed entries do not matter.
        table: its units.
        mask: ``[n_units]``, 1 kept.
        blueprint: how the network was created.
        normalization: of its inputs.
        base_sha256: of the base weights that the mask was made for.
        images: to compare outputs on, uint8 ``[N, C, H, W]``.
    """

    complete: nn.Module
    table: UnitTable
    mask: np.ndarray
    blueprint: Blueprint
    normalization: Normalization
    base_sha256: str
    images: Tensor

    def __post_init__(self) -> None:
        check_mask(self.mask, self.table)

    @classmethod
    def of(cls, recognizer: Recognizer) -> PrunedNetwork:
        """The current state of a recognizer."""
        return cls(
            make_plain(recognizer.network).cpu().eval(),
            recognizer.table,
            recognizer.mask,
            recognizer.blueprint,
            recognizer.normalization,
            recognizer.base_sha256,
            recognizer.splits.train.images[:COMPARED_IMAGES].cpu(),
        )

    def with_weights(self, state: Mapping[str, Tensor], source: str) -> PrunedNetwork:
        """The same with the weights of a compact network under the same mask, say fine-tuned ones.

        Raises:
            WeightsError: they belong to another network or another mask; ``source`` names them.
        """
        sliced = CompactNetwork(self.complete, self.table)
        sliced.follow(self.mask)
        shapes = {name: tensor.shape for name, tensor in sliced.module.state_dict().items()}
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise WeightsError(f"{source} does not hold {self.blueprint.architecture} as narrow as the mask makes it")
        sliced.restore(self.mask, dict(state))
        complete = copy.deepcopy(self.complete)
        sliced.scatter(complete)
        return replace(self, complete=complete)

    @cached_property
    def compact(self) -> nn.Module:
        """The network with the removed filters gone."""
        return compact(self.complete, self.table, self.mask).eval()

    @cached_property
    def logits(self) -> Tensor:
        """What the masked network makes of the images, ``[N, classes]`` float32."""
        masked = copy.deepcopy(self.complete)
        insert_zero_outs(masked, self.table)
        set_mask(masked, self.mask)
        return predict(masked, self.images, self.normalization, precision="float32")

    def check(self, logits: Tensor, what: str) -> float:
        """Refuse logits, ``[N, classes]``, that are not the masked network's.

        Returns:
            The largest difference.

        Raises:
            WeightsError: they differ; ``what`` names their source.
        """
        return check_agreement(self.logits, logits, what, "the masked network")

    def check_network(self, network: nn.Module, what: str) -> float:
        """Refuse a network that computes other logits than the masked one; as :meth:`check`."""
        return self.check(predict(network, self.images, self.normalization, precision="float32"), what)


def check_agreement(expected: Tensor, actual: Tensor, what: str, than: str) -> float:
    """The largest difference between the logits ``expected``, those of ``than``, and the ``actual`` ones of ``what``.

    Raises:
        WeightsError: it is above the tolerance.
    """
    difference, largest = float((actual - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * largest:  # which NaN fails, too
        raise WeightsError(
            f"{what} computes other logits than {than}: they differ by {difference:.2g}, of {largest:.2g}; "
            "nothing is written"
        )
    return difference
