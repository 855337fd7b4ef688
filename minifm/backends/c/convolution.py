"""Convolutions of images and their adjoints, pooling and upsampling."""

from functools import lru_cache

import numpy as np

from minifm.backends.c.operands import (
    F32,
    I64,
    Operands,
    done,
    pointer,
)
from minifm.backends.native import ffi, lib
from minifm.backends.reference import Reference


class Convolution(Operands):
    def convolve(self, x, w, stride, padding, groups):
        if not x.dtype == w.dtype == F32:
            return self._on_numpy("convolve", x, w, stride, padding, groups)
        return self._convolve("convolve", x, w, None, stride, padding, groups)

    def conv2d(self, x, w, b, stride, padding, groups):
        if not x.dtype == w.dtype == F32:
            return Reference.conv2d(self, x, w, b, stride, padding, groups)
        return self._convolve("conv2d", x, w, b, stride, padding, groups)

    def _convolve(self, verb, x, w, b, stride, padding, groups):
        x, w = self._contiguous(x, verb), self._contiguous(w, verb)
        b = None if b is None else self._contiguous(b, verb)
        sizes, result = _sizes(x.shape[0], x.shape[2:], w.shape, stride, padding, groups)
        y = np.empty((x.shape[0], w.shape[0], *result), F32)
        done(lib.minifm_convolve(pointer(y), pointer(x), pointer(w), pointer(b), sizes))
        return y

    def convolve_image_adjoint(self, dy, w, size, stride, padding, groups):
        if not dy.dtype == w.dtype == F32:
            return self._on_numpy("convolve_image_adjoint", dy, w, size, stride, padding, groups)
        return self._image_adjoint("convolve_image_adjoint", dy, w, None, size, stride, padding,
                                   groups)

    def conv_transpose2d(self, x, w, b, size, stride, padding, groups):
        if not x.dtype == w.dtype == F32:
            return Reference.conv_transpose2d(self, x, w, b, size, stride, padding, groups)
        return self._image_adjoint("conv_transpose2d", x, w, b, size, stride, padding, groups)

    def _image_adjoint(self, verb, dy, w, b, size, stride, padding, groups):
        dy, w = self._contiguous(dy, verb), self._contiguous(w, verb)
        b = None if b is None else self._contiguous(b, verb)
        sizes, _ = _sizes(dy.shape[0], size, w.shape, stride, padding, groups)
        dx = np.empty((dy.shape[0], groups * w.shape[1], *size), F32)
        done(lib.minifm_convolve_image_adjoint(pointer(dx), pointer(dy), pointer(w), pointer(b),
                                               sizes))
        return dx

    def convolve_weight_adjoint(self, dy, x, window, stride, padding, groups):
        if not dy.dtype == x.dtype == F32:
            return self._on_numpy("convolve_weight_adjoint", dy, x, window, stride, padding,
                                  groups)
        dy, x = (self._contiguous(a, "convolve_weight_adjoint") for a in (dy, x))
        dw = np.empty((dy.shape[1], x.shape[1] // groups, *window), F32)
        sizes, _ = _sizes(x.shape[0], x.shape[2:], dw.shape, stride, padding, groups)
        done(lib.minifm_convolve_weight_adjoint(pointer(dw), pointer(dy), pointer(x), sizes))
        return dw

    def max_pool2d(self, x, window, stride, padding):
        if x.dtype != F32:
            return self._on_numpy("max_pool2d", x, window, stride, padding)
        x = self._contiguous(x, "max_pool2d")
        sizes, shape = _pooling(x.shape, window, stride, padding)
        y, place = np.empty(shape, F32), np.empty(shape, I64)
        lib.minifm_max_pool(pointer(y), pointer(place), pointer(x), sizes)
        return y, place

    def max_pool2d_backward(self, dy, place, size, window, stride, padding):
        if dy.dtype != F32:
            return self._on_numpy("max_pool2d_backward", dy, place, size, window, stride, padding)
        dy = self._contiguous(dy, "max_pool2d_backward")
        place = self._integers(place, "max_pool2d_backward")
        dx = np.empty((*dy.shape[:2], *size), F32)
        sizes, _ = _pooling(dx.shape, window, stride, padding)
        lib.minifm_max_pool_backward(pointer(dx), pointer(dy), pointer(place), sizes)
        return dx

    def average_pool2d(self, x, window, stride, padding):
        if x.dtype != F32:
            return self._on_numpy("average_pool2d", x, window, stride, padding)
        x = self._contiguous(x, "average_pool2d")
        sizes, shape = _pooling(x.shape, window, stride, padding)
        y = np.empty(shape, F32)
        lib.minifm_average_pool(pointer(y), pointer(x), sizes)
        return y

    def average_pool2d_backward(self, dy, size, window, stride, padding):
        if dy.dtype != F32:
            return self._on_numpy("average_pool2d_backward", dy, size, window, stride, padding)
        dy = self._contiguous(dy, "average_pool2d_backward")
        dx = np.empty((*dy.shape[:2], *size), F32)
        sizes, _ = _pooling(dx.shape, window, stride, padding)
        lib.minifm_average_pool_backward(pointer(dx), pointer(dy), sizes)
        return dx

    def upsample_nearest(self, x, factor):
        if x.dtype != F32:
            return Reference.upsample_nearest(self, x, factor)
        x, (B, C, P, Q), (f, g) = self._contiguous(x, "upsample_nearest"), x.shape, factor
        y = np.empty((B, C, P * f, Q * g), F32)
        lib.minifm_upsample(pointer(y), pointer(x), B * C * P, Q, f, g)
        return y

    def upsample_nearest_backward(self, dy, factor):
        if dy.dtype != F32:
            return Reference.upsample_nearest_backward(self, dy, factor)
        dy, (f, g) = self._contiguous(dy, "upsample_nearest_backward"), factor
        B, C, P, Q = *dy.shape[:2], dy.shape[2] // f, dy.shape[3] // g
        dx = np.empty((B, C, P, Q), F32)
        lib.minifm_upsample_backward(pointer(dx), pointer(dy), B * C * P, Q, f, g)
        return dx


@lru_cache(maxsize=4096)
def _sizes(batch, image, weight, stride, padding, groups):
    """The sizes that the kernels read, and (P, Q)."""
    O, I, *window = weight
    result = tuple((n + 2 * p - k) // s + 1
                   for n, k, s, p in zip(image, window, stride, padding))
    return ffi.new("minifm_convolution *", {
        "batch": batch, "groups": groups, "inputs": I, "outputs": O // (groups or 1),
        "image": image, "window": window, "result": result, "stride": stride,
        "padding": padding}), result


def _pooling(shape, window, stride, padding):
    """The same for pooling x of this shape [B, C, H, W], and the result's shape."""
    B, C, *image = shape
    sizes, result = _sizes(B, tuple(image), (C, 1, *window), stride, padding, C)
    return sizes, (B, C, *result)
