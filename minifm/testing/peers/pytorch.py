"""PyTorch's side of every case, run by an interpreter that has torch (see __init__.py).

A request names a `kind`, its sizes, a `mode` (eager, compile, bf16, bf16+compile), a `phase`
where it is an op, and `footprint`: the bytes that its arrays shall fill in copies used in turn.
"""

import itertools
import math

import torch
import torch._functorch.config
from service import serve
from torch import nn
from torch.nn import functional as F


def start(threads):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    # A compiled backward pass may be timed again and again.
    torch._functorch.config.donated_buffer = False
    return f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads", prepare


def prepare(request):
    request = dict(request)
    kind = request.pop("kind")
    if kind in DENOISING:
        import denoising  # which needs safetensors, and diffusers
        return getattr(denoising, kind)(**request)
    return KINDS[kind](**request)


# -- ops -------------------------------------------------------------------------------------------


def differentiable(function, make, wanted, *, mode, phase, footprint):
    """Calls of `function` on what make() gives, of which `wanted` names the places that want a
    gradient: the phase "forward", "backward" or "both"."""
    function = torch.compile(function) if "compile" in mode else function
    size = sum(x.nbytes for x in make())
    copies = [make() for _ in range(max(1, min(1000, math.ceil(footprint / size))))]
    held = [None] * len(copies)
    if phase == "forward":
        work = function
    else:
        for inputs in copies:
            for place in wanted:
                inputs[place].requires_grad_()

        def work(*inputs):
            y = function(*inputs)
            return torch.autograd.grad(y, [inputs[i] for i in wanted], torch.ones_like(y))
    if phase == "backward":
        outputs = [function(*inputs) for inputs in copies]
        dys = [torch.randn_like(y) for y in outputs]
        copies = [(y, [inputs[i] for i in wanted], dy)
                  for y, inputs, dy in zip(outputs, copies, dys)]

        def work(y, inputs, dy):
            return torch.autograd.grad(y, inputs, dy, retain_graph=True)

    def calls():
        for i in itertools.cycle(range(len(copies))):
            with torch.set_grad_enabled(phase != "forward"), precision(mode):
                held[i] = work(*copies[i])
            yield

    return calls()


def precision(mode):
    return torch.autocast("cpu", torch.bfloat16, enabled="bf16" in mode)


def product(x, y, x_transposed, y_transposed, **options):
    def make():
        return (torch.randn(x[::-1]).T if x_transposed else torch.randn(x),
                torch.randn(y[::-1]).T if y_transposed else torch.randn(y))
    return differentiable(torch.matmul, make, (0, 1), **options)


