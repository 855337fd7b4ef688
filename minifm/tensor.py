"""Reverse-mode automatic differentiation: `Tensor`, `apply` and `backward`.

`apply` runs one op and, if some input asks for a gradient, keeps the op as the node that made
the output. Execution is eager, so the order of creation is already a topological order: each
node has a number, larger than those of all its parents, and `backward` visits nodes from the
largest number down. First-order gradients only.
"""

import itertools
import threading
from heapq import heappop, heappush

import numpy as np

from minifm import backends
from minifm.errors import GraphError, ShapeError
from minifm.op import observed, observers

CONSUMED = "backward: this graph has been consumed by an earlier backward"
_numbers = itertools.count(1)


class _Recording(threading.local):
    """Whether this thread records graphs. Made anew in each thread, by its first op."""

    def __init__(self):
        self.on = True
        if backends._active is not None:    # else `use` is still to come, and does it
            backends._active.enter_thread()


_recording = _Recording()


class no_grad:
    """`with no_grad(): ...` records no graph, in this thread only."""

    def __enter__(self):
        self.previous, _recording.on = _recording.on, False

    def __exit__(self, *exception):
        _recording.on = self.previous


class Tensor:
    """An array of the active backend, its gradient, and the op that made it.

    `x == y` asks whether they are the same object; mf.equal(x, y) compares the values.

    data           the backend's array: float32 (activations), float64, an integer type, or bool
    requires_grad  whether `backward` leaves the gradient here (True for parameters)
    grad           the gradient, a raw array like `data`, or None; `backward` adds to it
    op, place      the node that made this tensor, as its output number `place`; None for a leaf
    version        whoever writes `data` in place adds one, so that `backward` notices
    """

    __slots__ = ("data", "grad", "op", "place", "requires_grad", "version", "__weakref__")
    __array_ufunc__ = None      # ndarray * Tensor is Tensor.__rmul__, not an array of tensors

    def __init__(self, data, requires_grad=False):
        if isinstance(data, Tensor):
            data = data.data
        elif not hasattr(data, "dtype"):
            data = _array_of(data)
        if isinstance(data, (np.ndarray, np.generic)):
            data = backends.active().from_numpy(data)
        if data.dtype not in (np.float32, np.float64) and np.dtype(data.dtype).kind not in "iub":
            raise ShapeError("a tensor holds float32, float64, integers or truth values; this is "
                             f"{data.dtype}")
        if requires_grad and not np.issubdtype(data.dtype, np.floating):
            raise ShapeError(f"only floating-point tensors have gradients, this is {data.dtype}")
        self.data, self.requires_grad = data, requires_grad
        self.grad = self.op = None
        self.place = self.version = 0

    @property
    def shape(self):
        return self.data.shape

    @property
    def dtype(self):
        return self.data.dtype

    @property
    def ndim(self):
        return len(self.data.shape)

    def __len__(self):
        if not self.data.shape:
            raise TypeError("len() of a tensor without dimensions")
        return self.data.shape[0]

    def __bool__(self):
        return bool(self.item())        # raises unless there is exactly one element

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __array__(self, dtype=None, copy=None):
        """What np.asarray(tensor) gives: the values, without their graph."""
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_function__(self, function, types, args, kwargs):
        """NumPy's functions see the values alone, but for those that tensors have themselves."""
        name = {"amax": "max", "amin": "min"}.get(function.__name__, function.__name__)
        if callable(getattr(Tensor, name, None)):
            raise TypeError(f"np.{name} is not for tensors: call tensor.{name}(…), or, for the "
                            f"values without their graph, np.{name}(tensor.numpy())")
        return self.numpy().__array_function__(function, (), args, kwargs)

    def numpy(self):
        """The values as a NumPy array, which may share memory with the tensor."""
        return backends.active().to_numpy(self.data)

    def item(self):
        """The one value of a one-element tensor, as a Python number; else raises ShapeError."""
        if any(size != 1 for size in self.shape):
            raise ShapeError(f"expected a tensor of one element, this one has shape {self.shape}")
        return self.numpy().item()

    def detach(self):
        """The same data as a leaf outside any graph."""
        return Tensor(self.data)

    def backward(self, grad=None):
        """Add d(self)/d(leaf) to `grad` of every leaf that requires it; see `backward` below."""
        backward(self, grad)

    def __repr__(self):
        made = f", op={type(self.op).__name__}" if self.op is not None else ""
        wants = ", requires_grad=True" if self.requires_grad and self.op is None else ""
        values = np.array2string(self.numpy(), precision=4, threshold=64, prefix="Tensor(")
        return f"Tensor({values}, {self.dtype}{made}{wants})"


