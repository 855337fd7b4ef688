"""Cross-entropy of logits and integer targets."""

import numpy as np

from minifm.backends.c.operands import F32, Operands, pointer
from minifm.backends.native import lib
from minifm.backends.reference.embedding import check_ids


class Loss(Operands):
    def cross_entropy(self, logits, targets, ignore_index, smoothing):
        if logits.dtype != F32:
            return self._on_numpy("cross_entropy", logits, targets, ignore_index, smoothing)
        logits = self._contiguous(logits, "cross_entropy")
        indices = self._integers(targets, "cross_entropy")
        N, V = logits.shape
        losses, lse = np.empty(N, F32), np.empty(N, F32)
        if lib.minifm_cross_entropy(pointer(losses), pointer(lse), pointer(logits),
                                    pointer(indices), N, V, ignore_index, smoothing):
            check_ids(targets, V, "cross_entropy targets", ignore_index)
        return losses, lse

    def cross_entropy_backward(self, dlosses, logits, targets, lse, ignore_index, smoothing):
        if not logits.dtype == dlosses.dtype == F32:
            return self._on_numpy("cross_entropy_backward", dlosses, logits, targets, lse,
                                  ignore_index, smoothing)
        dlosses, logits, lse = (self._contiguous(x, "cross_entropy_backward")
                                for x in (dlosses, logits, lse))
        d = np.empty(logits.shape, F32)
        if lib.minifm_cross_entropy_backward(
                pointer(d), pointer(dlosses), pointer(logits),
                pointer(self._integers(targets, "cross_entropy_backward")),
                pointer(lse), *logits.shape, ignore_index, smoothing):
            check_ids(targets, logits.shape[1], "cross_entropy targets", ignore_index)
        return d
