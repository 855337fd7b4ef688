"""Perplexity and bits per byte of documents, by a window that slides over each of them.

A model looks at no more tokens than its context. A document that is longer is read in windows that
overlap: each goes on by `stride` tokens and scores just these, so that every token but the first
ones of a document has at least context - stride tokens before it. A document's first token follows
what stands before a text (Llama's <s>), or else an end-of-text, and every one of its tokens is
scored once. The smaller the stride, the better the model knows where it is, and the longer it
takes.

Bytes are those of the text that was given. A vocabulary that changes the text first (BERT's case,
T5's white space) spends no bits on what it leaves out: then `changed` counts the documents that its
tokens do not say in full, and the bits would not do to write them.
"""

import math
from dataclasses import dataclass
from itertools import islice

from minifm.config import check, setting
from minifm.errors import ConfigError
from minifm.evaluation.score import Request, score
from minifm.text.bytelevel import as_bytes
from minifm.text.offsets import before_text, encode_with_offsets

FIRST_FOLLOWS = "that a document's first token would follow"
TOGETHER = 32               # batches of windows that are sorted by length


@dataclass(frozen=True)
class WindowConfig:
    """How documents are read."""

    context: int | None = setting(None, "tokens of a window (default: the model's context)",
                                  least=1)
    stride: int | None = setting(
        None, "by how many a window goes on; each token has at least context - stride before it "
              "(default: half of the context)", least=1)
    batch: int = setting(8, "windows computed at a time; changes no result", least=1)
    tokens: int | None = setting(None, "score no more than so many (default: all)", least=1)

    __post_init__ = check

    def of(self, most):
        """(context, stride) for a model that looks at `most` tokens; raises ConfigError for what
        it cannot do."""
        context = self.context or most
        stride = self.stride or max(1, context // 2)
        if context > most:
            raise ConfigError(f"context: expected at most the model's {most}, got {context}")
        if stride > context:
            raise ConfigError(f"stride: expected at most the context of {context}, got {stride}")
        return context, stride


@dataclass(frozen=True)
class Measured:
    """What a model says of `documents` documents with `tokens` tokens and `bytes` bytes: `nats`
    in all. Of `changed` documents the tokens do not say everything."""

    nats: float
    tokens: int
    bytes: int
    documents: int
    changed: int
    context: int
    stride: int

    @property
    def loss(self):
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self):
        """e to the loss; inf where that is beyond all numbers."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self):
        """What compares models of different tokenizers."""
        return self.nats / math.log(2) / self.bytes


def sliding_requests(ids, context, stride, before):
    """Yield Requests that score every one of `ids` once; the first follows the token `before`."""
    ids, scored = [before, *ids], 1
    while scored < len(ids):
        end = min(scored + (context if scored == 1 else stride), len(ids))
        first = max(0, end - 1 - context)
        yield Request(ids[first:end], scored - first)
        scored = end


def perplexity(model, tokenizer, documents, config=WindowConfig()):
    """The Measured of texts (bytes or str). Raises ConfigError for a tokenizer without an
    end-of-text, or documents without a token."""
    before_text(tokenizer, FIRST_FOLLOWS)
    context, stride = config.of(model.config.context)
    tally = empty_tally()
    requests = requests_of(tokenizer, documents, context, stride, config.tokens, tally)
    nats = 0.0
    while some := list(islice(requests, TOGETHER * config.batch)):
        nats -= math.fsum(s.log_likelihood for s in score(model, some, batch=config.batch))
    if not tally["tokens"]:
        raise ConfigError("evaluation: there is no text to score")
    return Measured(nats, context=context, stride=stride, **tally)


def empty_tally():
    """What `requests_of` counts in."""
    return {"tokens": 0, "bytes": 0, "documents": 0, "changed": 0}


def requests_of(tokenizer, documents, context, stride, most, tally):
    """The windows of all documents, counted in `tally`; no more than `most` tokens."""
    before = before_text(tokenizer, FIRST_FOLLOWS)
    for text in documents:
        ids = tokenizer.encode(text).tolist()
        data = as_bytes(text)
        if most is not None and len(ids) > most - tally["tokens"]:
            ids = ids[: most - tally["tokens"]]
            ends = encode_with_offsets(tokenizer, text)[1][:, 1]
            data = data[: ends[len(ids) - 1]] if ids else b""
        if not ids:
            continue
        tally["tokens"] += len(ids)
        tally["bytes"] += len(data)
        tally["documents"] += 1
        tally["changed"] += tokenizer.decode(ids) != data
        yield from sliding_requests(ids, context, stride, before)
        if tally["tokens"] == most:
            return
