"""Beam search: the likeliest whole text that keeping several unfinished ones can find.

All beams of all rows go through the model side by side. After each token the likeliest
continuations stay, wherever they come from, so the cache's rows are copied about; a continuation
by end-of-text is a finished text, if it is among the likeliest. The search ends when no unfinished
text can become better than the best finished one.
"""

from dataclasses import dataclass

import numpy as np

from minifm.config import check, setting
from minifm.generation.decoder import Decoder
from minifm.generation.job import batched, in_turn


@dataclass(frozen=True)
class Beams:
    """The text Y with the largest log p(Y) / |Y|^length_penalty, where |Y| counts its new tokens,
    end-of-text among them (Wu et al. 2016, section 7, with this simpler divisor)."""

    beams: int = setting(4, "unfinished texts that are kept", least=1)
    length_penalty: float = setting(
        1.0, "divide a text's log-probability by its length to this power; larger favours longer "
             "texts", least=0)

    __post_init__ = check

    def write(self, job):
        """Yield {row: its new token}; see Job. Nothing comes before all texts are found."""
        texts, B = job.texts(), self.beams
        searches = [_Search(self, text, job.ends) for text in texts]
        prompts = Decoder(job.model, len(texts), job.capacity, job.cache)
        logits = prompts(*batched(job.prompts)).repeat(B, axis=0)               # [R B, V]
        decoder = Decoder(job.model, len(texts) * B, job.capacity, job.cache)
        decoder.cache.take(prompts.cache, np.arange(len(texts)).repeat(B))
        while True:
            parents = np.arange(len(logits))
            for row, search in enumerate(searches):
                if search.live:
                    parents[row * B : (row + 1) * B] = row * B + search.step(
                        logits[row * B : (row + 1) * B])
            if not any(search.live for search in searches):
                break
            if (parents != np.arange(len(logits))).any():
                decoder.cache.take(decoder.cache, parents)
            logits = decoder(*self._next(searches))
        yield from in_turn({row: search.best[1] for row, search in enumerate(searches)},
                           job.finished)

    def _next(self, searches):
        """(ids [R B, 1], counts): the last token of each live beam, padding for the others."""
        ids = np.zeros((len(searches), self.beams), np.int64)
        counts = np.zeros_like(ids)
        for row, search in enumerate(searches):
            for place, (_, text) in enumerate(search.live):
                ids[row, place], counts[row, place] = text.ids[-1], 1
        return ids.reshape(-1, 1), counts.reshape(-1)


class _Search:
    """The search behind one prompt.

    live   [(log-probability, Text)]: the unfinished beams, likeliest first
    best   (score, its new tokens): the best finished text so far
    """

    def __init__(self, settings, text, ends):
        self.settings, self.ends, self.prompt = settings, ends, len(text.ids)
        self.live, self.best = [(0.0, text)] if text.room else [], (-np.inf, [])
        self.longest = text.room

    def step(self, logits):
        """Go on by a token, by logits [beams, V]; returns [beams]: the beam each one continues."""
        B, parents, live = self.settings.beams, np.arange(self.settings.beams), []
        for rank, (score, place, token) in enumerate(self._continuations(logits)):
            if token in self.ends:
                if rank < B:
                    self._finish(score, [*self._new(self.live[place][1]), token])
            elif len(live) < B:
                text = self.live[place][1].fork()
                text.add(token)
                parents[len(live)] = place
                live.append((score, text))
        self.live = live
        if live and not live[0][1].room:
            for score, text in live:
                self._finish(score, self._new(text))
            self.live = []
        elif live and self.best[0] >= self._score(live[0][0], self.longest):
            self.live = []
        return parents

    def _continuations(self, logits):
        """[(log-probability, beam, token)], the likeliest first: enough for as many unfinished
        ones as there are beams, since each beam ends in so many ways only."""
        scores = np.array([score + np.where(np.isneginf(text.allow(x)), -np.inf, log_softmax(x))
                           for (score, text), x in zip(self.live, logits)])     # [beams, V]
        most = self.settings.beams * (1 + max(len(self.ends), 1))
        order = np.argsort(-scores, axis=None, kind="stable")[: most]
        places, tokens = np.unravel_index(order, scores.shape)
        return [(float(scores[place, token]), int(place), int(token))
                for place, token in zip(places, tokens) if np.isfinite(scores[place, token])]

    def _new(self, text):
        return text.ids[self.prompt :]

    def _score(self, log_probability, length):
        return log_probability / length**self.settings.length_penalty

    def _finish(self, log_probability, tokens):
        score = self._score(log_probability, len(tokens))
        if score > self.best[0]:
            self.best = score, tokens


def log_softmax(x):
    """log softmax of one row, in float64."""
    x = x.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())
