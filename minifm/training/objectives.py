"""What a model is trained to do: an objective makes batches to learn from out of windows of text,
and knows the loss of a batch and what it counts.

    causal      the next token                                      GPT, Llama
    masked      what stood where tokens are masked                  BERT, RoBERTa
      … and whether a second text follows the first                 BERT
    diffusion   what stands behind masks, any number of them        BERT, RoBERTa
    denoising   what stood where spans were left out                T5, the Transformer
      … or how a text goes on

A batch is a tuple of arrays with the sequences along their first axis, so that the trainer can
cut it into pieces. The loss of a piece is its *sum* divided by `denominator`, the count of the
whole batch: the losses and gradients of the pieces then add up to those of the batch.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from minifm import ops
from minifm.config import check, setting
from minifm.diffusion import absorbing
from minifm.errors import ConfigError
from minifm.models.bert import Bert
from minifm.models.causal import CausalModel
from minifm.models.encoder import Encoder
from minifm.models.seq2seq import Seq2SeqModel
from minifm.text.masking import MaskedBatches, MaskedPairs, Words
from minifm.text.noising import NoisedBatches
from minifm.text.rows import EncoderRows, SentencePairs
from minifm.text.spans import PrefixBatches, SpanBatches, counts, window_for
from minifm.text.tokenizer import FIRST, MASK, PADDING, SENTINELS


@dataclass(frozen=True)
class LearningConfig:
    """What is to be guessed, where an objective leaves a choice."""

    hidden_part: float = setting(
        0.15, "masked and denoising: the fraction of the tokens that is to be guessed", above=0,
        below=1)
    whole_words: bool = setting(
        False, "masked: words are chosen as a whole, not the tokens that they are made of")
    next_sentence: bool = setting(
        False, "masked: of two texts in a row, guess whether the second follows the first, too")
    diffusion: bool = setting(
        False, "encoders: of each text any number of tokens is masked, from one to all; such "
        "a model writes (minifm generate), and its loss bounds the likelihood of a text")
    span: float = setting(3.0, "denoising: tokens left out at a place, on average", least=1)
    prefix: bool = setting(
        False, "denoising: no spans are left out; the source is how a text begins, the target how "
        "it goes on")

    __post_init__ = check


class Objective:
    """What all objectives do alike, whatever a batch is of.

    divisible   the losses of a batch's pieces add up to the batch's, as `accumulate` needs
    """

    divisible = True

    def loss(self, model, batch, *, denominator, rng):
        """Σ losses / denominator, a scalar Tensor; `rng` turns dropout on."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss is")

    def training_loss(self, model, batch, *, denominator, rng):
        """(what training makes small: `loss` and whatever a model adds to it; where it adds
        something, {"loss": `loss` alone, name: figure} of that)."""
        return self.loss(model, batch, denominator=denominator, rng=rng), {}

    def fullest(self, batch):
        """The batch of this shape that takes the most memory."""
        return batch

    def target_bytes(self, batch, lengths):
        """Bytes of text that the counted targets stand for, where the loss is the logarithm of
        their probability as a text; else 0. `lengths` [V] in bytes by id."""
        return 0

    def constrain(self, model):
        """Called after each update of the weights: bring back what must not leave its bounds."""


