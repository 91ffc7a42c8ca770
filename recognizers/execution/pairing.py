"""Images in pairs: rows of maps twice as long, for oneDNN's convolutions.

oneDNN makes one row of a convolution's output at a time. A short row has too few sums to hide how long each takes,
reads all weights for a handful of pixels, and the overhead of a call is paid for each. So two images are laid side by
side, pixel by pixel: ``[N, C, H, W]`` as ``[N / 2, C, H, 2 W]``, where column ``2 x + i`` has pixel ``x`` of image
``n + i N / 2``. Whatever looks at single pixels works on that as it is, a convolution with its columns twice as far
apart, and a pooling on the view that has both images' channels in one pixel.

Which nodes of a stage are given pairs is settled when it is made. A batch of an odd number goes through as it is: of
what may be paired the width tells whether it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from recognizers.execution.reshaping import Size, is_linear_faster, is_regular, join_pixels, split_pixels

_LONG = 32
"""Pixels of a row up to which pairs were found to gain."""


def pair(features: Tensor, width: int) -> Tensor:
    """Lay the second half of a batch beside its first half.

    Args:
        features: ``[N, C, H, W]``.
        width: W of a single image.

    Returns:
        ``[N / 2, C, H, 2 W]``, channels last; ``features`` themselves where they are paired already or N is odd.
    """
    count, channels, height, columns = features.shape
    if columns != width or count % 2:
        return features
    both = torch.cat(features.permute(0, 2, 3, 1).chunk(2), 3)  # [N / 2, H, W, 2 C]
    return both.reshape(count // 2, height, 2 * width, channels).permute(0, 3, 1, 2)


def unpair(features: Tensor, width: int) -> Tensor:
    """The other way round."""
    count, channels, height, columns = features.shape
    if columns == width:
        return features
    both = features.permute(0, 2, 3, 1).reshape(count, height, width, 2, channels)
    return torch.cat([both[:, :, :, 0], both[:, :, :, 1]]).permute(0, 3, 1, 2)


def takes_pairs(convolution: nn.Conv2d, size: Size) -> bool:
    """Whether a convolution of maps of this height and width can take images in pairs."""
    return is_regular(convolution) and convolution.stride[1] == 1 and not is_linear_faster(convolution, size)


def gains_by_pairs(convolution: nn.Conv2d, size: Size) -> bool:
    """Whether it takes less time for images in pairs; pixels of 1 x 1 oneDNN has no need to take row by row."""
    return takes_pairs(convolution, size) and convolution.kernel_size != (1, 1) and size[1] <= _LONG


def paired_geometry(convolution: nn.Conv2d, images: int) -> tuple[Size, Size, Size, int]:
    """Padding, stride, dilation and groups that compute a convolution for so many images side by side."""
    padding, stride, dilation = (
        cast(Size, part) for part in (convolution.padding, convolution.stride, convolution.dilation)
    )
    # The stride along a row is 1 where there are two: see takes_pairs().
    return (padding[0], padding[1] * images), stride, (dilation[0], dilation[1] * images), convolution.groups


def images_of(features: Tensor, width: int | None) -> int:
    """Images side by side in features of either layout; ``width`` is that of a single one, None where all are."""
    return 1 if width is None else features.shape[3] // width


def pooled(pool: Callable[[Tensor], Tensor], features: Tensor, width: int | None) -> Tensor:
    """What ``pool`` makes of features in either layout; ``width`` is that of a single image, None where all are."""
    images = images_of(features, width)
    if images == 1:
        return pool(features)
    return split_pixels(pool(join_pixels(features, images)), images)  # the channels of both in one pixel


class PairedConvolution(nn.Module):
    """A convolution with gradients, in either layout.

    Args:
        convolution: that is called.
        width: columns of a single image.
    """

    def __init__(self, convolution: nn.Conv2d, width: int) -> None:
        super().__init__()
        self._called, self._width = (convolution,), width  # in a tuple, so that it is not registered as a submodule

    @property
    def convolution(self) -> nn.Conv2d:
        """The convolution that is called."""
        return self._called[0]

    def forward(self, features: Tensor) -> Tensor:
        """Convolve ``[N, C, H, W]``, or ``[N / 2, C, H, 2 W]``."""
        (convolution,) = self._called
        images = images_of(features, self._width)
        if images == 1:
            return convolution(features)  # type: ignore[no-any-return]
        padding, stride, dilation, groups = paired_geometry(convolution, images)
        return functional.conv2d(features, convolution.weight, convolution.bias, stride, padding, dilation, groups)


class PairedPool(nn.Module):
    """A pooling with gradients, in either layout.

    Args:
        pool: that is called.
        width: columns of a single image, None where they differ and nothing is to be paired.
    """

    def __init__(self, pool: nn.MaxPool2d, width: int | None) -> None:
        super().__init__()
        self._called, self._width = (pool,), width

    @property
    def takes_pairs(self) -> bool:
        """Whether it knows the width of a single image."""
        return self._width is not None

    def forward(self, features: Tensor) -> Tensor:
        """Pool ``[N, C, H, W]``, or ``[N / 2, C, H, 2 W]``."""
        (pool,) = self._called
        return pooled(pool, features, self._width)


@dataclass
class Layout:
    """That of the maps which the stages of a chain hand on, as they are made one after the other.

    Attributes:
        paired: whether the stage made last hands on pairs, where batches are of an even number.
    """

    paired: bool = False


def pair_where(
    graph: fx.Graph, gains: Callable[[fx.Node], bool], keeps: Callable[[fx.Node], bool], layout: Layout
) -> None:
    """Pair the images for those nodes of a graph that gain by it.

    Args:
        graph: of a stage. Its nodes know their ``shape``, that of single images.
        gains: whether a node is to be given pairs.
        keeps: whether a node can do with pairs what it does without, so that what is paired may stay so.
        layout: of what the stage is given; afterwards, of what it hands on.
    """
    paired: dict[fx.Node, bool] = {}
    conversions: dict[tuple[fx.Node, bool], fx.Node] = {}

    def converted(node: fx.Node, pairs: bool) -> fx.Node:
        if (node, pairs) not in conversions:
            with graph.inserting_after(node):
                conversion = graph.call_function(pair if pairs else unpair, (node, node.meta["shape"][3]))
            conversion.meta = dict(node.meta)
            conversions[node, pairs] = conversion
        return conversions[node, pairs]

    for node in list(graph.nodes):
        reads = [read for read in node.all_input_nodes if is_map(read) and read.op != "get_attr"]
        if node.op == "placeholder":
            paired[node] = layout.paired
        elif node.op == "output":  # is handed on as it is
            layout.paired = any(paired[read] for read in reads)
        else:
            pairs = paired[node] = gains(node) or (keeps(node) and any(paired[read] for read in reads))
            for read in reads:
                if paired[read] != pairs:
                    node.replace_input_with(read, converted(read, pairs))


def is_map(node: fx.Node) -> bool:
    """Whether a node's value is a batch of maps, ``[N, C, H, W]``."""
    return len(node.meta.get("shape") or ()) == 4


def before_conversions(node: fx.Node) -> fx.Node:
    """The node whose value this is, in one layout or the other."""
    while node.target in (pair, unpair):
        (node,) = node.all_input_nodes
    return node
