"""Cross-entropy of next-token logits, plain and fused with the output layer.

The ops give one loss for each token; the functions `cross_entropy` and `linear_cross_entropy`
give their mean over the tokens that count. Training over several micro-batches passes the count
of the whole batch as `denominator`, so that accumulation equals one large batch.
"""

import math

from minifm.errors import ConfigError
from minifm.op import Op, check_floating, check_integers
from minifm.ops.arithmetic import multiply
from minifm.ops.packed import refuse_gradient
from minifm.ops.precision import active_precision
from minifm.ops.reduce import sum
from minifm.tensor import apply, leaf_grad

IGNORE = -100       # the target index that the field uses for "no loss here"


class CrossEntropy(Op):
    """logsumexp(logits) - logits[target], for each token; with smoothing, see the verb."""

    signature = "logits[*B, V], targets[*B] -> [*B]"
    fresh = True

    def forward(self, logits, targets, ignore_index=IGNORE, smoothing=0.0):
        b, V = self.backend, logits.shape[-1]
        self.options = ignore_index, smoothing
        self.shape, self.batch = logits.shape, targets.shape
        self.logits = b.reshape(logits, (-1, V) if V else (math.prod(targets.shape), V))
        self.targets = b.reshape(targets, (-1,))
        losses, self.lse = b.cross_entropy(self.logits, self.targets, *self.options)
        return b.reshape(losses, self.batch)

    def backward(self, dy):
        d = self.backend.cross_entropy_backward(
            self.backend.reshape(dy, (-1,)), self.logits, self.targets, self.lse, *self.options)
        return self.backend.reshape(d, self.shape), None

    @classmethod
    def check(cls, inputs):
        check_integers(cls, inputs, "targets")
        super().check(inputs)

    @classmethod
    def examples(cls, draw):
        B, V = draw.batch(), draw.size("V", 2)
        return (draw.normal((*B, V)), draw.targets(B, V, IGNORE)), \
            {"smoothing": draw.choice([0.0, 0.1])}


class LinearCrossEntropy(Op):
    """Cross-entropy of x @ weightᵀ + bias, without ever holding the logits of all tokens."""

    signature = "x[*B, C], weight[V, C], bias[V], targets[*B] -> [*B]"
    fresh = True

    def forward(self, x, weight, bias, targets, ignore_index=IGNORE, smoothing=0.0,
                precision="fp32"):
        if self.needs[1]:
            refuse_gradient(weight)
        b = self.backend
        self.options, self.precision = (ignore_index, smoothing), precision
        self.shape, self.weight, self.bias = x.shape, weight, bias
        self.x = b.reshape(x, (math.prod(targets.shape), x.shape[-1]))      # [N, C]
        self.targets = b.reshape(targets, (-1,))                            # [N]
        losses, self.lse = b.linear_cross_entropy(self.x, weight, bias, self.targets,
                                                  *self.options, precision)
        return b.reshape(losses, targets.shape)

    def backward(self, dy):
        b = self.backend
        dx, dw, db = b.linear_cross_entropy_backward(
            b.reshape(dy, (-1,)), self.x, self.weight, self.bias, self.targets, self.lse,
            *self.options, self.needs[:3], leaf_grad(self, 1) if self.needs[1] else None,
            self.precision)
        return None if dx is None else b.reshape(dx, self.shape), dw, db, None

    @classmethod
    def check(cls, inputs):
        check_integers(cls, inputs, "targets")
        super().check(inputs)
        check_floating(cls, inputs, "x", "weight", "bias")

    @classmethod
    def examples(cls, draw):
        B, C, V = draw.batch(), draw.size("C", 1), draw.size("V", 2)
        return (draw.normal((*B, C)), draw.normal((V, C)), draw.choice([draw.normal((V,)), None]),
                draw.targets(B, V, IGNORE)), {"smoothing": draw.choice([0.0, 0.1])}

    @classmethod
    def flops(cls, x, weight, bias, targets, ignore_index=IGNORE, smoothing=0.0, precision="fp32"):
        return 2 * math.prod(x.shape) * weight.shape[0]

    def backward_products(self):
        return 1 + self.needs[0] + self.needs[1]      # the logits are computed again


def token_losses(logits, targets, ignore_index=IGNORE, smoothing=0.0):
    """One loss (in nats) for each token: logits [*B, V], integer targets [*B] -> [*B]."""
    return apply(CrossEntropy, logits, targets, ignore_index=ignore_index,
                 smoothing=_checked(smoothing))


def cross_entropy(logits, targets, ignore_index=IGNORE, smoothing=0.0, denominator=None):
    """The mean loss of the tokens whose target is not `ignore_index`, a scalar.

    `denominator` divides the sum in place of their count.
    """
    losses = token_losses(logits, targets, ignore_index, smoothing)
    return _average(losses, targets, ignore_index, denominator)


def linear_cross_entropy(x, weight, targets, ignore_index=IGNORE, smoothing=0.0,
                         denominator=None, bias=None):
    """cross_entropy(x @ weightᵀ + bias, targets): x [*B, C], weight [V, C], targets [*B],
    bias [V]."""
    losses = apply(LinearCrossEntropy, x, weight, bias, targets, ignore_index=ignore_index,
                   smoothing=_checked(smoothing), precision=active_precision())
    return _average(losses, targets, ignore_index, denominator)


def count_targets(targets, ignore_index=IGNORE):
    """How many of `targets` (a NumPy array or Tensor) count."""
    values = targets.numpy() if hasattr(targets, "numpy") else targets
    return int((values != ignore_index).sum())


def _average(losses, targets, ignore_index, denominator):
    """Σ losses / denominator; with nothing to average, 0 (and no gradient), not NaN."""
    if denominator is None:
        denominator = max(count_targets(targets, ignore_index), 1)
    return multiply(sum(losses), 1 / denominator)


def _checked(smoothing):
    if not 0 <= smoothing < 1:
        raise ConfigError(f"cross_entropy: expected smoothing in [0, 1), got {smoothing}")
    return smoothing
