"""What is timed on a backend of ours: an op, the optimizer, a training step, the next token.

Each is a Subject. Networks that undo noise are in denoisers.py.
"""

import itertools
import math
from dataclasses import replace

import numpy as np

from minifm import backends, tensor
from minifm.generation.decoder import Decoder
from minifm.models import GPT, Bert, BertConfig, GPTConfig, Llama, LlamaConfig
from minifm.models.packing import pack_model
from minifm.ops.precision import precision
from minifm.rng import Rng
from minifm.testing.recording import Cost, besides, costs, cotangents, since
from minifm.text.masking import mask_tokens
from minifm.training.objectives import CausalLanguageModel, MaskedLanguageModel
from minifm.training.optim import AdamW

MOST_COPIES = 1000
ADAMW_BYTES = 28        # a parameter: reads w, g, m and v, writes w, m and v


class Subject:
    """calls(phase)  an endless iterator of which each step is one call
    costs         {phase: Cost}
    filled        bytes that its calls go through before they come back to the same memory
    """

    filled = math.inf

    def share(self, folder):
        """Write into the folder what a peer needs to compute the same, and return what we make of
        it, {name: number or list of them}; None: peers work on numbers of their own."""
        return None


class OpSubject(Subject):
    """One op's example on one backend, in as many copies as fill `footprint` bytes. Its phases
    are "forward" and "backward", "forward" alone, or "both" in one call."""

    def __init__(self, made, backend, footprint, phases=("forward", "backward")):
        self.example, self.backend = made, backend
        self.gradients = phases != ("forward",)
        self.costs, size = costs(made, backend, gradients=self.gradients)
        if phases == ("both",):
            self.costs = {"both": together(*self.costs.values())}
        copies = max(1, min(MOST_COPIES, math.ceil(footprint / max(size, 1))))
        self.filled = copies * size
        with backends.use(backend):
            self.options = made.raw_options()
            self.copies = [self._copy() for _ in range(copies)]

    def _copy(self):
        """(the op after its forward, its inputs, cotangents), in memory of their own."""
        own = replace(self.example, inputs=tuple(
            x.copy(order="K") if isinstance(x, np.ndarray) else x for x in self.example.inputs))
        node, outputs = own.node()
        return node, own.arrays(), cotangents(self.backend, outputs) if self.gradients else ()

    def calls(self, phase):
        held = [None] * len(self.copies)
        for i in itertools.cycle(range(len(held))):
            node, inputs, dys = self.copies[i]
            forward = node.forward(*inputs, **self.options) if phase != "backward" else None
            backward = node.backward(*dys) if phase != "forward" else None
            held[i] = forward, backward
            self.backend.sync()
            yield


def together(forward, backward):
    """The Cost of both phases; the gradients of a product are two products, however computed."""
    return Cost(forward.flops and 3 * forward.flops, forward.bytes + backward.bytes,
                forward.on_numpy + backward.on_numpy, forward.copied + backward.copied)


class OptimizerSubject(Subject):
    """AdamW's update of parameters of the given shapes."""

    def __init__(self, backend, shapes):
        self.backend = backend
        with backends.use(backend):
            parameters = {str(i): tensor.Tensor(backend.from_numpy(numbers(shape)),
                                                requires_grad=True)
                          for i, shape in enumerate(shapes)}
            for p in parameters.values():
                p.grad = backend.copy(p.data)
            self.optimizer = AdamW(parameters)
        size = sum(map(math.prod, shapes))
        self.costs = observed(backend, "update", self.calls, None, ADAMW_BYTES * size)

    def calls(self, phase):
        while True:
            with backends.use(self.backend):
                self.optimizer.update(1e-4)
                self.backend.sync()
            yield


def new_gpt(L, C, H, T, B, V):
    return GPT(GPTConfig(vocabulary=V, context=T, layers=L, heads=H, width=C), Rng(0))


def new_llama(L, C, H, K, F, T, B, V):
    return Llama(LlamaConfig(vocabulary=V, context=T, layers=L, heads=H, key_heads=K, width=C,
                             hidden=F, tied=True), Rng(0))


