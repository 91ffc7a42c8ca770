"""Max pooling by maxima: PyTorch's own results, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from recognizers.execution.pooling import MaximumPool, is_plain_pool

sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=80)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(3, 9), st.integers(3, 9)),
    kernel=st.one_of(st.integers(1, 3), sizes),
    stride=st.one_of(st.none(), st.integers(1, 3), sizes),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rectified=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_it_computes_what_pytorch_computes(
    shape: tuple[int, int, int, int],
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] | None,
    dtype: torch.dtype,
    rectified: bool,
    layout: torch.memory_format,
) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype, memory_format=layout)
    features = features.relu() if rectified else features
    pool = nn.MaxPool2d(kernel, stride)
    assert torch.equal(MaximumPool(pool, rectified=rectified)(features), pool(features))


def test_a_map_smaller_than_the_window_is_refused_as_by_pytorch() -> None:
    pool = MaximumPool(nn.MaxPool2d(4), rectified=False)
    with pytest.raises(RuntimeError, match="too small"):
        pool(torch.zeros(1, 2, 3, 3))


def test_a_single_image_without_a_batch() -> None:
    features, pool = torch.randn(3, 4, 4), nn.MaxPool2d(2)
    assert torch.equal(MaximumPool(pool, rectified=False)(features), pool(features))


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        nn.AvgPool2d(2),
    ],
    ids=repr,
)
def test_others_are_left_alone(module: nn.Module) -> None:
    assert not is_plain_pool(module)
