"""What `minifm bench` times: every op as it is declared, and four sets with names.

    kernels    the shapes of transformers and convolutions, op by op
    step       whole training steps
    sample     calls of networks that undo noise
    decode     the next token of GPT-2 after 1, 512 and 1023 tokens, and 512 tokens at once

A Case says how to make it on a backend of ours (`subject`), what to ask a peer for (`request`, in
each of that library's `modes`), and what it is held against (`limit`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minifm import ops  # noqa: F401  (fills the table)
from minifm.op import OPS
from minifm.testing.denoisers import DenoisingStep, NetworkCall, TrainerStep
from minifm.testing.draw import Benchmark
from minifm.testing.example import Example, example
from minifm.testing.subjects import (
    OpSubject,
    OptimizerSubject,
    StepSubject,
    TokenSubject,
    numbers,
)

FEW_ROWS = 8        # so few rows of a product: reading the weights takes longer than multiplying
GPT2 = (12, 768, 12, 1024, 50257)                       # layers, width, heads, context, vocabulary
# (what is trained, its sizes: layers, width, heads, …, tokens of a sequence, sequences, vocabulary;
# or a preset, and how many examples)
STEPS = {
    "L4": ("gpt", dict(L=4, C=128, H=4, T=64, B=12, V=65)),
    "L6": ("gpt", dict(L=6, C=384, H=6, T=256, B=8, V=65)),
    "gpt2": ("gpt", dict(L=12, C=768, H=12, T=256, B=2, V=50257)),
    "llama": ("llama", dict(L=12, C=768, H=12, K=4, F=2048, T=256, B=2, V=32000)),
    "bert": ("bert", dict(L=12, C=768, H=12, T=128, B=8, V=30522)),
    "unet": ("unet", dict(preset="unet-small", B=8)),
    "dit": ("dit", dict(preset="dit-mini", B=8)),
}
LAYERS = ((768, 2304), (768, 768), (768, 3072), (3072, 768), (768, 50257))      # K → N
EAGER = {"PyTorch": ("eager",)}
COMPILED = {"PyTorch": ("eager", "compile")}
TRAINED = {"PyTorch": ("eager", "compile", "bf16", "bf16+compile")}
DENOISED = {"unet": {"PyTorch": ("eager", "compile", "channels_last", "channels_last+compile",
                                 "bf16", "bf16+compile", "pure-bf16")},
            "dit": {"PyTorch": ("eager", "compile", "diffusers", "bf16", "bf16+compile",
                                "pure-bf16")}}
CALLS = {f"{name} B{B}": (family, sizes | {"B": B}) for name, (family, sizes) in STEPS.items()
         if family in DENOISED for B in (1, 8)}
FORMATS = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}     # and llama.cpp's


@dataclass(frozen=True)
class Case:
    """One thing to time.

    subject    (backend, footprint) -> one of subjects.py
    limit      "FMA", "read" or "copy": what it is held against; None: FMA where there are FLOPs,
               else copy
    weight     bytes of the weights, where limit is "read" and nothing else counts
    quick      whether it stays when time is short
    """

    set: str
    group: str
    name: str
    phases: tuple
    subject: Callable = field(repr=False)
    limit: str | None = None
    weight: int | None = None
    request: dict = field(default_factory=dict)
    modes: dict = field(default_factory=dict)
    inputs: str = ""
    tokens: int | None = None
    quick: bool = False

    @property
    def title(self):
        return f"{self.group} {self.name}".strip()


def declared(name, sizes=None):
    """The Case of the op of that class name, from its own declaration."""
    made = example(OPS[name], Benchmark(sizes))
    return Case("ops", name, "", ("forward", "backward"), inputs=described(made),
                subject=lambda backend, footprint: OpSubject(made, backend, footprint))


def described(made):
    """"x[8, 256, 768] weight[768, 768]  activation=None" of an Example."""
    names = [name for name, _ in made.op.inputs]
    given = [f"{name}{list(x.shape)}" if isinstance(x, np.ndarray) else f"{name}={x}"
             for name, x in zip(names, made.inputs) if x is not None]
    given += [f"{name}={_brief(value)}" for name, value in made.options.items()
              if value is not None]
    return " ".join(given)


def _brief(value):
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")


# -- kernels ---------------------------------------------------------------------------------------


def kernels():
    """The micro-benchmark set, a generator of Cases."""
    for side in (256, 512, 1024, 2048, 4096):
        for layout in ("NN", "NT", "TN"):
            yield product(layout, f"{side}³", side, side, side, side in (256, 1024))
    for K, N in LAYERS:
        for M in (1, 16, 64, 256, 1024, 4096):
            for layout in ("NN", "NT", "TN") if M > 1 else ("NN", "NT"):
                yield product(layout, f"{M}·{K}→{N}", M, K, N,
                               (K, N) == (768, 3072) and M in (1, 256))
    for T in (64, 256, 1024, 4096):
        yield attention(max(1, 1024 // T), T)
    for shape in ((4096, 1024), (256, 50257)):
        yield over_rows("softmax", "Softmax", shape)
    yield over_rows("layernorm", "LayerNorm", (4096, 768), eps=1e-5)
    yield over_rows("gelu", "GeluTanh", (4096, 3072))
    for tokens in (256, 4096):
        yield linear_cross_entropy(tokens)
    yield adamw("GPT-2 124M", gpt2_shapes())
    yield convolution("3×3 64→64 56²", (8, 64, 56, 56), (64, 64, 3, 3), 1, 1)
    yield convolution("1×1 256→64 56²", (8, 256, 56, 56), (64, 256, 1, 1), 1, 0)
    yield convolution("7×7 stem 224²", (8, 3, 224, 224), (64, 3, 7, 7), 2, 3)


def _op_case(group, name, op, make, phases, request, **settings):
    """A Case of an op on what make() gives: (inputs, options)."""
    def subject(backend, footprint):
        inputs, options = make()
        varied = tuple(i for i, x in enumerate(inputs)
                       if isinstance(x, np.ndarray) and x.dtype.kind == "f")
        return OpSubject(Example(OPS[op], inputs, options, varied), backend, footprint, phases)
    return Case("kernels", group, name, phases, subject, request=request,
                **{"modes": EAGER} | settings)


def product(layout, name, M, K, N, quick=False):
    """The products of a layer of weight [K, N] that M rows go through: NN is its forward, NT
    (dy weightᵀ) and TN (xᵀ dy) are its gradients. All multiply 2 M K N times."""
    x, y = {"NN": ((M, K), (K, N)), "NT": ((M, N), (N, K)), "TN": ((K, M), (M, N))}[layout]

    def make():
        return (_laid(x, layout[0]), _laid(y, layout[1])), {}

    few = M <= FEW_ROWS
    return _op_case(
        "gemm", f"{layout} {name}", "Matmul", make, ("forward",),
        {"kind": "product", "x": x, "y": y, "x_transposed": layout[0] == "T",
         "y_transposed": layout[1] == "T"},
        limit="read" if few else "FMA", weight=4 * K * N if few else None, quick=quick,
        inputs=f"x{list(x)} y{list(y)} {layout}")


def _laid(shape, order):
    """Numbers of that shape; in order "T" the first dimension is the contiguous one."""
    return numbers(shape[::-1]).T if order == "T" else numbers(shape)


def attention(B, T, H=12, D=64):
    shape = (B, H, T, D)
    return _op_case(
        "attention", f"T {T}", "Attention",
        lambda: ((*(numbers(shape) for _ in range(3)), None, None, None, None),
                 {"causal": True, "scale": 1 / math.sqrt(D)}),
        ("forward", "backward"), {"kind": "attention", "shape": shape}, quick=T == 256,
        inputs=f"q, k, v {list(shape)} causal")


def over_rows(kind, op, shape, **options):
    C = shape[-1]
    more = (numbers((C,)), numbers((C,))) if kind == "layernorm" else ()
    return _op_case(
        kind, "×".join(map(str, shape)), op, lambda: ((numbers(shape), *more), options),
        ("forward", "backward"), {"kind": kind, "shape": shape}, modes=COMPILED,
        quick=shape[0] == 4096, inputs=f"x{list(shape)}")


def linear_cross_entropy(tokens, C=768, V=50257):
    def make():
        return (numbers((tokens, C)), numbers((V, C)), None, np.arange(tokens) * 7 % V), {}
    return _op_case(
        "linear+cross-entropy", f"{tokens}·{C}→{V}", "LinearCrossEntropy", make, ("both",),
        {"kind": "linear_cross_entropy", "tokens": tokens, "width": C, "vocabulary": V},
        quick=tokens == 256, inputs=f"x[{tokens}, {C}] weight[{V}, {C}]")


def adamw(name, shapes):
    return Case("kernels", "adamw", name, ("update",),
                lambda backend, footprint: OptimizerSubject(backend, shapes),
                request={"kind": "adamw", "shapes": shapes}, modes=EAGER,
                inputs=f"{len(shapes)} parameters")


def gpt2_shapes(L=12, C=768, T=1024, V=50257):
    """The shapes of GPT-2's parameters, in their order."""
    norm = [(C,), (C,)]
    block = [*norm, (C, 3 * C), (3 * C,), (C, C), (C,), *norm, (C, 4 * C), (4 * C,), (4 * C, C),
             (C,)]
    return [(V, C), (T, C), *L * block, *norm]


