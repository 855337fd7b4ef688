"""The bitwise laws of the C backend over a whole model, for each instruction set by itself.

One training step, loss, gradients and AdamW, gives the same bits on any number of threads. What a
row says does not depend on the batch, the padding behind it, or how it was cut for the cache.
Padding before a row shifts its keys and with them the order of their sum: the one exception.
"""

import numpy as np
import pytest
from conftest import AVAILABLE

import minifm as mf
from minifm import backends
from minifm.models.gpt import GPT, GPTConfig
from minifm.training.optim import AdamW

if "c" not in AVAILABLE:
    pytest.skip(backends.why_not("c"), allow_module_level=True)

from minifm.backends.native import lib

VOCABULARY, LONGEST = 101, 402      # beyond the 384 of csrc/gemm.h
LENGTHS = [1, 2, 15, 63, 129, 401]


@pytest.fixture(params=backends.get("c").available_isas())
def c(request):
    """The C backend, active, on each instruction set; all is put back afterwards."""
    backend = backends.get("c")
    isa, threads = backend.isa, backend.threads
    with backends.use(backend):
        backend.set_isa(request.param)
        yield backend
    backend.set_isa(isa)
    lib.minifm_set_threads(threads)


def gpt(**settings):
    config = GPTConfig(**({"vocabulary": VOCABULARY, "context": LONGEST, "layers": 2, "heads": 3,
                           "width": 72} | settings))
    return GPT(config, mf.Rng(5))


def text(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length))


def logits(model, ids, **options):
    with mf.no_grad():
        return model(ids, **options).numpy()


def step(threads, rows, length):
    """Bytes of the loss, of every gradient, and of weights and moments after AdamW."""
    lib.minifm_set_threads(threads)
    model = gpt(dropout=0.1)
    optimizer = AdamW(model.parameters(), average=0.9)
    ids, targets = text(rows, length), text(rows, length, seed=1)
    targets[0, : length // 2] = -100
    loss = model.loss(ids, targets, rng=mf.Rng(3))
    loss.backward()
    grads = {name: p.grad.tobytes() for name, p in model.parameters().items()}
    optimizer.update(0.01, 1 / max(optimizer.gradient_norm(), 1))
    states = model.parameters(), optimizer.m, optimizer.v, optimizer.averages
    return [("loss", loss.numpy().tobytes()), *grads.items(),
            *((name, getattr(x, "data", x).tobytes()) for state in states
              for name, x in state.items())]


@pytest.mark.parametrize("rows, length", [(1, 1), (3, 17), (2, 131), (5, 64)])
def test_a_training_step_has_the_same_bits_on_any_number_of_threads(c, rows, length):
    wanted = step(1, rows, length)
    for threads in (2, 3, 4):
        for (name, found), (_, bits) in zip(step(threads, rows, length), wanted, strict=True):
            assert found == bits, f"{name} on {threads} threads"


@pytest.mark.parametrize("length", LENGTHS)
def test_a_batch_is_its_rows(c, length):
    model, ids = gpt(), text(4, length)
    lib.minifm_set_threads(3)
    together = logits(model, ids)
    for row in range(4):
        lib.minifm_set_threads(1 + row)
        assert logits(model, ids[row : row + 1]).tobytes() == together[row].tobytes()


@pytest.mark.parametrize("chunks", [(1,), (7,), (1, 30, 2), (64,), (399, 1)], ids=str)
def test_from_the_cache_in_any_chunks_is_the_full_forward(c, chunks):
    """`chunks` are the first ones; the last of them goes on to the end."""
    model, ids = gpt(), text(2, LONGEST)
    whole = logits(model, ids)
    cache, done, sizes = model.cache(2), 0, list(chunks)
    while done < min(LONGEST, 40 * chunks[-1]):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        piece = logits(model, ids[:, done : done + size], cache=cache)
        assert piece.tobytes() == whole[:, done : done + piece.shape[1]].tobytes()
        done += piece.shape[1]


@pytest.mark.parametrize("length", LENGTHS[1:])
def test_padding_behind_a_row_changes_no_bit_and_before_it_only_roundings(c, length):
    model, ids, count = gpt(), text(2, length), length // 2
    alone = logits(model, ids[:1, :count])
    mask = np.ones((2, length), bool)
    mask[0, count:] = False
    assert logits(model, ids, key_mask=mask)[:1, :count].tobytes() == alone.tobytes()
    moved = np.roll(ids[:1], length - count, 1)
    found = logits(model, moved, key_mask=np.arange(length)[None] >= length - count)
    np.testing.assert_allclose(found[:, -count:], alone, rtol=0, atol=1e-5)
