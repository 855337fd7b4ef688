"""The prior of DALL·E 2 (Ramesh et al. 2022, section 2.2): from a text to the embedding that CLIP
would give a picture of it.

Many pictures are meant by one text, so that this is a diffusion model, too, of one vector in place
of pixels. A causal transformer reads a row in which everything is a token,

    the text, token by token | CLIP's embedding of it | the time | the noised embedding | a query

and what it makes of the query, which is learnt, is the embedding without its noise. Files are those
of other libraries (Karlo's prior). Read top to bottom: the configuration, the model, its files.

Dimensions: B batch, T tokens of a text, C width, E width of CLIP's embeddings and of its text's
tokens.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import backends, ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models import parts
from minifm.models.stored import Stored, check_heads, said
from minifm.nn import Attention, Block, Embedding, LayerNorm, Linear, Perceptron
from minifm.nn.module import constant
from minifm.nn.time import TimeEmbedding, one_for_each
from minifm.tensor import Tensor

EPSILON = 1e-5          # of all norms
LEAST = 1e-6            # deviation of a number that is always the same
BESIDE_TEXT = 4         # tokens: the text's embedding, the time, the noised embedding, the query


@dataclass(frozen=True)
class PriorConfig:
    """The shape of a prior; counts follow from it without building the model."""

    embedding: int = setting(768, "width of CLIP's embeddings, and of the tokens of its texts",
                             least=1)                                                       # E
    context: int = setting(77, "tokens of a text, padding included", least=1)               # T
    layers: int = setting(20, "blocks, one above the other", least=1, most=1000)
    heads: int = setting(32, "attention heads, each width / heads wide", least=1)
    width: int = setting(2048, "numbers that stand for a token between blocks", least=2)    # C

    def __post_init__(self):
        check(self)
        check_heads(self)

    @property
    def model(self):
        """The class of the models of this shape."""
        return Prior

    @property
    def tokens(self):
        """In a row."""
        return self.context + BESIDE_TEXT

    def parts(self):
        """[Part] of the whole model."""
        return list_parts(self)

    @property
    def parameters(self):
        """How many numbers training adjusts, and the 2 E of the mean and deviation."""
        return parts.count_parameters(self.parts()) + 2 * self.embedding

    def flops(self, *, training=False):
        """Floating-point operations of one example; products only. In training, forward and
        backward."""
        return parts.count_flops(self.parts(), training)


PRESETS = {
    "prior-tiny": dict(layers=4, heads=4, width=128),           # letters, on any laptop
    "prior-karlo": dict(layers=20, heads=32, width=2048),       # 1B
}


class Prior(parts.ListedModel):
    """A noised embedding of a picture, its time and a text in, the embedding without noise out."""

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights; the last layer's are zero, so that a new prior predicts
        the mean of all pictures. Without `rng` all are zeros, for a checkpoint to replace."""
        C, E, std = config.width, config.embedding, config.width**-0.5
        self.config = config
        self.time = TimeEmbedding(C, C, rng=rng and rng.child("time"))
        self.text, self.summary, self.enter = (
            Linear(E, C, std=E**-0.5, rng=rng and rng.child(name))
            for name in ("text", "summary", "enter"))
        self.query = Embedding(1, C, std=std, rng=rng and rng.child("query"))
        self.positions = Embedding(config.tokens, C, std=0.01, rng=rng and rng.child("positions"))
        self.blocks = [new_block(config, rng and rng.child("blocks", i))
                       for i in range(config.layers)]
        self.norm = LayerNorm(C, EPSILON)
        self.leave = Linear(C, E, std=0, rng=rng and rng.child("leave"))
        # Not learnt, but measured: what embeddings are brought to mean 0 and deviation 1 by.
        self.mean, self.deviation = constant((E,), 0), constant((E,), 1 if rng else 0)

    def __call__(self, x, t, *, memory, memory_mask, summary, rng=None, recompute=False):
        """x [B, E], standardised -> [B, E], likewise.

        t            the time, one number or one for each example [B]
        memory       [B, T, E] of the text's tokens, and where they are no padding, bool [B, T]
        summary      [B, E], CLIP's embedding of the text
        rng          turns on the dropout in adapters
        recompute    computes the inside of each block again in the backward pass
        """
        B, E, T = x.shape[0], self.config.embedding, self.config.context
        for name, given, shape in (("x", x, (B, E)), ("memory", memory, (B, T, E)),
                                   ("memory_mask", memory_mask, (B, T)),
                                   ("summary", summary, (B, E))):
            if tuple(given.shape) != shape:
                raise ShapeError(f"Prior: {name}: expected {list(shape)}, got {list(given.shape)}")
        memory, summary = Tensor(memory), Tensor(summary)
        time = self.time(one_for_each("t", t, B, float), x.dtype)                   # [B, C]
        query = self.query(np.zeros((B, 1), np.int64))                              # [B, 1, C]
        single = [part.reshape((B, 1, -1)) for part in
                  (self.summary(summary), time, self.enter(x), query)]
        row = ops.concatenate([self.text(memory), *single], 1)                      # [B, T + 4, C]
        row = row + self.positions(np.arange(self.config.tokens))
        mask = np.pad(np.asarray(memory_mask, bool), ((0, 0), (0, BESIDE_TEXT)),
                      constant_values=True)
        return self.leave(self.norm(self._through(row, mask, rng, recompute)[:, -1]))

    def _through(self, row, mask, rng, recompute):
        """row [B, T + 4, C] through all blocks."""
        for i, block in enumerate(self.blocks):
            block = partial(block, causal=True, key_mask=mask, rng=rng and rng.child("block", i))
            row = ops.checkpoint(block, row) if recompute else block(row)
        return row

    def measure(self, embeddings):
        """Take mean and deviation from embeddings [N, E] to learn from."""
        for parameter, found in ((self.mean, embeddings.mean(0)),
                                 (self.deviation, np.maximum(embeddings.std(0), LEAST))):
            parameter.data = backends.active().from_numpy(found.astype(np.float32))
            parameter.version += 1

    def standardise(self, embeddings):
        """float32 [N, E] as CLIP makes them -> as the prior has them."""
        return (embeddings - self.mean.numpy()) / self.deviation.numpy()

    def restore(self, x):
        """The way back."""
        return x * self.deviation.numpy() + self.mean.numpy()

    # -- files: the layout of the ecosystem -------------------------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}."""
        E = config.embedding
        return parts.ListedModel.stored_names(config) | {
            "mean": Stored("clip_mean", shape=(1, E)),
            "deviation": Stored("clip_std", shape=(1, E))}

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        c = said(stored, DEFAULTS, FIXED)
        if not all(isinstance(c[key], int) for key in ("num_attention_heads",
                                                       "attention_head_dim")):
            raise ConfigError("config.json: num_attention_heads, attention_head_dim: expected "
                              "integers")
        width = c["num_attention_heads"] * c["attention_head_dim"]
        for key, own in (("time_embed_dim", width), ("embedding_proj_dim", c["embedding_dim"]),
                         ("clip_embed_dim", c["embedding_dim"])):
            if c[key] not in (None, own):
                raise ConfigError(f"config.json: {key}={c[key]!r:.80} is not supported, only {own}")
        return PriorConfig(embedding=c["embedding_dim"], context=c["num_embeddings"],
                           layers=c["num_layers"], heads=c["num_attention_heads"], width=width)

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries."""
        return {"_class_name": CLASS, "embedding_dim": config.embedding,
                "num_embeddings": config.context, "additional_embeddings": BESIDE_TEXT,
                "num_layers": config.layers, "num_attention_heads": config.heads,
                "attention_head_dim": config.width // config.heads, "dropout": 0.0}


CLASS = "PriorTransformer"
DEFAULTS = {"embedding_dim": 768, "num_embeddings": 77, "num_layers": 20,
            "num_attention_heads": 32, "attention_head_dim": 64, "time_embed_dim": None,
            "embedding_proj_dim": None, "clip_embed_dim": None}
FIXED = {"additional_embeddings": (BESIDE_TEXT,), "dropout": (0,), "time_embed_act_fn": ("silu",),
         "norm_in_type": (None,), "embedding_proj_norm_type": (None,),
         "encoder_hid_proj_type": ("linear",), "added_emb_type": ("prd",)}


def new_block(config, rng):
    """One block; `rng` draws its weights so that sums of all blocks stay of size 1."""
    C, std = config.width, config.width**-0.5
    output_std = std * (2 * config.layers) ** -0.5
    return Block(
        LayerNorm(C, EPSILON),
        Attention(C, config.heads, std=std, output_std=output_std,
                  rng=rng and rng.child("attention")),
        LayerNorm(C, EPSILON),
        Perceptron(C, 4 * C, ops.gelu, std=std, output_std=output_std,
                   rng=rng and rng.child("perceptron")))


def list_parts(config):
    """[Part] of the whole model, but for what is measured."""
    C, E, N = config.width, config.embedding, config.tokens
    found = [*parts.time_embedding("time", "time_embedding", C, C),
             parts.linear("text", "encoder_hidden_states_proj", E, C, config.context),
             parts.linear("summary", "embedding_proj", E, C, 1),
             parts.linear("enter", "proj_in", E, C, 1),
             _table("query", "prd_embedding", 1, C), _table("positions", "positional_embedding", N,
                                                            C)]
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        found += [parts.norm(f"{ours}.attention_norm", f"{theirs}.norm1", C),
                  *parts.attention(f"{ours}.attention", f"{theirs}.attn1", C, N),
                  parts.norm(f"{ours}.perceptron_norm", f"{theirs}.norm3", C),
                  parts.linear(f"{ours}.perceptron.expand", f"{theirs}.ff.net.0.proj", C, 4 * C, N),
                  parts.linear(f"{ours}.perceptron.output", f"{theirs}.ff.net.2", 4 * C, C, N)]
    return [*found, parts.norm("norm", "norm_out", C),
            parts.linear("leave", "proj_to_clip_embeddings", C, E, 1)]


def _table(ours, theirs, rows, width):
    """An Embedding that files have as a row of tokens."""
    return parts.Part(ours, theirs, (rows, width), stored=Stored(theirs, shape=(1, rows, width)))
