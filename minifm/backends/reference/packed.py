"""Stored low precision, in its one form: `pack` makes a `Packed`, which linear and embedding read.

A format stores the weights along the inner dimension K, the one that a product sums over. By what
32 of them (a group) take:

    fp32   128 bytes   as they are, only laid out for streaming
    bf16    64         the upper half of a float32, rounded to nearest, ties to even
    int8    34         codes -127 … 127 and a scale: a weight is code * scale
    int4    18         codes -8 … 7 and a scale

Scales are bf16: as wide a range as float32, widened by a shift on any processor. Codes are rounded
against the scale as it is stored, so that its few bits cost no accuracy. The int formats round the
other factor, too: see `matmul_packed`.

This file is the specification of every code and of the arithmetic. A `Packed` is an array that
shows its shape and dtype and nothing else; whoever stands above the backends may ask for its
`format`, and for its parts through the verbs here.
"""

import numpy as np

from minifm.backends.reference.fallback import composed
from minifm.errors import ConfigError, ShapeError

GROUP = 32                                  # weights that share a scale
FORMATS = ("fp32", "bf16", "int8", "int4")
ROWS_TOGETHER = 512                         # rows that are encoded at once: they stay in the cache
# By how much the scales that int4 tries differ from the one that makes the largest weight -8.
CANDIDATES = np.linspace(0.85, 1.25, 17, dtype=np.float32)


class Packed:
    """A matrix in low precision: what `pack` returns.

    format          one of FORMATS
    shape, dtype    of the matrix that it stands for; dtype is float32
    inner           the axis that products sum over, along which groups run
    codes, scales   arrays as the backend that made it lays them out, for that backend alone
    """

    __slots__ = ("codes", "format", "inner", "scales", "shape")
    dtype = np.dtype(np.float32)

    def __init__(self, format, shape, inner, codes, scales=None):
        self.format, self.shape, self.inner = format, tuple(shape), inner
        self.codes, self.scales = codes, scales

    @property
    def outputs(self):
        """N, the size of the axis that is not summed over."""
        return self.shape[1 - self.inner]

    @property
    def depth(self):
        """K, the size of the axis that is."""
        return self.shape[self.inner]

    @property
    def nbytes(self):
        return self.codes.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def transpose(self, axes):
        """The same codes, read as the transposed matrix."""
        if tuple(axes) != (1, 0):
            self._refuse()
        return Packed(self.format, self.shape[::-1], 1 - self.inner, self.codes, self.scales)

    def __repr__(self):
        return f"Packed({self.format}, shape {self.shape})"

    def _refuse(self, *arguments, **options):
        raise ShapeError(f"a weight packed as {self.format} serves as the weight of linear and "
                         "embedding only; `unpack` gives its numbers")

    # What NumPy, or a kernel that expects an array, would ask for.
    __array__ = __array_ufunc__ = __array_function__ = __getitem__ = astype = reshape = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __pow__ = __matmul__ = __neg__ = __abs__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    flags = strides = ndim = size = T = property(_refuse)


class Packing:
    def pack(self, w, format, inner=0):
        """w [K, N] (or [N, K] with inner=1) as a Packed of the same shape.

        Raises ConfigError for an unknown format, and ShapeError for what is no float32 matrix or,
        in an int format, has weights that are not finite.
        """
        check_packable(w, format, inner)
        rows = w if inner == 1 else w.T                                         # [N, K]
        parts = [ENCODERS[format](rows[i : i + ROWS_TOGETHER])
                 for i in range(0, max(len(rows), 1), ROWS_TOGETHER)]
        codes, scales = (None if part[0] is None else np.concatenate(part) for part in zip(*parts))
        return self.packed_from_parts(format, w.shape, inner, codes, scales)

    def unpack(self, packed):
        """The numbers that a Packed stands for, a float32 array of its shape."""
        codes, scales = self.packed_parts(packed)
        rows = decoded(packed.format, codes, scales, packed.depth)              # [N, K]
        return np.ascontiguousarray(rows if packed.inner == 1 else rows.T)

    def packed_parts(self, packed):
        """(codes, scales) of a Packed, laid out as files hold them, whatever the backend.

        For a row of each of its N outputs: fp32 float32 [N, K]; bf16 uint16 [N, K]; int8 int8
        [N, G, 32]; int4 uint8 [N, G, 16], code i + 8 in the lower and code i + 16, + 8, in the
        upper half of byte i. Scales are uint16 [N, G], the bits of bf16, or None.
        """
        return packed.codes, packed.scales

    def packed_from_parts(self, format, shape, inner, codes, scales):
        """The Packed of these parts; the inverse of `packed_parts`."""
        return Packed(format, shape, inner, codes, scales)

    def matmul_packed(self, x, packed):
        """x [M, K] times a Packed [K, N]: [M, N].

        fp32 and bf16: the product of float32 numbers. int8 and int4: each group of a row of x is
        rounded to integers of -127 … 127, q = x / d to nearest even with d = max|x| / 127. The
        products of integers within a group add up exactly; y begins at 0, and for each group in
        order y = y + (d * scale) * sum, each operation rounded to float32. A group of x that has
        a number that is not finite makes its row NaN.
        """
        check_inner(packed, 0, "linear")
        codes, scales = self.packed_parts(packed)
        if scales is None:
            return np.matmul(x, decoded(packed.format, codes, None, packed.depth).T)
        q, d = quantized_rows(x)                                    # [M, G, 32], [M, G]
        codes, scales = integers(packed.format, codes), widened(scales)
        y = np.zeros((len(x), len(codes)), np.float32)
        for g in range(scales.shape[1]):
            # Below 2^24, so that float32 holds every partial sum exactly.
            sums = q[:, g] @ codes[:, g].T.astype(np.float32)       # [M, N]
            y = y + (d[:, g, None] * scales[:, g]) * sums
        return y

    def embedding_packed(self, packed, ids):
        """Rows ids[*B] of a Packed [V, C] whose inner axis is C, as float32 [*B, C]."""
        check_inner(packed, 1, "embedding")
        codes, scales = self.packed_parts(packed)
        places = ids.reshape(-1)
        rows = decoded(packed.format, codes[places],
                       None if scales is None else scales[places], packed.depth)
        return rows.reshape(*ids.shape, packed.depth)

    @composed
    def unpacked(self, w):
        """The float32 array of w, a plain one or a Packed."""
        return self.unpack(w) if isinstance(w, Packed) else w


