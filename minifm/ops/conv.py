"""Convolution, pooling and upsampling of images [B, C, H, W].

The arithmetic, and what the letters mean, stands in backends/reference/convolution.py. Every
`stride`, `padding`, `window` and `factor` is one integer, or a pair (height, width).
"""

import math

from minifm.errors import ShapeError
from minifm.op import Op, check_floating
from minifm.tensor import apply


class Conv2d(Op):
    """The weighted sum of every window of an image, plus an offset for each output channel."""

    signature = "x[B, C, H, W], weight[O, I, R, S], bias[O] -> [B, O, P, Q]"
    fresh = True

    def forward(self, x, weight, bias, stride=(1, 1), padding=(0, 0), groups=1):
        self.x, self.weight, self.options = x, weight, (stride, padding, groups)
        return self.backend.conv2d(x, weight, bias, *self.options)

    def backward(self, dy):                                     # -> dx, dweight, dbias
        return self.backend.conv2d_backward(dy, self.x, self.weight, *self.options, self.needs)

    @classmethod
    def check(cls, inputs):
        super().check(inputs)
        check_floating(cls, inputs)

    @classmethod
    def examples(cls, draw):
        groups, stride, padding = draw.choice([1, 2]), _a_pair(draw, 1), _a_pair(draw, 0)
        I, O = draw.tested([1, 3], "channels"), groups * draw.tested([1, 2], "channels")
        R, S = draw.tested([(1, 1), (3, 3), (2, 4)], "window")
        image = draw.tested([(R + 4, S + 3)], "image")
        return (draw.normal((draw.tested([1, 2], "images"), groups * I, *image)),
                draw.normal((O, I, R, S)), draw.choice([draw.normal((O,)), None])), \
            {"stride": stride, "padding": padding, "groups": groups}

    @classmethod
    def flops(cls, x, weight, bias, stride=(1, 1), padding=(0, 0), groups=1):
        positions = math.prod(_smaller(x.shape[2:], weight.shape[2:], stride, padding))
        return 2 * x.shape[0] * positions * math.prod(weight.shape)


class ConvTranspose2d(Op):
    """The adjoint of a convolution: every pixel adds a weighted window to a larger image."""

    signature = "x[B, C, P, Q], weight[C, I, R, S], bias[O] -> [B, O, H, W]"
    fresh = True

    def forward(self, x, weight, bias, size, stride=(1, 1), padding=(0, 0), groups=1):
        self.x, self.weight, self.options = x, weight, (stride, padding, groups)
        return self.backend.conv_transpose2d(x, weight, bias, size, *self.options)

    def backward(self, dy):                                     # -> dx, dweight, dbias
        return self.backend.conv_transpose2d_backward(
            dy, self.x, self.weight, *self.options, self.needs)

    @classmethod
    def check(cls, inputs):
        super().check(inputs)
        check_floating(cls, inputs)

    @classmethod
    def examples(cls, draw):
        groups, stride, padding = draw.choice([1, 2]), _a_pair(draw, 1), _a_pair(draw, 0)
        C, I = groups * draw.tested([1, 3], "channels"), draw.tested([1, 2], "channels")
        window = draw.tested([(1, 1), (3, 3), (2, 4)], "window")
        image = draw.tested([(3, 4), (5, 3)], "image")
        size = _larger(image, window, stride, padding, (stride[0] - 1, 0))
        return (draw.normal((draw.tested([1, 2], "images"), C, *image)),
                draw.normal((C, I, *window)), draw.choice([draw.normal((groups * I,)), None])), \
            {"size": size, "stride": stride, "padding": padding, "groups": groups}

    @classmethod
    def flops(cls, x, weight, bias, size, stride=(1, 1), padding=(0, 0), groups=1):
        return 2 * x.shape[0] * math.prod(x.shape[2:]) * math.prod(weight.shape)


