"""AdamW over named parameters, the norm of their gradients, and their moving average.

The arithmetic is the backend's verbs `adamw`, `ema` and `sum_of_squares`.
"""

import math
from contextlib import contextmanager

from minifm import backends
from minifm.errors import FormatError, listed


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decay for matrices alone, written in place.

    parameters    {name: Tensor}; those that require no gradient are left alone
    weight_decay  of tensors with two or more dimensions; biases and gains do not decay
    average       decay of the moving average of the weights; 0 keeps none

    `steps` counts the updates made; m, v (and averages) are {name: array}.
    """

    def __init__(self, parameters, *, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1,
                 average=0.0):
        backend = backends.active()
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.weight_decay, self.average = weight_decay, average
        self.steps = 0
        self.m = {name: backend.zeros(p.shape, p.dtype) for name, p in self.parameters.items()}
        self.v = {name: backend.zeros(p.shape, p.dtype) for name, p in self.parameters.items()}
        self.averages = {name: backend.copy(p.data) for name, p in self.parameters.items()} \
            if average else {}

    def gradient_norm(self):
        """The Euclidean norm of all gradients together, as a Python float."""
        return math.sqrt(backends.active().sum_of_squares(
            [p.grad for p in self.parameters.values() if p.grad is not None]))

    def update(self, learning_rate, scale=1.0):
        """One step: every gradient times `scale` (clipping), into moments, weights, average.

        A parameter that has received no gradient stays as it is.
        """
        backend = backends.active()
        self.steps += 1
        moved = {name: p for name, p in self.parameters.items() if p.grad is not None}
        weights = [p.data for p in moved.values()]
        backend.adamw(
            weights, [p.grad for p in moved.values()], [self.m[name] for name in moved],
            [self.v[name] for name in moved],
            [self.weight_decay if p.ndim >= 2 else 0.0 for p in moved.values()],
            learning_rate, self.beta1, self.beta2, self.epsilon, self.steps, scale)
        if self.averages:
            backend.ema([self.averages[name] for name in moved], weights, self.average)
        for p in moved.values():
            p.version += 1

    def zero_grad(self):
        """Forget the gradients."""
        for p in self.parameters.values():
            p.grad = None

    @contextmanager
    def averaged(self):
        """Within `with optimizer.averaged():` the parameters hold their moving averages."""
        trained = {name: p.data for name, p in self.parameters.items()}
        self._hold(self.averages)
        try:
            yield
        finally:
            self._hold({name: trained[name] for name in self.averages})

    def _hold(self, arrays):
        for name, array in arrays.items():
            self.parameters[name].data = array
            self.parameters[name].version += 1

    # -- in and out --------------------------------------------------------------------------

    def state(self):
        """{"m.NAME": array, …}: moments and, with an average, the averages and the weights under
        training (a checkpoint's model then holds the averages). NumPy arrays, not copied."""
        groups = self._groups()
        return {f"{group}.{name}": backends.active().to_numpy(array)
                for group, arrays in groups.items() for name, array in arrays.items()}

    def load(self, arrays, steps, source="optimizer state"):
        """Take back what `state` gave, after `steps` updates.

        Raises FormatError, naming entries that are missing, unknown or of another shape; then
        nothing has changed.
        """
        own = self.state()
        wrong = [f"lacks {key}" for key in own.keys() - arrays.keys()]
        wrong += [f"has unknown {key}" for key in arrays.keys() - own.keys()]
        wrong += [f"{key} is {list(arrays[key].shape)} {arrays[key].dtype}, expected "
                  f"{list(own[key].shape)} {own[key].dtype}"
                  for key in own.keys() & arrays.keys()
                  if (arrays[key].shape, arrays[key].dtype) != (own[key].shape, own[key].dtype)]
        if wrong:
            raise FormatError(source, None, listed(sorted(wrong), "; "))
        backend = backends.active()
        for group, held in self._groups().items():
            for name in held:
                held[name] = backend.copy(backend.from_numpy(arrays[f"{group}.{name}"]))
            if group == "parameter":
                self._hold(held)
        self.steps = steps

    def _groups(self):
        groups = {"m": self.m, "v": self.v}
        if self.averages:
            trained = {name: p.data for name, p in self.parameters.items()}
            groups |= {"average": self.averages, "parameter": trained}
        return groups
