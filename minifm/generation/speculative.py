"""Speculative decoding (Leviathan et al. 2023; Chen et al. 2023): a small model proposes several
tokens, and the large one checks them all in one pass, for about the price of one.

Let q be the proposer's distribution of a token and p the model's. A token that was drawn from q is
accepted with probability min(1, p / q); where it is not, the token is drawn from what p has beyond
q, max(p - q, 0), normalised. Then it is distributed as p says, exactly: the proposals change how
long the writing takes, and never what is likely to be written. With all of k proposals accepted,
the same pass has told p of one token more, which is drawn from it.
"""

import numpy as np

from minifm.errors import ConfigError
from minifm.generation.decoder import Decoder
from minifm.generation.job import batched, in_turn
from minifm.generation.sampling import Sampling, choose, distribution


class Speculative:
    """Sampling as `sampling` says, faster where `draft`, a smaller model of the same vocabulary,
    often proposes what the model itself would write.

    proposed, accepted   how many tokens, in all that this object has written
    """

    def __init__(self, draft, tokens=4, sampling=Sampling()):
        """`tokens` are proposed at a time. Raises ConfigError for fewer than 1."""
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ConfigError(f"draft_tokens: expected at least 1, got {tokens}")
        self.draft, self.tokens, self.sampling = draft, tokens, sampling
        self.proposed = self.accepted = 0

    def write(self, job):
        """Yield {row: its new token}; see Job. Raises ConfigError for a draft that does not know
        the model's tokens, or cannot look at as many."""
        self._check(job)
        texts = job.texts()
        model, draft = (Decoder(m, len(texts), job.capacity, job.cache)
                        for m in (job.model, self.draft))
        for decoder in (model, draft):      # always: all but, at least, a text's last token
            ids, counts = batched([text.ids[:-1] for text in texts])
            if ids.size:
                decoder(ids, counts)
        while live := job.live(texts):
            # What was refused is forgotten, and a finished row takes no room.
            known = [len(text.ids) - 1 if row in live else 0 for row, text in enumerate(texts)]
            for decoder in (model, draft):
                decoder.cache.rewind(np.minimum(decoder.cache.lengths, known))
            proposals = self._propose(draft, texts, live, job)
            logits = model.every(*batched(
                [texts[row].ids[-1:] + [token for token, _ in proposals[row]] if row in live
                 else [] for row in range(len(texts))]))                # [B, 1 + proposals, V]
            written = {row: self._accept(texts[row], row, proposals[row], logits[row], job)
                       for row in live}
            yield from in_turn(written, job.finished)

    def _check(self, job):
        ours, theirs = job.model.config, self.draft.config
        if ours.vocabulary != theirs.vocabulary:
            raise ConfigError(f"draft: expected a model that knows the same {ours.vocabulary} "
                              f"tokens, got one that knows {theirs.vocabulary}")
        longest = min(job.capacity, ours.context)
        if theirs.context < longest:
            raise ConfigError(f"draft: its context of {theirs.context} tokens is too short for "
                              f"texts of up to {longest}")

    def _propose(self, draft, texts, live, job):
        """{row: [(token, its distribution q [V])]}: what the draft would write next."""
        proposals = {row: [] for row in live}
        forks = {row: texts[row].fork() for row in live}
        # Rows are padded to the longest, for which the cache must have room, too.
        most = draft.cache.capacity - max(len(text.ids) for text in forks.values())
        rows = live
        for _ in range(min(self.tokens, most)):
            known = draft.cache.lengths
            logits = draft(*batched([forks[row].ids[known[row] :] if row in rows else []
                                     for row in range(len(texts))]))
            # The token behind all proposals needs room, and behind an end there is none.
            rows = [row for row in rows if forks[row].room > 1
                    and not (proposals[row] and forks[row].ids[-1] in job.ends)]
            for row in rows:
                text, number = forks[row], len(forks[row].ids) - len(job.prompts[row])
                q = distribution(text.allow(logits[row]), text.ids, self.sampling)
                token = choose(q, job.uniform(row, number, "draft"))
                proposals[row].append((token, q))
                text.add(token)
            if not rows:
                break
        return proposals

    def _accept(self, text, row, proposals, logits, job):
        """The new tokens of one row, which are added to its text; logits [1 + proposals, V]."""
        written, number = [], len(text.ids) - len(job.prompts[row])

        def add(token):
            text.add(token)
            written.append(token)

        for (token, q), x in zip(proposals, logits):
            self.proposed += 1
            p = distribution(text.allow(x), text.ids, self.sampling)
            if not accepts(p[token], q[token], job.uniform(row, number, "accept")):
                add(choose(beyond(p, q), job.uniform(row, number, "rest")))
                return written
            self.accepted += 1
            add(token)
            number += 1
        p = distribution(text.allow(logits[len(proposals)]), text.ids, self.sampling)
        add(choose(p, job.uniform(row, number, "rest")))
        return written


def accepts(p, q, uniform):
    """Whether a token of probability p, drawn where it had q, is kept: so in min(1, p / q) of all
    cases; `uniform` in [0, 1) decides."""
    return uniform * q < p


def beyond(p, q):
    """What p [V] has beyond q [V], as a distribution."""
    rest = np.maximum(p - q, 0)
    return rest / rest.sum()
