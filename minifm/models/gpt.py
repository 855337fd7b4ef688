"""GPT-2 (Radford et al. 2019): a pre-norm decoder with learned positions and a tied head.

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
from minifm.models.causal import CausalModel
from minifm.models.stored import HeadLayout, Stored
from minifm.nn import Block, Embedding, LayerNorm, Perceptron, SelfAttention

INITIAL = 0.02          # standard deviation of the initial weights
# Heads for other tasks, {model_type: {task: …}}: see heads.py.
TASKS = {"gpt2": {
    "sequence": HeadLayout("GPT2ForSequenceClassification", "score", "transformer.", whole=True,
                           bias=False),
    "token": HeadLayout("GPT2ForTokenClassification", "classifier", "transformer.", dropout=0.1),
    "question": HeadLayout("GPT2ForQuestionAnswering", "qa_outputs", "transformer.")}}


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
    def model(self):
        """The class of the models of this shape."""
        return GPT

    @property
    def tasks(self):
        """{task: HeadLayout}: the heads that may stand on such a model."""
        return TASKS[GPT.model_type]

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
        attention = C * 3 * C + 3 * C + C * C + C
        perceptron = C * F + F + F * C + C
        block = attention + perceptron + 4 * C                  # two norms
        return (self.vocabulary + self.context) * C + self.layers * block + 2 * C

    def flops_per_token(self, length, training=False, counted=1.0):
        """Floating-point operations for one token of a sequence of `length` tokens.

        Products only; the causal half of attention. Training is forward + backward: 3 × for a
        product, 3.5 × for attention. Recomputation does not count: it is no useful work.

        counted  the fraction of the tokens that the head reads
        """
        C, F = self.width, self.hidden
        products = 2 * (self.layers * (4 * C * C + 2 * C * F) + self.vocabulary * C * counted)
        attention = 2 * self.layers * length * C
        return 3 * products + 3.5 * attention if training else products + attention


PRESETS = {
    "tiny": dict(context=128, layers=4, heads=4, width=128),       # learns on any laptop
    "mini": dict(context=256, layers=6, heads=6, width=384),
    "gpt2": dict(layers=12, heads=12, width=768),
    "gpt2-medium": dict(layers=24, heads=16, width=1024),
    "gpt2-large": dict(layers=36, heads=20, width=1280),
    "gpt2-xl": dict(layers=48, heads=25, width=1600),
    # Brown et al. 2020, table 2.1. (The original's alternating sparse layers are not modelled.)
    "gpt3-175b": dict(context=2048, layers=96, heads=96, width=12288),
}


def new_block(config, rng):
    """One block; `rng` draws its weights."""
    C, std, epsilon = config.width, INITIAL, config.norm_epsilon
    stds = {"std": std, "output_std": std / math.sqrt(2 * config.layers)}
    return Block(
        LayerNorm(C, epsilon),
        SelfAttention(C, config.heads, rng=rng and rng.child("attention"), **stds),
        LayerNorm(C, epsilon),
        Perceptron(C, config.hidden, ACTIVATIONS[config.activation],
                   rng=rng and rng.child("perceptron"), **stds))


class GPT(CausalModel):
    """Token ids in, logits of the next token out, by the token embedding, transposed."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
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
        self.norm = LayerNorm(C, config.norm_epsilon)

    def features(self, ids, *, placement=None, key_mask=None, document_starts=None, rng=None,
                 recompute=False):
        ids = np.asarray(ids)
        positions = self.positions(ids, placement, key_mask, document_starts)
        x = self.token_embedding(ids) + self.position_embedding(positions)      # [B, T, C]
        dropout = self.config.dropout
        if dropout:
            x = ops.dropout(x, dropout, rng=rng and rng.child("embedding"))
        for layer, block in enumerate(self.blocks):
            block = partial(block, layer=layer, placement=placement, key_mask=key_mask,
                            first_keys=document_starts, dropout=dropout,
                            rng=rng and rng.child("block", layer))
            x = ops.checkpoint(block, x) if recompute else block(x)
        return self.norm(x)

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
    def config_to_hub(config, *, end_of_text=None, architecture=None):
        """The `config.json` that describes this model to other libraries; `architecture` names
        it where another head stands on it (heads.py)."""
        return {
            "architectures": [architecture or GPT.architecture], "model_type": GPT.model_type,
            "vocab_size": config.vocabulary, "n_positions": config.context,
            "n_ctx": config.context, "n_embd": config.width, "n_layer": config.layers,
            "n_head": config.heads, "n_inner": config.hidden,
            "activation_function": config.activation, "layer_norm_epsilon": config.norm_epsilon,
            "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": 0.0,
            "tie_word_embeddings": True, "torch_dtype": "float32",
            "bos_token_id": end_of_text, "eos_token_id": end_of_text,
        }