def _array_of(data):
    """Numbers, in lists or alone, as an array; floats as float32."""
    try:
        data = np.asarray(data)
    except ValueError as problem:       # rows of different lengths
        raise ShapeError(f"a tensor is made of numbers in rows of one length: {problem}") from None
    return data.astype(np.float32) if data.dtype == np.float64 else data


def apply(op_class, *inputs, **options):
    """Run an op on Tensors, NumPy arrays, Python numbers or None; returns its output Tensor(s).

    Raises ShapeError, with the signature, where the inputs do not fit it.
    """
    op = op_class()
    backend = op.backend = backends._active or backends.active()
    recording = _recording.on
    arrays, needs, kinds, version = [], [], [], 0
    for x in inputs:
        if isinstance(x, Tensor):
            needs.append(recording and x.requires_grad)
            version += x.version
            x = x.data
            kinds += x.shape, x.dtype
        else:
            if isinstance(x, np.ndarray):
                x = backend.from_numpy(x)
                kinds += x.shape, x.dtype
            elif isinstance(x, np.generic):     # a NumPy scalar is a number, not a float64 array
                x = x.item()
                kinds.append(type(x))
            else:
                kinds.append(type(x))
            needs.append(False)
        arrays.append(x)
    op.needs = needs
    kinds = tuple(kinds)
    if kinds not in op_class.checked:
        _check(op_class, arrays, kinds)

    if observers:
        outputs = observed(op, "forward", op.forward, arrays, options)
    else:
        outputs = op.forward(*arrays, **options)

    if True not in needs:
        op = None
    else:
        op.parents, op.version, op.sequence = inputs, version, next(_numbers)
    if isinstance(outputs, tuple):
        return tuple([_made(y, op, place) for place, y in enumerate(outputs)])
    return _made(outputs, op, 0)


def _check(op_class, arrays, kinds):
    """The full check, once for each combination of shapes and dtypes."""
    op_class.check(arrays)
    if len(op_class.checked) >= 10_000:     # lengths may vary for ever; memory must not grow so
        op_class.checked.clear()
    op_class.checked.add(kinds)


def _made(data, op, place):
    """A Tensor that an op made (op None: nothing was recorded)."""
    tensor = Tensor.__new__(Tensor)
    tensor.data, tensor.op, tensor.place = data, op, place
    tensor.requires_grad = op is not None
    tensor.grad = None
    tensor.version = 0
    return tensor


def backward(root, grad=None):
    """Reverse-mode differentiation of `root`, times `grad` (default: 1, for a scalar root).

    Every leaf that requires a gradient receives it added to its `.grad`. The graph is consumed:
    each node drops what it kept as soon as its gradients are computed.

    Raises GraphError for a root without a graph, a graph already consumed, or a weight that was
    changed in place after the forward pass that used it.
    """
    if not root.requires_grad:
        raise GraphError("backward: no input of this tensor requires a gradient")
    if root.op is not None and root.op.parents is None:
        raise GraphError(CONSUMED)
    backend = root.op.backend if root.op is not None else backends.active()
    if grad is None:
        if root.shape != () and any(size != 1 for size in root.shape):
            raise GraphError(f"backward: shape {root.shape} is not a scalar; pass grad=")
        grad = backend.full(root.shape, 1, root.dtype)
    elif isinstance(grad, (np.ndarray, np.generic)):
        grad = backend.from_numpy(grad)
    elif isinstance(grad, Tensor):
        grad = grad.data
    elif not hasattr(grad, "shape"):
        raise ShapeError(f"backward: expected grad as an array, got {grad!r:.60}")
    if grad.shape != root.shape or grad.dtype != root.dtype:
        raise ShapeError(f"backward: grad is {grad.shape} {grad.dtype}, "
                         f"the tensor {root.shape} {root.dtype}")
    propagate([(root, grad)], backend)


def propagate(cotangents, backend):
    """Reverse mode from several tensors of one graph at once, each with its gradient: `backward`
    of the sum of all their products, without another op. Arrays are those of `backend`."""
    pending = {}        # op -> [gradient, owned, gradient, owned, …], one pair for each output
    queue = []          # (-sequence, op): the newest op comes out first
    for root, grad in cotangents:
        _deliver(root, grad, False, backend, pending, queue)
    while queue:
        op = heappop(queue)[1]
        received = pending.pop(op)
        _check_unchanged(op)
        if type(op) is Checkpoint:
            _put_in_place(op, received, backend, pending, queue)
            continue
        dys = received[::2]
        if observers:
            grads = observed(op, "backward", op.backward, dys, {})
        else:
            grads = op.backward(*dys)
        if not isinstance(grads, tuple):
            grads = (grads,)
        parents, needs, fresh = op.parents, op.needs, op.fresh
        vars(op).clear()        # frees what was saved; `parents` reads as None from here on
        if len(grads) != len(parents):
            raise GraphError(f"backward: {type(op).__name__} must return a gradient for each of "
                             f"its {len(parents)} inputs, and returned {len(grads)}")
        for parent, needed, g in zip(parents, needs, grads):
            if needed and g is not None:
                _deliver(parent, g, fresh, backend, pending, queue)


