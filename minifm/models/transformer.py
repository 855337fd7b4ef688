"""The Transformer (Vaswani et al. 2017), as Marian's translation models have it: an encoder and a
decoder whose norms come after each addition, positions of fixed sines, one table of embeddings for
source, target and head.

Read top to bottom: the configuration, the model, its life in files.
"""

import math
from dataclasses import dataclass

import numpy as np

from minifm import backends, ops
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.models.activations import ACTIVATIONS
from minifm.models.seq2seq import MemoryBlock, Seq2SeqModel, pair_flops
from minifm.models.stored import Stored, check_heads
from minifm.nn import Attention, Block, Embedding, LayerNorm, Perceptron, post_norm
from minifm.nn.module import constant
from minifm.tensor import Tensor

NORM_EPSILON = 1e-5     # inside the square root of the layer norms; files do not say it


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer; counts follow from it without building the model."""

    vocabulary: int = setting(37000, "tokens that the model knows", least=1)            # V
    context: int = setting(1024, "the most tokens of a source, and of a target", least=1)
    layers: int = setting(6, "blocks of the encoder", least=1)
    decoder_layers: int | None = setting(
        None, "blocks of the decoder (default: as many as the encoder's)", least=1)
    heads: int = setting(8, "attention heads, each width / heads wide", least=1)        # H
    width: int = setting(512, "numbers that stand for a token between blocks", least=2) # C
    hidden: int | None = setting(
        None, "width inside the perceptron (default: four times the width)", least=1)   # F
    dropout: float = setting(
        0.0, "of the embeddings and of what each part of a block adds", least=0, below=1)
    activation: str = setting("relu", f"one of {', '.join(ACTIVATIONS)}", choices=ACTIVATIONS)
    scaled_embeddings: bool = setting(True, "embeddings are multiplied by √width")
    start: int | None = setting(
        None, "the token that the decoder reads first (decoder_start_token_id)", least=0)
    end: int | None = setting(None, "the token that ends a text", least=0)
    padding: int | None = setting(None, "the token that fills up short rows", least=0)

    def __post_init__(self):
        check(self)
        for name, value in (("decoder_layers", self.layers), ("hidden", 4 * self.width)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_heads(self)
        if self.width % 2:
            raise ConfigError(f"width: expected an even number, half of it for sines, got "
                              f"{self.width}")
        for name in ("start", "end", "padding"):
            if (getattr(self, name) or 0) >= self.vocabulary:
                raise ConfigError(f"{name}: expected a token below the vocabulary of "
                                  f"{self.vocabulary}, got {getattr(self, name)}")

    @property
    def head_width(self):
        return self.width // self.heads

    @property
    def parameters(self):
        """How many numbers training adjusts (the one table of embeddings counts once)."""
        C, F = self.width, self.hidden
        attention, perceptron = 4 * C * C + 4 * C, 2 * C * F + F + C
        return (self.vocabulary * (C + 1)                       # and an offset of each logit
                + self.layers * (attention + perceptron + 4 * C)
                + self.decoder_layers * (2 * attention + perceptron + 6 * C))

    def flops(self, source, target, training=False):
        """Floating-point operations for a source and a target of so many tokens; see
        seq2seq.py."""
        return pair_flops(self, source, target, training, inner=self.width,
                          perceptron=2 * self.width * self.hidden)

    def flops_per_token(self, length, training=False):
        """The same for one token of a source and one of its target together, both of `length`
        tokens: all that a pair of them takes, over `length`."""
        return self.flops(length, length, training) / length


PRESETS = {
    "transformer-tiny": dict(context=128, layers=2, heads=4, width=128),    # for any laptop
    # Vaswani et al. 2017, table 3: the English-German models.
    "transformer-base": dict(layers=6, heads=8, width=512, hidden=2048, dropout=0.1),
    "transformer-big": dict(layers=6, heads=16, width=1024, hidden=4096, dropout=0.3),
}


class Sinusoids:
    """Position t as C numbers: the sines of t · 10000^(-2i/C) for all i < C/2, then the cosines."""

    def __init__(self, context, width):
        self.context, self.width, self.tables = context, width, {}

    def __call__(self, positions, dtype):
        """int [*B] below the context -> Tensor [*B, C]."""
        key = backends.active(), np.dtype(dtype)
        if key not in self.tables:
            pairs = np.arange(0, self.width, 2) / self.width
            angles = np.arange(self.context)[:, None] / 10000.0 ** pairs        # [context, C/2]
            table = np.concatenate([np.sin(angles), np.cos(angles)], 1)         # [context, C]
            self.tables[key] = Tensor(backends.active().from_numpy(table.astype(dtype)))
        return ops.embedding(self.tables[key], positions)


def new_block(config, block, rng):
    """One `block`, Block or MemoryBlock; `rng` draws its weights: matrices keep the size of what
    goes through them, forwards and backwards on the average (Glorot & Bengio 2010)."""
    C, F = config.width, config.hidden

    def attention(name):
        return Attention(C, config.heads, std=C ** -0.5, output_std=C ** -0.5,
                         rng=rng and rng.child(name))

    parts = [LayerNorm(C, NORM_EPSILON), attention("attention")]
    if block is MemoryBlock:
        parts += [LayerNorm(C, NORM_EPSILON), attention("memory_attention")]
    std = math.sqrt(2 / (C + F))
    return block(*parts, LayerNorm(C, NORM_EPSILON),
                 Perceptron(C, F, ACTIVATIONS[config.activation], std=std, output_std=std,
                            rng=rng and rng.child("perceptron")), arrange=post_norm)


class Transformer(Seq2SeqModel):
    """A source in, logits of the next target token out, by the token embedding, transposed."""

    model_type = "marian"
    architecture = "MarianMTModel"

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights: those of the embedding from N(0, 1/C), which √C brings
        to the size of the sines. Without `rng` they are zeros, for a checkpoint to replace."""
        C = config.width
        self.config = config
        self.sinusoids = Sinusoids(config.context, C)
        self.token_embedding = Embedding(config.vocabulary, C, std=C ** -0.5,
                                         rng=rng and rng.child("token_embedding"))
        self.encoder = [new_block(config, Block, rng and rng.child("encoder", layer))
                        for layer in range(config.layers)]
        self.decoder = [new_block(config, MemoryBlock, rng and rng.child("decoder", layer))
                        for layer in range(config.decoder_layers)]
        self.logits_bias = constant((1, config.vocabulary), 0)

    def encode(self, source, *, key_mask=None, rng=None, recompute=False):
        source = self.checked(source)
        if key_mask is None:
            positions = np.arange(source.shape[1])
        else:                           # padding, on either side, does not count
            positions = np.maximum(np.cumsum(key_mask, axis=-1) - 1, 0)
        x = self.embedded(source, positions, rng)                               # [B, S, C]
        return self.through_encoder(x, key_mask=key_mask, rng=rng, recompute=recompute)

    def features(self, ids, memory, *, memory_mask=None, placement=None, rng=None,
                 recompute=False):
        ids = self.checked(ids, memory)
        positions = np.arange(ids.shape[1]) if placement is None else placement.positions
        x = self.embedded(ids, positions, rng)                                  # [B, T, C]
        return self.through_decoder(x, memory, memory_mask=memory_mask, placement=placement,
                                    rng=rng, recompute=recompute)

    def embedded(self, ids, positions, rng):
        """ids [B, T], positions [T] or [B, T] -> [B, T, C], what enters the first block."""
        self.check_length(positions.max(initial=-1) + 1)
        x = self.token_embedding(ids)
        if self.config.scaled_embeddings:
            x = x * math.sqrt(self.config.width)
        x = x + self.sinusoids(positions, x.dtype)
        return ops.dropout(x, self.config.dropout, rng=rng and rng.child("embedding"))

    def logits(self, x):
        return super().logits(x) + self.logits_bias

    def loss_of(self, x, targets, denominator):
        return ops.linear_cross_entropy(x, self.head, targets, denominator=denominator,
                                        bias=self.logits_bias.reshape(self.config.vocabulary))

    def cache(self, batch, capacity=None, format=None):
        context = self.config.context
        return super().cache(batch, min(capacity or context, context), format)

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        The table is looked up by rows of that axis, too."""
        return {"token_embedding.weight": 1} | {
            f"{ours}.weight": 0 for ours, theirs in _parts(config).items()
            if not theirs.endswith("norm")}

    # -- files: the layout of the ecosystem (MarianMTModel) ---------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}. Linear weights lie [out, in] there."""
        names = {"token_embedding.weight": Stored("model.shared.weight"),
                 "logits_bias": Stored("final_logits_bias")}
        for ours, theirs in _parts(config).items():
            norm = theirs.endswith("norm")
            weight = "gain" if norm else "weight"
            names[f"{ours}.{weight}"] = Stored(f"{theirs}.weight", transposed=not norm)
            names[f"{ours}.bias"] = Stored(f"{theirs}.bias")
        return names

    @staticmethod
    def accepted_name(key):
        """The present spelling of a key in a file; None for the table of sines, which is no weight.

        Some files repeat the table of embeddings, for each that reads it.
        """
        if key.endswith(".embed_positions.weight"):
            return None
        if key in ("lm_head.weight", "model.encoder.embed_tokens.weight",
                   "model.decoder.embed_tokens.weight"):
            return "model.shared.weight"
        return key

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        required = {"vocabulary": "vocab_size", "width": "d_model", "layers": "encoder_layers",
                    "decoder_layers": "decoder_layers", "heads": "encoder_attention_heads",
                    "hidden": "encoder_ffn_dim"}
        missing = [key for key in required.values() if key not in stored]
        if missing:
            raise ConfigError(f"config.json: lacks {', '.join(missing)}")
        same = {"decoder_attention_heads": stored["encoder_attention_heads"],
                "decoder_ffn_dim": stored["encoder_ffn_dim"],
                "decoder_vocab_size": stored["vocab_size"]}
        fixed = {"normalize_before": False, "normalize_embedding": False,
                 "add_final_layer_norm": False, "static_position_embeddings": True,
                 "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True}
        for key, value in (same | fixed).items():
            if stored.get(key, value) not in (value, None):
                raise ConfigError(f"config.json: {key}={stored[key]!r} is not supported, "
                                  f"only {value!r}")
        activation = stored.get("activation_function", "gelu")
        padding = stored.get("pad_token_id", 58100)
        return TransformerConfig(
            **{ours: stored[theirs] for ours, theirs in required.items()},
            context=stored.get("max_position_embeddings", 1024),
            dropout=stored.get("dropout", 0.1),
            activation={"swish": "silu"}.get(activation, activation),
            scaled_embeddings=stored.get("scale_embedding", False),
            start=stored.get("decoder_start_token_id", padding),
            end=stored.get("eos_token_id", 0), padding=padding)

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries."""
        return {
            "architectures": [Transformer.architecture], "model_type": Transformer.model_type,
            "is_encoder_decoder": True, "vocab_size": config.vocabulary,
            "decoder_vocab_size": config.vocabulary, "max_position_embeddings": config.context,
            "d_model": config.width, "encoder_layers": config.layers,
            "decoder_layers": config.decoder_layers, "encoder_attention_heads": config.heads,
            "decoder_attention_heads": config.heads, "encoder_ffn_dim": config.hidden,
            "decoder_ffn_dim": config.hidden, "activation_function": config.activation,
            "scale_embedding": config.scaled_embeddings, "dropout": config.dropout,
            "attention_dropout": 0.0, "activation_dropout": 0.0, "static_position_embeddings": True,
            "normalize_before": False, "normalize_embedding": False,
            "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True,
            "torch_dtype": "float32", "decoder_start_token_id": config.start,
            "eos_token_id": config.end if end_of_text is None else end_of_text,
            "forced_eos_token_id": config.end if end_of_text is None else end_of_text,
            "pad_token_id": config.padding, "bos_token_id": None,
        }


def _parts(config):
    """{our name of each linear layer and norm of the blocks: theirs}."""
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    both = {f"attention.{ours}": f"self_attn.{theirs}" for ours, theirs in attention.items()} | {
        "attention_norm": "self_attn_layer_norm", "perceptron.expand": "fc1",
        "perceptron.output": "fc2", "perceptron_norm": "final_layer_norm"}
    memory = {f"memory_attention.{ours}": f"encoder_attn.{theirs}"
              for ours, theirs in attention.items()} | {"memory_norm": "encoder_attn_layer_norm"}
    return {f"{stack}.{i}.{ours}": f"model.{stack}.layers.{i}.{theirs}"
            for stack, count, parts in (("encoder", config.layers, both),
                                        ("decoder", config.decoder_layers, both | memory))
            for i in range(count) for ours, theirs in parts.items()}
