"""Convolutions of images and their adjoints."""

from functools import lru_cache

import numpy as np

from minifm.backends.c.operands import F32, Operands, done, pointer
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


@lru_cache(maxsize=4096)
def _sizes(batch, image, weight, stride, padding, groups):
    """The sizes that the kernels read, and (P, Q)."""
    O, I, *window = weight
    result = tuple((n + 2 * p - k) // s + 1
                   for n, k, s, p in zip(image, window, stride, padding))
    return ffi.new("minifm_convolution *", {
        "batch": batch, "groups": groups, "inputs": I, "outputs": O // groups, "image": image,
        "window": window, "result": result, "stride": stride, "padding": padding}), result
