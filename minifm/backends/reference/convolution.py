"""Convolution, pooling and upsampling of images [B, C, H, W].

A convolution is a matrix product once every window of the image is laid out as a column
("im2col"). It is linear in the image and in the weights, and its two adjoints are the other two
verbs here; the transposed convolution *is* the adjoint by the image, and needs nothing new.

Dimensions: B batch, C channels in, O channels out, G groups, R x S the window, H x W the larger
image, P x Q the smaller one, with P = (H + 2 padding - R) // stride + 1. `stride`, `padding` and
`window` are pairs, one number for the height and one for the width. What is called convolution
here, as everywhere in the field, is a cross-correlation: the window is not flipped.
"""

import math

import numpy as np

from minifm.backends.reference.fallback import composed


class Convolution:
    # -- convolution ---------------------------------------------------------------------------

    def convolve(self, x, w, stride, padding, groups):
        """y[b, o, p, q] = Σ_crs w[o, c, r, s] x[b, c, p·stride + r - padding, …].

        x [B, C, H, W], w [O, C/G, R, S] -> y [B, O, P, Q]; group g of the outputs sees group g
        of the inputs.
        """
        O, _, R, S = w.shape
        columns, (B, P, Q) = _columns(x, (R, S), stride, padding, groups)
        kernels = _by_group(w, groups)                                      # [G, O/G, C/G R S]
        y = np.matmul(kernels, columns).reshape(O, B, P, Q)
        return np.ascontiguousarray(y.transpose(1, 0, 2, 3))                # [B, O, P, Q]

    def convolve_image_adjoint(self, dy, w, size, stride, padding, groups):
        """dx [B, C, H, W] of dy [B, O, P, Q]; `size` is (H, W), which P and Q do not determine."""
        B, _, P, Q = dy.shape
        channels, R, S = groups * w.shape[1], *w.shape[2:]
        kernels = _by_group(w, groups).transpose(0, 2, 1)                   # [G, C/G R S, O/G]
        rows = _by_group(dy.transpose(1, 0, 2, 3), groups)                  # [G, O/G, B P Q]
        columns = np.matmul(kernels, rows).reshape(channels, R, S, B, P, Q)
        shape = (channels, B, size[0] + 2 * padding[0], size[1] + 2 * padding[1])
        padded = np.zeros(shape, dy.dtype)
        for r, s in np.ndindex(R, S):
            padded[_places(r, s, stride, (P, Q))] += columns[:, r, s]
        return np.ascontiguousarray(_crop(padded, padding, size).transpose(1, 0, 2, 3))

    def convolve_weight_adjoint(self, dy, x, window, stride, padding, groups):
        """dw [O, C/G, R, S] of dy [B, O, P, Q] and x [B, C, H, W]."""
        O, C = dy.shape[1], x.shape[1]
        columns, _ = _columns(x, window, stride, padding, groups)
        rows = _by_group(dy.transpose(1, 0, 2, 3), groups)                  # [G, O/G, B P Q]
        dw = np.matmul(rows, columns.transpose(0, 2, 1))                    # [G, O/G, C/G R S]
        return dw.reshape(O, C // groups, *window)

    @composed
    def conv2d(self, x, w, b, stride, padding, groups):
        """`convolve`, plus b [O] (or None) on every position."""
        return self._offset(self.convolve(x, w, stride, padding, groups), b)

    @composed
    def conv2d_backward(self, dy, x, w, stride, padding, groups, needs):
        """The gradients of `conv2d` by x, w and b; each is None where `needs` says so."""
        dx = dw = db = None
        if needs[0]:
            dx = self.convolve_image_adjoint(dy, w, x.shape[2:], stride, padding, groups)
        if needs[1]:
            dw = self.convolve_weight_adjoint(dy, x, w.shape[2:], stride, padding, groups)
        if needs[2]:
            db = self.sum(dy, (0, 2, 3))
        return dx, dw, db

    @composed
    def conv_transpose2d(self, x, w, b, size, stride, padding, groups):
        """The adjoint of a convolution with w, plus b [O]: x [B, C, P, Q], w [C, O/G, R, S]
        -> [B, O, H, W] with (H, W) = `size`."""
        return self._offset(self.convolve_image_adjoint(x, w, size, stride, padding, groups), b)

    @composed
    def conv_transpose2d_backward(self, dy, x, w, stride, padding, groups, needs):
        """The gradients of `conv_transpose2d` by x, w and b: the adjoint of an adjoint is the
        convolution itself."""
        dx = dw = db = None
        if needs[0]:
            dx = self.convolve(dy, w, stride, padding, groups)
        if needs[1]:
            dw = self.convolve_weight_adjoint(x, dy, w.shape[2:], stride, padding, groups)
        if needs[2]:
            db = self.sum(dy, (0, 2, 3))
        return dx, dw, db

    @composed
    def _offset(self, y, b):
        return y if b is None else self.add(y, self.reshape(b, (-1, 1, 1)))

    # -- pooling -------------------------------------------------------------------------------

    def max_pool2d(self, x, window, stride, padding):
        """The largest of each window, and which it was (the first of equals), 0 … R S - 1.

        x [B, C, H, W] -> y [B, C, P, Q], place int64 [B, C, P, Q]. Padding never wins.
        """
        windows = _windows(x, window, stride, padding, -np.inf)             # [B, C, P, Q, R, S]
        flat = windows.reshape(*windows.shape[:4], window[0] * window[1])
        place = np.argmax(flat, axis=-1)
        pixels = _windows(np.ones((1, 1, *x.shape[2:]), bool), window, stride, padding, False)
        pixels = np.broadcast_to(pixels.reshape(1, 1, *flat.shape[2:]), flat.shape)
        outside = ~np.take_along_axis(pixels, place[..., None], -1)[..., 0]
        place = np.where(outside, np.argmax(pixels, axis=-1), place)    # a window of -inf
        return np.take_along_axis(flat, place[..., None], -1)[..., 0], place

    def max_pool2d_backward(self, dy, place, size, window, stride, padding):
        """Each dy goes to the pixel that won; `size` is (H, W)."""
        zero = np.zeros((), dy.dtype)
        return _spread(lambda i: np.where(place == i, dy, zero), dy, size, window, stride, padding)

    def average_pool2d(self, x, window, stride, padding):
        """The mean of each window, in which padding counts as zeros."""
        windows = _windows(x, window, stride, padding, 0)                   # [B, C, P, Q, R, S]
        return np.mean(windows, axis=(-2, -1), dtype=x.dtype)

    def average_pool2d_backward(self, dy, size, window, stride, padding):
        share = dy * np.asarray(1 / (window[0] * window[1]), dy.dtype)
        return _spread(lambda i: share, dy, size, window, stride, padding)

    # -- upsampling ----------------------------------------------------------------------------

    @composed
    def upsample_nearest(self, x, factor):
        """Every pixel becomes a block: x [B, C, P, Q] -> [B, C, P f, Q g], `factor` (f, g)."""
        (B, C, P, Q), (f, g) = x.shape, factor
        blocks = self.broadcast_to(self.reshape(x, (B, C, P, 1, Q, 1)), (B, C, P, f, Q, g))
        return self.reshape(self.contiguous(blocks), (B, C, P * f, Q * g))

    @composed
    def upsample_nearest_backward(self, dy, factor):
        """The sum of each block."""
        (B, C, H, W), (f, g) = dy.shape, factor
        return self.sum(self.reshape(dy, (B, C, H // f, f, W // g, g)), (3, 5))


def _windows(x, window, stride, padding, value):
    """[B, C, H, W] -> the windows [B, C, P, Q, R, S], a view of x padded with `value`."""
    (up, left), (down, right) = padding, stride
    padded = np.pad(x, ((0, 0), (0, 0), (up, up), (left, left)), constant_values=value)
    return np.lib.stride_tricks.sliding_window_view(padded, window, (2, 3))[:, :, ::down, ::right]


def _columns(x, window, stride, padding, groups):
    """The windows of x [B, C, H, W] as columns [G, C/G R S, B P Q], and (B, P, Q)."""
    windows = _windows(x, window, stride, padding, 0)
    B, C, P, Q, R, S = windows.shape
    ordered = windows.transpose(1, 4, 5, 0, 2, 3)                           # [C, R, S, B, P, Q]
    return ordered.reshape(groups, C // groups * R * S, B * P * Q), (B, P, Q)


def _by_group(x, groups):
    """x [O, ...] as a matrix for each group of outputs, [G, O/G, all the rest]."""
    return x.reshape(groups, len(x) // groups, math.prod(x.shape[1:]))


def _places(r, s, stride, size):
    """Where element (r, s) of every window lies in the padded image [.., .., H, W]."""
    (down, right), (P, Q) = stride, size
    return (..., slice(r, r + down * (P - 1) + 1, down), slice(s, s + right * (Q - 1) + 1, right))


def _spread(share, dy, size, window, stride, padding):
    """Add share(i) [B, C, P, Q] at element i of every window of an image of zeros, (H, W)."""
    B, C, P, Q = dy.shape
    padded = np.zeros((B, C, size[0] + 2 * padding[0], size[1] + 2 * padding[1]), dy.dtype)
    for i, (r, s) in enumerate(np.ndindex(*window)):
        padded[_places(r, s, stride, (P, Q))] += share(i)
    return np.ascontiguousarray(_crop(padded, padding, size))


def _crop(padded, padding, size):
    """The image without its padding, [.., .., H, W]."""
    (up, left), (H, W) = padding, size
    return padded[:, :, up : up + H, left : left + W]
