"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions and a tied head.

Read top to bottom: the configuration, the model, its life in files.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models.stored import Stored
from minifm.nn import Block, Cache, Embedding, LayerNorm, Module
from minifm.nn.cache import check_format

# The names that checkpoints use for activations.
ACTIVATIONS = {"gelu_new": ops.gelu_tanh, "gelu_pytorch_tanh": ops.gelu_tanh, "gelu": ops.gelu,
               "relu": ops.relu, "silu": ops.silu, "quick_gelu": ops.gelu_quick}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT; counts follow from it without building the model."""

    vocabulary: int = setting(50257, "tokens that the model knows", least=1)            # V
    context: int = setting(1024, "the most tokens it can look at", least=1)
    layers: int = setting(12, "blocks, one above the other", least=1)                   # L
    heads: int = setting(12, "attention heads, each width / heads wide", least=1)       # H
    width: int = setting(768, "numbers that stand for a token between blocks", least=1) # C
    hidden: int | None = setting(
        None, "width inside the perceptron (default: four times the width)", least=1)
    dropout: float = setting(
        0.0, "of the embeddings and of what each half of a block adds", least=0, below=1)
    activation: str = setting("gelu_new", f"one of {', '.join(ACTIVATIONS)}",
                              choices=ACTIVATIONS)
    norm_epsilon: float = setting(1e-5, "inside the square root of the layer norms",
                                  above=0, below=1)

    def __post_init__(self):
        check(self)
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.width)
        if self.width % self.heads:
            raise ConfigError(f"heads: {self.heads} heads do not divide the width {self.width}")

    @property
    def parameters(self):
        """How many numbers training adjusts (the tied head counts once)."""
        C, F = self.width, self.hidden
        attention = C * 3 * C + 3 * C + C * C + C
        perceptron = C * F + F + F * C + C
        block = attention + perceptron + 4 * C                  # two norms
        return (self.vocabulary + self.context) * C + self.layers * block + 2 * C

    def flops_per_token(self, length, training=False):
        """Floating-point operations for one token of a sequence of `length` tokens.

        Products only; the causal half of attention. Training is forward + backward: 3 × for a
        product, 3.5 × for attention. Recomputation does not count: it is no useful work.
        """
        C, F = self.width, self.hidden
        products = 2 * (self.layers * (4 * C * C + 2 * C * F) + self.vocabulary * C)
        attention = 2 * self.layers * length * C
        return 3 * products + 3.5 * attention if training else products + attention


PRESETS = {
    "tiny": GPTConfig(context=128, layers=4, heads=4, width=128),       # learns on any laptop
    "mini": GPTConfig(context=256, layers=6, heads=6, width=384),
    "gpt2": GPTConfig(layers=12, heads=12, width=768),
    "gpt2-medium": GPTConfig(layers=24, heads=16, width=1024),
    "gpt2-large": GPTConfig(layers=36, heads=20, width=1280),
    "gpt2-xl": GPTConfig(layers=48, heads=25, width=1600),
    # Brown et al. 2020, table 2.1. (The original's alternating sparse layers are not modelled.)
    "gpt3-175b": GPTConfig(context=2048, layers=96, heads=96, width=12288),
}


class GPT(Module):
    """Token ids in, logits of the next token out."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights as in section 2.3 of the GPT-2 paper: N(0, 0.02²),
        and 1/√(2 layers) of that where a block adds to the residual stream. Without `rng`
        they are zeros, for a checkpoint to replace."""
        C, std = config.width, 0.02
        self.config = config
        self.token_embedding = Embedding(config.vocabulary, C, std=std,
                                         rng=rng and rng.child("token_embedding"))
        self.position_embedding = Embedding(config.context, C, std=std,
                                            rng=rng and rng.child("position_embedding"))
        self.blocks = [
            Block(C, config.heads, config.hidden, ACTIVATIONS[config.activation],
                  config.norm_epsilon, std=std, output_std=std / math.sqrt(2 * config.layers),
                  rng=rng and rng.child("blocks", layer))
            for layer in range(config.layers)
        ]
        self.norm = LayerNorm(C, config.norm_epsilon)

    def __call__(self, ids, *, cache=None, counts=None, key_mask=None, rng=None):
        """ids [B, T] -> logits [B, T, V].

        cache     a Cache that holds the tokens before these; they are added to it
        counts    [B]: how many of the T tokens are real in each row, with a cache (nn/cache.py)
        """
        placement = cache.place(np.shape(ids)[-1], counts) if cache is not None else None
        x = self.features(ids, placement=placement, key_mask=key_mask, rng=rng)
        return self.logits(x)

    def loss(self, ids, targets, *, denominator=None, rng=None, recompute=False):
        """Mean cross-entropy in nats of targets [B, T] (-100: not counted); see ops/loss.py.

        recompute  keep only what enters each block; see ops/checkpoint.py
        """
        x = self.features(ids, rng=rng, recompute=recompute)
        return ops.linear_cross_entropy(x, self.token_embedding.weight, targets,
                                        denominator=denominator)

    def features(self, ids, *, placement=None, key_mask=None, rng=None, recompute=False):
        """ids [B, T] -> what the head reads, [B, T, C].

        placement where a Cache puts these tokens, behind those that it holds (nn/cache.py)
        key_mask  bool [B, T], without a cache: False marks padding, on either side
        rng       turns dropout on
        recompute computes the inside of each block again in the backward pass
        """
        ids = np.asarray(ids)
        positions = self.positions(ids, placement, key_mask)
        x = self.token_embedding(ids) + self.position_embedding(positions)      # [B, T, C]
        dropout = self.config.dropout
        if dropout:
            x = ops.dropout(x, dropout, rng=rng and rng.child("embedding"))
        for layer, block in enumerate(self.blocks):
            block = partial(block, layer=layer, placement=placement, key_mask=key_mask,
                            dropout=dropout, rng=rng and rng.child("block", layer))
            x = ops.checkpoint(block, x) if recompute else block(x)
        return self.norm(x)

    def logits(self, x):
        """[*B, C] -> [*B, V] by the tied head: the token embedding, transposed."""
        return ops.linear(x, self.token_embedding.weight.transpose(1, 0))

    def positions(self, ids, placement, key_mask):
        """The position of each token: [T], or [B, T] where rows differ."""
        if ids.ndim != 2:
            raise ShapeError(f"GPT: expected token ids [B, T], got {list(ids.shape)}")
        if placement is not None:
            positions = placement.positions
        elif key_mask is not None:      # padding, on either side, does not count
            positions = np.maximum(np.cumsum(key_mask, axis=-1) - 1, 0)
        else:
            positions = np.arange(ids.shape[1])
        if positions.max(initial=0) >= self.config.context:
            raise ShapeError(f"GPT: {positions.max() + 1} tokens do not fit the context of "
                             f"{self.config.context}")
        return positions

    def cache(self, batch, capacity=None, format=None):
        """An empty key-value cache for `batch` rows of at most `capacity` tokens.

        format "bf16" rounds keys and values to that; None and "fp32": as they are computed
        """
        check_format(format)
        c = self.config
        dtype = np.uint16 if format == "bf16" else self.token_embedding.weight.dtype
        return Cache(c.layers, batch, c.heads, c.width // c.heads,
                     min(capacity or c.context, c.context), dtype)

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        The tied table is looked up by rows of that axis, too."""
        parts = ("attention.project", "attention.output", "perceptron.expand", "perceptron.output")
        return {"token_embedding.weight": 1} | {
            f"blocks.{i}.{part}.weight": 0 for i in range(config.layers) for part in parts}

    # -- files: the layout of the ecosystem (GPT2LMHeadModel) ------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}. Linear weights lie [in, out] there too."""
        parts = {"attention_norm": "ln_1", "attention.project": "attn.c_attn",
                 "attention.output": "attn.c_proj", "perceptron_norm": "ln_2",
                 "perceptron.expand": "mlp.c_fc", "perceptron.output": "mlp.c_proj"}
        names = {"token_embedding.weight": "wte.weight",
                 "position_embedding.weight": "wpe.weight"}
        for i in range(config.layers):
            for ours, theirs in parts.items():
                gain = "gain" if ours.endswith("norm") else "weight"
                names[f"blocks.{i}.{ours}.{gain}"] = f"h.{i}.{theirs}.weight"
                names[f"blocks.{i}.{ours}.bias"] = f"h.{i}.{theirs}.bias"
        names |= {"norm.gain": "ln_f.weight", "norm.bias": "ln_f.bias"}
        return {ours: Stored("transformer." + theirs) for ours, theirs in names.items()}

    @staticmethod
    def accepted_name(key):
        """The present spelling of a key in a file; None for a buffer that is not a weight.

        Older files lack the prefix and carry the causal mask as `attn.bias`; some repeat the
        tied head, which then must be the embedding.
        """
        if key.endswith((".attn.bias", ".attn.masked_bias")):
            return None
        if key == "lm_head.weight":
            return "transformer.wte.weight"
        return key if key.startswith("transformer.") else "transformer." + key

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        fixed = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                 "add_cross_attention": False, "tie_word_embeddings": True}
        for key, value in fixed.items():
            if stored.get(key, value) != value:
                raise ConfigError(f"config.json: {key}={stored[key]!r} is not supported, "
                                  f"only {value!r}")
        required = {"vocabulary": "vocab_size", "context": "n_positions", "width": "n_embd",
                    "layers": "n_layer", "heads": "n_head"}
        missing = [key for key in required.values() if key not in stored]
        if missing:
            raise ConfigError(f"config.json: lacks {', '.join(missing)}")
        return GPTConfig(
            **{ours: stored[theirs] for ours, theirs in required.items()},
            hidden=stored.get("n_inner"), dropout=stored.get("resid_pdrop", 0.1),
            activation=stored.get("activation_function", "gelu_new"),
            norm_epsilon=stored.get("layer_norm_epsilon", 1e-5),
        )

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries."""
        return {
            "architectures": [GPT.architecture], "model_type": GPT.model_type,
            "vocab_size": config.vocabulary, "n_positions": config.context,
            "n_ctx": config.context, "n_embd": config.width, "n_layer": config.layers,
            "n_head": config.heads, "n_inner": config.hidden,
            "activation_function": config.activation, "layer_norm_epsilon": config.norm_epsilon,
            "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": 0.0,
            "tie_word_embeddings": True, "torch_dtype": "float32",
            "bos_token_id": end_of_text, "eos_token_id": end_of_text,
        }
