"""ModernBERT (Warner et al. 2024): an encoder with what decoders have learnt since BERT.

Positions turn queries and keys (rotary), so that "the token before" is one angle wherever it
stands, where BERT has to learn it place by place; norms come first, offsets are left out, a gate
stands in the perceptron, and most blocks look only at the neighbourhood. Read top to bottom: the
configuration, the parts, the model, its life in files.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import backends, ops
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.models.activations import ACTIVATIONS
from minifm.models.encoder import Encoder, first_token
from minifm.models.stored import (
    HeadLayout,
    Stored,
    check_heads,
    diffusion_from_hub,
    diffusion_to_hub,
)
from minifm.nn import Block, Embedding, LayerNorm, Linear, Module, SelfAttention
from minifm.nn.module import constant
from minifm.nn.rotary import Rotary
from minifm.tensor import Tensor

MODEL_TYPE = "modernbert"
INITIAL = 0.02          # standard deviation of the initial weights
POOLING = ("cls", "mean")
# {(reader, masked_head): what other libraries call a model of these parts}
ARCHITECTURES = {(True, True): "ModernBertForMaskedLM", (False, False): "ModernBertModel"}
# Heads for other tasks stand on the layer that the guesses of masked tokens are read by, too.
READ = {"reader": True, "masked_head": False, "absorbing": False}
TASKS = {MODEL_TYPE: {
    task: HeadLayout(f"ModernBertFor{name}", "classifier", "", READ, whole=task == "sequence",
                     reader=True, dropout=None)
    for task, name in (("sequence", "SequenceClassification"), ("token", "TokenClassification"),
                       ("question", "QuestionAnswering"))}}


@dataclass(frozen=True)
class ModernBertConfig:
    """The shape of a ModernBERT; counts follow from it without building the model."""

    vocabulary: int = setting(50368, "tokens that the model knows", least=1)            # V
    context: int = setting(8192, "the most tokens it can look at", least=1)
    layers: int = setting(22, "blocks, one above the other", least=1)                   # L
    heads: int = setting(12, "attention heads, each width / heads wide", least=1)       # H
    width: int = setting(768, "numbers that stand for a token between blocks", least=1) # C
    hidden: int | None = setting(
        None, "width inside the perceptron (default: one and a half times the width)",
        least=1)                                                                        # F
    window: int = setting(128, "tokens that a block of the neighbourhood looks at, half of them on "
                               "either side", least=2)
    every: int = setting(3, "one block in so many, the first among them, looks at all tokens",
                         least=1)
    theta: float = setting(160000.0, "base of the angles by which positions turn, where a block "
                                     "looks at all tokens", above=0)
    near_theta: float = setting(10000.0, "the same, where it looks at the neighbourhood", above=0)
    padding: int = setting(50283, "id of the token that fills short rows", least=0)
    activation: str = setting("gelu", f"of the gate: one of {', '.join(ACTIVATIONS)}",
                              choices=ACTIVATIONS)
    pooling: str = setting("cls", "what a sequence is judged by: its first token (cls), or the "
                                  "mean of all", choices=POOLING)
    norm_epsilon: float = setting(1e-5, "inside the square root of the norms", above=0, below=1)
    reader: bool = setting(True, "a layer between the blocks and any head")
    masked_head: bool = setting(True, "the head that guesses masked tokens")
    absorbing: bool = setting(
        False, "the masked head has learnt to guess behind any number of masks, and so writes by "
        "diffusion (diffusion/absorbing.py)")

    dropout = 0.0       # published models have none, and it is not computed here

    def __post_init__(self):
        check(self)
        if self.hidden is None:
            object.__setattr__(self, "hidden", 3 * self.width // 2)
        check_heads(self)
        if self.width // self.heads % 2:
            raise ConfigError(f"heads: expected heads of an even width, got "
                              f"{self.width // self.heads}")
        if self.padding >= self.vocabulary:
            raise ConfigError(f"padding: expected an id below the vocabulary of "
                              f"{self.vocabulary}, got {self.padding}")
        if self.masked_head and not self.reader:
            raise ConfigError("masked_head: it stands on the reader; leave that in")
        if self.absorbing and not self.masked_head:
            raise ConfigError("absorbing: needs the masked head")

    @property
    def architecture(self):
        """The name that other libraries have for a model of these parts; None for what a head
        stands on (heads.py)."""
        return ARCHITECTURES.get((self.reader, self.masked_head))

    @property
    def model(self):
        """The class of the models of this shape."""
        return ModernBert

    @property
    def tasks(self):
        """{task: HeadLayout}: the heads that may stand on such a model."""
        return TASKS[MODEL_TYPE]

    def window_of(self, layer):
        """How many tokens on either side that layer looks at; None: all."""
        return self.window // 2 if layer % self.every else None

    @property
    def parameters(self):
        """How many numbers training adjusts (the tied table counts once)."""
        C, F, L = self.width, self.hidden, self.layers
        block = 4 * C * C + 3 * C * F + 2 * C
        reader = (C * C + C) * self.reader
        # Of the first block, the embedding's norm is that of the attention, too.
        return self.vocabulary * C + C + L * block - C + C + reader \
            + self.vocabulary * self.masked_head

    def flops_per_token(self, length, training=False, counted=1.0):
        """Floating-point operations for one token of a sequence of `length` tokens, of products
        and of what attention sees; training, as in GPTConfig.

        counted  the fraction of the tokens that reader and masked head read
        """
        C, F = self.width, self.hidden
        products = self.layers * (4 * C * C + 3 * C * F)
        products += (C * C * self.reader + self.vocabulary * C * self.masked_head) * counted
        attention = sum(4 * C * neighbours(length, self.window_of(layer))
                        for layer in range(self.layers))
        return 6 * products + 3.5 * attention if training else 2 * products + attention


def neighbours(length, side):
    """How many tokens, on the average, a token of a sequence of `length` sees that looks at `side`
    on either hand (None: at all)."""
    if side is None or side >= length - 1:
        return length
    return 2 * side + 1 - side * (side + 1) / length


PRESETS = {
    "modernbert-tiny": dict(context=128, layers=4, heads=4, width=128, hidden=352),
    "modernbert-base": dict(hidden=1152),
    "modernbert-large": dict(layers=28, heads=16, width=1024, hidden=2624),
}


class FusedGatedPerceptron(Module):
    """activation(a) · b, where a and b are the halves of one linear layer; then back to C
    (GeGLU, Shazeer 2020)."""

    def __init__(self, width, hidden, activation, *, std, output_std, rng):
        self.activation, self.hidden = activation, hidden
        self.expand = Linear(width, 2 * hidden, bias=False, std=std,
                             rng=rng and rng.child("expand"))
        self.output = Linear(hidden, width, bias=False, std=output_std,
                             rng=rng and rng.child("output"))

    def __call__(self, x, residual=None, *, rng=None):
        """x [*B, C] -> [*B, C], plus `residual`; `rng` of the dropout in adapters."""
        x = self.expand(x, rng=rng and rng.child("expand"))                     # [*B, 2F]
        x = self.activation(x[..., :self.hidden]) * x[..., self.hidden:]        # [*B, F]
        return self.output(x, residual=residual, rng=rng and rng.child("output"))


def unchanged(x):
    """The norm before the first block's attention: the embedding's came just before."""
    return x


def new_block(config, layer, rng):
    """One block; `rng` draws its weights."""
    C, epsilon = config.width, config.norm_epsilon
    stds = {"std": INITIAL, "output_std": INITIAL / math.sqrt(2 * config.layers)}
    return Block(
        LayerNorm(C, epsilon, bias=False) if layer else unchanged,
        SelfAttention(C, config.heads, bias=False, rng=rng and rng.child("attention"), **stds),
        LayerNorm(C, epsilon, bias=False),
        FusedGatedPerceptron(C, config.hidden, ACTIVATIONS[config.activation],
                             rng=rng and rng.child("perceptron"), **stds))


def beyond(positions, side, dtype):
    """[T, T], 0 where two positions are at most `side` apart, else -inf, which hides a key; None
    where nothing is hidden."""
    if side is None or len(positions) <= side + 1:
        return None
    apart = np.abs(positions[:, None] - positions)
    return Tensor(backends.active().from_numpy(
        np.where(apart > side, -np.inf, 0.0).astype(dtype)))


class Reader(Module):
    """Features in, what the heads read out: norm(gelu(linear(x)))."""

    def __init__(self, config, rng):
        C = config.width
        self.dense = Linear(C, C, bias=False, std=INITIAL / math.sqrt(2 * config.layers), rng=rng)
        self.norm = LayerNorm(C, config.norm_epsilon, bias=False)

    def __call__(self, x):                                      # [*B, C] -> [*B, C]
        return self.norm(self.dense(x, ops.gelu))


class ModernBert(Encoder):
    """Token ids in, a vector for each token out, and what the heads make of it."""

    tasks = TASKS

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights from N(0, 0.02²), those that add to the residual stream
        1/√(2 layers) of that. Without `rng` they are zeros, for a checkpoint to replace."""
        C = config.width
        self.config = config
        self.rotary, self.near_rotary = (Rotary(C // config.heads, theta, config.context)
                                         for theta in (config.theta, config.near_theta))
        self.token_embedding = Embedding(config.vocabulary, C, std=INITIAL,
                                         rng=rng and rng.child("token_embedding"))
        self.embedding_norm = LayerNorm(C, config.norm_epsilon, bias=False)
        self.blocks = [new_block(config, layer, rng and rng.child("blocks", layer))
                       for layer in range(config.layers)]
        self.norm = LayerNorm(C, config.norm_epsilon, bias=False)
        self.reader = Reader(config, rng and rng.child("reader")) if config.reader else None
        self.masked_bias = constant((config.vocabulary,), 0) if config.masked_head else None

    def features(self, ids, *, key_mask=None, rng=None, recompute=False):
        """ids [B, T] -> what the heads read, [B, T, C].

        key_mask  bool [B, T]: False marks padding, on either side (default: nothing is)
        rng       turns the dropout of adapters on
        recompute computes the inside of each block again in the backward pass
        """
        ids = np.asarray(ids)
        self.check_ids(ids, key_mask=key_mask)
        self.check_length(ids.shape[1])
        x = self.embedding_norm(self.token_embedding(ids))                      # [B, T, C]
        positions = np.arange(ids.shape[1])
        turned, near = (rotary(positions, x.dtype) for rotary in (self.rotary, self.near_rotary))
        hidden = {side: beyond(positions, side, x.dtype)
                  for side in map(self.config.window_of, range(len(self.blocks)))}
        for layer, block in enumerate(self.blocks):
            side = self.config.window_of(layer)
            block = partial(block, causal=False, rotation=near if side else turned,
                            key_mask=key_mask, bias=hidden[side],
                            rng=rng and rng.child("block", layer))
            x = ops.checkpoint(block, x) if recompute else block(x)
        return self.norm(x)

    def logits(self, x):
        """[*B, C] -> [*B, V]."""
        if self.masked_bias is None:
            raise ConfigError(f"masked_head: this model, a "
                              f"{self.config.architecture or 'body for a head'}, has none")
        return ops.linear(self.reader(x), self.token_embedding.weight.transpose(1, 0),
                          self.masked_bias)

    def each(self, x):
        """Features x [B, T, C] -> [B, T, C], what a head for tokens reads."""
        return self.reader(x)

    def summary(self, x, key_mask=None):
        """Features x [B, T, C] -> [B, C], what a head for sequences reads."""
        if self.config.pooling == "cls":
            return self.reader(first_token(x, key_mask))
        B, T, _ = x.shape
        mask = np.ones((B, T), bool) if key_mask is None else np.asarray(key_mask)
        weights = mask / mask.sum(1, keepdims=True)                             # [B, T]
        weights = Tensor(backends.active().from_numpy(weights[..., None].astype(x.dtype)))
        return self.reader((x * weights).sum(1))

    def as_body(self, parts, rng=None):
        """A model of these very layers, with other `parts`, for a head to stand on (heads.py);
        `rng` draws a reader that this one does not have."""
        body = self.with_parts(parts)
        body.masked_bias = None
        body.reader = self.reader or Reader(self.config, rng and rng.child("reader"))
        return body

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        The tied table is looked up by rows of that axis, too."""
        names = [f"blocks.{i}.{part}" for i in range(config.layers) for part in LINEAR]
        return {"token_embedding.weight": 1} | {
            f"{name}.weight": 0 for name in names + ["reader.dense"] * config.reader}

    # -- files: the layouts of the ecosystem ------------------------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}. Linear weights lie [out, in] there. An encoder without a
        head has no prefix."""
        prefix = "model." if config.reader else ""
        names = {"token_embedding.weight": Stored(f"{prefix}embeddings.tok_embeddings.weight"),
                 "embedding_norm.gain": Stored(f"{prefix}embeddings.norm.weight"),
                 "norm.gain": Stored(f"{prefix}final_norm.weight"),
                 "reader.dense.weight": Stored("head.dense.weight", transposed=True),
                 "reader.norm.gain": Stored("head.norm.weight"),
                 "masked_bias": Stored("decoder.bias")}
        for i in range(config.layers):
            ours, theirs = f"blocks.{i}.", f"{prefix}layers.{i}."
            names |= {f"{ours}{part}.weight": Stored(f"{theirs}{name}.weight", transposed=True)
                      for part, name in LINEAR.items()}
            names |= {f"{ours}{part}.gain": Stored(f"{theirs}{name}.weight")
                      for part, name in NORMS.items() if i or part != "attention_norm"}
        return names

    @staticmethod
    def accepted_name(key):
        """The plainest spelling of a key in a file: encoders come with a prefix or without, and
        some files repeat the tied table as the decoder's."""
        key = key.removeprefix("model.")
        return "embeddings.tok_embeddings.weight" if key == "decoder.weight" else key

    @staticmethod
    def told_by(model_type, keys):
        """As in Model. A `classifier` stands on tokens, or on sequences: its tensors do not say."""
        if "classifier.weight" in keys:
            return None
        has_head = "decoder.bias" in keys
        return ARCHITECTURES[has_head, has_head]

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        missing = [key for key in KEYS.values() if key not in stored]
        if missing:
            raise ConfigError(f"config.json: lacks {', '.join(missing)}")
        for key, value in FIXED.items():
            if stored.get(key, value) != value:
                raise ConfigError(f"config.json: {key}={stored[key]!r} is not supported, only "
                                  f"{value!r}")
        named = (stored.get("architectures") or [None])[0]
        parts = {name: {"reader": reader, "masked_head": masked_head}
                 for (reader, masked_head), name in ARCHITECTURES.items()}
        parts |= {head.architecture: head.parts for head in TASKS[MODEL_TYPE].values()}
        if named not in parts:
            raise ConfigError(f"config.json: architectures: expected one of {', '.join(parts)}, "
                              f"got {named!r}")
        theta, near_theta = _thetas_from_hub(stored)
        return ModernBertConfig(
            **{ours: stored[theirs] for ours, theirs in KEYS.items()},
            **diffusion_from_hub(stored) | parts[named],
            **{ours: stored[theirs] for ours, theirs in OTHERS.items() if theirs in stored},
            every=_every_from_hub(stored), theta=theta, near_theta=near_theta)

    @staticmethod
    def config_to_hub(config, *, end_of_text=None, architecture=None):
        """The `config.json` that describes this model to other libraries; `architecture` names
        it where another head stands on it (heads.py). Raises ConfigError for a bare body."""
        architecture = architecture or config.architecture
        if architecture is None:
            raise ConfigError("reader: files of modernbert have a head that stands on it")
        return {"architectures": [architecture], "model_type": MODEL_TYPE,
                **{theirs: getattr(config, ours) for ours, theirs in (KEYS | OTHERS).items()},
                "global_attn_every_n_layers": config.every,
                "layer_types": [_type(layer, config.every) for layer in range(config.layers)],
                **dict(zip(THETAS.values(), (config.theta, config.near_theta))),
                "rope_parameters": {
                    _type(1, 2): {"rope_type": "default", "rope_theta": config.near_theta},
                    _type(0, 2): {"rope_type": "default", "rope_theta": config.theta}},
                **FIXED, "attention_dropout": 0.0, "torch_dtype": "float32",
                **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"),
                                end_of_text), **diffusion_to_hub(config)}


