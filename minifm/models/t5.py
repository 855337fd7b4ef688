"""T5 (Raffel et al. 2020): an encoder and a decoder that know positions by how far apart two tokens
are. Each head adds to a score a number for the distance, learnt once in each stack; norms divide by
the root mean square, nothing has an offset, and scores are not divided by √D.

The first release has a plain perceptron and a head that is the embedding; version 1.1 has a gate in
the perceptron and a head of its own.

Read top to bottom: the configuration, the model, its life in files.
"""

import math
from dataclasses import dataclass

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.models.activations import ACTIVATIONS
from minifm.models.seq2seq import MemoryBlock, Seq2SeqModel, pair_flops
from minifm.models.stored import Stored
from minifm.nn import Attention, Block, Embedding, GatedPerceptron, Linear, Perceptron, RMSNorm


@dataclass(frozen=True)
class T5Config:
    """The shape of a T5; counts follow from it without building the model."""

    vocabulary: int = setting(32128, "tokens that the model knows", least=1)            # V
    layers: int = setting(6, "blocks of the encoder", least=1)
    decoder_layers: int | None = setting(
        None, "blocks of the decoder (default: as many as the encoder's)", least=1)
    heads: int = setting(8, "attention heads", least=1)                                 # H
    width: int = setting(512, "numbers that stand for a token between blocks", least=1) # C
    head_width: int = setting(64, "of a head", least=1)                                 # D
    hidden: int | None = setting(
        None, "width inside the perceptron (default: four times the width)", least=1)   # F
    buckets: int = setting(32, "of distances: each head has a number for every one", least=4)
    distance: int = setting(128, "from which on all distances are in one bucket", least=1)
    activation: str = setting("relu", f"one of {', '.join(ACTIVATIONS)}", choices=ACTIVATIONS)
    gated: bool = setting(False, "the activation is that of a gate (version 1.1)")
    tied: bool = setting(True, "the head is the token embedding, transposed")
    scaled_features: bool | None = setting(
        None, "what the head reads is divided by √width (default: if it is the embedding)")
    dropout: float = setting(
        0.0, "of the embeddings, of what each part of a block adds, and of the result of each "
        "stack", least=0, below=1)
    norm_epsilon: float = setting(1e-6, "inside the square root of the norms", above=0, below=1)
    start: int | None = setting(
        0, "the token that the decoder reads first (decoder_start_token_id)", least=0)
    end: int | None = setting(1, "the token that ends a text", least=0)
    padding: int | None = setting(0, "the token that fills up short rows", least=0)

    def __post_init__(self):
        check(self)
        for name, value in (("decoder_layers", self.layers), ("hidden", 4 * self.width),
                            ("scaled_features", self.tied)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.buckets % 2:
            raise ConfigError(f"buckets: expected an even number, half of it for each side, got "
                              f"{self.buckets}")
        if self.distance <= self.buckets // 2:
            raise ConfigError(f"distance: expected more than {self.buckets // 2}, half the "
                              f"buckets, got {self.distance}")
        for name in ("start", "end", "padding"):
            if (getattr(self, name) or 0) >= self.vocabulary:
                raise ConfigError(f"{name}: expected a token below the vocabulary of "
                                  f"{self.vocabulary}, got {getattr(self, name)}")

    @property
    def context(self):
        """None: there is no most of tokens, as positions are but how far apart two are."""
        return None

    @property
    def parameters(self):
        """How many numbers training adjusts (a tied head counts once)."""
        C, E = self.width, self.heads * self.head_width
        attention, perceptron = 4 * C * E, (3 if self.gated else 2) * C * self.hidden
        return ((1 if self.tied else 2) * self.vocabulary * C
                + self.layers * (attention + perceptron + 2 * C)
                + self.decoder_layers * (2 * attention + perceptron + 3 * C)
                + 2 * (self.buckets * self.heads + C))

    def flops(self, source, target, training=False):
        """Floating-point operations for a source and a target of so many tokens; see
        seq2seq.py."""
        return pair_flops(self, source, target, training, inner=self.heads * self.head_width,
                          perceptron=(3 if self.gated else 2) * self.width * self.hidden)

    def flops_per_token(self, length, training=False):
        """The same for one token of a source and one of its target together, both of `length`
        tokens: all that a pair of them takes, over `length`."""
        return self.flops(length, length, training) / length


V1_1 = dict(activation="gelu_new", gated=True, tied=False)
PRESETS = {
    "t5-tiny": dict(layers=2, heads=4, width=128, head_width=32, hidden=512),   # for any laptop
    # Raffel et al. 2020, section 3.7, and the sizes of version 1.1.
    "t5-small": dict(layers=6, heads=8, width=512, hidden=2048, dropout=0.1),
    "t5-base": dict(layers=12, heads=12, width=768, hidden=3072, dropout=0.1),
    "t5-large": dict(layers=24, heads=16, width=1024, hidden=4096, dropout=0.1),
    "t5-3b": dict(layers=24, heads=32, width=1024, head_width=128, hidden=16384, dropout=0.1),
    "t5-11b": dict(layers=24, heads=128, width=1024, head_width=128, hidden=65536, dropout=0.1),
    "t5-v1.1-small": dict(layers=8, heads=6, width=512, hidden=1024, dropout=0.1, **V1_1),
    "t5-v1.1-base": dict(layers=12, heads=12, width=768, hidden=2048, dropout=0.1, **V1_1),
    "t5-v1.1-large": dict(layers=24, heads=16, width=1024, hidden=2816, dropout=0.1, **V1_1),
}


def bucket_of(offsets, buckets, distance, both_sides):
    """The bucket of each offset, int array: where a key lies, counted from its query.

    Of the buckets for one side, the first half holds a distance each; the others grow with it, so
    that the last begins at about `distance`. With `both_sides`, keys behind the query have half of
    all buckets for themselves; without, all of them count as distance 0: they are hidden anyway.
    """
    if both_sides:
        buckets //= 2
        first, apart = np.where(offsets > 0, buckets, 0), np.abs(offsets)
    else:
        first, apart = 0, np.maximum(-offsets, 0)
    exact = buckets // 2
    # In float32: published weights were trained with its roundings at the buckets' edges.
    ratio = np.maximum(apart, exact).astype(np.float32) / np.float32(exact)
    octaves = np.log(ratio) / np.float32(math.log(distance / exact))
    grown = exact + (octaves * np.float32(buckets - exact)).astype(np.int64)
    return first + np.where(apart < exact, apart, np.minimum(grown, buckets - 1))


def new_block(config, block, rng):
    """One `block`, Block or MemoryBlock; `rng` draws its weights, all of them so that products
    keep the size of what goes in. Those of the queries also stand for the 1/√D of the scores."""
    C, D, E, epsilon = config.width, config.head_width, config.heads * config.head_width, \
        config.norm_epsilon

    def attention(name):
        draw = rng and rng.child(name)
        made = Attention(C, config.heads, head_width=D, bias=False, scale=1.0, std=C ** -0.5,
                         output_std=E ** -0.5, rng=draw)
        made.query = Linear(C, E, bias=False, std=(C * D) ** -0.5,
                            rng=draw and draw.child("query"))
        return made

    parts = [RMSNorm(C, epsilon), attention("attention")]
    if block is MemoryBlock:
        parts += [RMSNorm(C, epsilon), attention("memory_attention")]
    perceptron = GatedPerceptron if config.gated else Perceptron
    return block(*parts, RMSNorm(C, epsilon), perceptron(
        C, config.hidden, ACTIVATIONS[config.activation], bias=False, std=C ** -0.5,
        output_std=config.hidden ** -0.5, rng=rng and rng.child("perceptron")))


class T5(Seq2SeqModel):
    """A source in, logits of the next target token out."""

    model_type = "t5"
    architecture = "T5ForConditionalGeneration"

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights: those of the embedding from N(0, 1), as no position is
        added to it; logits then begin at about that size, too. Without `rng` they are zeros, for
        a checkpoint to replace."""
        C, V = config.width, config.vocabulary
        self.config = config
        self.token_embedding = Embedding(V, C, std=1.0, rng=rng and rng.child("token_embedding"))
        self.encoder_distances, self.decoder_distances = (
            Embedding(config.buckets, config.heads, std=C ** -0.5, rng=rng and rng.child(name))
            for name in ("encoder_distances", "decoder_distances"))
        self.encoder = [new_block(config, Block, rng and rng.child("encoder", layer))
                        for layer in range(config.layers)]
        self.encoder_norm = RMSNorm(C, config.norm_epsilon)
        self.decoder = [new_block(config, MemoryBlock, rng and rng.child("decoder", layer))
                        for layer in range(config.decoder_layers)]
        self.decoder_norm = RMSNorm(C, config.norm_epsilon)
        self.untied_head = None if config.tied else Embedding(
            V, C, std=1.0 if config.scaled_features else C ** -0.5, rng=rng and rng.child("head"))

    @property
    def head(self):
        return (self.untied_head or self.token_embedding).weight

    def encode(self, source, *, key_mask=None, rng=None, recompute=False):
        source = self.checked(source)
        slots = np.arange(source.shape[1])
        bias = self.bias(self.encoder_distances, slots[None], slots, both_sides=True)
        x = self.dropped(self.token_embedding(source), rng, "embedding")        # [B, S, C]
        x = self.through_encoder(x, key_mask=key_mask, rng=rng, recompute=recompute, bias=bias)
        return self.dropped(self.encoder_norm(x), rng, "result")

    def features(self, ids, memory, *, memory_mask=None, placement=None, rng=None,
                 recompute=False):
        ids = self.checked(ids, memory)
        if placement is None:
            queries = keys = np.arange(ids.shape[1])
            queries = queries[None]
        else:
            queries, keys = placement.positions, np.arange(placement.cache.capacity)
        bias = self.bias(self.decoder_distances, queries, keys, both_sides=False)
        x = self.dropped(self.token_embedding(ids), rng, "embedding")           # [B, T, C]
        x = self.through_decoder(x, memory, memory_mask=memory_mask, placement=placement, rng=rng,
                                 recompute=recompute, bias=bias)
        x = self.dropped(self.decoder_norm(x), rng, "result")
        return x * self.config.width ** -0.5 if self.config.scaled_features else x

    def bias(self, table, queries, keys, both_sides):
        """What distance adds to the scores, [P, H, T, S], of queries at the positions int [P, T],
        P = 1 or B, and keys at int [S]."""
        c = self.config
        offsets = keys - queries[..., None]                                     # [P, T, S]
        buckets = bucket_of(offsets, c.buckets, c.distance, both_sides)
        return table(buckets).transpose(0, 3, 1, 2)                             # [P, H, T, S]

    def dropped(self, x, rng, name):
        return ops.dropout(x, self.config.dropout, rng=rng and rng.child(name))

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        Tables are looked up by rows of that axis, too."""
        tables = ["token_embedding"] + ([] if config.tied else ["untied_head"])
        return {f"{table}.weight": 1 for table in tables} | {
            f"{ours}.weight": 0 for ours in _parts(config) if not ours.endswith("norm")}

    # -- files: the layout of the ecosystem (T5ForConditionalGeneration) --------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}. Linear weights lie [out, in] there."""
        names = {"token_embedding.weight": Stored("shared.weight")}
        if not config.tied:
            names["untied_head.weight"] = Stored("lm_head.weight")
        for stack in ("encoder", "decoder"):
            names[f"{stack}_distances.weight"] = Stored(
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
            names[f"{stack}_norm.gain"] = Stored(f"{stack}.final_layer_norm.weight")
        for ours, theirs in _parts(config).items():
            norm = ours.endswith("norm")
            names[f"{ours}.{'gain' if norm else 'weight'}"] = Stored(
                f"{theirs}.weight", transposed=not norm)
        return names

    @staticmethod
    def accepted_name(key):
        """The present spelling of a key in a file, or several, of which the first that the model
        has is meant; None for what no model reads.

        Some files repeat the table of embeddings for each that reads it, and a tied head.
        """
        if key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            return "shared.weight"
        if key == "lm_head.weight":
            return key, "shared.weight"
        if key == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight":
            return None         # of the first release; nothing adds it to a score
        return key

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        required = {"vocabulary": "vocab_size", "width": "d_model", "layers": "num_layers",
                    "heads": "num_heads", "head_width": "d_kv", "hidden": "d_ff"}
        missing = [key for key in required.values() if key not in stored]
        if missing:
            raise ConfigError(f"config.json: lacks {', '.join(missing)}")
        gate, _, activation = stored.get("feed_forward_proj", "relu").rpartition("-")
        if gate not in ("", "gated"):
            raise ConfigError("config.json: feed_forward_proj: expected an activation, or gated- "
                              f"and one, got {stored['feed_forward_proj']!r}")
        # Files of version 1.1 said that the head is not tied, and meant by it that features are
        # not scaled either. New ones say so in words, and that all heads are tied.
        scaled = stored.get("scale_decoder_outputs", stored.get("tie_word_embeddings", True))
        return T5Config(
            **{ours: stored[theirs] for ours, theirs in required.items()},
            decoder_layers=stored.get("num_decoder_layers"),
            buckets=stored.get("relative_attention_num_buckets", 32),
            distance=stored.get("relative_attention_max_distance", 128),
            activation="gelu_new" if gate and activation == "gelu" else activation,
            gated=gate == "gated", tied=scaled, scaled_features=scaled,
            dropout=stored.get("dropout_rate", 0.1),
            norm_epsilon=stored.get("layer_norm_epsilon", 1e-6),
            start=stored.get("decoder_start_token_id", stored.get("pad_token_id", 0)),
            end=stored.get("eos_token_id", 1), padding=stored.get("pad_token_id", 0))

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries; raises ConfigError for
        a head that no file describes."""
        if config.tied != config.scaled_features:
            raise ConfigError("scaled_features: files have scaled features with a tied head, or "
                              f"neither, got {config.scaled_features} with tied={config.tied}")
        activation = config.activation
        if config.gated:            # "gated-gelu" is the tanh form there
            activation = "gated-" + {"gelu_new": "gelu"}.get(activation, activation)
        return {
            "architectures": [T5.architecture], "model_type": T5.model_type,
            "is_encoder_decoder": True, "vocab_size": config.vocabulary, "d_model": config.width,
            "num_layers": config.layers, "num_decoder_layers": config.decoder_layers,
            "num_heads": config.heads, "d_kv": config.head_width, "d_ff": config.hidden,
            "relative_attention_num_buckets": config.buckets,
            "relative_attention_max_distance": config.distance, "feed_forward_proj": activation,
            "dropout_rate": config.dropout, "layer_norm_epsilon": config.norm_epsilon,
            "tie_word_embeddings": config.tied, "torch_dtype": "float32",
            "decoder_start_token_id": config.start,
            "eos_token_id": config.end if end_of_text is None else end_of_text,
            "pad_token_id": config.padding,
        }


ATTENTION = {"query": "q", "key": "k", "value": "v", "output": "o"}
# The parts of a block: {ours: (our name of its norm, what they call the part)}, in order.
PARTS = {"attention": ("attention_norm", "SelfAttention"),
         "memory_attention": ("memory_norm", "EncDecAttention"),
         "perceptron": ("perceptron_norm", "DenseReluDense")}


def _parts(config):
    """{our name of each linear layer and norm of the blocks: theirs}."""
    gated = {"gate": "wi_0", "expand": "wi_1", "output": "wo"}
    perceptron = gated if config.gated else {"expand": "wi", "output": "wo"}
    names = {}
    for stack, count, parts in (
            ("encoder", config.layers, ["attention", "perceptron"]),
            ("decoder", config.decoder_layers, ["attention", "memory_attention", "perceptron"])):
        for i in range(count):
            for j, part in enumerate(parts):
                ours, theirs = f"{stack}.{i}", f"{stack}.block.{i}.layer.{j}"
                norm, holder = PARTS[part]
                names[f"{ours}.{norm}"] = f"{theirs}.layer_norm"
                names |= {f"{ours}.{part}.{name}": f"{theirs}.{holder}.{stored}" for name, stored
                          in (perceptron if part == "perceptron" else ATTENTION).items()}
    return names