def convolution(name, image, weight, stride, padding):
    def make():
        return (numbers(image), numbers(weight), numbers(weight[:1])), {
            "stride": (stride, stride), "padding": (padding, padding), "groups": 1}
    return _op_case(
        "conv2d", name, "Conv2d", make, ("forward", "backward"),
        {"kind": "conv2d", "image": image, "weight": weight, "stride": stride,
         "padding": padding}, quick=weight[2] == 3, inputs=f"x{list(image)} weight{list(weight)}")


# -- models ----------------------------------------------------------------------------------------


def steps(shapes=STEPS):
    """Training steps, from the smallest."""
    for name, (family, sizes) in shapes.items():
        if family in DENOISED:
            yield from denoising_steps(name, family, sizes)
            continue
        yield Case("step", "step", name, ("step",),
                   lambda backend, footprint, family=family, sizes=sizes:
                   StepSubject(backend, family, sizes),
                   request={"kind": "step", "family": family, "sizes": sizes}, modes=TRAINED,
                   quick=name == "L4", tokens=sizes["T"] * sizes["B"], inputs=shown_sizes(sizes))


def denoising_steps(name, family, sizes):
    """The step alone, in either precision, and as the Trainer makes it."""
    for precision in ("fp32", "bf16"):
        said = "" if precision == "fp32" else f" {precision}"
        yield denoising("step", f"{name}{said}", DenoisingStep, family, sizes, precision,
                        kind="denoising_step")
    yield denoising("step", f"{name} by Trainer", TrainerStep, family, sizes, "fp32",
                    kind="denoising_step", trained=True)


