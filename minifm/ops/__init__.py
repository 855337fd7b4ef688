"""All operations on tensors, and the one table that ties operators to them."""

from minifm.ops.activation import gelu, gelu_quick, gelu_tanh, relu, silu
from minifm.ops.arithmetic import (
    add, divide, equal, greater, greater_equal, less, less_equal, maximum, minimum, multiply,
    power, subtract, where,
)
from minifm.ops.attention import attention, merge_heads, split_heads
from minifm.ops.checkpoint import checkpoint
from minifm.ops.conv import (
    average_pool2d, conv2d, conv_transpose2d, max_pool2d, upsample_nearest,
)
from minifm.ops.elementary import (
    absolute, cos, erf, exp, log, negative, sigmoid, sin, sqrt, tanh,
)
from minifm.ops.embedding import dropout, embedding, rope
from minifm.ops.loss import count_targets, cross_entropy, linear_cross_entropy, token_losses
from minifm.ops.matmul import linear, matmul
from minifm.ops.norm import adaptive_layernorm, groupnorm, layernorm, rmsnorm
from minifm.ops.packed import pack
from minifm.ops.precision import precision
from minifm.ops.reduce import argmax, max, mean, min, standard_deviation, sum, variance
from minifm.ops.shape import (
    broadcast_to, concatenate, getitem, pad, reshape, scatter_add, stack, take_along,
    transpose,
)
from minifm.ops.softmax import log_softmax, softmax
from minifm.tensor import Tensor


def _reflected(function):
    def operator(self, other):
        return function(other, self)
    return operator


Tensor.__add__ = add
Tensor.__radd__ = _reflected(add)
Tensor.__sub__ = subtract
Tensor.__rsub__ = _reflected(subtract)
Tensor.__mul__ = multiply
Tensor.__rmul__ = _reflected(multiply)
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = _reflected(divide)
Tensor.__pow__ = power
Tensor.__neg__ = negative
Tensor.__abs__ = absolute
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = _reflected(matmul)
Tensor.__getitem__ = getitem
Tensor.__gt__ = greater
Tensor.__ge__ = greater_equal
Tensor.__lt__ = less
Tensor.__le__ = less_equal
Tensor.reshape = reshape
Tensor.transpose = transpose
Tensor.sum = sum
Tensor.mean = mean
Tensor.max = max
Tensor.min = min
