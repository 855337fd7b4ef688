"""The C backend: the reference's verbs, with a kernel of csrc/ in place of each hot one.

Arrays are NumPy's. Kernels compute in float32; float64 goes to the reference, where the gradient
checks run. Operands whose strides a kernel does not read are copied first, and `copies` counts
these by verb; verbs without a kernel run on NumPy, and `fallbacks` counts those.
"""

import math
from collections import Counter
from functools import lru_cache

import numpy as np

from minifm.backends.native import Native, ffi, lib
from minifm.backends.reference import Reference
from minifm.backends.reference.arrays import Arrays, only_slices
from minifm.backends.reference.embedding import check_ids
from minifm.backends.reference.fallback import belongs_to_the_reference, count_fallbacks
from minifm.errors import FallbackError

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
NULL = ffi.NULL
FLOATS, INTEGERS, BYTES, WORDS = (
    ffi.typeof(t) for t in ("float[]", "int64_t[]", "uint8_t[]", "uint64_t[]"))
FLOAT_POINTER = ffi.typeof("float *")
MAX_DIMENSIONS = 8
FUNCTIONS = {None: lib.MINIFM_IDENTITY, "relu": lib.MINIFM_RELU, "silu": lib.MINIFM_SILU,
             "gelu": lib.MINIFM_GELU, "gelu_tanh": lib.MINIFM_GELU_TANH,
             "gelu_quick": lib.MINIFM_GELU_QUICK}
from_buffer = ffi.from_buffer


def pointer(x):
    """The float32 elements of a contiguous array, for a kernel. None becomes NULL."""
    return NULL if x is None else from_buffer(FLOATS, x)


def strided_pointer(x):
    """The first element of an array with any strides."""
    if x.flags.c_contiguous:
        return from_buffer(FLOATS, x)
    return ffi.cast(FLOAT_POINTER, x.__array_interface__["data"][0])


