"""Is a gradient right? Compare it, along random directions, with differences of the function.

For inputs x, a random direction d and a random weighting w of the output, the derivative of
w·f(x + h d) at h = 0 is d·(gradient of w·f). The left side is taken from two central
differences, at h and h/2, combined so that their h² errors cancel (Richardson); in float64 about
eleven digits remain. One scalar thus checks every element of every gradient at once, and
several directions make an accidental agreement impossible.
"""

import math

import numpy as np

from minifm import backends
from minifm.tensor import Tensor, no_grad, propagate

STEP = 2.0**-10
STREAM = 0x67726164     # of random numbers, so that inputs drawn from the same seed are not these


class GradientMismatch(AssertionError):
    """An analytic gradient that disagrees with the differences of its function."""


def gradcheck(function, inputs, seed=0, directions=3, atol=1e-7, rtol=1e-5):
    """Check the gradients of `function(*inputs)` by every float64 array among `inputs`.

    function   takes Tensors (and whatever else `inputs` holds), returns a Tensor or a tuple
    inputs     float64 arrays are differentiated; integers, scalars and None pass through

    Raises GradientMismatch naming the input. Steer clear of kinks and ties: within STEP of one,
    the function is not smooth and the differences mean nothing.
    """
    random = np.random.default_rng((seed, STREAM))
    varied = [i for i, x in enumerate(inputs) if _is_float64(x)]
    tensors = [Tensor(np.array(x), requires_grad=True) if i in varied else x
               for i, x in enumerate(inputs)]
    outputs = _as_tuple(function(*tensors))
    weights = [random.standard_normal(y.shape) for y in outputs]
    backend = backends.active()
    propagate([(y, backend.from_numpy(w)) for y, w in zip(outputs, weights) if y.requires_grad],
              backend)
    for i in varied:
        grad = tensors[i].grad
        grad = np.zeros(inputs[i].shape) if grad is None else backend.to_numpy(grad)
        if grad.shape != inputs[i].shape:
            raise GradientMismatch(f"input {i}: gradient {grad.shape} for {inputs[i].shape}")
        for _ in range(directions):
            direction = random.standard_normal(inputs[i].shape)
            analytic = float(np.vdot(grad, direction))
            numeric = _derivative(function, inputs, i, direction, weights)
            if not abs(analytic - numeric) <= atol + rtol * max(abs(analytic), abs(numeric)):
                raise GradientMismatch(
                    f"input {i} {inputs[i].shape}: along a random direction the gradient gives "
                    f"{analytic:.12g}, differences of the function {numeric:.12g}"
                )


def _derivative(function, inputs, i, direction, weights):
    """d/dh of weights · function at inputs[i] + h direction, h = 0, to fourth order in STEP."""
    def value(h):
        moved = [Tensor(x + h * direction) if j == i else Tensor(x) if _is_float64(x) else x
                 for j, x in enumerate(inputs)]
        with no_grad():
            outputs = _as_tuple(function(*moved))
        return math.fsum(float(np.vdot(y.numpy(), w)) for y, w in zip(outputs, weights))

    coarse = (value(STEP) - value(-STEP)) / (2 * STEP)
    fine = (value(STEP / 2) - value(-STEP / 2)) / STEP
    return (4 * fine - coarse) / 3


def _is_float64(x):
    return isinstance(x, np.ndarray) and x.dtype == np.float64


def _as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)