class MaxPool2d(Op):
    """The largest of each window; its gradient goes to the first of equals."""

    signature = "x[B, C, H, W] -> [B, C, P, Q]"
    fresh = True

    def forward(self, x, window, stride, padding=(0, 0)):
        self.size, self.options = x.shape[2:], (window, stride, padding)
        y, self.place = self.backend.max_pool2d(x, *self.options)
        return y

    def backward(self, dy):
        return self.backend.max_pool2d_backward(dy, self.place, self.size, *self.options)

    @classmethod
    def examples(cls, draw):
        return (draw.distinct(_images(draw, (7, 6))),), \
            {"window": draw.choice([(2, 2), (3, 2)]), "stride": _a_pair(draw, 1),
             "padding": draw.choice([(0, 0), (1, 1), (1, 0)])}


class AveragePool2d(Op):
    """The mean of each window, in which padding counts as zeros."""

    signature = "x[B, C, H, W] -> [B, C, P, Q]"
    fresh = True

    def forward(self, x, window, stride, padding=(0, 0)):
        self.size, self.options = x.shape[2:], (window, stride, padding)
        return self.backend.average_pool2d(x, *self.options)

    def backward(self, dy):
        return self.backend.average_pool2d_backward(dy, self.size, *self.options)

    @classmethod
    def examples(cls, draw):
        return (draw.normal(_images(draw, (7, 6))),), \
            {"window": draw.choice([(2, 2), (3, 2)]), "stride": _a_pair(draw, 1),
             "padding": draw.choice([(0, 0), (1, 1), (1, 0)])}


class UpsampleNearest(Op):
    """Every pixel becomes a block of equal pixels."""

    signature = "x[B, C, P, Q] -> [B, C, H, W]"
    fresh = True

    def forward(self, x, factor):
        self.factor = factor
        return self.backend.upsample_nearest(x, factor)

    def backward(self, dy):
        return self.backend.upsample_nearest_backward(dy, self.factor)

    @classmethod
    def examples(cls, draw):
        return (draw.normal(_images(draw, (3, 4))),), \
            {"factor": draw.tested([(1, 1), (2, 2), (3, 2)], "factor")}


def conv2d(x, weight, bias=None, *, stride=1, padding=0, groups=1):
    """x [B, C, H, W], weight [O, C/groups, R, S], bias [O] -> [B, O, P, Q], where
    P = (H + 2 padding - R) // stride + 1 and Q likewise. Raises ShapeError."""
    stride, padding = _pair("conv2d: stride", stride, 1), _pair("conv2d: padding", padding, 0)
    _check_images("conv2d", x, weight)
    _check_groups("conv2d", groups, weight.shape[0])
    if x.shape[1] != groups * weight.shape[1]:
        raise ShapeError(f"conv2d: x has {x.shape[1]} channels where {groups} groups of "
                         f"weight {list(weight.shape)} expect {groups * weight.shape[1]}")
    _check_window("conv2d", x.shape[2:], weight.shape[2:], padding)
    return apply(Conv2d, x, weight, bias, stride=stride, padding=padding, groups=groups)


def conv_transpose2d(x, weight, bias=None, *, stride=1, padding=0, output_padding=0, groups=1):
    """x [B, C, P, Q], weight [C, O/groups, R, S], bias [O] -> [B, O, H, W], where
    H = (P - 1) stride - 2 padding + R + output_padding and W likewise. Raises ShapeError.

    `output_padding`, less than the stride, picks among the sizes that a convolution with this
    stride maps to P.
    """
    name = "conv_transpose2d"
    stride, padding = _pair(f"{name}: stride", stride, 1), _pair(f"{name}: padding", padding, 0)
    extra = _pair(f"{name}: output_padding", output_padding, 0)
    _check_images(name, x, weight)
    _check_groups(name, groups, weight.shape[0])
    if extra[0] >= stride[0] or extra[1] >= stride[1]:
        raise ShapeError(f"{name}: output_padding {extra} must be less than stride {stride}")
    size = _larger(x.shape[2:], weight.shape[2:], stride, padding, extra)
    if min(size) < 1:
        raise ShapeError(f"{name}: padding {padding} leaves an image of {size[0]} x {size[1]}")
    if bias is not None and tuple(bias.shape) != (groups * weight.shape[1],):
        raise ShapeError(f"{name}: bias is {list(bias.shape)} where {groups} groups of weight "
                         f"{list(weight.shape)} make {groups * weight.shape[1]} channels")
    return apply(ConvTranspose2d, x, weight, bias, size=size, stride=stride, padding=padding,
                 groups=groups)


