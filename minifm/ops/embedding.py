"""Looking up rows, marking positions, and dropping activations out."""


from minifm.errors import ConfigError, ShapeError
from minifm.op import Op, check_integers, explain
from minifm.ops.packed import refuse_gradient
from minifm.tensor import apply, leaf_grad


class Embedding(Op):
    """Row ids[...] of the table weight."""

    signature = "weight[V, C], ids[*B] -> [*B, C]"
    fresh = True

    def forward(self, weight, ids):
        if self.needs[0]:
            refuse_gradient(weight)
        self.ids, self.rows = ids, weight.shape[0]
        return self.backend.embedding(weight, ids)

    def backward(self, dy):
        return self.backend.embedding_backward(dy, self.ids, self.rows, leaf_grad(self, 0)), None

    @classmethod
    def check(cls, inputs):
        check_integers(cls, inputs, "ids")
        super().check(inputs)

    @classmethod
    def examples(cls, draw):
        V = draw.size("V", 1)
        return (draw.normal((V, draw.size("C"))), draw.integers(draw.batch(), 0, V)), {}


class Rope(Op):
    """Rotate the pairs (x_d, x_{d + D/2}) by the angles whose cosine and sine are given."""

    signature = "x[B, H, T, D], cos[*P, T, R], sin[*P, T, R] -> [B, H, T, D]"

    def forward(self, x, cos, sin):
        self.cos, self.sin = cos, sin
        return self.backend.rope(x, cos, sin, False)

    def backward(self, dy):         # a rotation's transpose is the rotation back
        return self.backend.rope(dy, self.cos, self.sin, True), None, None

    @classmethod
    def check(cls, inputs):
        super().check(inputs)
        x, cos, _ = inputs
        if x.shape[-1] != 2 * cos.shape[-1]:
            raise ShapeError(explain(cls, inputs, "D must be 2 R"))
        if cos.shape[:-2] not in ((), x.shape[:1]):
            raise ShapeError(explain(cls, inputs, "cos is [T, R] or [B, T, R]"))

    @classmethod
    def examples(cls, draw):
        B, H, T, R = (draw.size(n) for n in "BHTR")
        angle = draw.plain_normal(draw.choice([(T, R), (B, T, R)]))
        return (draw.normal((B, H, T, 2 * R)), draw.cos(angle), draw.sin(angle)), {}


class Dropout(Op):
    """Zero each element with `probability`, scale the others by 1 / (1 - probability)."""

    signature = "x[*X] -> [*X]"

    def forward(self, x, probability, key):
        self.probability, self.key = probability, key
        return self.backend.dropout(x, probability, key)

    def backward(self, dy):         # the same noise again: the mask was never stored
        return self.backend.dropout(dy, self.probability, self.key)

    @classmethod
    def examples(cls, draw):
        return (draw.normal(draw.any_shape()),), {"probability": 0.25, "key": (7, 11)}


def embedding(weight, ids):
    """weight [V, C], plain or packed (ops/packed.py), integer ids [*B] -> [*B, C]."""
    return apply(Embedding, weight, ids)


def rope(x, cos, sin):
    """Rotary position embedding of x [B, H, T, D]; cos, sin [T, D/2] or [B, T, D/2]."""
    return apply(Rope, x, cos, sin)


def dropout(x, probability, *, rng):
    """Inverted dropout (Srivastava et al. 2014) with the noise of `rng`. None: no dropout."""
    if not 0 <= probability < 1:
        raise ConfigError(f"dropout: expected a probability in [0, 1), got {probability}")
    if rng is None or probability == 0:
        return x
    return apply(Dropout, x, probability=probability, key=rng.key)
