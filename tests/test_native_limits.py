"""The C backend at its limits: sizes of zero and beyond 2^31, no memory, no threads, many callers,
forks, and a processor whose floating-point state is nobody's to change.
"""

import pytest
from conftest import AVAILABLE
from test_backends import python

from minifm import backends

if "c" not in AVAILABLE:
    pytest.skip(backends.why_not("c"), allow_module_level=True)


# -- sizes -----------------------------------------------------------------------------------------

# name: a call of which some size is 0, on backend b; no pool or scratch may have been there before
EMPTY = {
    "no columns": "b.layernorm_backward(z(100, 0), z(100, 0), z(0), z(100), z(100))",
    "no columns of rmsnorm": "b.rmsnorm_backward(z(100, 0), z(100, 0), z(0), z(100))",
    "no rows": "b.layernorm_backward(z(0, 9), z(0, 9), z(9), z(0), z(0))",
    "nothing to add": "b.sum(z(0, 300), 0), b.sum(z(300, 0), 1), b.sum(z(0)), "
                      "b.sum_of_squares([z(0)]), b.sum_of_squares([])",
    "no query heads": "b.attention(z(2, 0, 3, 4), *[z(2, 2, 3, 4)] * 2, None, None, True, 1.0), "
                      "b.attention_backward(*[z(2, 0, 3, 4)] * 2, *[z(2, 2, 3, 4)] * 2, None, "
                      "None, True, 1.0, z(2, 0, 3, 4), z(2, 0, 3), False)",
    "no queries": "b.attention(z(2, 2, 0, 4), z(2, 2, 3, 4), z(2, 2, 3, 4), None, None, True, 1.0)",
    "no keys": "b.attention(z(2, 2, 3, 4), z(2, 2, 0, 4), z(2, 2, 0, 4), None, None, False, 1.0)",
    "no width": "b.attention(z(2, 2, 3, 0), z(2, 2, 3, 0), z(2, 2, 3, 4), None, None, False, 1.0)",
    "an empty product": "b.matmul(z(3, 0), z(0, 4)), b.matmul(z(0, 3), z(3, 4)), "
                        "b.matmul(z(0, 3, 4), z(4, 5)), "
                        "b.linear(z(3, 0), z(0, 4), z(4), 'gelu', None)",
    "no text": "b.embedding(z(5, 4), ids), b.embedding_backward(z(0, 4), ids, 5, None), "
               "b.cross_entropy(z(0, 4), ids, -100, 0.1)",
    "no noise": "b.uniform((1, 2), (0,), z(0).dtype), b.dropout(z(0), 0.5, (1, 2))",
}


@pytest.mark.parametrize("name", EMPTY)
def test_sizes_of_zero_in_a_process_that_has_computed_nothing(name):
    python(f"""
import numpy as np, minifm
from minifm import backends
z, ids = lambda *shape: np.zeros(shape, np.float32), np.zeros(0, int)
def flat(result):
    if isinstance(result, tuple):
        return [y for part in result for y in flat(part)]
    return [] if result is None else [np.asarray(result)]
found = flat((lambda b: ({EMPTY[name]},))(backends.get("c")))
wanted = flat((lambda b: ({EMPTY[name]},))(backends.get("numpy")))
assert [y.shape for y in found] == [y.shape for y in wanted]
assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(found, wanted))
""", MINIFM_BACKEND="c")
