"""Writing by diffusion: a row of masks, undone a few at a time, in any order.

The network sees the row as it stands and says, for each mask, how likely each token is behind it.
One after the other that is sampling with the chain rule, in whatever order; as many calls of the
network as tokens, and each token sees all that came before it. Several in one call are drawn as if
they did not depend on each other: faster, and not exact. Which come first is the order:

    random       any, as many in each step: the process of diffusion/absorbing.py backwards, with
                 the mean number of masks at each time in place of a random one; so with a step for
                 each token it is what ancestral sampling is with infinitely many (Zheng et al.
                 2024), which draws exactly what the network has learnt
    ancestral    each mask is undone by chance, with the posterior's probability (Sahoo et al. 2024,
                 MDLM): how many come in a step is chance, too
    confidence   a token is drawn behind each mask, and those are kept that the network gives the
                 greatest probability (Nie et al. 2025, LLaDA, "low-confidence remasking"): the text
                 is steadier, and not a draw of what the network has learnt

What stands around the masks stays as it is, on both sides. So a text may be filled in as well as
continued, and with `block` it is written from left to right, some tokens at a time.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from minifm import backends
from minifm.config import check, setting
from minifm.diffusion.absorbing import SCHEDULES, undone
from minifm.errors import ConfigError, require_finite
from minifm.generation.conditioned import Limits
from minifm.generation.job import in_turn
from minifm.generation.sampling import Sampling, draw, probabilities
from minifm.tensor import no_grad

ORDERS = ("random", "ancestral", "confidence")


@dataclass(frozen=True)
class Unmasking:
    """How masks are undone; `sampling` says how the token behind one is drawn."""

    steps: int | None = setting(
        None, "calls of the network for a whole text (default: one for each token)", least=1,
        most=1 << 20)
    order: str = setting("random", f"which masks are undone first: {', '.join(ORDERS)}",
                         choices=ORDERS)
    schedule: str = setting(
        "linear", "how many masks are left at each time: linear, as many undone in each step; "
        "cosine, few at first; square, few at last", choices=tuple(SCHEDULES))
    block: int | None = setting(
        None, "tokens that are written before those behind them begin (default: all at once)",
        least=1)
    sampling: Sampling = Sampling()

    __post_init__ = check

    def write(self, job):
        """Yield {row: its new token}, from left to right once a block is whole; see Job. The model
        is a Filler."""
        size = min(self.block or job.max_tokens, job.max_tokens)
        blocks = -(-job.max_tokens // size)
        steps = -(-(self.steps or job.max_tokens) // blocks)
        if self.steps and self.steps < blocks:
            raise ConfigError(f"steps: expected one at least for each of {blocks} blocks, got "
                              f"{self.steps}")
        times = np.arange(steps, -1, -1) / steps
        texts = job.texts()
        canvas = Canvas(job, [text.limit for text in texts], self.sampling)
        while live := job.live(texts):
            places = {row: np.arange(len(texts[row].ids),
                                     len(texts[row].ids) + min(size, texts[row].room))
                      for row in live}
            UNMASKERS[self.order](canvas, places, SCHEDULES[self.schedule], times)
            found = {row: canvas.ids[row, there].tolist() for row, there in places.items()}
            for row, tokens in found.items():
                for token in tokens:
                    texts[row].add(token)
            yield from in_turn(found, job.finished)


# -- the orders: (canvas, {row: places of its masks}, schedule, times from 1 down to 0) ------------


def random_order(canvas, places, schedule, times):
    """As many masks of each row as the schedule says, any of them."""
    orders = {row: there[canvas.rng(row, there[0], "order").permutation(len(there))]
              for row, there in places.items()}
    for t, s in pairwise(times):
        canvas.fill({row: order[len(order) - left(len(order), schedule, t):
                                len(order) - left(len(order), schedule, s)]
                     for row, order in orders.items()})


def ancestral(canvas, places, schedule, times):
    """Each mask with the posterior's probability that it is undone by time s."""
    for step, (t, s) in enumerate(pairwise(times)):
        part = undone(schedule.kept(s), schedule.kept(t))
        places = {row: there[canvas.masked(row, there)] for row, there in places.items()}
        canvas.fill({row: there[[canvas.uniform(row, place, "undone", step) < part
                                 for place in there.tolist()]]
                     for row, there in places.items()})


def confidence(canvas, places, schedule, times):
    """Of the tokens drawn behind all masks, as many as the schedule says, those that the network is
    surest of; the others are masks again."""
    sizes = {row: len(there) for row, there in places.items()}
    for step, (t, s) in enumerate(pairwise(times)):
        counts = {row: left(n, schedule, t) - left(n, schedule, s) for row, n in sizes.items()}
        places = {row: there[canvas.masked(row, there)] for row, there in places.items()}
        if any(counts.values()):
            for row, (tokens, sure) in canvas.guesses(places, "guess", step).items():
                best = np.argsort(-sure, kind="stable")[: counts[row]]
                canvas.ids[row, places[row][best]] = tokens[best]