def calls(shapes=CALLS):
    """Calls of networks that undo noise: what samplers spend their time on."""
    for name, (family, sizes) in shapes.items():
        for precision in ("fp32", "bf16"):
            said = "" if precision == "fp32" else f" {precision}"
            yield denoising("sample", f"{name}{said}", NetworkCall, family, sizes, precision,
                            kind="denoising_call")


def denoising(set_, name, subject, family, sizes, precision, **request):
    """A Case of a UNet or DiT. Its peers read its weights from a folder."""
    phase = "step" if set_ == "step" else "call"
    return Case(set_, phase, name, (phase,),
                lambda backend, footprint: subject(backend, family, sizes, precision),
                request=request | {"precision": precision},
                modes=DENOISED[family],
                quick=name.endswith("B1"), inputs=shown_sizes(sizes))


def shown_sizes(sizes):
    return " ".join(size if name == "preset" else f"{name}{size}" for name, size in sizes.items())


def decoding(shape=GPT2):
    """The next token after few and many, and a prompt at once, with the weights in each format.
    llama.cpp keeps keys and values in 16 bits, as minifm does where it is asked to."""
    for format, like in FORMATS.items():
        for position, tokens, cache in (
                (1, 1, "fp32"), (512, 1, "fp32"), (1023, 1, "fp32"), (1023, 1, "bf16"),
                (0, 512, "fp32")):
            prompt, said = tokens > 1, "" if cache == "fp32" else f", cache {cache}"
            yield Case(
                "decode", "prefill" if prompt else "decode",
                f"{format} {f'{tokens} tokens' if prompt else f'after {position}{said}'}",
                ("logits",), lambda backend, footprint, p=position, n=tokens, f=format, c=cache:
                TokenSubject(backend, shape, p, n, f, c),
                limit="FMA" if prompt else "read", quick=position == 512, tokens=tokens,
                request={"kind": "token", "shape": shape, "position": position, "tokens": tokens},
                modes={"PyTorch": ("eager", "bf16"), "llama.cpp": (like,)},
                inputs=" ".join(f"{k}{v}" for k, v in zip("LCHTV", shape)))


SETS = {"kernels": kernels, "step": steps, "sample": calls, "decode": decoding}
