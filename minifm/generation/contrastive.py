"""Contrastive search (Su et al. 2022, "A contrastive framework for neural text generation"): a
likely token that does not say again what the text says already.

Of the `top_k` likeliest tokens v after a text x, that is taken which has the largest

    (1 - alpha) p(v | x) - alpha max over j of cos(h_v, h_j)        (equation 5)

where h are the features that the head reads: of v, and of each token j of the text. To know h_v,
each candidate goes through the model, side by side; the chosen one's logits are the next step's.
"""

from dataclasses import dataclass

import numpy as np

from minifm.config import check, setting
from minifm.generation.decoder import Decoder
from minifm.generation.job import batched
from minifm.generation.sampling import probabilities


@dataclass(frozen=True)
class Contrastive:
    """Contrastive search; nothing in it is random."""

    alpha: float = setting(0.6, "weight of being unlike what came before; 0 is greedy",
                           least=0, most=1)
    top_k: int = setting(4, "candidates for each token", least=1)

    __post_init__ = check

    def write(self, job):
        """Yield {row: its new token}; see Job."""
        texts, k = job.texts(), self.top_k
        prompts = Decoder(job.model, len(texts), job.capacity, job.cache)
        logits = prompts(*batched(job.prompts)).copy()                          # [R, V]
        seen = [directions(x[: len(text.ids)]) for x, text in zip(prompts.features, texts)]
        decoder = Decoder(job.model, len(texts) * k, job.capacity, job.cache)
        decoder.cache.take(prompts.cache, np.arange(len(texts)).repeat(k))
        while live := job.live(texts):
            counts = np.isin(np.arange(len(texts)), live).astype(int).repeat(k)
            likely = [probabilities(text.allow(x)) for text, x in zip(texts, logits)]
            candidates = np.array([likeliest(p, k) for p in likely])            # [R, k]
            held = decoder.cache.lengths * counts           # a finished row takes no room
            decoder.cache.rewind(held)
            after = decoder(candidates.reshape(-1, 1), counts)                  # [R k, V]
            found = directions(decoder.features[:, 0])                          # [R k, C]
            parents = np.arange(len(counts))
            for row in live:
                mine = slice(row * k, (row + 1) * k)
                likeness = (found[mine] @ seen[row].T).max(axis=1)
                scores = (1 - self.alpha) * likely[row][candidates[row]] - self.alpha * likeness
                best = int(np.argmax(scores))
                parents[mine] = row * k + best
                texts[row].add(int(candidates[row, best]))
                seen[row] = np.concatenate([seen[row], found[parents[mine][:1]]])
                logits[row] = after[row * k + best]
            decoder.cache.take(decoder.cache, parents, since=int(held[counts > 0].min()))
            yield {row: texts[row].ids[-1] for row in live}


def directions(features):
    """features [N, C] as vectors of length 1, float64; zeros stay zeros."""
    x = features.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float64).tiny)


def likeliest(p, k):
    """[k]: the likeliest tokens, those that may come; the first again where there are fewer."""
    order = np.argsort(-p, kind="stable")[:k]
    kept = order[p[order] > 0]
    return np.concatenate([kept, np.repeat(kept[:1], k - len(kept))])
