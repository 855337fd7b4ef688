"""Layer norm (also with gains that a condition sets), RMS norm, group norm. The arithmetic stands
in backends/reference/norm.py."""

from minifm.errors import ShapeError
from minifm.op import Op
from minifm.ops.activation import verb_of
from minifm.tensor import apply


class LayerNorm(Op):
    """y = (x - mean) * rstd * gamma + beta, over the last axis; `beta` may be left out."""

    signature = "x[*B, D], gamma[D], beta[D] -> [*B, D]"
    fresh = True

    def forward(self, x, gamma, beta, eps=1e-5):
        if beta is None:
            beta = self.backend.zeros(gamma.shape, gamma.dtype)
        y, self.mean, self.rstd = self.backend.layernorm(x, gamma, beta, eps)
        self.x, self.gamma = x, gamma
        return y

    def backward(self, dy):                                     # -> dx, dgamma, dbeta
        return self.only_needed(*self.backend.layernorm_backward(
            dy, self.x, self.gamma, self.mean, self.rstd))

    @classmethod
    def examples(cls, draw):
        B, D = draw.batch(), draw.size("C", 2)
        beta = draw.choice([True, False])
        return (draw.normal((*B, D)), draw.normal((D,)), draw.normal((D,)) if beta else None), \
            {"eps": 1e-2}


class AdaptiveLayerNorm(Op):
    """y = (x - mean) * rstd * (1 + scale) + shift: gain and offset are of each sequence."""

    signature = "x[B, T, C], scale[B, C], shift[B, C] -> [B, T, C]"
    fresh = True

    def forward(self, x, scale, shift, eps=1e-5):
        b, (B, _, C) = self.backend, x.shape
        one, zero = (b.full((C,), value, x.dtype) for value in (1, 0))
        self.normalised, self.mean, self.rstd = b.layernorm(x, one, zero, eps)
        self.x, self.one, self.gain = x, one, b.reshape(b.add(scale, 1), (B, 1, C))
        return b.add(b.multiply(self.normalised, self.gain), b.reshape(shift, (B, 1, C)))

    def backward(self, dy):                                     # -> dx, dscale, dshift
        b, dx, dscale, dshift = self.backend, None, None, None
        if self.needs[0]:
            dx, _, _ = b.layernorm_backward(b.multiply(dy, self.gain), self.x, self.one, self.mean,
                                            self.rstd)
        if self.needs[1]:
            dscale = b.sum(b.multiply(dy, self.normalised), (1,))
        if self.needs[2]:
            dshift = b.sum(dy, (1,))
        return dx, dscale, dshift

    @classmethod
    def examples(cls, draw):
        B, T, C = draw.size("B"), draw.size("T"), draw.size("C", 2)
        return (draw.normal((B, T, C)), draw.normal((B, C)), draw.normal((B, C))), {"eps": 1e-2}


class RMSNorm(Op):
    """y = x * rstd * gamma with rstd = 1/√(mean(x²) + eps), over the last axis."""

    signature = "x[*B, D], gamma[D] -> [*B, D]"
    fresh = True

    def forward(self, x, gamma, eps=1e-6):
        y, self.rstd = self.backend.rmsnorm(x, gamma, eps)
        self.x, self.gamma = x, gamma
        return y

    def backward(self, dy):                                     # -> dx, dgamma
        return self.only_needed(*self.backend.rmsnorm_backward(
            dy, self.x, self.gamma, self.rstd))

    @classmethod
    def examples(cls, draw):
        B, D = draw.batch(), draw.size("C", 1)
        return (draw.normal((*B, D)), draw.normal((D,))), {"eps": 1e-2}


class GroupNorm(Op):
    """activation(z), z = layer norm over each group of channels with all its positions, gain and
    offset by channel."""

    signature = "x[B, C, *S], gamma[C], beta[C] -> [B, C, *S]"
    fresh = True

    def forward(self, x, gamma, beta, groups, eps=1e-5, activation=None):
        y, self.mean, self.rstd = self.backend.groupnorm(x, gamma, beta, groups, eps, activation)
        self.x, self.gamma, self.beta, self.options = x, gamma, beta, (groups, activation)
        return y

    def backward(self, dy):                                     # -> dx, dgamma, dbeta
        return self.only_needed(*self.backend.groupnorm_backward(
            dy, self.x, self.gamma, self.beta, self.mean, self.rstd, *self.options))

    @classmethod
    def examples(cls, draw):
        groups, B = draw.tested([1, 2, 4], "groups"), draw.size("B")
        C = groups * draw.tested([1, 3], "group width")
        S = draw.tested([(5,), (3, 4), (2, 2, 3)], "image")
        return (draw.normal((B, C, *S)), draw.normal((C,)), draw.normal((C,))), \
            {"groups": groups, "eps": 1e-2, "activation": draw.choice([None, "silu", "gelu"])}


def layernorm(x, gamma, beta, eps=1e-5):
    """x [*B, D] normalised over D, times gamma [D], plus beta [D] unless that is None."""
    return apply(LayerNorm, x, gamma, beta, eps=eps)


def adaptive_layernorm(x, scale, shift, eps=1e-5):
    """x [B, T, C] normalised over C, times 1 + scale [B, C], plus shift [B, C] (Peebles & Xie
    2022)."""
    return apply(AdaptiveLayerNorm, x, scale, shift, eps=eps)


def rmsnorm(x, gamma, eps=1e-6):
    """x [*B, D] over its root mean square along D, times gamma [D]."""
    return apply(RMSNorm, x, gamma, eps=eps)


def groupnorm(x, gamma, beta, groups, eps=1e-5, activation=None):
    """x [B, C, *S] normalised over each of `groups` groups of channels, times gamma [C], plus
    beta [C]; then `activation`, one of the functions relu, silu, gelu, gelu_tanh, gelu_quick, in
    one pass where the backend can. Raises ShapeError."""
    if groups < 1 or len(x.shape) < 2 or x.shape[1] % groups:
        raise ShapeError(f"groupnorm: {groups} groups do not divide the channels of {x.shape}")
    return apply(GroupNorm, x, gamma, beta, groups=groups, eps=eps,
                 activation=verb_of("groupnorm", activation))
