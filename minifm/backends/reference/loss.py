"""Cross-entropy of logits against target indices, plain and fused with the last linear layer.

With label smoothing ε (Szegedy et al. 2016) the target distribution is (1 - ε) on the target
plus ε/V everywhere, so that
    loss = logsumexp(x) - (1 - ε) x_target - ε mean(x).
A target equal to `ignore_index` has loss 0 and no gradient.
"""

import numpy as np

from minifm.backends.reference.embedding import check_ids
from minifm.backends.reference.fallback import composed

TOKENS_PER_CHUNK = 256      # logits of one chunk stay in cache while they become gradients


class Loss:
    def cross_entropy(self, logits, targets, ignore_index, smoothing):
        """logits [N, V], targets [N] -> losses [N], log-sum-exp [N]."""
        check_ids(targets, logits.shape[1], "cross_entropy targets", ignore_index)
        counts = targets != ignore_index
        lse = self.logsumexp(logits, -1)
        chosen = logits[np.arange(len(targets)), np.where(counts, targets, 0)]
        losses = lse - (1 - smoothing) * chosen
        if smoothing:
            losses = losses - smoothing * np.mean(logits, axis=-1, dtype=logits.dtype)
        return np.where(counts, losses, np.asarray(0, logits.dtype)), lse

    def cross_entropy_backward(self, dlosses, logits, targets, lse, ignore_index, smoothing):
        """dlogits = dloss (softmax(logits) - target distribution)."""
        N, V = logits.shape
        counts = targets != ignore_index
        d = np.exp(logits - lse[:, None])
        if smoothing:
            d -= smoothing / V
        d[np.arange(N), np.where(counts, targets, 0)] -= 1 - smoothing
        return d * np.where(counts, dlosses, np.asarray(0, dlosses.dtype))[:, None]

    @composed
    def linear_cross_entropy(self, x, w, b, targets, ignore_index, smoothing, precision="fp32"):
        """cross_entropy(x @ wᵀ + b, targets) without ever holding all the logits.

        x [N, C], w [V, C] (an embedding's layout), b [V] or None, targets [N] -> losses [N],
        lse [N].
        """
        classes = self.transpose(w, (1, 0))                                 # [C, V]
        parts = [
            self.cross_entropy(
                self.linear(self.getitem(x, rows), classes, b, None, None, precision)[0],
                self.getitem(targets, rows), ignore_index, smoothing)
            for rows in _chunks(x.shape[0])
        ]
        losses, lse = zip(*parts)
        return self.concatenate(list(losses), 0), self.concatenate(list(lse), 0)

    @composed
    def linear_cross_entropy_backward(
        self, dlosses, x, w, b, targets, lse, ignore_index, smoothing, needs, weight_grad,
        precision="fp32",
    ):
        """dx [N, C], dw [V, C] and db [V], each None where `needs` says so. Logits are computed
        again, a chunk of tokens at a time."""
        classes, dx, dw, db = self.transpose(w, (1, 0)), [], weight_grad, None
        table = self.unpacked(w) if needs[0] else None
        for rows in _chunks(x.shape[0]):
            part = self.getitem(x, rows)
            logits, _ = self.linear(part, classes, b, None, None, precision)
            d = self.cross_entropy_backward(
                self.getitem(dlosses, rows), logits, self.getitem(targets, rows),
                self.getitem(lse, rows), ignore_index, smoothing)
            if needs[0]:
                dx.append(self.matmul(d, table, precision))                 # [n, C]
            if needs[1]:
                dw = self.accumulate_product(self.transpose(d, (1, 0)), part, dw, precision)
            if needs[2]:
                more = self.sum(d, axis=0)
                db = more if db is None else self.add(db, more)
            del logits, d           # a chunk of a large vocabulary is large: not two at a time
        return (self.concatenate(dx, 0) if needs[0] else None), (dw if needs[1] else None), db


def _chunks(tokens):
    """Slices that cover 0 … tokens; one empty slice where there are no tokens at all."""
    step = TOKENS_PER_CHUNK
    return [slice(i, min(i + step, tokens)) for i in range(0, max(tokens, 1), step)]