def _deliver(tensor, g, fresh, backend, pending, queue):
    """Add gradient `g` to what `tensor` has received so far.

    `g` may share memory with something else (a reshape's gradient is a view), so it is only
    borrowed, and never written, unless it is `fresh`.
    """
    op = tensor.op
    if op is None:
        if tensor.grad is None:
            tensor.grad = g if fresh else backend.copy(g)
        elif tensor.grad is not g:      # else: the op has added into the leaf's gradient itself
            backend.add_into(tensor.grad, g)
        return
    received = pending.get(op)
    if received is None:
        if op.parents is None:
            raise GraphError(CONSUMED)
        received = pending[op] = [None, False] * len(op.outputs)
        heappush(queue, (-op.sequence, op))
    i = 2 * tensor.place
    if received[i] is None:
        received[i], received[i + 1] = g, fresh
    elif received[i + 1]:
        backend.add_into(received[i], g)
    else:
        received[i], received[i + 1] = backend.add(received[i], g), True


def _check_unchanged(op):
    version = 0
    for x in op.parents:
        if isinstance(x, Tensor):
            version += x.version
    if version != op.version:
        raise GraphError(f"backward: an input of {type(op).__name__} was changed in place "
                         "after the forward pass that used it")


# -- activation checkpointing ------------------------------------------------------------------


def call_and_repeat(function, *inputs):
    """function(*inputs), of which the graph keeps only the inputs; see ops/checkpoint.py."""
    if not _recording.on:
        return function(*inputs)
    first = next(_numbers)
    outputs = function(*inputs)
    made = outputs if isinstance(outputs, tuple) else (outputs,)
    if not any(y.requires_grad for y in made):
        return outputs
    op = Checkpoint(function, inputs, made, first)
    made = tuple([_made(y.data, op if y.requires_grad else None, place)
                  for place, y in enumerate(made)])
    return made if isinstance(outputs, tuple) else made[0]


class Checkpoint:
    """A node that stands for the graph of a call. Where backward meets it, the call is repeated
    and its graph, newer than all that is left to do, takes the node's place in the walk: the
    gradients flow, and add up, in the order in which they would have without it."""

    parents = None          # as of an Op: the inputs, and None once it is consumed

    def __init__(self, function, inputs, outputs, first):
        self.function, self.parents, self.backend = function, inputs, backends.active()
        self.kept = tuple([x.data for x in inputs if isinstance(x, Tensor)])
        self.outputs = (None,) * len(outputs)
        self.version = sum(x.version for x in inputs if isinstance(x, Tensor))
        self.versions = _versions(outputs, first)
        self.sequence = next(_numbers)

    def repeated(self):
        """The outputs again, this time with their graph."""
        was, _recording.on = _recording.on, True
        first = next(_numbers)
        try:
            with backends.use(self.backend):
                outputs = self.function(*self.parents)
        finally:
            _recording.on = was
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if _versions(outputs, first) != self.versions:
            raise GraphError("backward: a tensor that a checkpoint used was changed in place "
                             "after the forward pass, or the call was not the same again")
        return outputs


def _put_in_place(op, received, backend, pending, queue):
    """The graph of a Checkpoint's call, with the gradients that the node has received."""
    outputs = op.repeated()
    vars(op).clear()
    for y, g, owned in zip(outputs, received[::2], received[1::2]):
        if g is not None:
            _deliver(y, g, owned, backend, pending, queue)


def _versions(outputs, first):
    """The versions of the inputs of the ops from number `first` on that made `outputs`."""
    found, open_ops = {}, [y.op for y in outputs]
    while open_ops:
        op = open_ops.pop()
        if op is not None and op.sequence > first and op.sequence not in found:
            found[op.sequence] = op.version
            open_ops += [x.op for x in op.parents if isinstance(x, Tensor)]
    return [found[number] for number in sorted(found)]


def leaf_grad(op, place):
    """The gradient array that input `place` of `op` already owns, or None.

    An op whose weight gradient is large (linear, embedding) may add into it and return it.
    """
    parent = op.parents[place]
    return parent.grad if parent.op is None else None
