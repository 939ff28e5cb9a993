"""Augmentation of whole batches as tensor operations, on the device where the pictures are.

Every picture of a batch draws its own parameters. One affine map has the random resized crop, the flip, rotation and
shear; it is sampled once. Colours follow 3-Augment (Touvron et al., https://arxiv.org/abs/2204.07118): one of grey,
solarizing and blur, then jitter; here, as sharpness in RandAugment (https://arxiv.org/abs/1909.13719), blur can be
negative. Pictures are float32 (N, 3, H, W) in 0..255, before mean and standard deviation.
"""

import math

import torch
from pictures import constant
from torch import Tensor
from torch.nn import functional as F

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601, as in Pillow and torchvision)."""

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Blurs about as a Gaussian of one pixel."""


def draw(pictures: Tensor, low: float, high: float) -> Tensor:
    """Return a random number for each picture, (N, 1, 1, 1)."""
    return torch.empty(len(pictures), 1, 1, 1, device=pictures.device).uniform_(low, high)


def crop(pictures: Tensor, size: int, scale: float, degrees: float = 0.0, shear: float = 0.0) -> Tensor:
    """Return a random resized crop of each picture, (N, 3, size, size), flipped in half of the cases.

    Args:
        pictures: of any type.
        size: height and width of the result.
        scale: minimum share of the area; the aspect ratio is 3/4 to 4/3, as in timm.
        degrees: largest rotation; half of the pictures are neither rotated nor sheared.
        shear: largest shear, as a tangent.
    """
    area, ratio = draw(pictures, scale, 1), draw(pictures, math.log(3 / 4), math.log(4 / 3)).exp()
    width, height = ((area * r).sqrt().clamp(max=1).flatten() for r in (ratio, 1 / ratio))
    across, down = ((1 - side) * draw(pictures, -1, 1).flatten() for side in (width, height))
    is_turned = draw(pictures, 0, 1).flatten() < 0.5
    angle = draw(pictures, -1, 1).flatten() * math.radians(degrees) * is_turned
    slant = draw(pictures, -1, 1).flatten() * shear * is_turned
    flip = draw(pictures, -1, 1).flatten().sign()
    first = torch.stack((width * angle.cos() * flip, height * (slant - angle.sin()), across), 1)
    second = torch.stack((width * angle.sin() * flip, height * angle.cos(), down), 1)
    grid = F.affine_grid(torch.stack((first, second), 1), [len(pictures), 3, size, size], align_corners=False)
    return F.grid_sample(pictures.float(), grid, padding_mode="reflection", align_corners=False)


def grey_of(pictures: Tensor) -> Tensor:
    """Return brightness, (N, 1, H, W)."""
    return (pictures * constant(GREY, pictures.device)).sum(1, keepdim=True)


def change_colours(pictures: Tensor, strength: float, solarize: float = 128.0) -> Tensor:
    """Return pictures of which a quarter each is grey, solarized, and blurred or sharpened; then jitter all.

    Args:
        pictures: to be changed.
        strength: brightness, contrast and saturation are multiplied by 1 - strength to 1 + strength.
        solarize: values from this one on are inverted.
    """
    kind = draw(pictures, 0, 4)
    kernel = constant(BINOMIAL, pictures.device).flatten()
    blurred = F.conv2d(F.pad(pictures, (2, 2, 2, 2), "reflect"), kernel.outer(kernel).expand(3, 1, 5, 5), groups=3)
    pictures = torch.where(kind < 1, grey_of(pictures), pictures)
    pictures = torch.where((kind >= 1) & (kind < 2) & (pictures >= solarize), 255 - pictures, pictures)
    pictures = torch.where((kind >= 2) & (kind < 3), torch.lerp(pictures, blurred, draw(pictures, -1, 1)), pictures)
    factors = [draw(pictures, 1 - strength, 1 + strength) for _ in range(3)]
    pictures = pictures * factors[0]
    pictures = torch.lerp(grey_of(pictures).mean((2, 3), keepdim=True), pictures, factors[1])
    return torch.lerp(grey_of(pictures), pictures, factors[2]).clamp(0, 255)


def erase(pictures: Tensor, share: float, fill: Tensor) -> Tensor:
    """Return pictures of which a share has a rectangle of random size and place filled (random erasing).

    Args:
        pictures: to be changed.
        share: of them that lose a rectangle, of 2 to 33 % of the area.
        fill: broadcast to the pictures: noise, or a colour.
    """
    height, width = pictures.shape[-2:]
    area, ratio = draw(pictures, 0.02, 1 / 3), draw(pictures, math.log(0.3), math.log(1 / 0.3)).exp()
    across = (torch.arange(width, device=pictures.device) + 0.5) / width - draw(pictures, 0, 1)
    down = (torch.arange(height, device=pictures.device).view(-1, 1) + 0.5) / height - draw(pictures, 0, 1)
    is_inside = (across.abs() < (area * ratio).sqrt() / 2) & (down.abs() < (area / ratio).sqrt() / 2)
    return torch.where(is_inside & (draw(pictures, 0, 1) < share), fill, pictures)