def attention(shape, **options):
    def function(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return differentiable(function, lambda: [torch.randn(shape) for _ in range(3)], (0, 1, 2),
                          **options)


def softmax(shape, **options):
    return differentiable(lambda x: F.softmax(x, -1), lambda: [torch.randn(shape)], (0,),
                          **options)


def gelu(shape, **options):
    return differentiable(lambda x: F.gelu(x, approximate="tanh"), lambda: [torch.randn(shape)],
                          (0,), **options)


def layernorm(shape, **options):
    C = shape[-1]
    return differentiable(lambda x, gamma, beta: F.layer_norm(x, (C,), gamma, beta),
                          lambda: [torch.randn(shape), torch.randn(C), torch.randn(C)], (0, 1, 2),
                          **options)


def linear_cross_entropy(tokens, width, vocabulary, **options):
    def function(x, weight, targets):
        return F.cross_entropy(F.linear(x, weight), targets, reduction="none")
    return differentiable(
        function, lambda: [torch.randn(tokens, width), torch.randn(vocabulary, width),
                           torch.randint(vocabulary, (tokens,))], (0, 1), **options)


def conv2d(image, weight, stride, padding, **options):
    def function(x, w, bias):
        return F.conv2d(x, w, bias, stride, padding)
    return differentiable(
        function, lambda: [torch.randn(image), torch.randn(weight), torch.randn(weight[0])],
        (0, 1, 2), **options)


def adamw(shapes, mode, phase, footprint):
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    while True:
        optimizer.step()
        yield


# -- models ----------------------------------------------------------------------------------------


def step(family, sizes, mode):
    """One training step: forward, backward, clipping, AdamW, and the loss as a number."""
    model, optimizer = trained(family, **sizes)
    loss_of = torch.compile(model.loss) if "compile" in mode else model.loss
    batch = model.batch(sizes["B"], sizes["T"])
    while True:
        optimizer.zero_grad(set_to_none=True)
        with precision(mode):
            loss = loss_of(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        yield


models = {}     # one at a time, for all modes: four with their moments would fill a laptop


def trained(family, T, B, V, **sizes):
    key = family, T, V, *sizes.items()
    if key not in models:
        models.clear()
        model = {"gpt": GPT, "llama": Llama, "bert": Bert}[family](T=T, V=V, **sizes)
        models[key] = model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return models[key]


def table(rows, width):
    """An embedding that begins as those of all these models do."""
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def next_tokens(V, B, T):
    ids = torch.randint(0, V, (B, T + 1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def token(shape, position, tokens, mode):
    """The logits after `tokens` more tokens, with `position` in the cache."""
    models.clear()
    model = GPT(*shape)
    if "bf16" in mode:
        model = model.bfloat16()
    cache, ids = model.cache(), torch.randint(0, shape[-1], (1, shape[3]))
    following = torch.compile(model.following) if "compile" in mode else model.following
    with torch.inference_mode():
        if position:
            model.following(ids[:, :position], cache, 0)
    while True:
        with torch.inference_mode():
            following(ids[:, position : position + tokens], cache, position)
        yield


class Block(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.heads = H
        self.norm1, self.norm2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.output = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.expand, self.contract = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x, past=None, start=0):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        if past is not None:
            for store, new in zip(past, (k, v)):
                store[:, :, start : start + T] = new
            k, v = (store[:, :, : start + T] for store in past)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        x = x + self.output(y.transpose(1, 2).reshape(B, T, C))
        return x + self.contract(F.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, L, C, H, T, V):
        super().__init__()
        self.tokens, self.positions = table(V, C), table(T, C)
        self.blocks = nn.ModuleList([Block(C, H) for _ in range(L)])
        self.norm = nn.LayerNorm(C)

    def batch(self, B, T):
        return next_tokens(self.tokens.num_embeddings, B, T)

    def loss(self, ids, targets):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def cache(self):
        """An empty key and value store [1, H, T, D] for each layer."""
        T, C = self.positions.weight.shape
        return [[torch.zeros(1, block.heads, T, C // block.heads, dtype=self.tokens.weight.dtype)
                 for _ in range(2)] for block in self.blocks]

    def following(self, ids, cache, start):
        """Logits after the last of ids [1, T], which come after `start` tokens."""
        x = self.tokens(ids) + self.positions.weight[start : start + ids.shape[1]]
        for block, past in zip(self.blocks, cache):
            x = block(x, past, start)
        return F.linear(self.norm(x[:, -1]), self.tokens.weight)


class LlamaBlock(nn.Module):
    def __init__(self, C, H, K, F):
        super().__init__()
        self.heads, self.key_heads, self.width = H, K, C // H
        self.norm1, self.norm2 = nn.RMSNorm(C, eps=1e-5), nn.RMSNorm(C, eps=1e-5)
        self.qkv = nn.Linear(C, (H + 2 * K) * self.width, bias=False)
        self.output = nn.Linear(C, C, bias=False)
        self.gate, self.expand = nn.Linear(C, F, bias=False), nn.Linear(C, F, bias=False)
        self.contract = nn.Linear(F, C, bias=False)

    def forward(self, x, cos, sin):
        B, T, C = x.shape
        heads = self.qkv(self.norm1(x)).view(B, T, -1, self.width).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.key_heads, self.key_heads), dim=1)
        y = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v,
                                           is_causal=True, enable_gqa=True)
        x = x + self.output(y.transpose(1, 2).reshape(B, T, C))
        z = self.norm2(x)
        return x + self.contract(F.silu(self.gate(z)) * self.expand(z))


def rotated(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Llama(nn.Module):
    def __init__(self, L, C, H, K, F, T, V):
        super().__init__()
        self.tokens, self.norm = table(V, C), nn.RMSNorm(C, eps=1e-5)
        self.blocks = nn.ModuleList([LlamaBlock(C, H, K, F) for _ in range(L)])
        pairs = torch.arange(0, C // H, 2) / (C // H)
        angles = torch.arange(T)[:, None] * 10000.0 ** -pairs
        self.cos, self.sin = angles.cos(), angles.sin()

    def batch(self, B, T):
        return next_tokens(self.tokens.num_embeddings, B, T)

    def loss(self, ids, targets):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class BertBlock(nn.Module):
    def __init__(self, C, H):
        super().__init__()
        self.heads = H
        self.norm1, self.norm2 = nn.LayerNorm(C, eps=1e-12), nn.LayerNorm(C, eps=1e-12)
        self.qkv, self.output = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.expand, self.contract = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(x).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v)
        x = self.norm1(x + self.output(y.transpose(1, 2).reshape(B, T, C)))
        return self.norm2(x + self.contract(F.gelu(self.expand(x))))


class Bert(nn.Module):
    """With the head for masked tokens, which sees only those that were masked, as ours does."""

    def __init__(self, L, C, H, T, V):
        super().__init__()
        self.tokens, self.positions, self.types = table(V, C), table(T, C), table(2, C)
        self.norm = nn.LayerNorm(C, eps=1e-12)
        self.blocks = nn.ModuleList([BertBlock(C, H) for _ in range(L)])
        self.dense, self.head_norm = nn.Linear(C, C), nn.LayerNorm(C, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(V))

    def batch(self, B, T):
        """ids [B, T], the 15 % of their places that count, and what stood there."""
        places = torch.randperm(B * T)[: round(0.15 * B * T)]
        V = self.tokens.num_embeddings
        return torch.randint(0, V, (B, T)), places, torch.randint(0, V, places.shape)

    def loss(self, ids, places, targets):
        x = self.norm(self.tokens(ids) + self.positions.weight[: ids.shape[1]]
                      + self.types.weight[0])
        for block in self.blocks:
            x = block(x)
        x = self.head_norm(F.gelu(self.dense(x.flatten(0, 1)[places])))
        return F.cross_entropy(F.linear(x, self.tokens.weight, self.bias), targets)


DENOISING = ("denoising_call", "denoising_step")
KINDS = {f.__name__: f for f in (product, attention, softmax, gelu, layernorm,
                                 linear_cross_entropy, conv2d, adamw, step, token)}

if __name__ == "__main__":
    serve(start)
