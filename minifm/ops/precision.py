"""How exactly matrix products multiply: with float32 operands, or with operands rounded to bf16.

bf16 is the upper half of a float32: its range, and 8 bits of significand (Kalamkar et al. 2019).
Operands are rounded on their way into the product, sums stay float32, and so does every array
that anyone sees: what `matmul`, `linear` and the losses return, and their gradients. Attention
and convolutions stay in float32, and so do products of float64. A packed weight has an arithmetic
of its own (backends/reference/packed.py), whatever is said here.

A product of two bf16 numbers is exact in float32, so only the additions round: |error| ≤ (K + 1) u
|x||y|, entrywise, in whatever order they go. Instructions that multiply pairs of bf16 (VDPBF16PS,
where the instruction set is avx512bf16) add two products at once, in an order of their own, and
take for zero any operand or sum below t = 2^-126: at most t (Σ|x| + Σ|y| + K) more. The bits then
are not those of another instruction set, but they still depend on K alone.

An op keeps the precision of its forward for its backward.
"""

from minifm.errors import ConfigError

PRECISIONS = ("fp32", "bf16")
_active = "fp32"


def precision(name):
    """Multiply in "fp32" or "bf16" from now on, in the whole process.

    As a context manager it switches back at the end of the block: `with mf.precision("bf16"): …`.
    Raises ConfigError for any other name.
    """
    global _active
    if name not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {name!r}")
    previous, _active = _active, name
    return _Switch(previous)


def active_precision():
    """What `precision` said last."""
    return _active


class _Switch:
    def __init__(self, previous):
        self.previous = previous

    def __enter__(self):
        return _active

    def __exit__(self, *exception):
        global _active
        _active = self.previous
