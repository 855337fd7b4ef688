"""The verbs that write their operands in place: AdamW and the moving average."""

from minifm.backends.c.operands import F32, FLOATS, Operands, pointer
from minifm.backends.native import ffi, lib


class Optimizer(Operands):
    def adamw(self, param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):
        if not all(x.dtype == F32 and x.flags.carray for x in (param, m, v)) or grad.dtype != F32:
            return self._on_numpy("adamw", param, grad, m, v, lr, beta1, beta2, eps, weight_decay,
                                  step, scale)
        constants = (scale, 1 - beta1, 1 - beta2, 1 / (1 - beta1**step), 1 / (1 - beta2**step),
                     eps, lr, weight_decay)
        lib.minifm_adamw(pointer(param), pointer(self._contiguous(grad, "adamw")), pointer(m),
                         pointer(v), param.size, ffi.new(FLOATS, constants))

    def ema(self, average, param, decay):
        if not (average.dtype == F32 == param.dtype and average.flags.carray):
            return self._on_numpy("ema", average, param, decay)
        lib.minifm_ema(pointer(average), pointer(self._contiguous(param, "ema")), average.size,
                       1 - decay)
