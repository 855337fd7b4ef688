"""What a strategy is asked to write: texts behind prompts, of some length, and what they must be.

A strategy (`Sampling`, `Beams`, `Contrastive`, `Speculative`) has one method, `write(job)`, which
yields {row: its new token} until every row is finished or full.
"""

from dataclasses import dataclass

import numpy as np

from minifm.errors import require_finite
from minifm.rng import Rng
from minifm.text.rows import padded


@dataclass
class Job:
    """Texts to write with `model`.

    prompts      lists of token ids, of any lengths, one for each row
    max_tokens   so many new ones a row, at most
    rng          what is drawn for row r comes from the stream ("row", r)
    finished     a set to which the reader of the tokens may add the rows that need no more
    cache        the format of the key-value cache; see Cache
    guide        the Guide that all texts must follow, or None
    ends         the ids with which a text ends; may be none
    vocabulary   ids from there on, with which some models fill their tables, mean nothing and do
                 not come; None: all may
    """

    model: object
    prompts: list
    max_tokens: int
    rng: Rng
    finished: set = ()
    cache: str | None = None
    guide: object = None
    ends: frozenset = frozenset()
    vocabulary: int | None = None

    def texts(self):
        """A Text for each row, with nothing written yet."""
        context = self.model.config.context
        return [Text(prompt, min(len(prompt) + self.max_tokens, context), self.guide,
                     self.vocabulary) for prompt in self.prompts]

    @property
    def capacity(self):
        """The most tokens of a row: what a cache must hold."""
        return max(map(len, self.prompts)) + self.max_tokens

    def uniform(self, row, number, *purpose):
        """The number in [0, 1) that decides about the new token `number` of a row."""
        return self.rng.child("row", row, number, *purpose).uniform_number()

    def live(self, texts):
        """The rows that go on."""
        return [row for row, text in enumerate(texts) if row not in self.finished and text.room]


class Text:
    """One text as it grows: its token ids, the prompt's first, and how far its guide has come.

    limit       the most ids that it may have
    guide       what it must be, or None
    vocabulary  as in Job
    """

    def __init__(self, prompt, limit, guide=None, vocabulary=None):
        self.ids, self.limit, self.guide = [int(token) for token in prompt], limit, guide
        self.vocabulary = vocabulary
        self.state = guide and guide.start

    @property
    def room(self):
        """How many tokens may still come."""
        return self.limit - len(self.ids)

    def add(self, token):
        self.ids.append(token)
        if self.guide is not None:
            self.state = self.guide.advance(self.state, token)

    def allow(self, logits):
        """The logits [V] of the next token as float64, -inf for those that may not come. Raises
        AnomalyError for logits that tell nothing."""
        x = logits.astype(np.float64)
        require_finite(x.max())             # -inf hides a token
        if self.vocabulary is not None:
            x[self.vocabulary :] = -np.inf
        if self.guide is not None:
            x[~self.guide.allowed(self.state, self.room)] = -np.inf
        return x

    def fork(self):
        """The same text, to go on otherwise."""
        other = Text(self.ids, self.limit, self.guide, self.vocabulary)
        other.state = self.state
        return other


def batched(rows):
    """(ids [B, T], counts [B]) of lists of tokens, with padding on the right."""
    return padded(rows), np.array([len(row) for row in rows])


def in_turn(written, finished):
    """Yield {row: token} from `written`, {row: [token]}: the first of each row, the second, …,
    without the rows that are `finished` by then."""
    for place in range(max(map(len, written.values()), default=0)):
        step = {row: tokens[place] for row, tokens in written.items()
                if place < len(tokens) and row not in finished}
        if step:
            yield step
