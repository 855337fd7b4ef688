"""Where the inputs of an op come from: the `draw` that `Op.examples(draw)` is given.

An op says once what it can be run on, and the same few lines serve its tests (small, odd shapes
in every memory layout) and its benchmark (realistic shapes, contiguous):

    @classmethod
    def examples(cls, draw):
        B, D = draw.batch(), draw.size("D", 2)
        return (draw.normal((*B, D)), draw.positive((D,))), {"eps": 1e-5}

`Draw` lists what there is to draw. `Explorer` draws for property tests, `Benchmark` for timing.
strategies.py makes hypothesis strategies of the first.
"""

import math

import numpy as np

# Around the widths of vector registers and tiles: empty, one, a few, 8 ± 1, 16 ± 1, 32 ± 1, 64 ± 1.
SIDES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
LAYOUTS = ("contiguous", "sliced", "reversed", "transposed", "stretched", "misaligned")


class Draw:
    """Arrays by kind and sizes by dimension name. Subclasses choose sizes, layouts and options.

    dtype       of the floating-point arrays
    constants   the floating-point arrays drawn as no variables: an op owes them no gradient
    """

    def __init__(self, dtype, seed):
        self.dtype = np.dtype(dtype)
        self.random = np.random.default_rng(seed)
        self.constants = []

    # -- what subclasses decide ------------------------------------------------------------------

    def size(self, name, smallest=0):
        """A size, at least `smallest`, for the dimension called `name`; each call draws anew."""
        raise NotImplementedError

    def batch(self):
        """The sizes of any number of leading dimensions, as a tuple."""
        raise NotImplementedError

    def any_shape(self, smallest=0):
        """A shape of any number of dimensions, every size at least `smallest`."""
        raise NotImplementedError

    def broadcastable(self, most=4, name="*X"):
        """Two shapes of at most `most` dimensions that broadcast together; a benchmark takes
        twice the shape that it has under `name`."""
        raise NotImplementedError

    def choice(self, options):
        """One element of the list `options`; a benchmark takes the first."""
        raise NotImplementedError

    def tested(self, options, name):
        """One element of `options`, all small; a benchmark takes what it has under `name`."""
        raise NotImplementedError

    def axis(self, ndim):
        """What a reduction over `ndim` dimensions may take: None, an axis, or a tuple of axes."""
        raise NotImplementedError

    def permutation(self, n):
        """0 … n - 1 in some order, as a tuple."""
        raise NotImplementedError

    def laid(self, values, constant_axes=True):
        """`values` in some memory layout. With `constant_axes` a layout may repeat values."""
        raise NotImplementedError

    # -- sizes and options -----------------------------------------------------------------------

    def shape(self, dims, sizes):
        """The shape for the signature's `dims` (["*B", "D"]); `sizes` binds the names so far."""
        shape = ()
        for dim in dims:
            if dim not in sizes:
                sizes[dim] = self.batch() if dim.startswith("*") else self.size(dim)
            shape += sizes[dim] if dim.startswith("*") else (sizes[dim],)
        return shape

    def flag(self):
        """True or False; a benchmark takes True."""
        return self.choice([True, False])

    # -- floating-point arrays -------------------------------------------------------------------

    def normal(self, shape):
        """N(0, 1) numbers, in any memory layout."""
        return self.laid(self.plain_normal(shape))

    def plain_normal(self, shape):
        """N(0, 1) numbers, contiguous: to compute with."""
        return self._floats(self.random.standard_normal(shape))

    def positive(self, shape):
        """Numbers in [0.5, 3)."""
        return self.laid(self._floats(self.random.uniform(0.5, 3, shape)))

    def away_from_zero(self, shape):
        """Numbers of either sign, 0.25 to 3 in size: for a kink or a pole at 0."""
        sizes = self.random.uniform(0.25, 3, shape)
        signs = np.where(self.random.random(shape) < 0.5, -1.0, 1.0)
        return self.laid(self._floats(sizes * signs))

    def grid(self, shape, offset):
        """Multiples of ½ in [-4, 4), plus `offset`: two grids ¼ apart never tie."""
        return self.laid(self._floats(self.random.integers(-8, 8, shape) * 0.5 + offset))

    def distinct(self, shape):
        """Numbers no two of which are closer than ¼: for an extreme without ties."""
        n = math.prod(shape)
        values = (self.random.permutation(n) - n // 2) * 0.25
        return self.laid(self._floats(values.reshape(shape)), constant_axes=False)

    def cos(self, angle):
        """cos(angle), as a constant: the op owes it no gradient."""
        return self._constant(np.cos(angle))

    def sin(self, angle):
        """sin(angle), as a constant: the op owes it no gradient."""
        return self._constant(np.sin(angle))

    # -- other arrays ----------------------------------------------------------------------------

    def booleans(self, shape):
        """True or False, contiguous."""
        return np.asarray(self.random.random(shape) < 0.5)

    def integers(self, shape, low, high):
        """int64 in low … high - 1, contiguous."""
        return np.asarray(self.random.integers(low, high, shape))

    def targets(self, shape, classes, ignore):
        """Class numbers 0 … classes - 1, about one in five of them `ignore` instead."""
        ignored = self.random.random(shape) < 0.2
        return np.where(ignored, ignore, self.random.integers(0, classes, shape))

    def _floats(self, values):
        return np.asarray(values, self.dtype)       # of shape (), NumPy draws scalars, not arrays

    def _constant(self, array):
        self.constants.append(array)
        return array


class Explorer(Draw):
    """Small, odd shapes in every layout.

    choose    picks one element of a list: hypothesis's choice (see strategies.py), so that a
              failure shrinks in shapes, layouts and options, or any other
    most      the product of all the sizes of one example stays below it
    sides     the sizes to choose from
    """

    OUTER = ("B", "G", "H")     # stay small, to leave room for the dimensions that kernels walk

    def __init__(self, choose, seed, dtype=np.float64, most=4096, layouts=LAYOUTS, sides=SIDES):
        super().__init__(dtype, seed)
        self.choice = choose
        self.room, self.layouts, self.sides = most, layouts, sides

    def tested(self, options, name):
        return self.choice(options)

    @classmethod
    def random(cls, seed, **options):
        """One that chooses by `seed` alone, without hypothesis."""
        random = np.random.default_rng(seed)
        return cls(lambda options: options[random.integers(len(options))], seed, **options)

    def size(self, name, smallest=0):
        largest = min(math.isqrt(self.room) + 1, 9 if name in self.OUTER else self.room)
        fitting = [n for n in self.sides if smallest <= n <= largest]
        side = self.choice(fitting or [max(smallest, 1)])
        self.room //= max(side, 1)
        return side

    def batch(self):
        return tuple(self.size("B") for _ in range(self.choice([1, 0, 2, 3])))

    def any_shape(self, smallest=0):
        return tuple(self.size("X", smallest) for _ in range(self.choice([1, 2, 0, 3, 4, 5])))

    def broadcastable(self, most=4, name="*X"):
        whole = tuple(self.size("X") for _ in range(self.choice(list(range(most + 1)))))
        return self._shrunk(whole), self._shrunk(whole)

    def _shrunk(self, whole):
        """`whole` without some leading sizes and with some others replaced by 1."""
        kept = whole[self.choice(list(range(len(whole) + 1))):]
        return tuple(1 if self.choice([False, False, True]) else size for size in kept)

    def axis(self, ndim):
        kind = self.choice(["all", "one", "several"] if ndim else ["all"])
        if kind == "all":
            return None
        if kind == "one":
            return self.choice(list(range(-ndim, ndim)))
        return tuple(i for i in range(ndim) if self.choice([True, False]))

    def permutation(self, n):
        left = list(range(n))
        return tuple(left.pop(self.choice(list(range(len(left))))) for _ in range(n))

    def laid(self, values, constant_axes=True):
        layout = self.choice(self.layouts)
        if layout == "stretched" and not constant_axes:
            layout = "sliced"
        return lay_out(values, layout, self.choice)


def lay_out(values, layout, choice):
    """The numbers of `values` (for "stretched": some of them, repeated) in the named layout."""
    if layout == "contiguous" or values.ndim == 0 and layout != "misaligned":
        return values
    if layout == "sliced":          # every second element of a larger array, NaN between
        room = np.full([2 * n + 1 for n in values.shape], np.nan, values.dtype)
        view = room[tuple(slice(1, None, 2) for _ in values.shape)]
        view[...] = values
        return view
    axis = choice(list(range(max(values.ndim, 1))))
    if layout == "reversed":        # a negative stride
        flip = (slice(None),) * axis + (slice(None, None, -1),)
        return values[flip].copy()[flip]
    if layout == "transposed":      # the first axis is the fastest
        return np.asfortranarray(values)
    if layout == "stretched":       # a stride of 0
        one = values[(slice(None),) * axis + (slice(0, 1),)]
        return np.broadcast_to(one, values.shape) if values.shape[axis] else values
    if layout == "misaligned":      # one byte off the element's boundary
        room = np.zeros(values.nbytes + values.itemsize, np.uint8)[1:]
        view = np.frombuffer(room, values.dtype, values.size).reshape(values.shape)
        view[...] = values
        return view
    raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")


class Benchmark(Draw):
    """Realistic, contiguous inputs: sizes by dimension name, the first of every choice.

    sizes     {dimension name: size}; "*B" is the batch, "*X" the shape of an elementwise op,
              "*M" what stands before the matrices of a product; what it lacks comes from SIZES
    choices   what `choice` answers, one after the other, before it takes to the first option
    """

    SIZES = {"*B": (8, 256), "*X": (4096, 768), "*M": (), "B": 8, "T": 256, "S": 256, "H": 12,
             "G": 1, "D": 64, "R": 32, "C": 768, "M": 1024, "N": 768, "K": 768, "V": 8192,
             "images": 8, "image": (56, 56), "channels": 64, "window": (3, 3), "factor": (2, 2),
             "groups": 32, "group width": 2}

    def __init__(self, sizes=None, choices=(), dtype=np.float32, seed=0):
        super().__init__(dtype, seed)
        self.sizes = self.SIZES | (sizes or {})
        self.choices = list(choices)

    def size(self, name, smallest=0):
        return max(self.sizes.get(name, 64), smallest)

    def batch(self):
        return self.sizes["*B"]

    def any_shape(self, smallest=0):
        return self.sizes["*X"]

    def broadcastable(self, most=4, name="*X"):
        return self.sizes[name], self.sizes[name]

    def shape(self, dims, sizes):
        for dim in dims:
            if dim.startswith("*"):
                sizes.setdefault(dim, self.sizes.get(dim, self.sizes["*B"]))
        return super().shape(dims, sizes)

    def choice(self, options):
        return self.choices.pop(0) if self.choices else options[0]

    def tested(self, options, name):
        return self.sizes[name]

    def axis(self, ndim):
        return ndim - 1 if ndim else None

    def permutation(self, n):
        return tuple(reversed(range(n)))

    def laid(self, values, constant_axes=True):
        return values
