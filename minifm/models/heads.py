"""Heads for other tasks than guessing tokens: a class for a sequence, one for each of its tokens,
the span of a text that answers a question.

A fine-tuned model is a body, which is any of our models without the heads that it does not need,
and one small layer that reads its features:

    logits = output(dropout(x))         x [B, C] the body's summary of each sequence, or
                                        [B, T, C] its features of each token

What differs from model to model (which summary, an offset, a layer more, the names in files) says a
HeadLayout in the body's file, under `tasks`. The rest is here: the configuration, the three heads,
a head on a model that is there already (`with_head`), their life in files.
"""

import reprlib
from dataclasses import dataclass, replace

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.errors import ConfigError, ShapeError
from minifm.models.stored import Model, Stored
from minifm.nn import Linear
from minifm.tensor import Tensor

INITIAL = 0.02          # standard deviation of the initial weights
MOST_LABELS = 1 << 16   # that a config.json may have without naming them


# -- what a sequence is judged by: (logits [B, L], targets, denominator) -> a scalar ---------------


def one_label(logits, targets, denominator=None):
    """Mean cross-entropy of targets [B], each one of the L labels; -100: not counted."""
    return ops.cross_entropy(logits, targets, denominator=denominator)


def many_labels(logits, targets, denominator=None):
    """Mean binary cross-entropy of targets [B, L], 1 for each label that holds, else 0; -100: not
    counted. A logit is compared with 0 as those of two classes are with each other."""
    pairs = ops.stack([logits * 0.0, logits], -1)                           # [B, L, 2]
    return ops.cross_entropy(pairs, targets, denominator=denominator)


def numbers(logits, targets, denominator=None):
    """Mean square of the differences from targets [B, L] (for one label: [B], too)."""
    targets, (B, L) = np.asarray(targets, logits.dtype), logits.shape
    if targets.shape != (B, L) and (L > 1 or targets.shape != (B,)):
        raise ShapeError(f"targets: expected [{B}, {L}]{f' or [{B}]' if L == 1 else ''}, got "
                         f"{list(targets.shape)}")
    difference = logits - Tensor(targets.reshape(B, L))
    return (difference * difference).sum() * (1 / (denominator or max(targets.size, 1)))


PROBLEMS = {"single_label_classification": one_label, "multi_label_classification": many_labels,
            "regression": numbers}