LINEAR = {"attention.project": "attn.Wqkv", "attention.output": "attn.Wo",
          "perceptron.expand": "mlp.Wi", "perceptron.output": "mlp.Wo"}
NORMS = {"attention_norm": "attn_norm", "perceptron_norm": "mlp_norm"}
KEYS = {"vocabulary": "vocab_size", "context": "max_position_embeddings",
        "layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size",
        "hidden": "intermediate_size"}
OTHERS = {"window": "local_attention", "padding": "pad_token_id", "activation": "hidden_activation",
          "pooling": "classifier_pooling", "norm_epsilon": "norm_eps"}
FIXED = {"norm_bias": False, "attention_bias": False, "mlp_bias": False, "classifier_bias": False,
         "decoder_bias": True, "embedding_dropout": 0.0, "mlp_dropout": 0.0,
         "classifier_activation": "gelu", "tie_word_embeddings": True}
# Keys of the two bases in published files, by what new ones call the blocks that have them.
THETAS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def _type(layer, every):
    """What files call a block: does it look at all tokens, or at the neighbourhood?"""
    return "sliding_attention" if layer % every else "full_attention"


def _every_from_hub(stored):
    """One block in how many looks at all tokens: a number in published files, in new ones a list
    of what each block is."""
    types, layers = stored.get("layer_types"), stored["num_hidden_layers"]
    usual = stored.get("global_attn_every_n_layers", 3)
    if types is None:
        return usual
    if not isinstance(usual, int) or usual < 1:
        raise ConfigError("config.json: global_attn_every_n_layers: expected an integer of at "
                          f"least 1, got {usual!r}")
    if not isinstance(types, list) or len(types) != layers:
        raise ConfigError(f"config.json: layer_types: expected a list of {layers}, one for each "
                          f"layer, got {types!r:.200}")
    for every in (usual, *range(1, layers + 1)):    # too few layers do not tell
        if types == [_type(layer, every) for layer in range(layers)]:
            return every
    raise ConfigError("config.json: layer_types: expected full_attention in the first layer and "
                      f"then at one distance, got {types!r:.200}")


def _thetas_from_hub(stored):
    """The two bases: numbers in published files, in new ones in rope_parameters."""
    found = []
    for (kind, key), default in zip(THETAS.items(), (160000.0, 10000.0)):
        parameters = _object("rope_parameters", stored.get("rope_parameters"))
        turned = _object(f"rope_parameters: {kind}", parameters.get(kind))
        if turned.get("rope_type", "default") != "default" or stored.get("rope_scaling"):
            raise ConfigError("config.json: rope_scaling: expected positions that are not scaled, "
                              f"got {turned or stored['rope_scaling']!r:.200}")
        found.append(float(turned.get("rope_theta", stored.get(key, default))))
    return found


def _object(name, value):
    """What a file says under that name; None is an empty object. Raises ConfigError."""
    if not isinstance(value or {}, dict):
        raise ConfigError(f"config.json: {name}: expected an object, got {value!r:.200}")
    return value or {}