# -- what every backend shares -------------------------------------------------------------------


def check_packable(w, format, inner):
    """Raise unless `pack` is defined for these arguments."""
    if format not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    if isinstance(w, Packed):
        raise ShapeError(f"pack: this weight is packed already, as {w.format}")
    if inner not in (0, 1) or len(w.shape) != 2 or w.dtype != np.float32:
        raise ShapeError("pack: expected a float32 matrix and its inner axis, 0 or 1, got "
                         f"{list(w.shape)} {w.dtype} and {inner!r}")


def check_finite(w):
    """Raise ShapeError unless all weights are finite: no code of an int format is not."""
    if not np.isfinite(w).all():
        raise ShapeError("pack: int formats need finite weights; some here are NaN or infinite")


def check_inner(packed, inner, what):
    """Raise ShapeError unless groups run along axis `inner`, as `what` reads them."""
    if packed.inner != inner:
        raise ShapeError(f"{what}: this weight {list(packed.shape)} is packed along axis "
                         f"{packed.inner}, and read along axis {inner}; pack it with "
                         f"inner={inner}")


def rounded_to_bf16(x):
    """float32 to the bits of bf16, uint16: to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16)


def widened(bits):
    """The bits of bf16, uint16, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def grouped(rows):
    """[N, K] as [N, G, 32], with zeros behind the last weights."""
    N, K = rows.shape
    G = -(-K // GROUP)
    groups = np.zeros((N, G * GROUP), np.float32)
    groups[:, :K] = rows
    return groups.reshape(N, G, GROUP)


def quantized_rows(x):
    """x [M, K] as q float32 [M, G, 32], integers, and d float32 [M, G]: x is about q * d."""
    groups = grouped(x)
    with np.errstate(all="ignore"):
        most = np.abs(groups).max(-1)
        d = np.where(np.isfinite(most), most / np.float32(127), np.float32(np.nan))
        q = np.clip(np.rint(groups / d[..., None]), -127, 127)
    return np.where(d[..., None] > 0, q, np.float32(0)), d


def integers(format, codes):
    """The codes of an int format, int8 [N, G, 32]."""
    if format == "int8":
        return codes
    halves = np.concatenate([codes & 15, codes >> 4], -1)
    return halves.astype(np.int8) - np.int8(8)


def decoded(format, codes, scales, depth):
    """The numbers [N, K] that parts stand for."""
    if format == "fp32":
        return codes
    if format == "bf16":
        return widened(codes)
    numbers = integers(format, codes).astype(np.float32) * widened(scales)[..., None]
    return numbers.reshape(len(codes), scales.shape[1] * GROUP)[:, :depth]


# -- encoders: rows float32 [N, K] to (codes, scales) -------------------------------------------


def _fp32(rows):
    return np.array(rows, order="C"), None


def _bf16(rows):
    return rounded_to_bf16(rows), None


def _int8(rows):
    """The largest weight of a group becomes ±127."""
    check_finite(rows)
    groups = grouped(rows)
    scales = rounded_to_bf16(np.abs(groups).max(-1) / np.float32(127))
    return _codes(groups, widened(scales), -127, 127).astype(np.int8), scales


def _int4(rows):
    """The scale of least squared error among a few that make the largest weight about -8.

    Its sign may be either: that is how -8, which has no +8 beside it, comes to use.
    """
    check_finite(rows)
    groups = grouped(rows)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)[..., 0]
    best = np.full(largest.shape, np.inf, np.float32)
    scales = np.zeros(largest.shape, np.uint16)
    for candidate in CANDIDATES:
        tried = rounded_to_bf16(largest / (np.float32(-8) * candidate))
        scale = widened(tried)
        errors = _squared_error(groups, _codes(groups, scale, -8, 7), scale, largest)
        better = (errors < best) & (scale != 0)
        best, scales = np.where(better, errors, best), np.where(better, tried, scales)
    codes = (_codes(groups, widened(scales), -8, 7) + 8).astype(np.uint8)
    return codes[..., :16] | codes[..., 16:] << 4, scales


def _codes(groups, scales, least, most):
    """Integers whose products with their scale come nearest to the weights; 0 for a scale of 0."""
    scales = scales[..., None]
    with np.errstate(all="ignore"):
        codes = np.clip(np.rint(groups / scales), least, most)
    return np.where(scales != 0, codes, np.float32(0))


def _squared_error(groups, codes, scales, largest):
    """Of each group, in units of its largest weight, so that no square is lost: the sum of every
    eighth weight, then the halves of these eight sums, and so on. (The order decides ties.)"""
    with np.errstate(all="ignore"):
        errors = ((codes * scales[..., None] - groups) / largest[..., None]) ** 2
    e = errors[..., 0:8] + errors[..., 8:16] + errors[..., 16:24] + errors[..., 24:32]
    e = e[..., :4] + e[..., 4:]
    e = e[..., :2] + e[..., 2:]
    return e[..., 0] + e[..., 1]


ENCODERS = {"fp32": _fp32, "bf16": _bf16, "int8": _int8, "int4": _int4}
