"""GPT (Radford et al. 2018), GPT-2 (2019), GPT-Neo (Black et al. 2021): decoders with learned
positions and a tied head. GPT-2 is meant where nothing else is said. `layout` says which one it is:

    gpt2        norms stand before what they are for, and one more before the head
    openai-gpt  GPT-1: norms stand behind the additions, none before the head
    gpt_neo     as GPT-2, but queries, keys and values have no offsets and scores no scale; with a
                `window`, every other block looks only so far back, as GPT-3's do (Brown et al.
                2020, section 2.1; Child et al. 2019)

Read top to bottom: the configuration, the model, its life in files.
"""

import math
import reprlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.models.activations import ACTIVATIONS
from minifm.models.causal import CausalModel, seen
from minifm.models.stored import HeadLayout, Stored, check_heads
from minifm.nn import (
    Attention,
    Block,
    Embedding,
    LayerNorm,
    Perceptron,
    SelfAttention,
    post_norm,
    pre_norm,
)

INITIAL = 0.02          # standard deviation of the initial weights
LAYOUTS = {"gpt2": "GPT2LMHeadModel", "openai-gpt": "OpenAIGPTLMHeadModel",
           "gpt_neo": "GPTNeoForCausalLM"}
# Heads for other tasks, {layout: {task: …}}: see heads.py.
TASKS = {layout: {
    "sequence": HeadLayout(f"{name}ForSequenceClassification", "score", "transformer.", whole=True,
                           bias=False),
    "token": HeadLayout(f"{name}ForTokenClassification", "classifier", "transformer.",
                        dropout=0.1),
    "question": HeadLayout(f"{name}ForQuestionAnswering", "qa_outputs", "transformer."),
} for layout, name in (("gpt2", "GPT2"), ("gpt_neo", "GPTNeo"))}
TASKS["openai-gpt"] = {
    "sequence": HeadLayout("OpenAIGPTForSequenceClassification", "score", "transformer.",
                           whole=True, bias=False)}


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
    layout: str = setting("gpt2", f"one of {', '.join(LAYOUTS)}", choices=LAYOUTS)
    window: int | None = setting(
        None, "tokens back that every other block looks, with the token itself, from the second "
        "block on; of gpt_neo (default: all)", least=1)

    def __post_init__(self):
        check(self)
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.width)
        check_heads(self)
        if self.window is not None and self.layout != "gpt_neo":
            raise ConfigError(f"window: files of {self.layout} know of none, those of gpt_neo do")
        if self.layout == "openai-gpt" and self.hidden != 4 * self.width:
            raise ConfigError(f"hidden: in {self.layout} it is four times the width of "
                              f"{self.width}, got {self.hidden}")
        if self.layout == "openai-gpt" and self.activation not in GPT1_ACTIVATIONS.values():
            raise ConfigError(f"activation: {self.layout} has one of "
                              f"{', '.join(GPT1_ACTIVATIONS.values())}, got {self.activation!r}")

    def window_of(self, layer):
        """How many tokens back that layer looks; None: all."""
        return self.window if layer % 2 else None

    @property
    def model(self):
        """The class of the models of this shape."""
        return GPT

    @property
    def tasks(self):
        """{task: HeadLayout}: the heads that may stand on such a model."""
        return TASKS[self.layout]

    @property
    def key_heads(self):
        return self.heads

    @property
    def head_width(self):
        return self.width // self.heads

    @property
    def parameters(self):
        """How many numbers training adjusts (the tied head counts once)."""
        C, F = self.width, self.hidden
        attention = 4 * C * C + (C if self.layout == "gpt_neo" else 4 * C)
        perceptron = C * F + F + F * C + C
        block = attention + perceptron + 4 * C                  # two norms
        return (self.vocabulary + self.context) * C + self.layers * block \
            + (0 if self.layout == "openai-gpt" else 2 * C)

    def flops_per_token(self, length, training=False, counted=1.0):
        """Floating-point operations for one token of a sequence of `length` tokens.

        Products only; of attention, what a causal token sees. Training is forward + backward:
        3 × for a product, 3.5 × for attention. Recomputation does not count: it is no useful work.

        counted  the fraction of the tokens that the head reads
        """
        C, F = self.width, self.hidden
        products = 2 * (self.layers * (4 * C * C + 2 * C * F) + self.vocabulary * C * counted)
        attention = sum(2 * seen(length, self.window_of(layer)) * C
                        for layer in range(self.layers))
        return 3 * products + 3.5 * attention if training else products + attention


