"""Writing with a language model: prompts in, tokens out, one at a time.

How each token comes about is the strategy's: `Sampling.write` (sampling.py) is the loop to read.
`generate` puts text around it: streaming, stop strings, the reason it ended.
"""

from dataclasses import dataclass, field

import numpy as np

from minifm.errors import ConfigError
from minifm.generation.conditioned import Conditioned, require_sources
from minifm.generation.job import Job
from minifm.generation.sampling import Sampling
from minifm.generation.unmasking import Filler, Unmasking
from minifm.models.seq2seq import Seq2SeqModel
from minifm.rng import Rng
from minifm.text import StreamDecoder, end_of_text_of
from minifm.text.offsets import ids_before


@dataclass
class Completion:
    """What was written after one prompt, and why it ended there.

    reason: "end" (a token that ends a text), "stop" (a stop string), "length" (max_tokens)
    or "context" (the model can look at no more).
    """

    text: str = ""
    tokens: list = field(default_factory=list)
    reason: str = ""


def generate(model, tokenizer, prompts, *, strategy=None, max_tokens=200, stop=(), seed=0,
             on_text=None, cache=None, constraint=None, ends=(), suffix=""):
    """One Completion for each prompt (str, bytes or token ids); all are written side by side. An
    encoder-decoder reads the prompts, as sources with their end, and writes the targets. What
    `tokenizer.json` puts there, such as Llama's <s>, is put before prompts that are text.

    strategy   how tokens are chosen: Sampling (the default), Beams, Contrastive or Speculative;
               of a model that writes by diffusion, Unmasking
    stop       strings that end a completion; they are not part of its text
    on_text    called as on_text(prompt number, piece) as the text grows
    cache      "bf16" keeps keys and values rounded to bf16: half the memory, and faster late in a
               long text; default: as they are computed
    constraint what each text has to be: Choices, Regex or JsonSchema. Where max_tokens or the
               context come near, only tokens come that leave room for the rest; where there never
               was room enough, the reason is not "end" and the text is not whole
    ends       ids of more tokens, beside the tokenizer's end-of-text, with which a text ends (a
               turn's end, see `minifm.hub.end_tokens`); with a constraint, that says where
    suffix     text that stands max_tokens behind each prompt, of a model that writes by diffusion

    Raises ConfigError for an empty prompt (which only diffusion can do without), one that the
    model's context cannot hold, an empty stop string, max_tokens below 1, settings of another kind
    of model, an unknown format of the cache, or a constraint that nothing meets.
    """
    for name, value in (("prompts", prompts), ("stop", stop)):
        if isinstance(value, (str, bytes)):
            raise ConfigError(f"{name}: expected a list of strings, got one string {value!r:.40}")
    if not all(stop):
        raise ConfigError("stop: expected strings to stop before, got an empty one")
    if constraint is not None and stop:
        raise ConfigError("stop: a text with a constraint ends where the constraint says; leave "
                          "one of them out")
    if not len(prompts):
        return []
    begins = isinstance(model, Seq2SeqModel)        # it answers; else its texts go on with prompts
    refuse_foreign(model, strategy, cache, constraint, suffix)
    model, ids = as_writer(model, tokenizer, prompts, suffix)
    strategy = strategy or (Unmasking() if isinstance(model, Filler) else Sampling())
    guide = constraint and constraint.guide(tokenizer, model.config.vocabulary, begins)
    ends = frozenset({*(() if guide else ends), tokenizer.end_of_text} - {None})
    job = Job(model, ids, max_tokens, Rng(seed), set(), cache, guide, ends, tokenizer.vocabulary)
    writers = [_Writer(tokenizer, stop, ends, begins) for _ in prompts]
    emit = on_text or (lambda row, piece: None)
    for step in written(job, strategy):
        for row, token in step.items():
            emit(row, writers[row].add(token))
            if writers[row].completion.reason:
                job.finished.add(row)
    for row, writer in enumerate(writers):
        if not writer.completion.reason:
            stopped_early = len(writer.completion.tokens) < max_tokens
            emit(row, writer.finish("context" if stopped_early else "length"))
    return [writer.completion for writer in writers]


