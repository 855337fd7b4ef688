"""The layers that hold parameters: linear, convolution, embedding, layer norm, RMS norm, group
norm."""

from minifm import ops
from minifm.nn.module import Module, constant, normal


class Linear(Module):
    """activation(x @ weight + bias + adapter(x)) + residual, with weight stored [inputs, outputs].

    `adapter` is None, or what fine-tuning adds while the weight stays as it is (adapter.py).
    """

    def __init__(self, inputs, outputs, *, std, rng, bias=True):
        self.weight = normal((inputs, outputs), std, rng)
        self.bias = constant((outputs,), 0) if bias else None
        self.adapter = None

    def __call__(self, x, activation=None, residual=None, *, rng=None):
        """x [*B, K] -> [*B, N]; `rng` turns the adapter's dropout on."""
        if self.adapter is None:
            return ops.linear(x, self.weight, self.bias, activation, residual)
        if activation is None:
            added = self.adapter(x, residual, rng=rng)
            return ops.linear(x, self.weight, self.bias, residual=added)
        y = activation(ops.linear(x, self.weight, self.bias, residual=self.adapter(x, rng=rng)))
        return y if residual is None else y + residual


class Conv2d(Module):
    """The weighted sum of every window of an image, plus an offset for each output channel; the
    window is a square, [window, window]. With `padding` None the image keeps its size."""

    def __init__(self, inputs, outputs, window, *, stride=1, padding=None, std, rng):
        self.weight = normal((outputs, inputs, window, window), std, rng)
        self.bias = constant((outputs,), 0)
        self.stride, self.padding = stride, window // 2 if padding is None else padding

    def __call__(self, x):                                      # [B, C, H, W] -> [B, O, P, Q]
        return ops.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)


class Embedding(Module):
    """A table of `rows` vectors, looked up by index."""

    def __init__(self, rows, width, *, std, rng):
        self.weight = normal((rows, width), std, rng)

    def __call__(self, ids):                                    # [*B] -> [*B, C]
        return ops.embedding(self.weight, ids)


class LayerNorm(Module):
    """Each vector centred and scaled to unit variance, then gain and, with `bias`, offset."""

    def __init__(self, width, epsilon, *, bias=True):
        self.gain = constant((width,), 1)
        self.bias = constant((width,), 0) if bias else None
        self.epsilon = epsilon

    def __call__(self, x):                                      # [*B, C] -> [*B, C]
        return ops.layernorm(x, self.gain, self.bias, self.epsilon)


class RMSNorm(Module):
    """Each vector over its root mean square, then gain (Zhang & Sennrich 2019)."""

    def __init__(self, width, epsilon):
        self.gain = constant((width,), 1)
        self.epsilon = epsilon

    def __call__(self, x):                                      # [*B, C] -> [*B, C]
        return ops.rmsnorm(x, self.gain, self.epsilon)


class GroupNorm(Module):
    """Each of `groups` groups of channels, with all its positions, centred and scaled to unit
    variance; then gain and offset of each channel (Wu & He 2018)."""

    def __init__(self, width, groups, epsilon):
        self.gain = constant((width,), 1)
        self.bias = constant((width,), 0)
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x, activation=None):                     # [B, C, *S] -> [B, C, *S]
        return ops.groupnorm(x, self.gain, self.bias, self.groups, self.epsilon, activation)
