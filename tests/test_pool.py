"""The pool of arrays: what it hands out is right and aligned, a warm step finds all it needs there,
idle memory has a bound and a way back, and threads, forks and a lack of memory do no harm.
"""

import random
import sys
import threading

import numpy as np
import pytest
from conftest import AVAILABLE
from numpy._core.multiarray import get_handler_name
from test_backends import python

import minifm as mf
from minifm import backends
from minifm.models.gpt import GPT, GPTConfig
from minifm.training.optim import AdamW

if "c" not in AVAILABLE:
    pytest.skip(backends.why_not("c"), allow_module_level=True)

POOLED = 1 << 15            # bytes of the smallest array that comes from the pool
SLACK = 64 << 20            # idle bytes that are always allowed


@pytest.fixture
def c():
    with backends.use("c") as backend:
        assert backend.unpooled is None
        yield backend


def filled(n, value):
    return np.full(n, value, np.uint8)


# -- arrays ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, POOLED - 1, POOLED, POOLED + 1, 10**6, 10**8])
def test_arrays_come_from_the_pool_and_large_ones_are_aligned(c, size):
    for array in (np.empty(size, np.uint8), np.zeros(size, np.uint8), filled(size, 1).copy()):
        assert get_handler_name(array) == "minifm_pool"
        assert size < POOLED or array.ctypes.data % 64 == 0


def test_blocks_of_any_sizes_keep_their_contents_and_zeros_are_zero(c):
    rng, live = random.Random(0), []
    for step in range(20_000):
        size, value = int(2 ** rng.uniform(8, 22)), rng.randrange(1, 200)
        if step % 3:
            array = filled(size, value)
        else:
            array = np.zeros(size, np.uint8)
            assert not array.any()
            array[:] = value
        live.append((array, value))
        if len(live) == 40 or rng.random() < 0.4:
            array, value = live.pop(rng.randrange(len(live)))
            assert (array == value).all()
        if step % 5000 == 4999:
            c.release_memory()
    assert all((array == value).all() for array, value in live)


def test_a_view_keeps_its_memory_alive(c):
    view = filled(10**6, 7)[10:-10]
    others = [filled(10**6, 9) for _ in range(5)]
    assert (view == 7).all() and (others[-1] == 9).all()


@pytest.mark.parametrize("sizes", [(10, 100_000), (100_000, 10), (100_000, 1_000_000),
                                   (1_000_000, 900_000), (10, 0, 10**6, 0)])
def test_resizing_keeps_what_fits(c, sizes):
    array = np.arange(sizes[0], dtype=np.int32)
    for before, after in zip(sizes, sizes[1:]):
        array.resize(after, refcheck=False)
        kept = min(before, after)
        assert np.array_equal(array[:kept], np.arange(kept)) and not array[kept:].any()
        array[:] = np.arange(after)
    assert np.fromiter(iter(range(50_000)), np.int64)[-1] == 49_999


def test_arrays_of_other_allocators_live_beside(c):
    """Made before the backend was, or by another thread's context, and freed here."""
    assert python("""
import numpy as np
from numpy._core.multiarray import get_handler_name
early = np.ones(100_000)
import minifm
minifm.backend()
late = early + 1
names = get_handler_name(early), get_handler_name(late)
del early
print(*names, late.sum())""", MINIFM_BACKEND="c") == "default_allocator minifm_pool 200000.0"


# -- what is kept ----------------------------------------------------------------------------------


def training_step(length=32):
    model = GPT(GPTConfig(vocabulary=300, context=64, layers=2, heads=4, width=128), mf.Rng(0))
    optimizer = AdamW(model.parameters())
    ids = mf.Rng(1).integers(0, 300, (8, 65))

    def step(length=length):
        loss = model.loss(ids[:, :length], ids[:, 1 : length + 1])
        loss.backward()
        optimizer.update(1e-3, 1 / max(1, optimizer.gradient_norm()))
        optimizer.zero_grad()

    return step


def test_a_warm_training_step_misses_nothing(c):
    step = training_step()
    for _ in range(3):
        step()
    before = c.memory()
    for _ in range(5):
        step()
    after = c.memory()
    assert after.misses == before.misses and after.hits > before.hits + 100
    assert after.used == before.used, "a step leaves something behind"