TASKS = ("sequence", "token", "question")


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a body with a head; counts follow from it without building the model.

    body  the configuration of the body. Here it loses the parts that this head does not need
    """

    body: object
    task: str = setting("sequence", f"one of {', '.join(TASKS)}", choices=TASKS)
    labels: tuple[str, ...] = setting(
        ("LABEL_0", "LABEL_1"), "names of what the logits stand for, in their order")    # L
    problem: str = setting("single_label_classification", "what a sequence is judged by: one of "
                           f"{', '.join(PROBLEMS)}", choices=PROBLEMS)
    dropout: float | None = setting(
        None, "of what the head reads (default: as in the original)", least=0, below=1)
    padding: int | None = setting(
        None, "id of the token that fills short rows: other libraries look for a decoder's last "
        "token by it", least=0)

    def __post_init__(self):
        check(self)
        if self.task not in getattr(self.body, "tasks", {}):
            raise ConfigError(f"body: no head for a {self.task} stands on a "
                              f"{type(self.body).__name__.removesuffix('Config')}")
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "body", replace(self.body, **self.head.parts))
        self._check_labels()
        if self.dropout and self.head.dropout == 0:
            raise ConfigError(f"dropout: {self.head.architecture} has none before its head")
        if self.padding is not None and hasattr(self.body, "padding"):
            raise ConfigError("padding: that of the body is meant, where it has one")
        if (self.padding or 0) >= self.vocabulary:
            raise ConfigError(f"padding: expected an id below the vocabulary of "
                              f"{self.vocabulary}, got {self.padding}")

    def _check_labels(self):
        count, single = len(self.labels), self.problem == "single_label_classification"
        if len(set(self.labels)) < count:
            raise ConfigError(f"labels: expected different names, got {list(self.labels)}")
        if count != 2 if self.task == "question" else count < 1 + single:
            expected = "two, for where an answer starts and where it ends" \
                if self.task == "question" else f"at least {1 + single}"
            raise ConfigError(f"labels: expected {expected}, got {list(self.labels)}")
        if self.task != "sequence" and not single:
            raise ConfigError(f"problem: {self.problem} is for sequences, not for a {self.task}")

    @property
    def head(self):
        """The HeadLayout."""
        return self.body.tasks[self.task]

    @property
    def head_dropout(self):
        """Of what the head reads."""
        return next(p for p in (self.dropout, self.head.dropout, self.body.dropout)
                    if p is not None)

    @property
    def vocabulary(self):
        return self.body.vocabulary

    @property
    def context(self):
        return self.body.context

    @property
    def layers(self):
        return self.body.layers

    @property
    def parameters(self):
        """How many numbers training adjusts."""
        C, L = self.body.width, len(self.labels)
        dense = C * C + C if self.head.dense else 0
        return self.body.parameters + dense + C * L + L * self.head.bias

    def flops_per_token(self, length, training=False):
        """Floating-point operations for one token of a sequence of `length` tokens; training, as
        in GPTConfig."""
        C, L = self.body.width, len(self.labels)
        products = 2 * (C * L + C * C * (bool(self.head.dense) + self.head.reader))
        products /= length if self.head.whole else 1
        body = self.body.flops_per_token(length, training, counted=0)
        return body + (3 * products if training else products)


class Headed(Model):
    """A body and a head. Token ids in, logits of the labels out."""

    task = None             # which of TASKS

    def __init__(self, config, rng=None, *, body=None):
        """`rng` draws the initial weights, those of the head from N(0, 0.02²), unless there is a
        `body` already. Without `rng` they are zeros, for a checkpoint to replace."""
        if config.task != self.task:
            raise ConfigError(f"task: expected {self.task} for a {type(self).__name__}, got "
                              f"{config.task}")
        C, head = config.body.width, config.head
        self.config = config
        self.body = config.body.model(config.body, rng and rng.child("body")) \
            if body is None else body
        self.dense = Linear(C, C, std=INITIAL, rng=rng and rng.child("dense")) \
            if head.dense else None
        self.output = Linear(C, len(config.labels), bias=head.bias, std=INITIAL,
                             rng=rng and rng.child("output"))

    def __call__(self, ids, **inputs):
        """ids [B, T] -> logits, [B, L] of sequences or [B, T, L]; `inputs` as in `features`."""
        x = self.features(ids, **inputs)
        return self.logits(x, key_mask=inputs.get("key_mask"), rng=inputs.get("rng"))

    def features(self, ids, *, types=None, key_mask=None, rng=None, recompute=False):
        """ids [B, T] -> the body's features, [B, T, C].

        types     int [B, T]: of which kind each token is, where the body tells them apart (BERT)
        key_mask  bool [B, T]: False marks padding, on either side (default: nothing is)
        rng       turns dropout on, in the head too
        recompute computes the inside of each block again in the backward pass
        """
        kinds = {} if types is None else {"types": types}
        if kinds and not hasattr(self.config.body, "types"):
            raise ConfigError(f"types: a {type(self.body).__name__} does not tell tokens apart")
        return self.body.features(ids, key_mask=key_mask, rng=rng, recompute=recompute, **kinds)

    def logits(self, x, *, key_mask=None, rng=None):
        """Features x [B, T, C] -> [B, L] of sequences, or [B, T, L]."""
        whole = self.config.head.whole
        x = self.body.summary(x, key_mask) if whole else self.body.each(x)      # [B, C], [B, T, C]
        if self.dense:
            x = ops.tanh(self._read(x, self.dense, rng and rng.child("head", "dense")))
        return self._read(x, self.output, rng and rng.child("head", "output"))

    def _read(self, x, layer, rng):
        x = ops.dropout(x, self.config.head_dropout, rng=rng)
        return layer(x, rng=rng and rng.child("adapter"))

    @staticmethod
    def products(config):
        """{name of each weight that products read: the axis they sum over}: see models/packing.py.
        The output, which is small and decides, stays float32."""
        body = config.body.model.products(config.body)
        return {f"body.{name}": axis for name, axis in body.items()} | (
            {"dense.weight": 0} if config.head.dense else {})

    # -- files: the layouts of the ecosystem ------------------------------------------------------

    @staticmethod
    def stored_names(config):
        """{our parameter's name: Stored}, also of parts that files may have and this leaves out."""
        body, head = config.body.model, config.head
        names = {f"body.{ours}": Stored(head.prefix + stored.name.removeprefix(body.prefix),
                                        stored.transposed)
                 for ours, stored in body.stored_names(config.body).items()}
        for ours, theirs in (("dense", head.dense), ("output", head.output)):
            if theirs:
                names[f"{ours}.weight"] = Stored(f"{theirs}.weight", transposed=True)
                names[f"{ours}.bias"] = Stored(f"{theirs}.bias")
        return names

    def accepted_name(self, key):
        return self.body.accepted_name(key)

    @staticmethod
    def config_to_hub(config, *, end_of_text=None):
        """The `config.json` that describes this model to other libraries."""
        described = config.body.model.config_to_hub(
            config.body, end_of_text=end_of_text, architecture=config.head.architecture)
        described["id2label"] = {str(i): name for i, name in enumerate(config.labels)}
        described["label2id"] = {name: i for i, name in enumerate(config.labels)}
        if config.task == "sequence":
            described["problem_type"] = config.problem
        for key, said in (("classifier_dropout", config.dropout),
                          ("pad_token_id", config.padding)):
            if said is not None:
                described[key] = said
        return described


class SequenceClassifier(Headed):
    """One answer for each sequence: is this review kind, how near are these two sentences?"""

    task = "sequence"

    def loss(self, ids, targets, *, denominator=None, **inputs):
        """The mean over the targets that count, by `config.problem` (see PROBLEMS): in nats, or of
        squares. `denominator` divides the sum in place of their count; `inputs` as in `features`.
        """
        return PROBLEMS[self.config.problem](self(ids, **inputs), targets, denominator)


class TokenClassifier(Headed):
    """One label for each token: is it part of a name, of whose?"""

    task = "token"

    def loss(self, ids, targets, *, denominator=None, **inputs):
        """Mean cross-entropy in nats of targets [B, T] (-100: not counted); the rest likewise."""
        return ops.cross_entropy(self(ids, **inputs), targets, denominator=denominator)


class QuestionAnswerer(Headed):
    """Where in a text the answer to a question stands: [B, T, 2], how likely each token is its
    first, and its last (Devlin et al. 2019, section 4.2)."""

    task = "question"

    def loss(self, ids, targets, *, denominator=None, **inputs):
        """Mean cross-entropy in nats of targets [B, 2], the places of the first and the last token
        of each answer (-100: not counted); the rest likewise.

        No answer stands in padding: those places do not compete. (Other libraries let them, so
        that there a loss depends on how far its row was padded.)
        """
        logits = self(ids, **inputs).transpose(0, 2, 1)                         # [B, 2, T]
        mask = inputs.get("key_mask")
        if mask is not None:
            logits = logits + Tensor(_where_hidden(mask, targets).astype(logits.dtype))
        return ops.cross_entropy(logits, targets, denominator=denominator)


HEADS = (SequenceClassifier, TokenClassifier, QuestionAnswerer)


def _where_hidden(mask, targets):
    """mask [B, T] -> [B, 1, T], 0 for real tokens and -inf for padding; raises ShapeError for a
    target that points there."""
    mask, targets = np.asarray(mask), np.asarray(targets)
    rows, ends = np.nonzero((targets >= 0) & (targets < mask.shape[1]))
    lost = rows[~mask[rows, targets[rows, ends]]]
    if len(lost):
        raise ShapeError(f"QuestionAnswerer: targets: that of row {lost[0]} is in its padding")
    return np.where(mask, 0.0, -np.inf)[:, None]


# -- a head on a model that is there, and out of files ---------------------------------------------


def with_head(model, head, labels=HeadConfig.labels, *, rng, **settings):
    """A `head` (SequenceClassifier, …) for these labels on `model`, with or without a head of its
    own: a language model, a bare encoder, a classifier of other labels.

    The body is the model's, the very parameters; what the model does not have is drawn by `rng`,
    and `new_parameters` tells what that was. `settings`: of HeadConfig. Raises ConfigError.
    """
    model = model.body if isinstance(model, Headed) else model
    config = HeadConfig(model.config, head.task, labels, **settings)
    return head(config, rng, body=model.as_body(config.head.parts, rng.child("body")))


def new_parameters(headed, model):
    """The names of those parameters of `headed` that `model` does not have, and that are
    therefore untrained."""
    known = {id(parameter) for parameter in model.parameters().values()}
    return [name for name, parameter in headed.parameters().items() if id(parameter) not in known]


def described(body, stored, keys):
    """(class of the model, its configuration) of a `config.json` whose `model_type` is `body`'s: a
    head on it where `architectures` names one, else the body itself.

    keys  the names of the tensors beside it, which tell where it names none. Raises ConfigError.
    """
    kind = stored["model_type"]
    named = stored.get("architectures") or [None]
    if not isinstance(named, list):
        raise ConfigError(f"config.json: architectures: expected a list, got {named!r}")
    named = named[0] or body.told_by(kind, keys)
    stored = stored | {"architectures": [named]}
    for head in HEADS:
        layout = body.tasks.get(kind, {}).get(head.task)
        if layout and layout.architecture == named:
            return head, _config_from_hub(stored, body, head.task, layout)
    return body, body.config_from_hub(stored)


def _config_from_hub(stored, body, task, layout):
    labels, padding = _labels_from_hub(stored), stored.get("pad_token_id")
    problem = stored.get("problem_type") if task == "sequence" else None
    if task == "sequence" and problem is None:      # as other libraries guess
        problem = "regression" if len(labels) == 1 else "single_label_classification"
    config = body.config_from_hub(stored)
    return HeadConfig(
        config, task, labels, problem or "single_label_classification",
        dropout=stored.get("classifier_dropout") if layout.dropout != 0 else None,
        padding=None if hasattr(config, "padding") else padding)


def _labels_from_hub(stored):
    named, count = stored.get("id2label"), stored.get("num_labels", 2)
    if named is None:
        if not isinstance(count, int) or not 0 < count <= MOST_LABELS:
            raise ConfigError(f"config.json: num_labels: expected 1 … {MOST_LABELS}, got {count!r}")
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(named, dict) or named.keys() != {str(i) for i in range(len(named))}:
        raise ConfigError("config.json: id2label: expected a name for each of 0, 1, …, got "
                          f"{reprlib.repr(named)}")
    return tuple(named[str(i)] for i in range(len(named)))