def left(n, schedule, t):
    """How many of n masks there are at time t: n (1 - α_t), a whole number."""
    return round(n * (1 - float(schedule.kept(t))))


UNMASKERS = {"random": random_order, "ancestral": ancestral, "confidence": confidence}


# -- the row of masks ------------------------------------------------------------------------------


class Canvas:
    """ids [B, T] as they stand while masks are undone, and the network's guesses about them."""

    def __init__(self, job, limits, sampling):
        self.job, self.model, self.sampling = job, job.model, sampling
        self.ids = self.model.rows(job.prompts, limits)

    def rng(self, row, place, *purpose):
        """The stream of what is chance at a place: what it is called does not depend on what stands
        in other rows, nor on how long the prompt is."""
        return self.job.rng.child("row", row, int(place) - len(self.job.prompts[row]), *purpose)

    def uniform(self, row, place, *purpose):
        """The number in [0, 1) that decides about a place."""
        return self.rng(row, place, *purpose).uniform_number()

    def masked(self, row, places):
        """bool: which of the places are masks."""
        return self.ids[row, places] == self.model.mask

    def fill(self, places):
        """Put a token into each of {row: places}, all drawn from the row as it stands."""
        for row, (tokens, _) in self.guesses(places, "token").items():
            self.ids[row, places[row]] = tokens

    def guesses(self, places, *purpose):
        """{row: (a token drawn for each of its places, the network's probability of each)}."""
        rows = np.repeat(list(places), [len(there) for there in places.values()]).astype(int)
        flat = np.concatenate([*places.values(), np.zeros(0, int)]).astype(int)
        tokens, sure = np.zeros(len(flat), np.int64), np.zeros(len(flat))
        if len(flat):
            for i, logits in enumerate(self.model.logits(self.ids, rows, flat)):
                seen = self.ids[rows[i]][self.ids[rows[i]] != self.model.mask]
                tokens[i] = draw(logits, seen, self.sampling,
                                 self.uniform(rows[i], flat[i], *purpose))
                sure[i] = probabilities(logits)[tokens[i]]
        return {row: (tokens[rows == row], sure[rows == row]) for row in places}


class Filler:
    """`model` that has learnt to guess behind masks, as one that writes behind its prompts.

    prompts   what each row begins with: the mark in front, then the prompt
    config    its vocabulary, and the most tokens of a row, the mark in front among them
    suffix    ids of what stands behind all that is written

    A row is as long as those it has learnt from. What is behind the text is masks, too, which are
    left alone: to the network, text that nothing is known of.
    """

    def __init__(self, model, tokenizer, prompts, suffix=()):
        c = model.config
        for role in ("first", "mask"):
            if getattr(tokenizer, role) is None:
                raise ConfigError(f"tokenizer: has no {role} token, without which a model by "
                                  "diffusion cannot write")
        if len(suffix) > c.context - 3:
            raise ConfigError(f"suffix: has {len(suffix)} tokens, and rows of {c.context} leave no "
                              "room for a text before it; shorten it")
        self.model, self.mask, self.suffix = model, tokenizer.mask, np.asarray(suffix, np.int64)
        self.separator = tokenizer.separator
        self.config = Limits(c.vocabulary, c.context - 1 - len(suffix))
        self.prompts = [[tokenizer.first, *map(int, prompt)] for prompt in prompts]
        # Text does not end before what stands behind it.
        ends = () if len(suffix) else (tokenizer.end_of_text,)
        self.barred = np.array([i for i, spelling in enumerate(tokenizer.spellings)
                                if spelling is None and i not in ends], int)
        self.vocabulary = tokenizer.vocabulary

    def rows(self, prompts, limits):
        """ids [B, T]: masks, but for the prompts, the suffix at each row's limit, and the marks."""
        ids = np.full((len(prompts), self.model.config.context), self.mask, np.int64)
        ids[:, -1] = self.separator
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            ids[row, limits[row] : limits[row] + len(self.suffix)] = self.suffix
        return ids

    def logits(self, ids, rows, places):
        """float64 [N, V] of the tokens at (row, place), -inf for those that are no text."""
        with no_grad():
            x = self.model.logits(self.model.features(ids)[rows, places])
        x = backends.active().to_numpy(x.data).astype(np.float64)
        require_finite(x)
        x[:, self.barred] = -np.inf
        x[:, self.vocabulary :] = -np.inf
        return x
