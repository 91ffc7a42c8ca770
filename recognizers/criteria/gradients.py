"""Criteria that follow from gradients of the loss: Taylor, SNIP, GraSP.

SNIP and GraSP were made for single weights of networks at initialisation. Here they are structured (the values of a
filter's weights are summed) and work on trained networks, too. Batch norms take the statistics of the sampled images,
as those of an untrained network say nothing, and hold them: with statistics that followed the weights, the loss would
not depend on a filter's scale, and the sums of GraSP would be minus the squared norms of the gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from recognizers.criteria.filters import filters, per_filter, per_unit
from recognizers.criteria.registry import register_criterion
from recognizers.execution.strided import safe_strides
from recognizers.recognizer import Recognizer
from recognizers.recovery import calibration_batches, recalibrate
from recognizers.sampling import training_sample

IMAGES, BATCH = 512, 64
TEMPERATURE = 200.0
"""What GraSP divides the logits by, so that no image is classified with certainty."""

Losses = Callable[[], Iterator[Tensor]]
"""Computes the summands of a loss anew, one after the other."""


@register_criterion("taylor")
@torch.enable_grad()
def taylor(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Squared first-order change of an image's loss where a filter goes (Molchanov et al. 2019), mean over images.

    The form is that of a group: ``(sum g * theta)^2`` over a filter's weights and bias, ``g`` the gradient of one
    image's cross-entropy in evaluation mode. Squares are summed over the filters that are tied. Unlike in the paper,
    which retrains between small removals, layers compare by normalised scores: where many units go at once, raw ones
    empty the last layers.
    """
    images, labels = training_sample(recognizer, IMAGES, generator)
    network = recognizer.network
    modules = filters(network, recognizer.table)
    squares = {path: torch.zeros(len(module.weight), dtype=torch.float64) for path, module in modules.items()}
    for batch, right in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        for path, changes in first_order_changes(network, modules, batch, right).items():
            squares[path] += changes.double().square().sum(0).cpu() / len(images)
    return per_unit(recognizer.table, squares)


@register_criterion("snip")
@torch.enable_grad()
def snip(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """Connection sensitivity ``|g * theta|`` of a filter's weights, summed (Lee et al. 2019, "SNIP", structured).

    The sum grows with the weights that a filter has, so layers compare by normalised scores: by raw ones the first
    convolution would lose all filters but one.
    """
    network, losses = _at_rest(recognizer, generator, temperature=1.0)
    modules = filters(network, recognizer.table)
    weights = [module.weight.requires_grad_() for module in modules.values()]
    values = {
        path: per_filter((weight * slope).abs())
        for path, weight, slope in zip(modules, weights, gradient(losses, weights), strict=True)
    }
    return per_unit(recognizer.table, values)


@register_criterion("grasp", across_layers=True)
@torch.enable_grad()
def grasp(recognizer: Recognizer, generator: np.random.Generator) -> np.ndarray:
    """What the removal of a filter takes from the flow of gradients, ``theta * Hg`` (Wang et al. 2020, "GraSP").

    To first order, removing a weight takes ``2 theta (Hg)`` from ``g^T g``; the higher, the more important. Scores can
    be negative: such removals raise the flow. ``g`` and ``H`` are those of the cross-entropy of logits divided by 200,
    by the weights of all convolutions and linear layers. Structured: summed over a filter's weights.
    """
    network, losses = _at_rest(recognizer, generator, temperature=TEMPERATURE)
    modules = {path: module for path, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    scored = filters(network, recognizer.table)
    weights = [module.weight.requires_grad_() for module in modules.values()]
    with sdpa_kernel(SDPBackend.MATH):  # other kinds of attention cannot be differentiated twice
        products = hessian_product(losses, weights, gradient(losses, weights))
    values = {
        path: per_filter(weight * product)
        for path, weight, product in zip(modules, weights, products, strict=True)
        if path in scored
    }
    return per_unit(recognizer.table, values)


def first_order_changes(
    network: nn.Module, modules: dict[str, nn.Conv2d | nn.Linear], images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """``sum g * theta`` over the weights and bias of each filter, ``g`` the gradient of one image's cross-entropy.

    That is the gradient by a factor on the filter's output, which takes one backward pass for all images.

    Args:
        network: in evaluation mode, so that images do not depend on each other.
        modules: of it, by path.
        images: normalised, ``[N, C, H, W]``.
        labels: ``[N]`` int64.

    Returns:
        ``[N, out]`` by path.
    """
    factors = {
        path: images.new_ones(len(images), len(module.weight), requires_grad=True) for path, module in modules.items()
    }

    def scale(factor: Tensor, module: nn.Module, _: object, output: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d):
            return output * factor[:, :, None, None]
        return output * factor.view(len(factor), *[1] * (output.dim() - 2), -1)  # [N, ..., out]

    handles = [module.register_forward_hook(partial(scale, factors[path])) for path, module in modules.items()]
    try:
        loss = functional.cross_entropy(network(images), labels, reduction="sum")
    finally:
        for handle in handles:
            handle.remove()
    slopes = torch.autograd.grad(loss, list(factors.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(factors, slopes, strict=True))


def gradient(losses: Losses, weights: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a summed loss."""
    total = [torch.zeros_like(weight) for weight in weights]
    for loss in losses():
        slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        total = [before + slope for before, slope in zip(total, slopes, strict=True)]
    return total


def hessian_product(losses: Losses, weights: Sequence[Tensor], vector: Sequence[Tensor]) -> list[Tensor]:
    """The product of a summed loss's Hessian and a vector, shaped like the weights."""

    def inner() -> Iterator[Tensor]:
        for loss in losses():
            slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
            yield torch.stack([(slope * part).sum() for slope, part in zip(slopes, vector, strict=True)]).sum()

    return gradient(inner, weights)


def _at_rest(recognizer: Recognizer, generator: np.random.Generator, temperature: float) -> tuple[nn.Module, Losses]:
    """A network whose batch norms hold the statistics of sampled images, and its mean cross-entropy on those."""
    images, labels = training_sample(recognizer, IMAGES, generator)
    network = recognizer.network.requires_grad_(False)
    recalibrate(network, images, BATCH, "float32")

    def losses() -> Iterator[Tensor]:
        batches = calibration_batches(images, BATCH)
        for batch, right in zip(batches, labels.tensor_split(len(batches)), strict=True):
            with safe_strides(network.modules()):
                logits = network(batch)
            yield functional.cross_entropy(logits / temperature, right, reduction="sum") / len(images)

    return network, losses
