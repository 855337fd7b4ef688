"""Scaled dot-product attention, composed of products and softmax (Vaswani et al. 2017).

Grouped query heads (Ainslie et al. 2023): H query heads share K key/value heads, H a multiple of
K. Masks are -inf in the scores; a query that may look at nothing gets zeros.
"""

import numpy as np

from minifm.backends.reference.fallback import composed
from minifm.backends.reference.packed import rounded_to_bf16, widened
from minifm.errors import ShapeError

MASKED = float("-inf")


class Attention:
    @composed
    def attention(self, q, k, v, bias, key_mask, causal, scale, lengths=None, first_keys=None):
        """y = softmax(scale q kᵀ + bias + masks) v.

        q [B, H, T, D], k and v [B, K, S, D], which may be uint16, the bits of bf16; bias
        broadcasts to [B, H, T, S] or is None; key_mask bool [B, S], True where a key may be looked
        at, or None. Of row b only the first lengths[b] keys are there (None: all S), whatever lies
        behind them. With `causal`, query i sits at position lengths[b] - T + i. Keys before
        first_keys[b, i], int [B, T], are hidden from query i (None: none are). Returns
        y [B, H, T, D] and the log-sum-exp [B, H, T].
        """
        k, v = (self.rows_within(self.widen(x), lengths) for x in (k, v))
        scores = self.attention_scores(q, k, bias, key_mask, causal, scale, lengths,
                                       first_keys)                          # [B, K, G, T, S]
        B, K, G, T, S = scores.shape
        lse = self.logsumexp(scores, -1)                                        # [B, K, G, T]
        y = self.matmul(self.softmax(scores, -1), self.reshape(v, (B, K, 1, S, v.shape[3])))
        return (self.reshape(y, (B, K * G, T, v.shape[3])),
                self.reshape(lse, (B, K * G, T)))

    @composed
    def attention_backward(
        self, dy, q, k, v, bias, key_mask, causal, scale, y, lse, needs_bias,
        lengths=None, first_keys=None,
    ):
        """dq, dk, dv and dbias [B, H, T, S] (None unless `needs_bias`).

        The weights are computed again. A backend that never holds a row of scores keeps the
        log-sum-exp for that, and takes Σ_j p_j dp_j from the row sum of dy · y (Dao et al. 2022).
        """
        k, v = (self.rows_within(self.widen(x), lengths) for x in (k, v))
        scores = self.attention_scores(q, k, bias, key_mask, causal, scale, lengths,
                                       first_keys)                          # [B, K, G, T, S]
        B, K, G, T, S = scores.shape
        D, E = k.shape[3], v.shape[3]
        p = self.softmax(scores, -1)
        dy = self.reshape(dy, (B, K, G, T, E))
        values = self.reshape(v, (B, K, 1, S, E))
        dp = self.matmul(dy, self.transpose(values, (0, 1, 2, 4, 3)))           # [B, K, G, T, S]
        ds = self.softmax_backward(dp, p, -1)
        dv = self.sum(self.matmul(self.transpose(p, (0, 1, 2, 4, 3)), dy), 2)   # [B, K, S, E]
        dbias = self.reshape(ds, (B, K * G, T, S)) if needs_bias else None
        ds = self.multiply(ds, scale)
        dq = self.matmul(ds, self.reshape(k, (B, K, 1, S, D)))                  # [B, K, G, T, D]
        queries = self.reshape(q, (B, K, G, T, D))
        dk = self.sum(self.matmul(self.transpose(ds, (0, 1, 2, 4, 3)), queries), 2)
        return self.reshape(dq, q.shape), dk, dv, dbias

    def cache_append(self, keys, values, k, v, starts):
        """keys[b, :, starts[b] + t] = k[b, :, t] and values likewise, in place: how a cache grows.

        keys and values [B, K, capacity, D], of k's type or uint16, which takes the bits of the
        nearest bf16, ties to even; k and v [B, K, T, D]; starts int [B]. Raises ShapeError where
        a token would fall outside of the capacity.
        """
        B, _, T, _ = k.shape
        places = starts[:, None] + np.arange(T)                                 # [B, T]
        if places.min(initial=0) < 0 or places.max(initial=0) >= keys.shape[2]:
            raise ShapeError(f"cache_append: {T} tokens from slots {starts.tolist()} on do not "
                             f"fit the {keys.shape[2]} that there are")
        for store, new in ((keys, k), (values, v)):
            new = rounded_to_bf16(new) if store.dtype == np.uint16 else new
            store[np.arange(B)[:, None], :, places] = new.transpose(0, 2, 1, 3)

    def widen(self, x):
        """float32 for uint16, the bits of bf16; anything else as it is."""
        return widened(x) if x.dtype == np.uint16 else x

    @composed
    def attention_scores(self, q, k, bias, key_mask, causal, scale, lengths, first_keys):
        """scale q kᵀ + bias with -inf where a key is hidden, [B, K, G, T, S], G = H / K."""
        (B, H, T, D), (_, K, S, _) = q.shape, k.shape
        queries = self.reshape(q, (B, K, H // K, T, D))
        keys = self.transpose(self.reshape(k, (B, K, 1, S, D)), (0, 1, 2, 4, 3))
        scores = self.multiply(self.matmul(queries, keys), scale)
        if bias is not None:
            full = self.broadcast_to(bias, (B, H, T, S))
            scores = self.add(scores, self.reshape(full, scores.shape))
        if key_mask is not None:
            scores = self.where(self.reshape(key_mask, (B, 1, 1, 1, S)), scores, MASKED)
        if causal or lengths is not None or first_keys is not None:
            visible = self.visible_mask(T, S, lengths, causal, first_keys)
            visible = self.reshape(visible, (visible.shape[0], 1, 1, T, S))
            scores = self.where(visible, scores, MASKED)
        return scores

    @composed
    def rows_within(self, x, lengths):
        """x [B, K, S, D] with zeros behind the first lengths[b] of the S rows; None: x itself."""
        if lengths is None:
            return x
        B, S = x.shape[0], x.shape[2]
        there = self.visible_mask(1, S, lengths, False)                         # [B, 1, S]
        return self.where(self.reshape(there, (B, 1, S, 1)), x, 0.0)