def max_pool2d(x, window, *, stride=None, padding=0):
    """The largest of each window of x [B, C, H, W]; `stride` defaults to the window, `padding`
    is at most half of it, so that every window sees a pixel. Raises ShapeError."""
    return apply(MaxPool2d, x, **_pooling("max_pool2d", x, window, stride, padding))


def average_pool2d(x, window, *, stride=None, padding=0):
    """The mean of each window of x [B, C, H, W], padding counted as zeros; `stride` defaults to
    the window, `padding` is at most half of it. Raises ShapeError."""
    return apply(AveragePool2d, x, **_pooling("average_pool2d", x, window, stride, padding))


def upsample_nearest(x, factor=2):
    """x [B, C, P, Q] -> [B, C, P f, Q f]: every pixel repeated `factor` times each way."""
    return apply(UpsampleNearest, x, factor=_pair("upsample_nearest: factor", factor, 1))


# -- sizes, and what is wrong with them ------------------------------------------------------


def _smaller(size, window, stride, padding):
    """(H, W) -> (P, Q): how many windows fit."""
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, window, stride, padding))


def _larger(size, window, stride, padding, extra):
    """(P, Q) -> (H, W): the image whose windows they are."""
    return tuple((n - 1) * s - 2 * p + k + e
                 for n, k, s, p, e in zip(size, window, stride, padding, extra))


def _pair(what, value, least):
    """One integer or a pair of them, as a pair."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= least for n in pair):
        raise ShapeError(f"{what}: expected an integer of at least {least}, or two, got {value!r}")
    return pair


def _pooling(name, x, window, stride, padding):
    """The checked options of a pooling op."""
    window = _pair(f"{name}: window", window, 1)
    stride = window if stride is None else _pair(f"{name}: stride", stride, 1)
    padding = _pair(f"{name}: padding", padding, 0)
    if len(x.shape) != 4:
        raise ShapeError(f"{name}: expected an image [B, C, H, W], got {list(x.shape)}")
    if 2 * padding[0] > window[0] or 2 * padding[1] > window[1]:
        raise ShapeError(f"{name}: padding {padding} is more than half of the window {window}")
    _check_window(name, x.shape[2:], window, padding)
    return {"window": window, "stride": stride, "padding": padding}


def _check_images(name, x, weight):
    if len(x.shape) != 4 or len(weight.shape) != 4:
        raise ShapeError(f"{name}: expected x and weight of 4 dimensions, got {list(x.shape)} "
                         f"and {list(weight.shape)}")


def _check_groups(name, groups, channels):
    if not isinstance(groups, int) or groups < 1 or channels % groups:
        raise ShapeError(f"{name}: {groups!r} groups do not divide the {channels} channels that "
                         "weight has first")


def _check_window(name, size, window, padding):
    if any(n + 2 * p < k or k < 1 for n, k, p in zip(size, window, padding)):
        raise ShapeError(f"{name}: a window of {window[0]} x {window[1]} does not fit an image of "
                         f"{size[0]} x {size[1]} with padding {padding}")


def _images(draw, size):
    """A shape [B, C, H, W] for an example; in a test, H and W are `size`."""
    return (draw.tested([1, 2], "images"), draw.tested([2], "channels"),
            *draw.tested([size], "image"))


def _a_pair(draw, least):
    """Strides (least 1) or paddings (least 0) for an example."""
    return draw.choice([(least, least), (least + 1, least + 1), (least, least + 1)])
