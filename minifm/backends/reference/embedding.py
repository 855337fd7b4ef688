"""Looking rows up in a table, and rotating pairs of features by their position."""

import numpy as np

from minifm.backends.reference.fallback import composed
from minifm.backends.reference.packed import Packed
from minifm.errors import ShapeError


class Embedding:
    def embedding(self, w, ids):
        """w [V, C], ids [*B] -> [*B, C]. An id outside 0 … V - 1 raises."""
        check_ids(ids, w.shape[0], "embedding")
        if isinstance(w, Packed):
            return self.embedding_packed(w, ids)
        return w[ids]

    def embedding_backward(self, dy, ids, rows, weight_grad):
        """dw [V, C]: each row receives the sum of dy over the places that looked it up.

        `rows` is V; `weight_grad`, if given, is added to in place of a new array.
        """
        dw = np.zeros((rows, dy.shape[-1]), dy.dtype) if weight_grad is None else weight_grad
        np.add.at(dw, ids.reshape(-1), dy.reshape(ids.size, dy.shape[-1]))
        return dw

    @composed
    def rope(self, x, cos, sin, inverse):
        """Rotate the pair (x_d, x_{d + D/2}) by its angle (Su et al. 2021, half-split pairs).

        x [B, H, T, D]; cos and sin [T, D/2] or [B, T, D/2]. `inverse` turns the other way,
        which is also the gradient: a rotation's transpose is its inverse.
        """
        B, H, T, D = x.shape
        if len(cos.shape) == 3:
            cos = self.reshape(cos, (B, 1, T, D // 2))
            sin = self.reshape(sin, (B, 1, T, D // 2))
        first = self.getitem(x, (..., slice(0, D // 2)))
        second = self.getitem(x, (..., slice(D // 2, D)))
        if inverse:
            sin = self.negative(sin)
        turned_first = self.subtract(self.multiply(first, cos), self.multiply(second, sin))
        turned_second = self.add(self.multiply(second, cos), self.multiply(first, sin))
        return self.concatenate([turned_first, turned_second], -1)


def check_ids(ids, size, what, ignore_index=None):
    """Raise a ShapeError unless every id (but `ignore_index`) is in 0 … size - 1."""
    valid = (ids >= 0) & (ids < size)
    if ignore_index is not None:
        valid |= ids == ignore_index
    if not valid.all():
        wrong = ids[~valid].reshape(-1)[0]
        raise ShapeError(f"{what}: index {wrong} is outside 0 … {size - 1}")