GPT1_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "swish": "silu", "silu": "silu"}
PRESETS = {
    "tiny": dict(context=128, layers=4, heads=4, width=128),       # learns on any laptop
    "mini": dict(context=256, layers=6, heads=6, width=384),
    "gpt2": dict(layers=12, heads=12, width=768),
    "gpt2-medium": dict(layers=24, heads=16, width=1024),
    "gpt2-large": dict(layers=36, heads=20, width=1280),
    "gpt2-xl": dict(layers=48, heads=25, width=1600),
    "gpt1": dict(layout="openai-gpt", vocabulary=40478, context=512, layers=12, heads=12,
                 width=768, dropout=0.1),
    "gpt-neo-125m": dict(layout="gpt_neo", context=2048, window=256, layers=12, heads=12,
                         width=768),
    "gpt-neo-1.3b": dict(layout="gpt_neo", context=2048, window=256, layers=24, heads=16,
                         width=2048),
    "gpt-neo-2.7b": dict(layout="gpt_neo", context=2048, window=256, layers=32, heads=20,
                         width=2560),
    # Brown et al. 2020, table 2.1. (In the original every other layer looks back only so far; how
    # far, it does not say. The layout gpt_neo with a `window` does so.) The table gives XL 24 heads
    # of 128 and 13B a width of 5140, which their own widths contradict.
    "gpt3-small": dict(context=2048, layers=12, heads=12, width=768),
    "gpt3-medium": dict(context=2048, layers=24, heads=16, width=1024),
    "gpt3-large": dict(context=2048, layers=24, heads=16, width=1536),
    "gpt3-xl": dict(context=2048, layers=24, heads=16, width=2048),
    "gpt3-2.7b": dict(context=2048, layers=32, heads=32, width=2560),
    "gpt3-6.7b": dict(context=2048, layers=32, heads=32, width=4096),
    "gpt3-13b": dict(context=2048, layers=40, heads=40, width=5120),
    "gpt3-175b": dict(context=2048, layers=96, heads=96, width=12288),
}


def new_block(config, rng):
    """One block; `rng` draws its weights."""
    C, std, epsilon = config.width, INITIAL, config.norm_epsilon
    stds = {"std": std, "output_std": std / math.sqrt(2 * config.layers)}
    attention_rng = rng and rng.child("attention")
    if config.layout == "gpt_neo":
        attention = Attention(C, config.heads, bias=False, output_bias=True, scale=1.0,
                              rng=attention_rng, **stds)
    else:
        attention = SelfAttention(C, config.heads, rng=attention_rng, **stds)
    return Block(
        LayerNorm(C, epsilon), attention, LayerNorm(C, epsilon),
        Perceptron(C, config.hidden, ACTIVATIONS[config.activation],
                   rng=rng and rng.child("perceptron"), **stds),
        arrange=post_norm if config.layout == "openai-gpt" else pre_norm)