def steps(x):
    """Strides counted in elements; None where the array is misaligned for that."""
    if not x.flags.aligned or any(stride % 4 for stride in x.strides):
        return None
    return [stride // 4 for stride in x.strides]


def done(status):
    """Raise MemoryError where a kernel found no memory."""
    if status:
        raise MemoryError("a kernel of the C backend found no memory for its scratch")


class CBackend(Native, Reference):
    """The verbs of the reference on C kernels. Settings: see `Native`."""

    name = "c"

    def __init__(self):
        Reference.__init__(self)
        self.copies = Counter()
        Native.__init__(self)

    def rejoin(self, arrays):
        """Attention leaves the gradients of q, k and v side by side: they join without a copy."""
        whole = _neighbours(arrays, arrays[0].ndim - 1)
        return self.concatenate(arrays, -1) if whole is None else whole

    def scatter_add(self, shape, index, values):
        """To slices it only moves numbers; to places named by arrays it adds, in NumPy."""
        if only_slices(index):
            return Reference.scatter_add(self, shape, index, values)
        return self._on_numpy("scatter_add", shape, index, values)

    def add_along(self, shape, index, values, axis):
        return self._on_numpy("add_along", shape, index, values, axis)

    # -- operands ------------------------------------------------------------------------------

    def _contiguous(self, x, verb):
        """x itself where a kernel can read it, else a copy, counted."""
        flags = x.flags
        if flags.carray or (flags.c_contiguous and flags.aligned):
            return x
        self.copies[verb] += 1
        return np.array(x, order="C")

    def _on_numpy(self, verb, *arguments):
        """The reference's verb. Counted as a fallback, unless for float64, which belongs there."""
        if not belongs_to_the_reference(arguments):
            if self.strict:
                raise FallbackError(
                    f"backend 'c' has no kernel for {verb!r} of such operands and "
                    "MINIFM_STRICT=1 forbids falling back to NumPy")
            self.fallbacks[verb] += 1
        return getattr(Reference, verb)(self, *arguments)

    # -- arithmetic ------------------------------------------------------------------------------

    def add(self, x, y):
        return self._binary("add", lib.MINIFM_ADD, x, y)

    def subtract(self, x, y):
        return self._binary("subtract", lib.MINIFM_SUBTRACT, x, y)

    def multiply(self, x, y):
        return self._binary("multiply", lib.MINIFM_MULTIPLY, x, y)

    def divide(self, x, y):
        return self._binary("divide", lib.MINIFM_DIVIDE, x, y)

    def add_into(self, out, x):
        if not (out.dtype == F32 == x.dtype and out.flags.carray and out.shape == x.shape):
            self._on_numpy("add_into", out, x)
        elif x.flags.carray:
            p = pointer(out)
            lib.minifm_binary(p, p, pointer(x), out.size, 1, 1, lib.MINIFM_ADD)
        else:
            self._strided(lib.MINIFM_ADD, out, x, out)

    def _binary(self, verb, operation, x, y):
        left, right = _operand(x), _operand(y)
        if left is None or right is None or not (hasattr(x, "dtype") or hasattr(y, "dtype")):
            return self._on_numpy(verb, x, y)
        if left.shape == right.shape or not left.shape or not right.shape:
            if left.flags.carray and right.flags.carray:
                out = np.empty(left.shape or right.shape, F32)
                lib.minifm_binary(pointer(out), pointer(left), pointer(right), out.size,
                                  left.shape != () or not right.shape,
                                  right.shape != () or not left.shape, operation)
                return out
        if max(left.ndim, right.ndim) > MAX_DIMENSIONS:
            return self._on_numpy(verb, x, y)
        if steps(left) is None:
            left = self._contiguous(left, verb)
        if steps(right) is None:
            right = self._contiguous(right, verb)
        return self._strided(operation, left, right, None)

    def _strided(self, operation, x, y, out):
        """x op y of any broadcastable strides, into `out` or a new array."""
        shape, plan = _broadcast_plan(x.shape, x.strides, y.shape, y.strides)
        if out is None:
            out = np.empty(shape, F32)
        if out.size:
            lib.minifm_binary_strided(pointer(out), strided_pointer(x), strided_pointer(y),
                                      len(shape), plan, operation)
        return out

    # -- functions of one variable ---------------------------------------------------------------

    def negative(self, x):
        return self._map("negative", lib.MINIFM_NEGATIVE, x)

    def absolute(self, x):
        return self._map("absolute", lib.MINIFM_ABSOLUTE, x)

    def exp(self, x):
        return self._map("exp", lib.MINIFM_EXP, x)

    def sqrt(self, x):
        return self._map("sqrt", lib.MINIFM_SQRT, x)

    def tanh(self, x):
        return self._map("tanh", lib.MINIFM_TANH, x)

    def erf(self, x):
        return self._map("erf", lib.MINIFM_ERF, x)

    def sigmoid(self, x):
        return self._map("sigmoid", lib.MINIFM_SIGMOID, x)

    def relu(self, x):
        return self._map("relu", lib.MINIFM_RELU, x)

    def silu(self, x):
        return self._map("silu", lib.MINIFM_SILU, x)

    def gelu(self, x):
        return self._map("gelu", lib.MINIFM_GELU, x)

    def gelu_tanh(self, x):
        return self._map("gelu_tanh", lib.MINIFM_GELU_TANH, x)

    def gelu_quick(self, x):
        return self._map("gelu_quick", lib.MINIFM_GELU_QUICK, x)

    def relu_backward(self, dy, x):
        return self._map_backward("relu", dy, x)

    def silu_backward(self, dy, x):
        return self._map_backward("silu", dy, x)

    def gelu_backward(self, dy, x):
        return self._map_backward("gelu", dy, x)

    def gelu_tanh_backward(self, dy, x):
        return self._map_backward("gelu_tanh", dy, x)

    def gelu_quick_backward(self, dy, x):
        return self._map_backward("gelu_quick", dy, x)

    def _map(self, verb, function, x):
        if x.dtype != F32:
            return self._on_numpy(verb, x)
        x = self._contiguous(x, verb)
        y = np.empty(x.shape, F32)
        lib.minifm_map(pointer(y), pointer(x), y.size, function)
        return y

    def _map_backward(self, activation, dy, x):
        verb = activation + "_backward"
        if x.dtype != F32 or dy.dtype != F32 or x.shape != dy.shape:
            return self._on_numpy(verb, dy, x)
        x, dy = self._contiguous(x, verb), self._contiguous(dy, verb)
        dx = np.empty(x.shape, F32)
        lib.minifm_map_backward(pointer(dx), pointer(dy), pointer(x), dx.size,
                                FUNCTIONS[activation])
        return dx

    # -- reductions --------------------------------------------------------------------------------

    def sum(self, x, axis=None, keepdims=False):
        if x.dtype != F32:
            return self._on_numpy("sum", x, axis, keepdims)
        x = self._contiguous(x, "sum")
        shape = list(x.shape)
        for begin, end in reversed(_runs(axis, x.ndim)):     # x: [*outer, *reduced, *inner]
            outer, n = math.prod(shape[:begin]), math.prod(shape[begin:end])
            shape[begin:end] = [1] * (end - begin)
            y = np.empty(shape, F32)
            if y.size:
                done(lib.minifm_sum(pointer(y), pointer(x), outer, n, y.size // outer))
            x = y
        if not _runs(axis, x.ndim):     # nothing to add; still a result of its own
            x = self.copy(x)
        if keepdims:
            return x
        reduced = {i for begin, end in _runs(axis, len(shape)) for i in range(begin, end)}
        return x.reshape([size for i, size in enumerate(shape) if i not in reduced])

    def sum_of_squares(self, x):
        if x.dtype != F32:
            return self._on_numpy("sum_of_squares", x)
        x = self._contiguous(x, "sum_of_squares")
        return lib.minifm_sum_of_squares(pointer(x), x.size)

    # -- softmax -----------------------------------------------------------------------------------

    def softmax(self, x, axis=-1):
        return self._rows("softmax", lib.minifm_softmax, (x,), axis)

    def softmax_backward(self, dy, y, axis=-1):
        return self._rows("softmax_backward", lib.minifm_softmax_backward, (dy, y), axis)

    def log_softmax(self, x, axis=-1):
        return self._rows("log_softmax", lib.minifm_log_softmax, (x,), axis)

    def log_softmax_backward(self, dy, y, axis=-1):
        return self._rows("log_softmax_backward", lib.minifm_log_softmax_backward, (dy, y), axis)

    def logsumexp(self, x, axis=-1):
        if x.dtype != F32:
            return self._on_numpy("logsumexp", x, axis)
        if axis % x.ndim != x.ndim - 1:
            x = np.moveaxis(x, axis, -1)
        x = self._contiguous(x, "logsumexp")
        y = np.empty(x.shape[:-1], F32)
        lib.minifm_logsumexp(pointer(y), pointer(x), y.size, x.shape[-1])
        return y

    def _rows(self, verb, kernel, inputs, axis):
        """kernel(out, *inputs, rows, n) along `axis`, moved to the end where it is not there."""
        if any(x.dtype != F32 for x in inputs):
            return self._on_numpy(verb, *inputs, axis)
        ndim = inputs[0].ndim
        moved = axis % ndim != ndim - 1
        if moved:
            inputs = [np.moveaxis(x, axis, -1) for x in inputs]
        inputs = [self._contiguous(x, verb) for x in inputs]
        out = np.empty(inputs[0].shape, F32)
        if out.size:
            n = out.shape[-1]
            kernel(pointer(out), *map(pointer, inputs), out.size // n, n)
        return self.contiguous(np.moveaxis(out, -1, axis)) if moved else out

    # -- normalisation -----------------------------------------------------------------------------

    def layernorm(self, x, gamma, beta, eps):
        if not x.dtype == gamma.dtype == beta.dtype == F32:
            return self._on_numpy("layernorm", x, gamma, beta, eps)
        x, gamma, beta = (self._contiguous(a, "layernorm") for a in (x, gamma, beta))
        y, mean, rstd = (np.empty(shape, F32) for shape in (x.shape, x.shape[:-1], x.shape[:-1]))
        lib.minifm_layernorm(pointer(y), pointer(mean), pointer(rstd), pointer(x), pointer(gamma),
                             pointer(beta), mean.size, x.shape[-1], eps)
        return y, mean, rstd

    def layernorm_backward(self, dy, x, gamma, mean, rstd):
        if not dy.dtype == x.dtype == gamma.dtype == F32:
            return self._on_numpy("layernorm_backward", dy, x, gamma, mean, rstd)
        dy, x, gamma, mean, rstd = (self._contiguous(a, "layernorm_backward")
                                    for a in (dy, x, gamma, mean, rstd))
        dx, sums = np.empty(x.shape, F32), np.empty((2, x.shape[-1]), F32)
        done(lib.minifm_layernorm_backward(
            pointer(dx), pointer(sums), pointer(dy), pointer(x), pointer(gamma), pointer(mean),
            pointer(rstd), mean.size, x.shape[-1]))
        return dx, sums[0], sums[1]

    def rmsnorm(self, x, gamma, eps):
        if not x.dtype == gamma.dtype == F32:
            return self._on_numpy("rmsnorm", x, gamma, eps)
        x, gamma = self._contiguous(x, "rmsnorm"), self._contiguous(gamma, "rmsnorm")
        y, rstd = np.empty(x.shape, F32), np.empty(x.shape[:-1], F32)
        lib.minifm_rmsnorm(pointer(y), pointer(rstd), pointer(x), pointer(gamma), rstd.size,
                           x.shape[-1], eps)
        return y, rstd

    def rmsnorm_backward(self, dy, x, gamma, rstd):
        if not dy.dtype == x.dtype == gamma.dtype == F32:
            return self._on_numpy("rmsnorm_backward", dy, x, gamma, rstd)
        dy, x, gamma, rstd = (self._contiguous(a, "rmsnorm_backward")
                              for a in (dy, x, gamma, rstd))
        dx, dgamma = np.empty(x.shape, F32), np.empty(x.shape[-1], F32)
        done(lib.minifm_rmsnorm_backward(pointer(dx), pointer(dgamma), pointer(dy), pointer(x),
                                         pointer(gamma), pointer(rstd), rstd.size, x.shape[-1]))
        return dx, dgamma

    # -- products ----------------------------------------------------------------------------------

    def matmul(self, x, y):
        if not (x.dtype == F32 == y.dtype and x.ndim >= 2 and y.ndim >= 2):
            return self._on_numpy("matmul", x, y)
        x, x_steps = self._matrix(x, "matmul")
        y, y_steps = self._matrix(y, "matmul")
        (m, k), n = x.shape[-2:], y.shape[-1]
        if x.ndim == 2 == y.ndim:
            batch, x_offsets, y_offsets = (), NULL, NULL
        else:
            batch, x_offsets, y_offsets = _batch_plan(
                x.shape[:-2], x.strides[:-2], y.shape[:-2], y.strides[:-2])
        out = np.empty((*batch, m, n), F32)
        done(lib.minifm_matmul(pointer(out), strided_pointer(x), strided_pointer(y),
                               math.prod(batch), m, n, k, x_offsets, y_offsets, *x_steps,
                               *y_steps, 0))
        return out

    def matmul_into(self, out, x, y):
        if not (x.dtype == F32 == y.dtype and out.dtype == F32 and out.flags.carray):
            return self._on_numpy("matmul_into", out, x, y)
        x, x_steps = self._matrix(x, "matmul_into")
        y, y_steps = self._matrix(y, "matmul_into")
        (m, k), n = x.shape, y.shape[1]
        done(lib.minifm_matmul(pointer(out), strided_pointer(x), strided_pointer(y), 1, m, n, k,
                               NULL, NULL, *x_steps, *y_steps, 1))

    def _matrix(self, x, verb):
        """x and the strides of its last two dimensions, of which one is 1."""
        strides = steps(x)
        if strides is not None:
            rows, columns = strides[-2], strides[-1]
            if x.shape[-1] == 1:        # the stride of a dimension of size 1 means nothing
                columns = 1
            elif x.shape[-2] == 1:
                rows = 1
            if rows == 1 or columns == 1:
                return x, (rows, columns)
        self.copies[verb] += 1
        x = np.array(x, order="C")
        return x, (x.shape[-1], 1)

    def linear(self, x, w, b, activation, residual):
        if not x.dtype == w.dtype == F32:
            return Reference.linear(self, x, w, b, activation, residual)
        K, N = w.shape
        rows, x_steps = self._matrix(x if x.ndim == 2 else self._flat(x, K, "linear"), "linear")
        w, w_steps = self._matrix(w, "linear")
        b = None if b is None else self._contiguous(b, "linear")
        residual = None if residual is None else self._contiguous(residual, "linear")
        y = np.empty((*x.shape[:-1], N), F32)
        z = None if activation is None else np.empty(y.shape, F32)
        y_pointer = pointer(y)
        done(lib.minifm_linear(
            y_pointer, y_pointer if z is None else pointer(z), strided_pointer(rows),
            strided_pointer(w), pointer(b), pointer(residual), rows.shape[0], N, K, *x_steps,
            *w_steps, FUNCTIONS[activation]))
        return y, z

    def _flat(self, x, width, verb):
        """x [*B, width] as a matrix: [M, width]."""
        return self._contiguous(x, verb).reshape(math.prod(x.shape[:-1]), width)

    # -- attention ---------------------------------------------------------------------------------

    def attention(self, q, k, v, bias, key_mask, causal, scale):
        if not q.dtype == k.dtype == v.dtype == F32:
            return Reference.attention(self, q, k, v, bias, key_mask, causal, scale)
        q, k, v = (self._heads(x, "attention") for x in (q, k, v))
        B, H, T, _ = q.shape
        y = np.empty((B, T, H, v.shape[3]), F32).transpose(0, 2, 1, 3)      # [B, H, T, E]
        lse = np.empty((B, H, T), F32)
        shape = _attention_shape(q, k, v, causal, scale)
        _set_strides(shape, q=q, k=k, v=v, y=y)
        bias, bias_pointer = self._bias(bias, shape, "attention")
        mask = NULL if key_mask is None else from_buffer(BYTES, self.contiguous(key_mask))
        done(lib.minifm_attention(
            strided_pointer(y), pointer(lse), strided_pointer(q), strided_pointer(k),
            strided_pointer(v), bias_pointer, mask, shape))
        return y, lse

    def attention_backward(
        self, dy, q, k, v, bias, key_mask, causal, scale, y, lse, needs_bias
    ):
        if not q.dtype == k.dtype == v.dtype == dy.dtype == F32:
            return Reference.attention_backward(self, dy, q, k, v, bias, key_mask, causal, scale,
                                                y, lse, needs_bias)
        dy, q, k, v = (self._heads(x, "attention_backward") for x in (dy, q, k, v))
        dq, dk, dv = _packed_like(q, k, v)
        shape = _attention_shape(q, k, v, causal, scale)
        _set_strides(shape, q=q, k=k, v=v, dy=dy, dq=dq, dk=dk, dv=dv)
        bias, bias_pointer = self._bias(bias, shape, "attention_backward")
        dbias = np.empty((*q.shape[:3], k.shape[2]), F32) if needs_bias else None
        mask = NULL if key_mask is None else from_buffer(BYTES, self.contiguous(key_mask))
        done(lib.minifm_attention_backward(
            *map(strided_pointer, (dq, dk, dv)), pointer(dbias),
            *map(strided_pointer, (dy, q, k, v)), bias_pointer, mask, pointer(lse), shape))
        return dq, dk, dv, dbias

    def _heads(self, x, verb):
        """x [B, H, T, D] where a head's row is contiguous, else a copy, counted."""
        if (x.strides[3] == 4 or x.shape[3] == 1) and steps(x) is not None:
            return x
        self.copies[verb] += 1
        return np.array(x, order="C")

    def _bias(self, bias, shape, verb):
        """The bias stretched to [B, H, T, S], and where it begins; its strides go into `shape`."""
        if bias is None:
            return None, NULL
        full = np.broadcast_to(bias, (shape.batch, shape.heads, shape.queries, shape.keys))
        if steps(full) is None or full.strides[3] not in (0, 4):
            self.copies[verb] += 1
            full = np.broadcast_to(np.array(bias, order="C"), full.shape)
        shape.bias_strides = steps(full)
        return full, strided_pointer(full)

    # -- loss and embedding ------------------------------------------------------------------------

    def cross_entropy(self, logits, targets, ignore_index, smoothing):
        if logits.dtype != F32:
            return self._on_numpy("cross_entropy", logits, targets, ignore_index, smoothing)
        logits, indices = self._contiguous(logits, "cross_entropy"), _indices(targets)
        N, V = logits.shape
        losses, lse = np.empty(N, F32), np.empty(N, F32)
        if lib.minifm_cross_entropy(pointer(losses), pointer(lse), pointer(logits),
                                    from_buffer(INTEGERS, indices), N, V, ignore_index, smoothing):
            check_ids(targets, V, "cross_entropy targets", ignore_index)
        return losses, lse

    def cross_entropy_backward(self, dlosses, logits, targets, lse, ignore_index, smoothing):
        if not logits.dtype == dlosses.dtype == F32:
            return self._on_numpy("cross_entropy_backward", dlosses, logits, targets, lse,
                                  ignore_index, smoothing)
        dlosses, logits, lse = (self._contiguous(x, "cross_entropy_backward")
                                for x in (dlosses, logits, lse))
        d = np.empty(logits.shape, F32)
        if lib.minifm_cross_entropy_backward(
                pointer(d), pointer(dlosses), pointer(logits),
                from_buffer(INTEGERS, _indices(targets)), pointer(lse), *logits.shape,
                ignore_index, smoothing):
            check_ids(targets, logits.shape[1], "cross_entropy targets", ignore_index)
        return d

    def embedding(self, w, ids):
        if w.dtype != F32:
            return self._on_numpy("embedding", w, ids)
        w, indices = self._contiguous(w, "embedding"), _indices(ids)
        V, C = w.shape
        y = np.empty((*ids.shape, C), F32)
        if lib.minifm_embedding(pointer(y), pointer(w), from_buffer(INTEGERS, indices),
                                indices.size, V, C):
            check_ids(ids, V, "embedding")
        return y

    def embedding_backward(self, dy, ids, rows, weight_grad):
        if dy.dtype != F32 or not (weight_grad is None or weight_grad.flags.carray):
            return self._on_numpy("embedding_backward", dy, ids, rows, weight_grad)
        dy, indices, C = self._contiguous(dy, "embedding_backward"), _indices(ids), dy.shape[-1]
        dw = np.zeros((rows, C), F32) if weight_grad is None else weight_grad
        if lib.minifm_embedding_backward(pointer(dw), pointer(dy), from_buffer(INTEGERS, indices),
                                         indices.size, rows, C):
            check_ids(ids, rows, "embedding")
        return dw

    # -- in place ----------------------------------------------------------------------------------

    def adamw(self, param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step, scale):
        if not all(x.dtype == F32 and x.flags.carray for x in (param, m, v)) or grad.dtype != F32:
            return self._on_numpy("adamw", param, grad, m, v, lr, beta1, beta2, eps, weight_decay,
                                  step, scale)
        constants = (scale, 1 - beta1, 1 - beta2, 1 / (1 - beta1**step), 1 / (1 - beta2**step),
                     eps, lr, weight_decay)
        lib.minifm_adamw(pointer(param), pointer(self._contiguous(grad, "adamw")), pointer(m),
                         pointer(v), param.size, ffi.new(FLOATS, constants))

    def ema(self, average, param, decay):
        if not (average.dtype == F32 == param.dtype and average.flags.carray):
            return self._on_numpy("ema", average, param, decay)
        lib.minifm_ema(pointer(average), pointer(self._contiguous(param, "ema")), average.size,
                       1 - decay)

    # -- noise -------------------------------------------------------------------------------------

    def random_bits(self, key, n):
        bits = np.empty(n, np.uint64)
        lib.minifm_random_bits(from_buffer(WORDS, bits), n, *key)
        return bits

    def uniform(self, key, shape, dtype):
        return self._noise("uniform", lib.minifm_uniform, key, shape, dtype)

    def normal(self, key, shape, dtype):
        return self._noise("normal", lib.minifm_normal, key, shape, dtype)

    def _noise(self, verb, kernel, key, shape, dtype):
        if np.dtype(dtype) != F32:      # from the same bits, in NumPy
            return getattr(Reference, verb)(self, key, shape, dtype)
        out = np.empty(shape, F32)
        kernel(pointer(out), out.size, *key)
        return out

    def dropout(self, x, probability, key):
        if x.dtype != F32:
            return Reference.dropout(self, x, probability, key)
        x = self._contiguous(x, "dropout")
        y = np.empty(x.shape, F32)
        lib.minifm_dropout(pointer(y), pointer(x), y.size, *key, probability,
                           1 / (1 - probability))
        return y


# -- plans: what depends on shapes and strides alone, worked out once -----------------------------


def _operand(x):
    """A float32 array of x: itself, or the number it is; None where it is neither."""
    if isinstance(x, np.ndarray):
        return x if x.dtype == F32 else None
    if isinstance(x, np.float32) or type(x) in (int, float):
        return np.array(x, F32)
    return None


@lru_cache(maxsize=4096)
def _broadcast_plan(x_shape, x_strides, y_shape, y_strides):
    """The common shape, and the int64 array of sizes and strides that the kernel reads."""
    shape = np.broadcast_shapes(x_shape, y_shape)
    plan = list(shape)
    for own, strides in ((x_shape, x_strides), (y_shape, y_strides)):
        plan += [0] * (len(shape) - len(own))
        plan += [0 if size == 1 else stride // 4 for size, stride in zip(own, strides)]
    return shape, ffi.new(INTEGERS, plan)


@lru_cache(maxsize=4096)
def _batch_plan(x_shape, x_strides, y_shape, y_strides):
    """The common batch shape, and where the matrices of each operand begin."""
    shape = np.broadcast_shapes(x_shape, y_shape)
    offsets = []
    for own, strides in ((x_shape, x_strides), (y_shape, y_strides)):
        total = np.zeros((), np.int64)
        own = (1,) * (len(shape) - len(own)) + own
        strides = (0,) * (len(shape) - len(strides)) + strides
        for size, full, stride in zip(own, shape, strides):
            places = np.arange(full, dtype=np.int64) * (0 if size == 1 else stride // 4)
            total = np.add.outer(total, places)
        offsets.append(ffi.new(INTEGERS, total.reshape(-1).tolist()))
    return shape, *offsets


@lru_cache(maxsize=1024)
def _runs(axis, ndim):
    """The reduced axes as runs of neighbours: [(begin, end), …]."""
    axes = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    runs = []
    for a in sorted({a % ndim for a in axes}):
        if runs and runs[-1][1] == a:
            runs[-1] = (runs[-1][0], a + 1)
        else:
            runs.append((a, a + 1))
    return runs


def _neighbours(arrays, axis):
    """The view of which `arrays` are consecutive slices along `axis`, or None."""
    first = arrays[0]
    if not isinstance(first.base, np.ndarray):
        return None
    place, total = first.__array_interface__["data"][0], 0
    for x in arrays:
        if (x.base is not first.base or x.strides != first.strides or x.dtype != first.dtype
                or x.__array_interface__["data"][0] != place + total * first.strides[axis]):
            return None
        total += x.shape[axis]
    shape = list(first.shape)
    shape[axis] = total
    return np.lib.stride_tricks.as_strided(first, shape, first.strides)


def _indices(ids):
    """Integer ids as a contiguous int64 array."""
    if ids.dtype == I64 and ids.flags.c_contiguous and ids.flags.aligned:
        return ids
    return np.array(ids, I64, order="C")


def _attention_shape(q, k, v, causal, scale):
    (B, H, T, D), (_, K, S, E) = q.shape, v.shape
    return ffi.new("minifm_attention_shape *", {
        "batch": B, "heads": H, "key_heads": K, "queries": T, "keys": S, "width": D,
        "value_width": E, "causal": causal, "scale": scale})


def _set_strides(shape, **arrays):
    for name, x in arrays.items():
        setattr(shape, name + "_strides", [stride // 4 for stride in x.strides[:3]])


def _packed_like(q, k, v):
    """Room for dq, dk, dv. Where q, k and v are thirds of one projection, so are these, so that
    joining them again is no copy."""
    (B, H, T, D) = q.shape
    if q.shape == k.shape == v.shape:
        packed = np.empty((B, T, 3, H, D), F32).transpose(2, 0, 3, 1, 4)    # [3, B, H, T, D]
        return tuple(packed)
    return tuple(np.empty((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), F32)
                 .transpose(0, 2, 1, 3) for x in (q, k, v))


count_fallbacks(CBackend, Reference, shared=(Arrays, Native))