def test_idle_memory_has_a_bound_under_changing_lengths(c):
    step, rng = training_step(), random.Random(1)
    c.release_memory()
    for _ in range(60):
        step(rng.randrange(1, 65))
        state = c.memory()
        assert state.used <= state.peak
        assert state.used + state.idle <= 1.25 * state.peak + SLACK


def test_large_idle_blocks_go_back_where_others_are_needed(c):
    """Ever larger arrays, one at a time: what was too small for the next one is not hoarded."""
    c.release_memory()
    for megabytes in range(40, 400, 20):
        filled(megabytes << 20, 1)
        state = c.memory()
        assert state.used + state.idle <= 1.25 * state.peak + SLACK


def test_memory_is_given_back(c):
    arrays = [filled(10**7, 3) for _ in range(10)]
    kept = arrays[4]
    del arrays
    state = c.memory()
    assert state.idle > 9 * 10**7
    assert c.release_memory() > 0.9 * state.idle
    after = c.memory()
    assert after.idle < 10**5 and after.peak == after.used == state.used
    assert (kept == 3).all() and not np.zeros(10**8, np.uint8).any()
    assert backends.get("numpy").release_memory() == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_given_back_really_goes():
    assert python("""
import minifm, numpy as np
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
c = minifm.backend()
keeps, x = np.ones(10**7), np.ones(5 * 10**7)
held = resident()
del x
assert resident() > held - 10**7, "kept for the next"
assert c.release_memory() >= 4 * 10**8
print(held - resident() >= 4 * 10**8 - 10**7)""", MINIFM_BACKEND="c") == "True"


# -- threads, forks, no memory -----------------------------------------------------------------


def test_every_thread_that_computes_has_the_pool(c):
    found = []

    def compute():
        x = mf.Tensor(np.ones((200, 200), np.float32)) * 2
        found.append(get_handler_name(x.data))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert found == ["minifm_pool"]


def test_threads_take_and_return_at_once(c):
    wrong = []

    def work(seed):
        backends.active().enter_thread()
        rng, live = random.Random(seed), []
        for _ in range(2000):
            value = rng.randrange(256)
            live.append((filled(int(2 ** rng.uniform(14, 19)), value), value))
            if len(live) > 10:
                array, value = live.pop(rng.randrange(10))
                if not (array == value).all():
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_fork_has_the_pool_too():
    python("""
import os, threading
import numpy as np, minifm
c = minifm.backend()
kept, stop = np.full(10**6, 5.0), threading.Event()
def churn():
    c.enter_thread()
    while not stop.is_set():
        np.ones(10**5)
thread = threading.Thread(target=churn)
thread.start()
for attempt in range(20):
    child = os.fork()
    if child == 0:
        right = (kept == 5).all() and not np.zeros(10**6).any() and c.release_memory() >= 0
        os._exit(0 if right and (np.ones(10**6) == 1).all() else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child was wrong, or died"
stop.set()
thread.join()
assert (kept == 5).all()
""", MINIFM_BACKEND="c")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space")
def test_without_memory_there_is_one_error_and_the_process_goes_on():
    """Idle memory, here in pieces that are all too small, is given back before that."""
    assert python("""
import resource, numpy as np, minifm
c = minifm.backend()
x = np.ones((64, 64), np.float32)
wanted = c.matmul(x, x)
now = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (now + (600 << 20),) * 2)
pieces = [np.ones(30 << 20, np.uint8) for _ in range(12)]
del pieces
assert c.memory().idle > 300 << 20
large = np.ones(400 << 20, np.uint8)
try:
    np.ones(400 << 20, np.uint8)
    raise SystemExit("there was memory after all")
except MemoryError:
    pass
try:
    np.zeros((1 << 40, 1 << 20), np.uint8)
except MemoryError:
    print(large.all() and np.array_equal(c.matmul(x, x), wanted))""", MINIFM_BACKEND="c") == "True"


def test_numpy_of_another_make_is_left_alone(c, monkeypatch):
    from minifm.backends import pool
    monkeypatch.setattr(pool, "ABI_VERSION", 0x03000000)
    why = pool._numpy_function()
    assert why == "NumPy's binary interface is 0x2000000, known is 0x3000000"
    monkeypatch.setattr(pool, "_set_handler", why)
    assert pool.install() == why
