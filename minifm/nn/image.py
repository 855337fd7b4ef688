"""What networks on images [B, C, H, W] are made of: residual blocks, attention between pixels, and
layers that halve and double an image.

Every part that adds to its input begins at zero: a deep network then starts as a shallow one (Ho et
al. 2020).
"""

import math

from minifm import ops
from minifm.nn.attention import Attention
from minifm.nn.layers import Conv2d, GroupNorm, Linear
from minifm.nn.module import Module


def convolution(inputs, outputs, window=3, *, zero=False, rng, **options):
    """A Conv2d whose outputs have at first the variance of its inputs, or none (`zero`)."""
    std = 0 if zero else 1 / math.sqrt(inputs * window**2)
    return Conv2d(inputs, outputs, window, std=std, rng=rng, **options)


class ResidualBlock(Module):
    """Norm, SiLU and convolution, twice; the input is added (He et al. 2016). Between the two
    comes the time, if there is one: an offset for each channel (Ho et al. 2020)."""

    def __init__(self, inputs, outputs, *, time_width=None, groups, epsilon, rng):
        self.norm1 = GroupNorm(inputs, groups, epsilon)
        self.conv1 = convolution(inputs, outputs, rng=rng and rng.child("conv1"))
        self.time = None if time_width is None else Linear(
            time_width, outputs, std=time_width**-0.5, rng=rng and rng.child("time"))
        self.norm2 = GroupNorm(outputs, groups, epsilon)
        self.conv2 = convolution(outputs, outputs, zero=True, rng=rng and rng.child("conv2"))
        self.shortcut = None if inputs == outputs else convolution(
            inputs, outputs, 1, rng=rng and rng.child("shortcut"))

    def __call__(self, x, time=None, *, dropout=0.0, rng=None):
        """x [B, C, H, W], time [B, E] -> [B, O, H, W]; `rng` turns dropout on."""
        h = self.conv1(self.norm1(x, ops.silu))
        if self.time is not None:
            told = self.time(time, rng=rng and rng.child("time"))
            h = h + told.reshape((*h.shape[:2], 1, 1))                          # [B, O, 1, 1]
        h = ops.dropout(self.norm2(h, ops.silu), dropout, rng=rng)
        return self.conv2(h) + (x if self.shortcut is None else self.shortcut(x))


class SpatialAttention(Module):
    """Every pixel looks at all others; what it finds is added to it."""

    def __init__(self, width, heads, *, groups, epsilon, rng):
        self.norm = GroupNorm(width, groups, epsilon)
        self.attention = Attention(width, heads, std=width**-0.5, output_std=0,
                                   rng=rng and rng.child("attention"))

    def __call__(self, x, *, rng=None):                         # [B, C, H, W] -> the same
        found = self.attention(tokens_of(self.norm(x)), rng=rng and rng.child("attention"))
        return x + image_of(found, x.shape)


def tokens_of(x):
    """An image [B, C, H, W] as a sequence of its pixels, [B, H W, C]."""
    B, C, H, W = x.shape
    return x.reshape((B, C, H * W)).transpose(0, 2, 1)


def image_of(tokens, shape):
    """[B, H W, C] -> [B, C, H, W], the `shape`."""
    return tokens.transpose(0, 2, 1).reshape(shape)


class Downsample(Module):
    """Half the height and width, by a convolution of stride 2. Padding stands on all sides, or
    (`symmetric` False) below and to the right only."""

    def __init__(self, width, *, symmetric=True, rng):
        self.conv = convolution(width, width, stride=2, padding=int(symmetric), rng=rng)

    def __call__(self, x):                                      # [B, C, H, W] -> [B, C, H/2, W/2]
        if self.conv.padding == 0:
            x = ops.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
        return self.conv(x)


class Upsample(Module):
    """Twice the height and width: every pixel becomes four, which a convolution then smooths."""

    def __init__(self, width, *, rng):
        self.conv = convolution(width, width, rng=rng)

    def __call__(self, x):                                      # [B, C, H, W] -> [B, C, 2H, 2W]
        return self.conv(ops.upsample_nearest(x, 2))