class GPT(CausalModel):
    """Token ids in, logits of the next token out, by the token embedding, transposed."""

    prefix = "transformer."
    tasks = TASKS

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights as in section 2.3 of the GPT-2 paper: N(0, 0.02²),
        and 1/√(2 layers) of that where a block adds to the residual stream. Without `rng`
        they are zeros, for a checkpoint to replace."""
        C, std = config.width, INITIAL
        self.config = config
        self.token_embedding = Embedding(config.vocabulary, C, std=std,
                                         rng=rng and rng.child("token_embedding"))
        self.position_embedding = Embedding(config.context, C, std=std,
                                            rng=rng and rng.child("position_embedding"))
        self.blocks = [new_block(config, rng and rng.child("blocks", layer))
                       for layer in range(config.layers)]
        self.norm = None if config.layout == "openai-gpt" else LayerNorm(C, config.norm_epsilon)

    def features(self, ids, *, placement=None, key_mask=None, document_starts=None, rng=None,
                 recompute=False):
        ids = np.asarray(ids)
        positions = self.positions(ids, placement, key_mask, document_starts)
        x = self.token_embedding(ids) + self.position_embedding(positions)      # [B, T, C]
        dropout = self.config.dropout
        if dropout:
            x = ops.dropout(x, dropout, rng=rng and rng.child("embedding"))
        # SelfAttention always is causal.
        causal = {"causal": True} if self.config.layout == "gpt_neo" else {}
        for layer, block in enumerate(self.blocks):
            first_keys = self.first_keys(ids, placement, document_starts,
                                         self.config.window_of(layer))
            block = partial(block, layer=layer, placement=placement, key_mask=key_mask,
                            first_keys=first_keys, dropout=dropout,
                            rng=rng and rng.child("block", layer), **causal)
            x = ops.checkpoint(block, x) if recompute else block(x)
        return x if self.norm is None else self.norm(x)

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        The tied table is looked up by rows of that axis, too."""
        parts = [part for part in _parts(config) if not part.endswith("norm")]
        return {"token_embedding.weight": 1} | {
            f"blocks.{i}.{part}.weight": 0 for i in range(config.layers) for part in parts}

    # -- files: the layouts of the ecosystem ------------------------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}. Linear weights lie [in, out] there too, but GPT-Neo's
        lie [out, in]."""
        token, position = ("tokens_embed", "positions_embed") if config.layout == "openai-gpt" \
            else ("wte", "wpe")
        names = {"token_embedding.weight": f"{token}.weight",
                 "position_embedding.weight": f"{position}.weight"}
        turned = set()
        for i in range(config.layers):
            for ours, theirs in _parts(config).items():
                gain = "gain" if ours.endswith("norm") else "weight"
                names[f"blocks.{i}.{ours}.{gain}"] = f"h.{i}.{theirs}.weight"
                names[f"blocks.{i}.{ours}.bias"] = f"h.{i}.{theirs}.bias"
                if gain == "weight" and config.layout == "gpt_neo":
                    turned.add(f"blocks.{i}.{ours}.weight")
        if config.layout != "openai-gpt":
            names |= {"norm.gain": "ln_f.weight", "norm.bias": "ln_f.bias"}
        return {ours: Stored("transformer." + theirs, transposed=ours in turned)
                for ours, theirs in names.items()
                if config.layout != "gpt_neo" or not ours.endswith(NO_OFFSETS)}

    @staticmethod
    def accepted_name(key):
        """The present spelling of a key in a file, or several, of which the first that the model
        has is meant; None for a buffer that is not a weight.

        Older files lack the prefix and carry the causal mask as `attn.bias`; some repeat the
        tied head, which then must be the embedding.
        """
        if key.endswith((".attn.bias", ".attn.masked_bias", ".attn.attention.bias",
                         ".attn.attention.masked_bias")):
            return None
        if key == "lm_head.weight":
            return "transformer.wte.weight", "transformer.tokens_embed.weight"
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
        layout = stored.get("model_type")
        names = _names_in_config(layout)
        required = ("vocabulary", "context", "width", "layers", "heads")
        missing = [names[key] for key in required if names[key] not in stored]
        if missing:
            raise ConfigError(f"config.json: lacks {', '.join(missing)}")
        found = {ours: stored[theirs] for ours, theirs in names.items() if theirs in stored}
        if layout == "openai-gpt":
            said = found.get("activation", "gelu")
            found["activation"] = GPT1_ACTIVATIONS.get(said, said)
        return GPTConfig(**{"dropout": 0.0 if layout == "gpt_neo" else 0.1} | found, layout=layout,
                         window=_window_from_hub(stored) if layout == "gpt_neo" else None)

    @staticmethod
    def config_to_hub(config, *, end_of_text=None, architecture=None):
        """The `config.json` that describes this model to other libraries; `architecture` names
        it where another head stands on it (heads.py)."""
        described = {
            "architectures": [architecture or LAYOUTS[config.layout]],
            "model_type": config.layout}
        described |= {theirs: getattr(config, ours)
                      for ours, theirs in _names_in_config(config.layout).items()}
        if config.layout == "gpt2":
            described |= {"n_ctx": config.context, "embd_pdrop": config.dropout, "attn_pdrop": 0.0}
        elif config.layout == "openai-gpt":
            described |= {"embd_pdrop": config.dropout, "attn_pdrop": 0.0,
                          "afn": next(theirs for theirs, ours in GPT1_ACTIVATIONS.items()
                                      if ours == config.activation)}
        else:
            kinds = ["local" if config.window_of(i) else "global" for i in range(config.layers)]
            described |= {"embed_dropout": config.dropout, "attention_dropout": 0.0,
                          "attention_layers": kinds, "attention_types": [[kinds, 1]],
                          "window_size": config.window or 256}
        return described | {"tie_word_embeddings": True, "torch_dtype": "float32",
                            "bos_token_id": end_of_text, "eos_token_id": end_of_text}


# What GPT-Neo's projections have not.
NO_OFFSETS = ("attention.query.bias", "attention.key.bias", "attention.value.bias")


def _parts(config):
    """{our name of each linear layer and norm of a block: theirs}."""
    attention = {"attention.project": "attn.c_attn", "attention.output": "attn.c_proj"}
    if config.layout == "gpt_neo":
        attention = {f"attention.{ours}": f"attn.attention.{theirs}" for ours, theirs in (
            ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj"))}
    return {"attention_norm": "ln_1"} | attention | {
        "perceptron_norm": "ln_2", "perceptron.expand": "mlp.c_fc",
        "perceptron.output": "mlp.c_proj"}


def _names_in_config(layout):
    """{setting: its key in a config.json}."""
    if layout == "gpt_neo":
        return {"vocabulary": "vocab_size", "context": "max_position_embeddings",
                "width": "hidden_size", "layers": "num_layers", "heads": "num_heads",
                "hidden": "intermediate_size", "dropout": "resid_dropout",
                "activation": "activation_function", "norm_epsilon": "layer_norm_epsilon"}
    names = {"vocabulary": "vocab_size", "context": "n_positions", "width": "n_embd",
             "layers": "n_layer", "heads": "n_head", "dropout": "resid_pdrop",
             "norm_epsilon": "layer_norm_epsilon"}
    if layout == "openai-gpt":
        return names | {"activation": "afn"}
    return names | {"hidden": "n_inner", "activation": "activation_function"}


def _window_from_hub(stored):
    """The window of every other block, or None; raises ConfigError for another pattern."""
    layers = stored["num_layers"]
    if not isinstance(layers, int) or not 0 < layers <= 1 << 16:
        raise ConfigError(f"config.json: num_layers: expected a number of blocks, got {layers!r}")
    types = stored.get("attention_types") or [[["global", "local"], layers // 2]]
    kinds = [kind for names, count in types for kind in names * min(count, layers)]
    if kinds == ["global"] * layers:
        return None
    if kinds != ["local" if i % 2 else "global" for i in range(layers)]:
        raise ConfigError("config.json: attention_types: expected global, or global and local in "
                          f"turn for {layers} blocks, got {reprlib.repr(types)}")
    return stored.get("window_size", 256)
