"""All parameters in one call: AdamW and the moving average, written in place, and the norm."""

from itertools import accumulate

from minifm.backends.c.operands import F32, FLOATS, INTEGERS, Operands, done, pointer
from minifm.backends.native import ffi, lib

POINTERS = ffi.typeof("float *[]")


class Optimizer(Operands):
    def adamw(self, params, grads, m, v, decays, lr, beta1, beta2, eps, step, scale):
        if not (_writable([*params, *m, *v]) and all(x.dtype == F32 for x in grads)):
            return self._on_numpy("adamw", params, grads, m, v, decays, lr, beta1, beta2, eps,
                                  step, scale)
        grads = [self._contiguous(x, "adamw") for x in grads]
        constants = (scale, 1 - beta1, 1 - beta2, 1 / (1 - beta1**step), 1 / (1 - beta2**step),
                     eps, lr)
        lib.minifm_adamw(*map(_pointers, (params, m, v, grads)), *_ends(params),
                         ffi.new(FLOATS, decays), ffi.new(FLOATS, constants))

    def ema(self, averages, params, decay):
        if not (_writable(averages) and all(x.dtype == F32 for x in params)):
            return self._on_numpy("ema", averages, params, decay)
        params = [self._contiguous(x, "ema") for x in params]
        lib.minifm_ema(_pointers(averages), _pointers(params), *_ends(params), 1 - decay)

    def sum_of_squares(self, arrays):
        if any(x.dtype != F32 for x in arrays):
            return self._on_numpy("sum_of_squares", arrays)
        arrays = [self._contiguous(x, "sum_of_squares") for x in arrays]
        total = lib.minifm_sum_of_squares(_pointers(arrays), *_ends(arrays))
        done(total < 0)
        return total


def _writable(arrays):
    """Whether a kernel can write to all of them."""
    return all(x.dtype == F32 and x.flags.carray for x in arrays)


def _pointers(arrays):
    return ffi.new(POINTERS, [pointer(x) for x in arrays])


def _ends(arrays):
    """Where each array ends, counted through all of them, and how many arrays there are."""
    return ffi.new(INTEGERS, list(accumulate(x.size for x in arrays))), len(arrays)
