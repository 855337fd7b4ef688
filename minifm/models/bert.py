"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019): encoders, in which every token looks at
all others, before it and behind it; they learn by guessing tokens that were masked.

The two differ in their numbers, in where positions begin, and in the names of their files: `layout`
says which of them a model is. Read top to bottom: the configuration, the parts, the model, its life
in files.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import ops
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
from minifm.nn import Attention, Block, Embedding, LayerNorm, Linear, Module, Perceptron, post_norm
from minifm.nn.module import constant

INITIAL = 0.02          # standard deviation of the initial weights
PARTS = ("pooler", "masked_head", "sentence_head")
# {(layout, *PARTS): what other libraries call a model of these parts}
ARCHITECTURES = {
    ("bert", True, True, True): "BertForPreTraining",
    ("bert", False, True, False): "BertForMaskedLM",
    ("bert", True, False, True): "BertForNextSentencePrediction",
    ("bert", True, False, False): "BertModel",
    ("roberta", False, True, False): "RobertaForMaskedLM",
    ("roberta", True, False, False): "RobertaModel",
}
LAYOUTS = ("bert", "roberta")
# What a head for another task stands on: the parts above, and what the masked head has learnt.
BARE = dict.fromkeys((*PARTS, "absorbing"), False)
# Heads for other tasks, {layout: {task: …}}: see heads.py. RoBERTa's reads a sequence by a layer of
# its own in place of the pooler.
TASKS = {
    "bert": {
        "sequence": HeadLayout("BertForSequenceClassification", "classifier", "bert.",
                               BARE | {"pooler": True}, whole=True, dropout=None),
        "token": HeadLayout("BertForTokenClassification", "classifier", "bert.", BARE,
                            dropout=None),
        "question": HeadLayout("BertForQuestionAnswering", "qa_outputs", "bert.", BARE)},
    "roberta": {
        "sequence": HeadLayout("RobertaForSequenceClassification", "classifier.out_proj",
                               "roberta.", BARE, whole=True, dense="classifier.dense",
                               dropout=None),
        "token": HeadLayout("RobertaForTokenClassification", "classifier", "roberta.", BARE,
                            dropout=None),
        "question": HeadLayout("RobertaForQuestionAnswering", "qa_outputs", "roberta.", BARE)},
}


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT; counts follow from it without building the model."""

    vocabulary: int = setting(30522, "tokens that the model knows", least=1)            # V
    context: int = setting(512, "the most tokens it can look at", least=1)
    layers: int = setting(12, "blocks, one above the other", least=1)                   # L
    heads: int = setting(12, "attention heads, each width / heads wide", least=1)       # H
    width: int = setting(768, "numbers that stand for a token between blocks", least=1) # C
    hidden: int | None = setting(
        None, "width inside the perceptron (default: four times the width)", least=1)   # F
    types: int = setting(2, "kinds of tokens that are told apart, such as those of a first and "
                         "of a second sentence", least=1)
    padding: int = setting(0, "id of the token that fills short rows; RoBERTa counts positions "
                           "from the next number on", least=0)
    dropout: float = setting(
        0.1, "of the embeddings and of what each half of a block adds", least=0, below=1)
    activation: str = setting("gelu", f"one of {', '.join(ACTIVATIONS)}", choices=ACTIVATIONS)
    norm_epsilon: float = setting(1e-12, "inside the square root of the layer norms",
                                  above=0, below=1)
    layout: str = setting("bert", f"one of {', '.join(LAYOUTS)}", choices=LAYOUTS)
    pooler: bool = setting(False, "a layer that reads a sequence off its first token")
    masked_head: bool = setting(True, "the head that guesses masked tokens")
    sentence_head: bool = setting(
        False, "the head that guesses whether the second sentence follows the first")
    absorbing: bool = setting(
        False, "the masked head has learnt to guess behind any number of masks, and so writes by "
        "diffusion (diffusion/absorbing.py)")

    def __post_init__(self):
        check(self)
        if self.hidden is None:
            object.__setattr__(self, "hidden", 4 * self.width)
        check_heads(self)
        if self.padding >= self.vocabulary:
            raise ConfigError(f"padding: expected an id below the vocabulary of "
                              f"{self.vocabulary}, got {self.padding}")
        if self.sentence_head and self.layout == "roberta":
            raise ConfigError("sentence_head: RoBERTa has none, it learns without the next "
                              "sentence (Liu et al. 2019); leave next_sentence out, or choose the "
                              "architecture bert")
        if self.absorbing and not self.masked_head:
            raise ConfigError("absorbing: needs the masked head")
        if any(self._parts[1:]) and self._parts not in ARCHITECTURES:
            parts = [name for name in PARTS if getattr(self, name)]
            raise ConfigError(f"layout: {self.layout} is not known with {' and '.join(parts)}; "
                              f"expected the parts of one of {', '.join(ARCHITECTURES.values())}")

    @property
    def _parts(self):
        return self.layout, *(getattr(self, name) for name in PARTS)

    @property
    def architecture(self):
        """The name that other libraries have for a model of these parts; None where it has none of
        them, and is what a head stands on (heads.py)."""
        return ARCHITECTURES.get(self._parts)

    @property
    def model(self):
        """The class of the models of this shape."""
        return Bert

    @property
    def tasks(self):
        """{task: HeadLayout}: the heads that may stand on such a model."""
        return TASKS[self.layout]

    @property
    def first_position(self):
        """The row of the position table that a sequence begins with; RoBERTa never reads those
        before it."""
        return self.padding + 1 if self.layout == "roberta" else 0

    @property
    def parameters(self):
        """How many numbers training adjusts (the tied table counts once)."""
        C, F = self.width, self.hidden
        tables = (self.vocabulary + self.first_position + self.context + self.types) * C
        block = 4 * (C * C + C) + C * F + F + F * C + C + 4 * C         # two norms
        pooler = (C * C + C) * self.pooler
        masked = (C * C + C + 2 * C + self.vocabulary) * self.masked_head
        return tables + 2 * C + self.layers * block + pooler + masked \
            + (2 * C + 2) * self.sentence_head

    def flops_per_token(self, length, training=False, counted=1.0):
        """Floating-point operations for one token of a sequence of `length` tokens, in all parts
        that the model has. Products only; training, as in GPTConfig.

        counted  the fraction of the tokens that the masked head reads: in training, those whose
                 target counts. Pooler and sentence head read one token of a sequence
        """
        C, F = self.width, self.hidden
        products = self.layers * (4 * C * C + 2 * C * F)
        products += (C * C + self.vocabulary * C) * counted * self.masked_head
        products += (C * C * self.pooler + 2 * C * self.sentence_head) / length
        attention = 4 * self.layers * length * C
        return 6 * products + 3.5 * attention if training else 2 * products + attention


ROBERTA = dict(layout="roberta", vocabulary=50265, types=1, padding=1, norm_epsilon=1e-5)
PRESETS = {
    "bert-tiny": dict(layers=2, heads=2, width=128),        # Turc et al. 2019: learns on any laptop
    "bert-mini": dict(layers=4, heads=4, width=256),
    "bert-small": dict(layers=4, heads=8, width=512),
    "bert-medium": dict(layers=8, heads=8, width=512),
    "bert-base": dict(layers=12, heads=12, width=768),
    "bert-large": dict(layers=24, heads=16, width=1024),
}
ROBERTA_PRESETS = {
    "roberta-tiny": ROBERTA | dict(layers=2, heads=2, width=128),
    "roberta-base": ROBERTA | dict(layers=12, heads=12, width=768),
    "roberta-large": ROBERTA | dict(layers=24, heads=16, width=1024),
}


def new_block(config, rng):
    """One block; `rng` draws its weights."""
    C, stds = config.width, {"std": INITIAL, "output_std": INITIAL}
    return Block(
        LayerNorm(C, config.norm_epsilon),
        Attention(C, config.heads, rng=rng and rng.child("attention"), **stds),
        LayerNorm(C, config.norm_epsilon),
        Perceptron(C, config.hidden, ACTIVATIONS[config.activation],
                   rng=rng and rng.child("perceptron"), **stds),
        arrange=post_norm)


class MaskedHead(Module):
    """Features in, logits of the token that stands there out: one more layer, then a comparison
    with each row of the token embedding."""

    def __init__(self, config, rng):
        # RoBERTa's head has a gelu, whatever its blocks have.
        self.activation = ops.gelu if config.layout == "roberta" else ACTIVATIONS[config.activation]
        self.dense = Linear(config.width, config.width, std=INITIAL, rng=rng)
        self.norm = LayerNorm(config.width, config.norm_epsilon)
        self.bias = constant((config.vocabulary,), 0)

    def __call__(self, x, table):                   # x [*B, C], table [V, C] -> [*B, V]
        x = self.norm(self.dense(x, self.activation))
        return ops.linear(x, table.transpose(1, 0), self.bias)


class Bert(Encoder):
    """Token ids in, a vector for each token out, and what the heads make of it."""

    tasks = TASKS

    def __init__(self, config, rng=None):
        """`rng` draws the initial weights from N(0, 0.02²). Without `rng` they are zeros, for a
        checkpoint to replace."""
        C = config.width
        self.config = config
        self.token_embedding, self.position_embedding, self.type_embedding = (
            Embedding(rows, C, std=INITIAL, rng=rng and rng.child(name)) for name, rows in (
                ("token_embedding", config.vocabulary),
                ("position_embedding", config.first_position + config.context),
                ("type_embedding", config.types)))
        self.norm = LayerNorm(C, config.norm_epsilon)
        self.blocks = [new_block(config, rng and rng.child("blocks", layer))
                       for layer in range(config.layers)]
        self.pooler = Linear(C, C, std=INITIAL, rng=rng and rng.child("pooler")) \
            if config.pooler else None
        self.masked_head = MaskedHead(config, rng and rng.child("masked_head")) \
            if config.masked_head else None
        self.sentence_head = Linear(C, 2, std=INITIAL, rng=rng and rng.child("sentence_head")) \
            if config.sentence_head else None

    def features(self, ids, *, types=None, key_mask=None, rng=None, recompute=False):
        """ids [B, T] -> what the heads read, [B, T, C].

        types     int [B, T]: of which kind each token is (default: 0)
        key_mask  bool [B, T]: False marks padding, on either side (default: nothing is)
        rng       turns dropout on
        recompute computes the inside of each block again in the backward pass
        """
        ids = np.asarray(ids)
        positions = self._positions(ids, types, key_mask)
        types = np.zeros_like(ids) if types is None else np.asarray(types)
        x = (self.token_embedding(ids) + self.type_embedding(types)
             + self.position_embedding(positions))                              # [B, T, C]
        dropout = self.config.dropout
        x = ops.dropout(self.norm(x), dropout, rng=rng and rng.child("embedding"))
        for layer, block in enumerate(self.blocks):
            block = partial(block, key_mask=key_mask, dropout=dropout,
                            rng=rng and rng.child("block", layer))
            x = ops.checkpoint(block, x) if recompute else block(x)
        return x

    def logits(self, x):
        """[*B, C] -> [*B, V]."""
        return self._part("masked_head")(x, self.token_embedding.weight)

    def pooled(self, x, key_mask=None):
        """Features x [B, T, C] -> [B, C], a vector for each sequence, from its first token."""
        return ops.tanh(self._part("pooler")(first_token(x, key_mask)))

    def summary(self, x, key_mask=None):
        """Features x [B, T, C] -> [B, C], what a head for sequences reads: their first token, by
        the pooler where there is one."""
        return self.pooled(x, key_mask) if self.pooler else first_token(x, key_mask)

    def as_body(self, parts, rng=None):
        """A model of these very layers, with other `parts`, for a head to stand on (heads.py);
        `rng` draws a pooler that this one does not have."""
        body, C = self.with_parts(parts), self.config.width
        body.masked_head = body.sentence_head = None
        body.pooler = None if not body.config.pooler else \
            self.pooler or Linear(C, C, std=INITIAL, rng=rng and rng.child("pooler"))
        return body

    def sentence_logits(self, x, key_mask=None):
        """Features x [B, T, C] -> [B, 2]: that the second sentence follows the first, that not."""
        return self._part("sentence_head")(self.pooled(x, key_mask))

    def loss(self, ids, targets, *, types=None, key_mask=None, sentence_targets=None,
             denominator=None, sentence_denominator=None, rng=None, recompute=False):
        """Mean cross-entropy in nats of targets [B, T] (-100: not counted), and, if they are given,
        plus that of sentence_targets [B] (0: the second sentence follows).

        The denominators divide the two sums in place of the counts (ops/loss.py).
        """
        x = self.features(ids, types=types, key_mask=key_mask, rng=rng, recompute=recompute)
        loss = self.guessed(x, ids, targets, denominator)
        if sentence_targets is None:
            return loss
        return loss + ops.cross_entropy(self.sentence_logits(x, key_mask), sentence_targets,
                                        denominator=sentence_denominator)

    def _positions(self, ids, types, key_mask):
        """The row of the position table for each token: [T], or [B, T] where rows differ."""
        self.check_ids(ids, types=types, key_mask=key_mask)
        if key_mask is None:
            positions = np.arange(ids.shape[1])
        else:                           # padding, on either side, does not count
            positions = np.maximum(np.cumsum(key_mask, axis=-1) - 1, 0)
        self.check_length(positions.max(initial=-1) + 1)
        return positions + self.config.first_position

    def _part(self, name):
        """A part that not all models have; raises ConfigError."""
        part = getattr(self, name)
        if part is None:
            raise ConfigError(f"{name}: this model, a "
                              f"{self.config.architecture or 'body for a head'}, has none")
        return part

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        The tied table is looked up by rows of that axis, too."""
        names = [f"blocks.{i}.{part}" for i in range(config.layers) for part in LINEAR]
        names += ["pooler"] * config.pooler + ["masked_head.dense"] * config.masked_head
        return {"token_embedding.weight": 1} | {f"{name}.weight": 0 for name in names}

    # -- files: the layouts of the ecosystem ------------------------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}, also of parts that this model leaves out. Linear weights
        lie [out, in] there. An encoder without a head has no prefix."""
        bare = not (config.masked_head or config.sentence_head)
        head, head_norm, bias = HEADS[config.layout]
        linear, norms = {"pooler": "pooler.dense"}, {"norm": "embeddings.LayerNorm"}
        for i in range(config.layers):
            ours, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
            linear |= {ours + part: theirs + name for part, name in LINEAR.items()}
            norms |= {ours + part: theirs + name for part, name in NORMS.items()}
        prefix = "" if bare else f"{config.layout}."
        names = {f"{table}_embedding.weight": Stored(f"{prefix}embeddings.{name}.weight")
                 for table, name in TABLES.items()}
        names |= _layers({part: prefix + name for part, name in linear.items()}, "weight")
        names |= _layers({part: prefix + name for part, name in norms.items()}, "gain")
        names |= _layers({"masked_head.dense": head}, "weight")
        names |= _layers({"masked_head.norm": head_norm}, "gain")
        names["masked_head.bias"] = Stored(bias)
        return names | _layers({"sentence_head": "cls.seq_relationship"}, "weight")

    @staticmethod
    def accepted_name(key):
        """The plainest spelling of a key in a file; None for a buffer that is not a weight.

        Encoders come with a prefix or without, norms of the first files have `gamma` and `beta`,
        and some repeat the tied table and the head's offsets as those of a `decoder`.
        """
        for prefix in LAYOUTS:
            key = key.removeprefix(prefix + ".")
        if key in ("embeddings.position_ids", "embeddings.token_type_ids"):
            return None
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            key = key.removesuffix(old) + new if key.endswith(old) else key
        for head in ("cls.predictions", "lm_head"):
            if key == f"{head}.decoder.weight":
                return "embeddings.word_embeddings.weight"
            if key == f"{head}.decoder.bias":
                return f"{head}.bias"
        return key

    @staticmethod
    def told_by(model_type, keys):
        """As in Model. A `classifier` stands on tokens, or on sequences: what it reads, its
        tensors do not say, but where the pooler is missing that BERT needs for sequences."""
        keys = {Bert.accepted_name(key) for key in keys}
        has = {part: f"{name}.weight" in keys for part, name in (
            ("pooler", "pooler.dense"), ("masked_head", HEADS[model_type][0]),
            ("sentence_head", "cls.seq_relationship"), ("question", "qa_outputs"),
            ("dense", "classifier.dense"), ("classifier", "classifier"))}
        tasks = TASKS[model_type]
        if has["question"] or has["dense"]:
            return tasks["question" if has["question"] else "sequence"].architecture
        if has["classifier"]:
            told = model_type == "roberta" or not has["pooler"]
            return tasks["token"].architecture if told else None
        masked, sentence = has["masked_head"], has["sentence_head"]
        pooler = has["pooler"] and (sentence or not masked)     # a masked head does without one
        return ARCHITECTURES.get((model_type, pooler, masked, sentence))

    @staticmethod
    def config_from_hub(stored):
        """The configuration in a `config.json`; raises ConfigError naming the key."""
        layout = stored.get("model_type")
        fixed = {"position_embedding_type": "absolute", "is_decoder": False,
                 "add_cross_attention": False, "tie_word_embeddings": True}
        for key, value in fixed.items():
            if stored.get(key, value) != value:
                raise ConfigError(f"config.json: {key}={stored[key]!r} is not supported, "
                                  f"only {value!r}")
        required = {"vocabulary": "vocab_size", "context": "max_position_embeddings",
                    "layers": "num_hidden_layers", "heads": "num_attention_heads",
                    "width": "hidden_size", "hidden": "intermediate_size"}
        missing = [key for key in required.values() if key not in stored]
        if missing:
            raise ConfigError(f"config.json: lacks {', '.join(missing)}")
        shape = {ours: stored[theirs] for ours, theirs in required.items()}
        padding = stored.get("pad_token_id", 1 if layout == "roberta" else 0)
        if layout == "roberta":         # whose table has a row for each number up to `padding`
            shape["context"] -= padding + 1
        return BertConfig(
            **shape, layout=layout, padding=padding,
            types=stored.get("type_vocab_size", 2), dropout=stored.get("hidden_dropout_prob", 0.1),
            activation=stored.get("hidden_act", "gelu"),
            norm_epsilon=stored.get("layer_norm_eps", 1e-12),
            **diffusion_from_hub(stored) | _parts_from_hub(layout, stored))

    @staticmethod
    def config_to_hub(config, *, end_of_text=None, architecture=None):
        """The `config.json` that describes this model to other libraries; `architecture` names
        it where another head stands on it (heads.py). Raises ConfigError for a bare body."""
        architecture = architecture or config.architecture
        if architecture is None:
            raise ConfigError(f"layout: files of {config.layout} have a pooler, or a head")
        return {
            "architectures": [architecture], "model_type": config.layout,
            "vocab_size": config.vocabulary,
            "max_position_embeddings": config.first_position + config.context,
            "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
            "hidden_size": config.width, "intermediate_size": config.hidden,
            "type_vocab_size": config.types, "pad_token_id": config.padding,
            "hidden_act": config.activation, "layer_norm_eps": config.norm_epsilon,
            "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": 0.0,
            "position_embedding_type": "absolute", "tie_word_embeddings": True,
            "torch_dtype": "float32", "bos_token_id": end_of_text, "eos_token_id": end_of_text,
        } | diffusion_to_hub(config)


TABLES = {"token": "word_embeddings", "position": "position_embeddings",
          "type": "token_type_embeddings"}
LINEAR = {"attention.query": "attention.self.query", "attention.key": "attention.self.key",
          "attention.value": "attention.self.value", "attention.output": "attention.output.dense",
          "perceptron.expand": "intermediate.dense", "perceptron.output": "output.dense"}
NORMS = {"attention_norm": "attention.output.LayerNorm", "perceptron_norm": "output.LayerNorm"}
# The masked head's linear layer, its norm, its offsets.
HEADS = {"bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm",
                  "cls.predictions.bias"),
         "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")}


def _layers(names, weight):
    """{our parameter's name: Stored} of the layers {ours: theirs}: linear ones, whose matrix is
    called `weight` here, or norms, whose `gain` is there called so too."""
    return {f"{ours}.{weight}": Stored(f"{theirs}.weight", transposed=weight == "weight")
            for ours, theirs in names.items()} | {
        f"{ours}.bias": Stored(f"{theirs}.bias") for ours, theirs in names.items()}


def _parts_from_hub(layout, stored):
    """{setting: value} of the parts that a model has, by the first of its `architectures`."""
    known = {name: dict(zip(BARE, parts[1:])) for parts, name in ARCHITECTURES.items()
             if parts[0] == layout} | {
        head.architecture: head.parts for head in TASKS[layout].values()}
    named = stored.get("architectures") or [None]
    if named[0] not in known:
        raise ConfigError(f"config.json: architectures: expected one of {', '.join(known)}, got "
                          f"{named[0]!r}")
    return known[named[0]]
