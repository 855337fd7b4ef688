"""Making arrays, looking at them from another angle, and moving them in and out of the backend.

Host backends (NumPy, C) share these: their arrays are `np.ndarray`, and a view costs nothing.
Ops never index or reshape an array themselves; they ask here, so that an array may live
anywhere.
"""

import numpy as np

from minifm.backends.reference.fallback import composed


class Arrays:
    # -- in and out ------------------------------------------------------------------------

    def from_numpy(self, array):
        """The backend's array of a NumPy array; shares memory where it can."""
        return np.asarray(array)

    def to_numpy(self, array):
        """A NumPy array of the backend's; shares memory where it can."""
        return self.unpacked(array)

    def sync(self):
        """Wait until every verb called so far has finished. On the host they all have."""

    def capture(self, function):
        """`function`, to be called again and again on the same arrays, whatever they now hold.

        A backend may record what the first call asks of its kernels and repeat that; then what
        a call returns is written anew by the next. The function takes no arguments, keeps no
        graph and computes by verbs of `backends.active()` alone, the same ones each time.
        """
        return function

    def enter_thread(self):
        """Called in each thread that computes, before its first op and when it switches here."""

    def release_memory(self):
        """Give memory that is kept for later arrays back to the system; returns how many bytes."""
        return 0

    # -- new arrays ------------------------------------------------------------------------

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype)

    def full(self, shape, value, dtype):
        return np.full(shape, value, dtype)

    def copy(self, x):
        """A fresh, contiguous copy."""
        return np.array(x, order="C", copy=True)

    def contiguous(self, x):
        """`x` itself when its elements lie in row-major order, else a copy that does."""
        return np.ascontiguousarray(x).reshape(x.shape)     # ascontiguousarray turns 0-d into 1-d

    def astype(self, x, dtype):
        return x.astype(dtype, copy=False)

    def visible_mask(self, queries, keys, lengths, causal, first_keys=None):
        """bool [B, T, S], or [1, T, S] where rows are alike: which keys a query may look at.

        Of row b's S keys the first lengths[b] are there (None: all). With `causal`, its query i
        sits at position lengths[b] - T + i and looks at keys up to that. Query i of row b looks
        at none before first_keys[b, i] (None: 0).
        """
        there = np.array([keys]) if lengths is None else np.minimum(lengths, keys)
        before = np.arange(1 - queries, 1) if causal else np.zeros(queries, int)
        mask = np.arange(keys) < (there[:, None] + before)[..., None]
        return mask if first_keys is None else mask & (np.arange(keys) >= first_keys[..., None])

    # -- views -----------------------------------------------------------------------------

    def reshape(self, x, shape):
        return x.reshape(shape)

    def transpose(self, x, axes):
        return x.transpose(axes)

    def broadcast_to(self, x, shape):
        return np.broadcast_to(x, shape)

    def getitem(self, x, index):
        """x[index] by NumPy's rules: a view for slices, a copy for integer or boolean arrays."""
        return x[index]

    # -- pieces ----------------------------------------------------------------------------

    def concatenate(self, arrays, axis):
        return np.concatenate(arrays, axis=axis)

    @composed
    def rejoin(self, arrays, axis):
        """Pieces of an axis, joined again. Where they lie side by side in one array, a backend
        may return that array itself."""
        return self.concatenate(arrays, axis)

    def pad(self, x, widths, value):
        """`widths` is ((before, after), …), one pair for each axis."""
        return np.pad(x, widths, constant_values=value)

    def scatter_add(self, shape, index, values):
        """zeros(shape) with `values` added at `index`; places named twice receive both."""
        out = np.zeros(shape, values.dtype)
        if only_slices(index):
            out[index] = values         # they never name a place twice
        else:
            np.add.at(out, index, values)
        return out

    def take_along(self, x, index, axis):
        """out[..., i, ...] = x[..., index[..., i, ...], ...] along `axis`."""
        return np.take_along_axis(x, index, axis)

    def add_along(self, shape, index, values, axis):
        """The adjoint of `take_along`: zeros(shape), `values` added where they were taken."""
        out = np.zeros(shape, values.dtype)
        places = list(np.indices(index.shape, sparse=True))
        places[axis] = index
        np.add.at(out, tuple(places), values)
        return out

    # -- questions -------------------------------------------------------------------------

    def all_finite(self, x):
        """True when no element is NaN or infinite (integers always are finite)."""
        return bool(np.isfinite(x).all())


def only_slices(index):
    """Whether `index` has slices and single places, and no array of places."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(p, (slice, int, np.integer)) or p is None or p is ... for p in parts)