def _encoded(prompts, tokenizer, sources):
    """The ids of prompts: of a text, behind what `tokenizer.json` puts before it; of `sources`,
    with an end. Ids stay as they are. Raises ConfigError for a source without a token."""
    ids = [tokenizer.encode(prompt) if isinstance(prompt, (str, bytes)) else prompt
           for prompt in prompts]
    before, behind = ids_before(tokenizer), []
    if sources:
        require_sources(ids)
        before = []
        behind = [end_of_text_of(tokenizer, "with which an encoder-decoder's sources end")]
    return [row if row is prompt else np.concatenate([before, row, behind]).astype(np.int64)
            for row, prompt in zip(ids, prompts)]


def as_writer(model, tokenizer, prompts, suffix=""):
    """(the model as one that writes behind rows of token ids, those rows): decoders do; an
    encoder-decoder has read the prompts first, and one that writes by diffusion fills rows."""
    ids = _encoded(prompts, tokenizer, isinstance(model, Seq2SeqModel))
    if isinstance(model, Seq2SeqModel):
        model = Conditioned(model, ids)
        return model, model.prompts
    if writes_by_diffusion(model):
        model = Filler(model, tokenizer, ids, tokenizer.encode(suffix, behind=True))
        return model, model.prompts
    return model, ids


def writes_by_diffusion(model):
    return getattr(model, "absorbing", False)


def refuse_foreign(model, strategy, cache, constraint, suffix):
    """Raise ConfigError for what has no meaning with this kind of model."""
    if writes_by_diffusion(model):
        expected = "no such setting for a model that writes by diffusion"
        wrong = {"strategy": strategy is not None and not isinstance(strategy, Unmasking),
                 "cache": cache is not None, "constraint": constraint is not None}
    else:
        expected = f"a model that writes by diffusion, not a {type(model).__name__} that does not"
        wrong = {"strategy": isinstance(strategy, Unmasking), "suffix": suffix}
    for name, given in wrong.items():
        if given:
            raise ConfigError(f"{name}: expected {expected}")


def tokens(model, prompts, strategy, max_tokens, rng, finished=(), cache=None, guide=None):
    """Yield {row: its new token} until every row is finished, full, or has `max_tokens`; the
    arguments are those of Job."""
    return written(Job(model, prompts, max_tokens, rng, finished, cache, guide), strategy)


def written(job, strategy):
    """Yield {row: its new token}, as `strategy` writes it; raises ConfigError, see `generate`."""
    check_prompts(job.prompts, job.model.config.context, job.max_tokens)
    yield from strategy.write(job)


def check_prompts(ids, context, max_tokens):
    """Raise ConfigError for a prompt that the model cannot continue, or nothing to write."""
    if max_tokens < 1:
        raise ConfigError(f"max_tokens: expected at least 1, got {max_tokens}")
    for number, prompt in enumerate(ids, 1):
        which = f"prompt {number} of {len(ids)}" if len(ids) > 1 else "the prompt"
        if len(prompt) == 0:
            raise ConfigError(f"{which} is empty; expected at least one token to continue")
        if len(prompt) >= context:
            raise ConfigError(f"{which} has {len(prompt)} tokens, and the model's context of "
                              f"{context} leaves no room for a completion; shorten it")


class _Writer:
    """The text of one row as it grows, holding back what may become a stop string."""

    def __init__(self, tokenizer, stop, ends, begins):
        self.completion = Completion()
        self.stop = stop
        self.ends = ends
        self.decoder = StreamDecoder(tokenizer, begins)
        self.held = ""

    def add(self, token):
        """The text that is certain now that `token` has come."""
        self.completion.tokens.append(token)
        if token in self.ends:
            return self.finish("end")
        self.held += self.decoder.add(token)
        places = [i for i in (self.held.find(s) for s in self.stop) if i >= 0]
        if places:
            self.held = self.held[: min(places)]
            return self.finish("stop")
        keep = max((_overlap(self.held, s) for s in self.stop), default=0)
        return self._release(len(self.held) - keep)

    def finish(self, reason):
        """Nothing more comes, for `reason`: the text held back until now."""
        self.completion.reason = reason
        if reason != "stop":
            self.held += self.decoder.finish()
        return self._release(len(self.held))

    def _release(self, count):
        piece, self.held = self.held[:count], self.held[count:]
        self.completion.text += piece
        return piece


def _overlap(text, stop):
    """The length of the longest end of `text` that begins `stop`."""
    return max((n for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
               default=0)
