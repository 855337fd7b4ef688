"""The open decoders of the GPT-4 years: Llama, Mistral, Mixtral, Qwen.

They differ from GPT-2 in their parts, not in their plan: positions turn queries and keys (RoPE),
norms divide by the root mean square, the perceptron has a gate (SwiGLU), several query heads share
a key head, nothing has an offset. Some look only through a sliding window; some have many
perceptrons and choose among them. Which of its five layouts a model is saved in follows from what
it is made of.

Read top to bottom: the configuration, the model, its life in files.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.models.activations import ACTIVATIONS
from minifm.models.causal import CausalModel, seen
from minifm.models.stored import HeadLayout, Stored, check_heads
from minifm.nn import Attention, Block, Embedding, GatedPerceptron, RMSNorm, Rotary
from minifm.nn.experts import Experts, unevenness

INITIAL = 0.02          # standard deviation of the initial weights
LAYOUTS = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
           "mixtral": "MixtralForCausalLM", "qwen2": "Qwen2ForCausalLM",
           "qwen3": "Qwen3ForCausalLM"}
# Heads for other tasks, {layout: {task: …}}: see heads.py. They stand on a model that has no head
# of its own, which is what `tied` makes of it.
TASKS = {kind: {
    "sequence": HeadLayout(name.replace("CausalLM", "SequenceClassification"), "score", "model.",
                           {"tied": True}, whole=True, bias=False),
    "token": HeadLayout(name.replace("CausalLM", "TokenClassification"), "score", "model.",
                        {"tied": True}, dropout=0.1),
    "question": HeadLayout(name.replace("CausalLM", "QuestionAnswering"), "qa_outputs",
                           "model." if kind in ("mistral", "mixtral") else "transformer.",
                           {"tied": True}),
} for kind, name in LAYOUTS.items()}


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama; counts follow from it without building the model."""

    vocabulary: int = setting(32000, "tokens that the model knows", least=1)            # V
    context: int = setting(2048, "the most tokens it can look at", least=1)
    layers: int = setting(32, "blocks, one above the other", least=1)                   # L
    heads: int = setting(32, "attention heads of queries", least=1)                     # H
    key_heads: int | None = setting(
        None, "attention heads of keys and values, shared by those of queries (default: as many "
        "as those)", least=1)                                                           # K
    width: int = setting(4096, "numbers that stand for a token between blocks", least=1) # C
    head_width: int | None = setting(
        None, "of a head (default: width / heads)", least=2)                            # D
    hidden: int | None = setting(
        None, "width inside the perceptron (default: 8/3 of the width, in whole multiples of 32)",
        least=1)                                                                        # F
    activation: str = setting("silu", f"of the gate: one of {', '.join(ACTIVATIONS)}",
                              choices=ACTIVATIONS)
    theta: float = setting(10000.0, "base of the angles by which positions turn", above=0)
    scaling: dict | None = setting(
        None, "how positions are squeezed into a longer context: rope_scaling of config.json")
    window: int | None = setting(
        None, "tokens back that a token looks at, with itself (default: all)", least=1)
    window_from: int = setting(0, "the first layer whose view the window limits", least=0)
    biases: bool = setting(False, "offsets in the projections of queries, keys and values (Qwen2)")
    head_norms: bool = setting(False, "a norm on each head's queries and keys (Qwen3)")
    experts: int = setting(0, "perceptrons of a block, of which each token takes some; 0: one for "
                           "all (Mixtral has 8)", least=0)
    experts_chosen: int = setting(2, "that each token takes", least=1)
    balance: float = setting(
        0.001, "with experts: of how unevenly tokens go to them, so much is added to the loss in "
        "training", least=0)
    tied: bool = setting(False, "the head is the token embedding, transposed")
    dropout: float = setting(0.0, "of what each half of a block adds", least=0, below=1)
    norm_epsilon: float = setting(1e-5, "inside the square root of the norms", above=0, below=1)

    def __post_init__(self):
        check(self)
        if self.head_width is None:
            check_heads(self)
        for name, value in (
                ("key_heads", self.heads), ("head_width", self.width // self.heads),
                ("hidden", -(-8 * self.width // (3 * 32)) * 32)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.heads % self.key_heads:
            raise ConfigError(f"key_heads: {self.heads} heads of queries do not share "
                              f"{self.key_heads} of keys evenly")
        if self.head_width % 2:
            raise ConfigError(f"head_width: expected an even number, got {self.head_width}")
        if self.experts and self.experts_chosen > self.experts:
            raise ConfigError(f"experts_chosen: expected at most the {self.experts} that there "
                              f"are, got {self.experts_chosen}")

    @property
    def model(self):
        """The class of the models of this shape."""
        return Llama

    @property
    def tasks(self):
        """{task: HeadLayout}: the heads that may stand on such a model."""
        return TASKS[layout(self)]

    def window_of(self, layer):
        """How many tokens back that layer looks; None: all."""
        return self.window if layer >= self.window_from else None

    @property
    def parameters(self):
        """How many numbers training adjusts (a tied head counts once)."""
        C, Q, KV = self.width, self.heads * self.head_width, self.key_heads * self.head_width
        attention = 2 * C * Q + 2 * C * KV
        attention += (Q + 2 * KV) * self.biases + 2 * self.head_width * self.head_norms
        perceptron = 3 * C * self.hidden
        if self.experts:
            perceptron = self.experts * (perceptron + C)
        return ((1 if self.tied else 2) * self.vocabulary * C
                + self.layers * (attention + perceptron + 2 * C) + C)

    def flops_per_token(self, length, training=False, counted=1.0):
        """Floating-point operations for one token of a sequence of `length` tokens, of products
        and of what attention sees; training and counted, as in GPTConfig."""
        C, Q, KV = self.width, self.heads * self.head_width, self.key_heads * self.head_width
        perceptron = 6 * C * self.hidden
        if self.experts:
            perceptron = self.experts_chosen * perceptron + 2 * C * self.experts
        products = self.layers * (4 * C * (Q + KV) + perceptron) + 2 * self.vocabulary * C * counted
        attention = sum(2 * seen(length, self.window_of(layer)) * Q
                        for layer in range(self.layers))
        return 3 * products + 3.5 * attention if training else products + attention


PRESETS = {
    # Learns on any laptop: four query heads share two of keys.
    "llama-tiny": dict(context=128, layers=4, heads=4, key_heads=2, width=128, tied=True),
    "llama-mini": dict(context=256, layers=6, heads=6, key_heads=2, width=384, tied=True),
    # Touvron et al. 2023a, table 2, and 2023b, table 1.
    "llama-7b": dict(hidden=11008, norm_epsilon=1e-6),
    "llama-13b": dict(layers=40, heads=40, width=5120, hidden=13824, norm_epsilon=1e-6),
    "llama-33b": dict(layers=60, heads=52, width=6656, hidden=17920, norm_epsilon=1e-6),
    "llama-65b": dict(layers=80, heads=64, width=8192, hidden=22016, norm_epsilon=1e-5),
    "llama2-7b": dict(context=4096, hidden=11008),
    "llama2-13b": dict(context=4096, layers=40, heads=40, width=5120, hidden=13824),
    "llama2-70b": dict(context=4096, layers=80, heads=64, key_heads=8, width=8192, hidden=28672),
    "mistral-7b": dict(context=32768, key_heads=8, hidden=14336, window=4096),
    "mixtral-8x7b": dict(context=32768, key_heads=8, hidden=14336, theta=1e6, experts=8),
    "llama3-8b": dict(vocabulary=128256, context=8192, key_heads=8, hidden=14336, theta=500000.0),
    "llama3-70b": dict(vocabulary=128256, context=8192, layers=80, heads=64, key_heads=8,
                       width=8192, hidden=28672, theta=500000.0),
    # Grattafiori et al. 2024, table 3; the context as in its main pretraining.
    "llama3-405b": dict(vocabulary=128256, context=8192, layers=126, heads=128, key_heads=8,
                        width=16384, hidden=53248, theta=500000.0),
}


def new_block(config, rng):
    """One block; `rng` draws its weights."""
    c, stds = config, {"std": INITIAL, "output_std": INITIAL / math.sqrt(2 * config.layers)}
    attention = Attention(
        c.width, c.heads, key_heads=c.key_heads, head_width=c.head_width, bias=c.biases,
        output_bias=False, head_norm=c.norm_epsilon if c.head_norms else None,
        rng=rng and rng.child("attention"), **stds)
    activation, rng = ACTIVATIONS[c.activation], rng and rng.child("perceptron")
    if c.experts:
        perceptron = Experts(c.width, c.hidden, activation, c.experts, c.experts_chosen, rng=rng,
                             **stds)
    else:
        perceptron = GatedPerceptron(c.width, c.hidden, activation, rng=rng, **stds)
    return Block(RMSNorm(c.width, c.norm_epsilon), attention, RMSNorm(c.width, c.norm_epsilon),
                 perceptron)


def _with_shares(block, x):
    """(block(x), how its experts share the tokens)."""
    routing = []
    return block(x, routing=routing), *routing


class Llama(CausalModel):
    """Token ids in, logits of the next token out."""

    prefix = "model."
    tasks = TASKS

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights as GPT-2's are. Without `rng` they are zeros, for a
        checkpoint to replace."""
        C = config.width
        self.config = config
        self.rotary = Rotary(config.head_width, config.theta, config.context, config.scaling)
        self.token_embedding = Embedding(config.vocabulary, C, std=INITIAL,
                                         rng=rng and rng.child("token_embedding"))
        self.blocks = [new_block(config, rng and rng.child("blocks", layer))
                       for layer in range(config.layers)]
        self.norm = RMSNorm(C, config.norm_epsilon)
        self.untied_head = None if config.tied else Embedding(
            config.vocabulary, C, std=INITIAL, rng=rng and rng.child("head"))

    @property
    def head(self):
        return (self.untied_head or self.token_embedding).weight

    def as_body(self, parts, rng=None):
        body = super().as_body(parts, rng)
        body.untied_head = None
        return body

    def training_loss(self, ids, targets, *, denominator=None, **inputs):
        """The loss, plus `balance` times how unevenly all tokens of `ids` go to the experts
        (nn/experts.py), and {"loss", "unevenness"}. The latter is weighed by the part of the
        denominator that is in `targets`: for pieces of a batch, the sum is the mean over them."""
        if not self.config.experts or not self.config.balance:
            return super().training_loss(ids, targets, denominator=denominator, **inputs)
        routing = []
        x = self.features(ids, routing=routing, **inputs)
        loss = ops.linear_cross_entropy(x, self.head, targets, denominator=denominator)
        part = 1 if denominator is None else ops.count_targets(np.asarray(targets)) / denominator
        found = unevenness(routing) * part
        return loss + found * self.config.balance, {"loss": loss.item(),
                                                    "unevenness": found.item()}

    def features(self, ids, *, placement=None, key_mask=None, document_starts=None, rng=None,
                 recompute=False, routing=None):
        """As of all causal models; `routing`, a list, gets of each block how its experts share
        the tokens (nn/experts.py)."""
        ids = np.asarray(ids)
        positions = self.positions(ids, placement, key_mask, document_starts)
        x = self.token_embedding(ids)                                           # [B, T, C]
        rotation = self.rotary(positions, x.dtype)
        for layer, block in enumerate(self.blocks):
            first_keys = self.first_keys(ids, placement, document_starts,
                                         self.config.window_of(layer))
            block = partial(block, layer=layer, placement=placement, key_mask=key_mask,
                            causal=True, first_keys=first_keys, rotation=rotation,
                            dropout=self.config.dropout, rng=rng and rng.child("block", layer))
            if routing is not None:
                block = partial(_with_shares, block)
            x = ops.checkpoint(block, x) if recompute else block(x)
            if routing is not None:
                x, shares = x
                routing.append(shares)
        return self.norm(x)

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        Tables are looked up by rows of that axis, too."""
        tables = ["token_embedding"] + ([] if config.tied else ["untied_head"])
        return {f"{table}.weight": 1 for table in tables} | {
            f"blocks.{i}.{part}.weight": 0 for i in range(config.layers)
            for part in [*ATTENTION, *_perceptron(config)] if part != "perceptron.router"}

    # -- files: the layouts of the ecosystem ------------------------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}. Linear weights lie [out, in] there."""
        names = {"token_embedding.weight": Stored("model.embed_tokens.weight"),
                 "norm.gain": Stored("model.norm.weight")}
        if not config.tied:
            names["untied_head.weight"] = Stored("lm_head.weight")
        for i in range(config.layers):
            ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
            for part, name in {**ATTENTION, **_perceptron(config)}.items():
                names[f"{ours}{part}.weight"] = Stored(f"{theirs}{name}.weight", transposed=True)
            for part, name in _norms(config).items():
                names[f"{ours}{part}.gain"] = Stored(f"{theirs}{name}.weight")
            for part in ("query", "key", "value") if config.biases else ():
                name = ATTENTION[f"attention.{part}"]
                names[f"{ours}attention.{part}.bias"] = Stored(f"{theirs}{name}.bias")
        return names

    @staticmethod
    def accepted_name(key):
        """The present spelling of a key in a file; None for a buffer that is not a weight."""
        if key.endswith(".rotary_emb.inv_freq"):
            return None
        return key

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        kind = stored.get("model_type")
        required = {"vocabulary": "vocab_size", "width": "hidden_size",
                    "hidden": "intermediate_size", "layers": "num_hidden_layers",
                    "heads": "num_attention_heads"}
        missing = [key for key in required.values() if key not in stored]
        if missing:
            raise ConfigError(f"config.json: lacks {', '.join(missing)}")
        for key in ("attention_bias", "mlp_bias"):
            if stored.get(key):
                raise ConfigError(f"config.json: {key}=True is not supported, only False")
        theta, scaling = _rotation_from_hub(stored)
        window, window_from = _window_from_hub(kind, stored)
        experts = {"experts": stored.get("num_local_experts", 8),
                   "experts_chosen": stored.get("num_experts_per_tok", 2),
                   "balance": stored.get("router_aux_loss_coef", 0.001)}
        return LlamaConfig(
            **{ours: stored[theirs] for ours, theirs in required.items()},
            context=stored.get("max_position_embeddings", CONTEXTS[kind]),
            key_heads=stored.get("num_key_value_heads", KEY_HEADS.get(kind)),
            head_width=stored.get("head_dim", 128 if kind == "qwen3" else None),
            activation=stored.get("hidden_act", "silu"), theta=theta, scaling=scaling,
            window=window, window_from=window_from, biases=kind == "qwen2",
            head_norms=kind == "qwen3", **experts if kind == "mixtral" else {},
            tied=stored.get("tie_word_embeddings", False),
            norm_epsilon=stored.get("rms_norm_eps", EPSILONS.get(kind, 1e-6)))

    @staticmethod
    def config_to_hub(config, *, end_of_text=None, architecture=None):
        """The `config.json` that describes this model to other libraries; raises ConfigError for
        a mixture of parts that no layout has. `architecture` names it where
        another head stands on it (heads.py)."""
        kind = layout(config)
        described = {
            "architectures": [architecture or LAYOUTS[kind]], "model_type": kind,
            "vocab_size": config.vocabulary, "max_position_embeddings": config.context,
            "hidden_size": config.width, "intermediate_size": config.hidden,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "num_key_value_heads": config.key_heads, "head_dim": config.head_width,
            "hidden_act": config.activation, "rms_norm_eps": config.norm_epsilon,
            "rope_theta": config.theta, "rope_scaling": config.scaling,
            "rope_parameters": {"rope_type": "default", **(config.scaling or {}),
                                "rope_theta": config.theta},
            "tie_word_embeddings": config.tied, "attention_dropout": 0.0,
            "attention_bias": False, "torch_dtype": "float32",
            "bos_token_id": end_of_text, "eos_token_id": end_of_text,
        }
        if kind in ("mistral", "mixtral"):
            described["sliding_window"] = config.window
        if kind in ("qwen2", "qwen3"):
            described |= {"sliding_window": config.window, "max_window_layers": config.window_from,
                          "use_sliding_window": config.window is not None}
        if kind == "mixtral":
            described |= {"num_local_experts": config.experts,
                          "num_experts_per_tok": config.experts_chosen,
                          "router_aux_loss_coef": config.balance}
        return described


# What the libraries take for granted where a config.json does not say.
CONTEXTS = {"llama": 2048, "mistral": 131072, "mixtral": 131072, "qwen2": 32768, "qwen3": 32768}
KEY_HEADS = {"mistral": 8, "mixtral": 8, "qwen2": 32, "qwen3": 32}
EPSILONS = {"mixtral": 1e-5}
ATTENTION = {"attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj",
             "attention.value": "self_attn.v_proj", "attention.output": "self_attn.o_proj"}


def _norms(config):
    """{our name of each of its norms: theirs}."""
    names = {"attention_norm": "input_layernorm", "perceptron_norm": "post_attention_layernorm"}
    of_heads = {"attention.query_norm": "self_attn.q_norm",
                "attention.key_norm": "self_attn.k_norm"}
    return names | of_heads if config.head_norms else names


def _perceptron(config):
    """{our name of each of its linear layers: theirs}."""
    if not config.experts:
        return {"perceptron.gate": "mlp.gate_proj", "perceptron.expand": "mlp.up_proj",
                "perceptron.output": "mlp.down_proj"}
    parts = {"gate": "w1", "output": "w2", "expand": "w3"}
    return {"perceptron.router": "block_sparse_moe.gate"} | {
        f"perceptron.experts.{i}.{ours}": f"block_sparse_moe.experts.{i}.{theirs}"
        for i in range(config.experts) for ours, theirs in parts.items()}


def layout(config):
    """Which of LAYOUTS has all of the model's parts; raises ConfigError where none has."""
    kind = "mixtral" if config.experts else "qwen3" if config.head_norms else \
        "qwen2" if config.biases else "mistral" if config.window else "llama"
    having = {"mixtral": ("window", "experts"), "qwen3": ("window", "window_from", "head_norms"),
              "qwen2": ("window", "window_from", "biases"), "mistral": ("window",), "llama": ()}
    for part in ("window_from", "biases", "head_norms"):
        if getattr(config, part) and part not in having[kind]:
            raise ConfigError(f"{part}: no layout of files has that beside the other parts of this "
                              f"model, which are those of {kind}")
    return kind


def _rotation_from_hub(stored):
    """(theta, scaling): published files have rope_theta and rope_scaling, new ones both in
    rope_parameters."""
    both = dict(stored.get("rope_parameters") or {})
    theta = both.pop("rope_theta", stored.get("rope_theta", 10000.0))
    scaling = dict(stored.get("rope_scaling") or both or {})
    scaling.pop("rope_theta", None)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return float(theta), None if kind == "default" else scaling


def _window_from_hub(kind, stored):
    """(window, the first layer that has it)."""
    window, layers = stored.get("sliding_window"), stored["num_hidden_layers"]
    if kind == "llama" or window is None:
        return None, 0
    if kind in ("qwen2", "qwen3"):
        if not stored.get("use_sliding_window", False):
            return None, 0
        first = stored.get("max_window_layers", 28)
    else:
        first = 0
    types = stored.get("layer_types")
    if types is not None and types != ["full_attention" if i < first else "sliding_attention"
                                       for i in range(layers)]:
        raise ConfigError("config.json: layer_types: expected sliding_attention from layer "
                          f"{first} on, got {types}")
    return (window, first) if first < layers else (None, 0)