def new_bert(L, C, H, T, B, V):
    return Bert(BertConfig(vocabulary=V, context=T, layers=L, heads=H, width=C, dropout=0.0),
                Rng(0))


def next_tokens(T, B, V, **other):
    """Sequences, and what follows each of their tokens."""
    ids = Rng(1).integers(0, V, (B, T + 1))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def masked_tokens(T, B, V, **other):
    """Sequences of which 15 % are masked, by the id V - 1, and what stood there."""
    ids = Rng(1).integers(0, V - 1, (B, T))
    return mask_tokens(ids, Rng(2), mask=V - 1, specials=(), vocabulary=V)


# {family: (its model, the batch it learns from, by which objective)}
FAMILIES = {"gpt": (new_gpt, next_tokens, CausalLanguageModel),
            "llama": (new_llama, next_tokens, CausalLanguageModel),
            "bert": (new_bert, masked_tokens, MaskedLanguageModel)}


class StepSubject(Subject):
    """A training step: forward, backward, clipping, AdamW, and the loss as a number."""

    def __init__(self, backend, family, sizes, precision="fp32"):
        self.backend, self.precision = backend, precision
        with backends.use(backend):
            self.model, self.batch, self.objective = self.parts(family, sizes)
            self.optimizer = AdamW(self.model.parameters())
        self.flops = self.objective.flops(self.model, self.batch)
        self.costs = observed(backend, "step", self.calls, self.flops, 0)

    def parts(self, family, sizes):
        """(model, batch, objective)."""
        make, batch, objective = FAMILIES[family]
        return make(**sizes), batch(**sizes), objective()

    def calls(self, phase):
        while True:
            with backends.use(self.backend):
                loss = self.forward_backward()
                self.update()
                loss.item()
            yield

    def forward_backward(self):
        with precision(self.precision):
            loss = self.objective.loss(self.model, self.batch,
                                       denominator=self.objective.count(self.batch), rng=None)
            loss.backward()
        return loss

    def update(self):
        self.optimizer.update(1e-4, min(1.0, 1.0 / self.optimizer.gradient_norm()))
        self.optimizer.zero_grad()


class TokenSubject(Subject):
    """The logits after `tokens` more tokens of one sequence, with `position` in the cache, which
    holds `cache`, and the weights of all products packed as `format`."""

    def __init__(self, backend, shape, position, tokens, format, cache):
        L, C, H, T, V = shape
        self.backend, self.position = backend, position
        ids = Rng(1).integers(0, V, (1, position + tokens))
        self.ids = ids[:, position:]
        with backends.use(backend):
            config = GPTConfig(vocabulary=V, context=T, layers=L, heads=H, width=C)
            self.model = GPT(config, Rng(0))
            pack_model(self.model, format)
            weights = sum(p.data.nbytes for p in self.model.parameters().values())
            weights -= 4 * (T - tokens) * C                 # of the positions, these alone are read
            self.decoder = Decoder(self.model, 1, format=cache)
            if position:
                self.decoder(ids[:, :position])
        last = position + tokens
        flops = (tokens * (config.flops_per_token(0) - 2 * V * C) + 2 * V * C   # one row of logits
                 + 2 * L * C * (last * (last + 1) - position * (position + 1)))
        number = np.dtype(self.decoder.cache.dtype).itemsize
        self.costs = observed(backend, "logits", self.calls, flops,
                              weights + number * 2 * L * C * last)

    def calls(self, phase):
        while True:
            with backends.use(self.backend):
                self.decoder.cache.lengths = np.array([self.position])
                self.decoder(self.ids)
            yield


def observed(backend, phase, calls, flops, size):
    """{phase: Cost} with the verbs that a first call leaves to NumPy, or copies operands for."""
    before = besides(backend)
    next(calls(phase))
    return {phase: Cost(flops, size, *since(before, backend))}


def numbers(shape):
    """N(0, 1) numbers, float32; a million different ones."""
    return np.resize(np.random.default_rng(0).standard_normal(min(math.prod(shape), 1 << 20),
                                                              np.float32), shape)
