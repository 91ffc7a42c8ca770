"""What happens to a batch of images before the network sees it: augmentation, normalisation, mixing."""

from dataclasses import dataclass

import torch

from recognizers.errors import ConfigurationError

_DARKEST_STD = 1 / 255  # a constant channel would otherwise divide by zero


@dataclass(frozen=True)
class Normalization:
    """Shift and scale of each channel, for pixel values scaled to 0..1.

    Attributes:
        mean: subtracted, one per channel.
        std: divided by, one per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ConfigurationError(f"normalisation needs a mean and a std > 0 per channel, got {self}")

    @classmethod
    def of(cls, train_images: torch.Tensor) -> "Normalization":
        """Compute mean and standard deviation of each channel of uint8 images [N, C, H, W]."""
        values = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in train_images.unbind(1):  # [N, H, W]
            # A histogram is exact and, unlike a copy in floating point, needs no memory.
            share = torch.bincount(channel.flatten(), minlength=256).cpu().double() / channel.numel()
            mean = (share * values).sum()
            variance = (share * (values - mean).square()).sum()
            means.append(mean.item())
            stds.append(max(variance.sqrt().item(), _DARKEST_STD))
        return cls(tuple(means), tuple(stds))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 images [N, C, H, W] to float32 [N, C, H, W] with about zero mean and unit variance.

        Raises:
            ConfigurationError: the images have another number of channels.
        """
        if images.shape[1] != len(self.mean):
            raise ConfigurationError(f"images of {images.shape[1]} channels, normalisation of {len(self.mean)}")
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).view(shape)
        std = torch.tensor(self.std, device=images.device).view(shape)
        return images.float().div_(255).sub_(mean).div_(std)


def augment(images: torch.Tensor, *, flip: bool, padding: int, generator: torch.Generator | None) -> torch.Tensor:
    """Flip images left-right at random and crop them at random from a zero-padded frame.

    Args:
        images: [N, C, H, W], any type, any device.
        flip: flip each image with probability one half.
        padding: pixels of zeros on each side, from which a crop of the original size is cut; 0 for no cropping.
        generator: draws flips and offsets; on any device, the same generator gives the same result on all of them.

    Returns:
        [N, C, H, W] of the same type; ``images`` itself where there is nothing to do.
    """
    if not flip and padding == 0:
        return images
    count, channels, height, width = images.shape
    source = generator.device if generator is not None else torch.device("cpu")
    offsets = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=source)
    flips = torch.rand((count, 1), generator=generator, device=source) < (0.5 if flip else 0.0)
    offsets, flips = offsets.to(images.device), flips.to(images.device)
    # Of each output pixel: its row and column in the padded image, [N, H] and [N, W].
    rows = offsets[0] + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    columns = offsets[1] + torch.where(flips, across.flip(0), across)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    pixels = rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)  # [N, H, W]
    index = pixels.view(count, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(images.shape)


@dataclass(frozen=True, eq=False)
class Mixing:
    """Mixup: each example of a batch is mixed with another one (Zhang et al. 2018, "mixup", eq. 1 and 2).

    Attributes:
        share: of each example in its mixture, 0.5..1; the rest is its partner's.
        partners: of each example, int64 [N].
    """

    share: float
    partners: torch.Tensor

    @classmethod
    def draw(cls, count: int, strength: float, device: torch.device) -> "Mixing":
        """Draw a mixing of ``count`` examples from torch's global random state of the CPU.

        Args:
            count: examples, N.
            strength: the share is drawn from Beta(strength, strength).
            device: of the examples.
        """
        share = float(torch.distributions.Beta(strength, strength).sample())
        # The same mixtures as with 1 - share and partners changed about; so an example's own label is the main one.
        return cls(max(share, 1 - share), torch.randperm(count).to(device))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Mix values of the examples, floats [N, ...]: inputs, or probabilities of the classes."""
        return values.lerp(values[self.partners], 1 - self.share)
