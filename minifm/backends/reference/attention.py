"""Scaled dot-product attention, composed of products and softmax (Vaswani et al. 2017).

Grouped query heads (Ainslie et al. 2023): H query heads share K key/value heads, H a multiple of
K. Masks are -inf in the scores; a query that may look at nothing gets zeros.
"""

from minifm.backends.reference.fallback import composed

MASKED = float("-inf")


class Attention:
    @composed
    def attention(self, q, k, v, bias, key_mask, causal, scale):
        """y = softmax(scale q kᵀ + bias + masks) v.

        q [B, H, T, D], k and v [B, K, S, D]; bias broadcasts to [B, H, T, S] or is None;
        key_mask bool [B, S], True where a key may be looked at, or None. With `causal`, query i
        sits at position S - T + i. Returns y [B, H, T, D] and the log-sum-exp [B, H, T].
        """
        scores = self.attention_scores(q, k, bias, key_mask, causal, scale)     # [B, K, G, T, S]
        B, K, G, T, S = scores.shape
        lse = self.logsumexp(scores, -1)                                        # [B, K, G, T]
        y = self.matmul(self.softmax(scores, -1), self.reshape(v, (B, K, 1, S, v.shape[3])))
        return (self.reshape(y, (B, K * G, T, v.shape[3])),
                self.reshape(lse, (B, K * G, T)))

    @composed
    def attention_backward(
        self, dy, q, k, v, bias, key_mask, causal, scale, y, lse, needs_bias
    ):
        """dq, dk, dv and dbias [B, H, T, S] (None unless `needs_bias`).

        The weights are computed again. A backend that never holds a row of scores keeps the
        log-sum-exp for that, and takes Σ_j p_j dp_j from the row sum of dy · y (Dao et al. 2022).
        """
        scores = self.attention_scores(q, k, bias, key_mask, causal, scale)     # [B, K, G, T, S]
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

    @composed
    def attention_scores(self, q, k, bias, key_mask, causal, scale):
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
        if causal:
            scores = self.where(self.causal_mask(T, S), scores, MASKED)
        return scores