class TokenObjective(Objective):
    """What objectives do alike whose batch is (ids [B, T], targets [B, T], …), target -100 not
    counted.

    recompute  keep only what enters each block of the model, for less memory (ops/checkpoint.py)
    learning   a LearningConfig; raises ConfigError for what this objective has no use for

    special_tokens are what a vocabulary must have beside end-of-text; `shape` are settings of the
    model that follow: the parts that it needs.
    """

    name = ""
    settings = ()               # those of LearningConfig that it has a use for
    special_tokens = ()
    unit = "token"              # of the loss
    whole_context = False       # whether rows are always as long as the model's context
    teaches = {}                # settings of the model that say what it has learnt
    scale = "nats"              # that it is measured in
    reads = "token"             # what throughput is counted in

    def __init__(self, recompute=False, learning=LearningConfig()):
        for setting_name, default in vars(LearningConfig()).items():
            given = getattr(learning, setting_name)
            if given != default and setting_name not in self.settings:
                raise ConfigError(f"{setting_name}: a model that learns by the {self.name} "
                                  "objective has no such setting")
        self.recompute, self.learning, self.shape = recompute, learning, {}

    # -- out of windows of text --------------------------------------------------------------------

    def window(self, length):
        """Tokens of text in a row of `length` tokens, which is what the model then reads."""
        return length

    def batches(self, windows, tokenizer, *, seed, apart=False):
        """What to learn from; `windows` are TrainingBatches or HeldOutBatches (text/packing.py).
        `apart`: of each window, only text of one document sees each other."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its batches are")

    # -- of a batch ------------------------------------------------------------------------------

    def count(self, batch):
        """How many targets count."""
        return ops.count_targets(batch[1])

    def tokens(self, batch):
        """How many tokens the model reads: what throughput is measured in."""
        return batch[0].size

    def flops(self, model, batch):
        """Floating-point operations of one training step on the batch (forward and backward)."""
        ids = batch[0]
        return ids.size * model.config.flops_per_token(ids.shape[-1], training=True)

    def learnt(self, batch):
        """(ids [N], bool [N]) of the first sequence of a batch: its tokens as they were before
        anything was masked, and which of them are learnt. Raises ConfigError where it is not
        tokens that are learnt."""
        raise ConfigError(f"show_mask: what is learnt by the {self.name} objective are no tokens")


class CausalLanguageModel(TokenObjective):
    """Predict the next token; where documents must not see each other, the batch has
    document_starts [B, T], too (models/causal.py)."""

    name = "causal"

    def batches(self, windows, tokenizer, *, seed, apart=False):
        return windows                      # which have document_starts themselves

    def loss(self, model, batch, **choice):
        ids, targets, inputs = self._inputs(batch)
        return model.loss(ids, targets, **inputs, **choice)

    def training_loss(self, model, batch, **choice):
        ids, targets, inputs = self._inputs(batch)
        return model.training_loss(ids, targets, **inputs, **choice)

    def _inputs(self, batch):
        ids, targets, *starts = batch
        return ids, targets, {"document_starts": starts[0] if starts else None,
                              "recompute": self.recompute}

    def learnt(self, batch):
        ids, targets = batch[0][0], batch[1][0]
        counted = np.append(False, targets != ops.loss.IGNORE)
        tokens = np.append(ids, targets[-1:])
        tokens[1:][counted[1:]] = targets[counted[1:]]
        end = np.flatnonzero(counted).max(initial=0) + 1        # behind it there is but padding
        return tokens[:end], counted[:end]

    def target_bytes(self, batch, lengths):
        return _bytes_of(batch[1], lengths)


class MaskedLanguageModel(TokenObjective):
    """Guess what stood where tokens were masked, as text/masking.py does; where rows are padded,
    the batch has key_mask [B, T], too (models/bert.py)."""

    name = "masked"
    settings = ("hidden_part", "whole_words", "next_sentence")
    special_tokens = (FIRST, PADDING, MASK)
    unit = "masked token"
    teaches = {"absorbing": False}

    def window(self, length):
        if length < 3:
            raise ConfigError(f"length: a row of text between two marks needs at least 3 tokens, "
                              f"got {length}")
        return length - 2

    def batches(self, windows, tokenizer, *, seed, apart=False):
        rows = EncoderRows(
            windows, first=tokenizer.first, separator=tokenizer.separator,
            padding=tokenizer.padding, apart=tokenizer.end_of_text if apart else None)
        return MaskedBatches(rows, **self.masks(tokenizer, seed),
                             padding=tokenizer.padding if apart else None)

    def masks(self, tokenizer, seed):
        """How batches are masked."""
        return {"mask": tokenizer.mask, "specials": tokenizer.specials,
                "vocabulary": tokenizer.vocabulary, "seed": seed,
                "probability": self.learning.hidden_part,
                "words": Words(tokenizer.token_bytes) if self.learning.whole_words else None}

    def loss(self, model, batch, *, denominator, rng):
        ids, targets, *mask = batch
        return model.loss(ids, targets, key_mask=mask[0] if mask else None,
                          denominator=denominator, rng=rng, recompute=self.recompute)

    def learnt(self, batch):
        ids, targets = batch[0][0], batch[1][0]
        counted = targets != ops.loss.IGNORE
        return np.where(counted, targets, ids), counted

    def flops(self, model, batch):
        """The head reads only what was chosen."""
        ids = batch[0]
        return ids.size * model.config.flops_per_token(
            ids.shape[-1], training=True, counted=self.count(batch) / ids.size)


class AbsorbingDiffusion(MaskedLanguageModel):
    """Guess what stands behind masks, of which a text has any number, so that the loss bounds the
    negative log-likelihood of the text (diffusion/absorbing.py): the batch is (ids [B, T],
    text [B, T], weights [B]), made by text/noising.py.

    It is in nats a token of the text, as that of a model that predicts the next token; what is
    held out, and all figures that follow, can be compared with such a model's.
    """

    name = "diffusion"
    settings = ("diffusion",)
    unit = "token, at most"
    whole_context = True        # a text is written into a row of that length
    teaches = {"absorbing": True}

    def batches(self, windows, tokenizer, *, seed, apart=False):
        if apart:
            raise ConfigError("apart: with diffusion, rows are windows of text from edge to edge")
        return NoisedBatches(windows, first=tokenizer.first, separator=tokenizer.separator,
                             mask=tokenizer.mask, seed=seed)

    def loss(self, model, batch, *, denominator, rng):
        return absorbing.bound(model, *batch, denominator=denominator, rng=rng,
                               recompute=self.recompute)

    def target_bytes(self, batch, lengths):
        return _bytes_of(batch[1], lengths)

    def learnt(self, batch):
        ids, text = batch[0][0], batch[1][0]
        return np.where(text == ops.loss.IGNORE, ids, text), absorbing.hidden(ids, text)

    def fullest(self, batch):
        """All tokens are hidden: the head reads each of them."""
        ids, text, weights = batch
        return np.where(text == ops.loss.IGNORE, ids, text == 0), text, weights

    def flops(self, model, batch):
        ids, text = batch[:2]
        return ids.size * model.config.flops_per_token(
            ids.shape[-1], training=True, counted=absorbing.hidden(ids, text).mean())


class MaskedAndNextSentence(MaskedLanguageModel):
    """The same of two texts in a row, and guess whether the second follows the first: the batch is
    (ids [B, T], targets [B, T], types [B, T], follows [B]).

    The guess of a row weighs as much as that of all the tokens that are masked in a row on the
    average: then the loss is about the sum of the two means that Devlin et al. (2019) add up.
    """

    name = "masked and next-sentence"
    unit = "masked token, with the guess of the next sentence"

    def __init__(self, recompute=False, learning=LearningConfig()):
        super().__init__(recompute, learning)
        self.shape = {"pooler": True, "sentence_head": True}

    def window(self, length):
        return super().window(length) - 1

    def batches(self, windows, tokenizer, *, seed, apart=False):
        if apart:
            raise ConfigError("apart: with next_sentence, a row has two texts that see each other")
        pairs = SentencePairs(windows, first=tokenizer.first, separator=tokenizer.separator,
                              seed=seed)
        return MaskedPairs(pairs, **self.masks(tokenizer, seed))

    def loss(self, model, batch, *, denominator, rng):
        ids, targets, types, follows = batch
        weight = self.learning.hidden_part * ids.shape[1]
        return model.loss(ids, targets, types=types, sentence_targets=follows,
                          denominator=denominator, sentence_denominator=denominator / weight,
                          rng=rng, recompute=self.recompute)


class Denoising(TokenObjective):
    """Write the target that belongs to a source: the batch is (source [B, S], targets [B, T],
    source_mask [B, S]), made by text/spans.py."""

    name = "denoising"
    settings = ("hidden_part", "span", "prefix")
    unit = "token of the target"

    def __init__(self, recompute=False, learning=LearningConfig()):
        super().__init__(recompute, learning)
        plain = LearningConfig(prefix=True)
        for setting_name in ("hidden_part", "span"):
            if learning.prefix and getattr(learning, setting_name) != getattr(plain, setting_name):
                raise ConfigError(f"{setting_name}: with prefix, no spans are left out; leave one "
                                  "of them out")

    @property
    def special_tokens(self):
        return (PADDING,) if self.learning.prefix else (PADDING, *SENTINELS)

    def window(self, length):
        if self.learning.prefix:
            if length < 2:
                raise ConfigError(f"length: a text and how it goes on need at least 2 tokens, got "
                                  f"{length}")
            return length
        window = window_for(length, self.learning.hidden_part, self.learning.span)
        spans = counts(window, self.learning.hidden_part, self.learning.span)[1]
        if spans > len(SENTINELS):
            raise ConfigError(f"length: {length} tokens have {spans} spans, and vocabularies have "
                              f"{len(SENTINELS)} sentinels; choose shorter sequences, or a longer "
                              "span")
        return window

    def batches(self, windows, tokenizer, *, seed, apart=False):
        made = PrefixBatches if self.learning.prefix else partial(
            SpanBatches, sentinels=tokenizer.sentinels, end=tokenizer.end_of_text,
            density=self.learning.hidden_part, span=self.learning.span)
        return made(windows, seed=seed, padding=tokenizer.padding,
                    apart=tokenizer.end_of_text if apart else None)

    def loss(self, model, batch, *, denominator, rng):
        source, targets, mask = batch
        return model.loss(source, model.read_before(targets), targets,
                          source_mask=None if mask.all() else mask, denominator=denominator,
                          rng=rng, recompute=self.recompute)

    def learnt(self, batch):
        source, targets = batch[0][0][batch[2][0]], batch[1][0][batch[1][0] != ops.loss.IGNORE]
        return np.append(source, targets), np.arange(len(source) + len(targets)) >= len(source)

    def tokens(self, batch):
        return batch[0].size + batch[1].size

    def flops(self, model, batch):
        (B, S), T = batch[0].shape, batch[1].shape[1]
        return B * model.config.flops(S, T, training=True)


def objective_of(model, recompute=False, learning=LearningConfig()):
    """The objective by which models of a class learn from text without labels."""
    if issubclass(model, Encoder):
        if learning.next_sentence and not issubclass(model, Bert):
            raise ConfigError(f"next_sentence: a {model.__name__} has no head that guesses it, a "
                              "Bert has")
        kind = AbsorbingDiffusion if learning.diffusion else \
            MaskedAndNextSentence if learning.next_sentence else MaskedLanguageModel
    else:
        kind = next(kind for family, kind in ((CausalModel, CausalLanguageModel),
                                              (Seq2SeqModel, Denoising))
                    if issubclass(model, family))
    return kind(recompute, learning)


def _bytes_of(targets, lengths):
    """Bytes of text that those of the `targets` stand for that count."""
    return lengths[targets[targets != ops.loss.IGNORE]].sum().item()
