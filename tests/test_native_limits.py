"""The C backend at its limits: sizes of zero and beyond 2^31, no memory, no threads, many callers,
forks, and a processor whose floating-point state is nobody's to change.
"""

import ctypes
import ctypes.util
import mmap
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import AVAILABLE
from test_backends import python

from minifm import backends

if "c" not in AVAILABLE:
    pytest.skip(backends.why_not("c"), allow_module_level=True)

import test_native
from test_native import CASES, F32, normal, same

from minifm.backends.native import ffi, lib
from minifm.backends.reference.packed import Packed

c, every_isa = test_native.c, test_native.every_isa        # fixtures

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
    "packed": "[b.linear(z(*x), b.pack(z(*w), f), None, None, None)[0] "
              "for x, w in (((3, 0), (0, 5)), ((0, 3), (3, 5)), ((3, 5), (5, 0))) "
              "for f in ('int8', 'int4', 'bf16', 'fp32')]",
    "no images": "b.conv2d(z(0, 2, 5, 6), z(3, 2, 3, 3), z(3), *once), "
                 "b.convolve_image_adjoint(z(0, 3, 5, 6), z(3, 2, 3, 3), (5, 6), *once), "
                 "b.convolve_weight_adjoint(z(0, 3, 5, 6), z(0, 2, 5, 6), (3, 3), *once)",
    "no channels": "b.conv2d(z(2, 0, 5, 6), z(3, 0, 3, 3), z(3), *once), "
                   "b.convolve(z(2, 2, 5, 6), z(0, 2, 3, 3), (2, 1), (1, 1), 1), "
                   "b.convolve_image_adjoint(z(2, 0, 5, 6), z(0, 2, 3, 3), (5, 6), *once), "
                   "b.convolve_weight_adjoint(z(2, 0, 5, 6), z(2, 2, 5, 6), (3, 3), *once)",
    "no planes": "b.max_pool2d(z(0, 4, 3, 5), *half), b.average_pool2d(z(2, 0, 3, 5), *half), "
                 "b.average_pool2d_backward(z(2, 0, 2, 3), (3, 5), *half), "
                 "b.upsample_nearest(z(0, 4, 3, 5), (2, 2)), "
                 "b.upsample_nearest_backward(z(2, 4, 0, 6), (2, 2))",
    "no positions": "b.groupnorm(z(0, 4, 3), z(4), z(4), 2, 1e-5, None), "
                    "b.groupnorm_backward(*[z(2, 4, 0)] * 2, *[z(4)] * 2, *[z(2, 2)] * 2, 2, "
                    "'silu'), "
                    "b.groupnorm_backward(*[z(0, 4, 3)] * 2, *[z(4)] * 2, *[z(0, 2)] * 2, 2, None)",
    "no parameters": "b.adamw(*[[]] * 5, *adam), b.adamw(*[[z(0)]] * 4, [0.1], *adam), "
                     "b.ema([], [], 0.9), b.ema([z(0)], [z(0)], 0.9)",
    "no text": "b.embedding(z(5, 4), ids), b.embedding_backward(z(0, 4), ids, 5, None), "
               "b.cross_entropy(z(0, 4), ids, -100, 0.1)",
    "nothing to compare": "b.less(z(0, 3), 1.0), b.equal(z(3, 0), z(3, 1)), b.log(z(0)), "
                          "b.where(z(0, 3) > 0, z(3), 0.0), b.power(z(0), 1.5)",
    "no places": "b.take_along(z(4, 3), ids[:, None].reshape(4, 0), 1), b.argmax(z(3, 0), 0), "
                 "b.add_along((4, 3), ids.reshape(4, 0), z(4, 0), 1), "
                 "b.scatter_add((4, 3), ids, z(0, 3)), b.scatter_add((4, 0), ids, z(0, 0))",
    "no noise": "b.uniform((1, 2), (0,), z(0).dtype), b.dropout(z(0), 0.5, (1, 2))",
}


@pytest.mark.parametrize("name", EMPTY)
def test_sizes_of_zero_in_a_process_that_has_computed_nothing(name):
    python(f"""
import numpy as np, minifm
from minifm import backends
z, ids = lambda *shape: np.zeros(shape, np.float32), np.zeros(0, int)
once, half = ((1, 1), (1, 1), 1), ((2, 2), (2, 2), (1, 1))      # stride, padding, ...
adam = 0.1, 0.9, 0.99, 1e-8, 1, 1.0
def flat(result):
    if isinstance(result, (tuple, list)):
        return [y for part in result for y in flat(part)]
    return [] if result is None else [np.asarray(result)]
found = flat((lambda b: ({EMPTY[name]},))(backends.get("c")))
wanted = flat((lambda b: ({EMPTY[name]},))(backends.get("numpy")))
assert [y.shape for y in found] == [y.shape for y in wanted]
assert all(np.array_equal(x, y, equal_nan=True) for x, y in zip(found, wanted))
""", MINIFM_BACKEND="c")


# -- processors that are not here ------------------------------------------------------------------


def test_the_comparison_of_micro_kernels_knows_the_whole_table():
    """tests/emulated/compare.c runs where `make emulate` does; that it is up to date shows here."""
    root, compiler = Path(__file__).parents[1], shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler")
    source = root / "tests/emulated/compare.c"
    subprocess.run([compiler, "-std=gnu11", "-fsyntax-only", "-Icsrc", "-DTABLE=kernels_portable",
                    str(source)], cwd=root, check=True)
    table = (root / "csrc/isa.h").read_text("utf-8")
    entries = re.findall(r"\(\*(\w+)\)\(|(?:Tile|Pack|Transpose) \*(\w+);", table)
    entries = {name for both in entries for name in both if name}
    met = set(re.findall(r"(?:k->|TABLE\.|cells\.)(\w+)\(", source.read_text("utf-8")))
    assert {"tile", "pack", "transpose", "sum"} <= entries
    assert entries - {"supported", "multiply_add"} <= met


# -- no memory, no threads -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def failing_memory(tmp_path_factory):
    """The library that lets allocations fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or not compiler or "LD_PRELOAD" in os.environ:
        pytest.skip("needs a compiler, Linux, and an interpreter without other libraries before it")
    library = tmp_path_factory.mktemp("library") / "failing_memory.so"
    source = Path(__file__).with_name("failing_memory.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"],
                   check=True)
    return library


def test_without_memory_a_kernel_raises_and_the_next_call_works(failing_memory):
    """Each case in a child of a process that has no scratch yet, the n-th allocation failing."""
    met = python("""
import ctypes, os, sys
from types import SimpleNamespace
import numpy as np
from test_native import CASES, normal, tuple_of
from minifm import backends
from minifm.backends.reference import Reference

switch = ctypes.CDLL(None)
failing_from, failures = (ctypes.c_int.in_dll(switch, n) for n in ("failing_from", "failures"))
c, lacking = backends.get("c"), []
LACKED, HAD_ALL = 10, 11        # exit statuses of a child

def guarded(name, function):
    # of its calls, number `skipped` finds that allocation number `first` fails
    def call(*arguments):
        global skipped
        failing_from.value, skipped = first if skipped == 0 else 0, skipped - 1
        result, failing_from.value = function(*arguments), 0
        if failures.value and not lacking:
            lacking.append(name)
        return result
    return call if name.startswith("minifm_") else function

lib = sys.modules["minifm.backends.native"].lib
proxy = SimpleNamespace(**{name: guarded(name, getattr(lib, name)) for name in dir(lib)})
for name, module in list(sys.modules.items()):
    if name.startswith("minifm.backends.c.") and hasattr(module, "lib"):
        module.lib = proxy

def child(case, wanted):
    global skipped
    try:
        CASES[case](c)
        assert not lacking, f"{lacking} found no memory and did not say so"
    except MemoryError as error:
        assert "a kernel of the C backend found no memory" in str(error)
    skipped = -1
    for a, b in zip(tuple_of(CASES[case](c)), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    print(*lacking, flush=True)
    return LACKED if lacking else HAD_ALL

# cases of their own: after those of their families, their scratch would be there
q = normal(1, 2, 30, 16)
y, lse = Reference().attention(q, q, q, None, None, True, 0.2)
CASES["attention_backward"] = lambda c: c.attention_backward(
    q, q, q, q, None, None, True, 0.2, y, lse, False)[:3]
CASES["weight_adjoint"] = lambda c: c.convolve_weight_adjoint(
    q, q, (3, 3), (1, 1), (1, 1), 1)
CASES["packed int8"] = lambda c: c.linear(
    q[0, 0], c.pack(normal(16, 9), "int8"), None, None, None)[0]

for case in CASES:
    wanted = tuple_of(CASES[case](Reference()))
    for threads, skipped, first in ((2, 0, 2), (1, 0, 1), (1, 1, 1), (1, 2, 1)):
        lib.minifm_set_threads(threads)
        if (pid := os.fork()) == 0:
            status = 1
            try:
                status = child(case, wanted)
            except BaseException as error:
                print(f"{case}: {error!r}", file=sys.stderr, flush=True)
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (LACKED, HAD_ALL), f"{case}: {status}"
""", LD_PRELOAD=str(failing_memory))
    assert set(met.split()) >= {
        "minifm_matmul", "minifm_linear", "minifm_sum", "minifm_sum_of_squares",
        "minifm_layernorm_backward", "minifm_rmsnorm_backward", "minifm_attention",
        "minifm_attention_backward", "minifm_convolve", "minifm_convolve_image_adjoint",
        "minifm_convolve_weight_adjoint", "minifm_groupnorm_backward", "minifm_packed_linear"}


def test_without_threads_the_caller_computes_alone(failing_memory):
    python("""
import ctypes, numpy as np, minifm
no_threads = ctypes.c_int.in_dll(ctypes.CDLL(None), "no_threads")
c, x = minifm.backend(), np.random.default_rng(0).standard_normal((300, 300)).astype("float32")
c.set_threads(1)
wanted = c.matmul(x, x)
c.set_threads(4)
no_threads.value = 1
assert np.array_equal(c.matmul(x, x), wanted) and c.threads == 1
no_threads.value = 0
c.set_threads(4)
assert np.array_equal(c.matmul(x, x), wanted) and c.threads == 4
""", MINIFM_BACKEND="c", LD_PRELOAD=str(failing_memory))


# -- threads and forks -----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 5, 64, 256])
def test_any_number_of_threads_that_the_setting_allows(threads):
    program = """
import hashlib, numpy as np, minifm
c, x = minifm.backend(), np.random.default_rng(0).standard_normal((301, 400)).astype("float32")
print(c.threads, hashlib.sha256(c.matmul(x, x.T).tobytes() + c.softmax(x).tobytes()).hexdigest())
"""
    number, digest = python(program, MINIFM_BACKEND="c", MINIFM_THREADS=str(threads)).split()
    assert int(number) == threads
    assert digest == python(program, MINIFM_BACKEND="c", MINIFM_THREADS="1").split()[1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_small_product_starts_no_threads():
    assert python("""
import os, numpy as np, minifm
c = minifm.backend()
c.set_threads(4)
x = np.ones((8, 8), np.float32)
before = len(os.listdir("/proc/self/task"))
c.matmul(x, x)
alone = len(os.listdir("/proc/self/task"))
large = np.ones((300, 300), np.float32)
c.matmul(large, large)
print(alone - before, len(os.listdir("/proc/self/task")) - before)""",
                  MINIFM_BACKEND="c") == "0 3"


def test_a_product_of_many_matrices_has_a_bound_for_its_scratch(c):
    """Few rows each, whose sums would otherwise all be kept apart at once."""
    x, y = np.ones((20_000, 16, 64), F32), np.ones((64, 64), F32)
    c.release_memory()
    assert (c.matmul(x, y) == 64).all()
    idle = c.memory().idle
    assert c.release_memory() - idle < 64 << 20


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
                    reason="needs Linux and two cores")
def test_workers_keep_off_the_callers_core_where_there_are_cores_for_all():
    """Else a system may wake them there, and two threads do the work of one."""
    python("""
import os, numpy as np, minifm
from minifm.backends.native import lib
cores, c, x = os.sched_getaffinity(0), minifm.use("c").backend, np.ones((256, 256), np.float32)

def workers(threads):
    lib.minifm_set_threads(1)
    before = set(os.listdir("/proc/self/task"))
    lib.minifm_set_threads(threads)
    c.matmul(x, x)
    return [int(tid) for tid in set(os.listdir("/proc/self/task")) - before]

found = workers(2)
assert len(found) == 1
for core in sorted(cores)[:2]:
    os.sched_setaffinity(0, {core})
    c.matmul(x, x)
    assert os.sched_getaffinity(found[0]) == cores - {core}
os.sched_setaffinity(0, cores)
found = workers(len(cores) + 1)
assert len(found) == len(cores) and all(os.sched_getaffinity(tid) == cores for tid in found)
""", MINIFM_BACKEND="c")


@pytest.mark.skipif("TSAN_OPTIONS" in os.environ,
                    reason="ThreadSanitizer takes no new threads in a child of many")
def test_a_fork_while_other_threads_compute():
    """The fork waits for the running region; the child computes alone with the lock free."""
    python("""
import os, threading, numpy as np, minifm
c = minifm.backend()
c.set_threads(3)
x = np.random.default_rng(0).standard_normal((200, 200)).astype("float32")
wanted, wrong, stop = c.matmul(x, x), [], threading.Event()

def compute():
    while not stop.is_set():
        wrong.extend([1] if not np.array_equal(c.matmul(x, x), wanted) else [])

threads = [threading.Thread(target=compute) for _ in range(2)]
for thread in threads:
    thread.start()
for attempt in range(5):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(c.matmul(x, x), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child was wrong, or died"
stop.set()
for thread in threads:
    thread.join()
assert not wrong
""", MINIFM_BACKEND="c")


# -- what a kernel must leave alone ----------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_floating_point_state_stays_as_it_was(every_isa, name):
    """Rounding mode and traps by fenv.h; flushing of subnormals by a product that is one."""
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    traps = getattr(library, "fegetexcept", lambda: 0)
    before = library.fegetround(), traps()
    lib.minifm_set_threads(3)
    CASES[name](every_isa)
    assert (library.fegetround(), traps()) == before
    tiny = np.full(9, 2e-38, np.float32) * np.float32(0.01)
    assert (tiny > 0).all() and (tiny * np.float32(1) == tiny).all()


def test_no_kernel_prints_or_ends_the_process():
    for path in (Path(__file__).parents[1] / "csrc").glob("*.[ch]"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text("utf-8"), flags=re.S)
        found = re.findall(r"\b(?:f?printf|f?puts|perror|write|exit|_exit|abort|assert)\s*\(", code)
        assert not found, f"{path.name} calls {found}"


# -- sizes beyond 2^31 -----------------------------------------------------------------------------

LARGE = 2**31 + 64 * 1003       # elements


@pytest.fixture
def vast():
    """LARGE zeros in pages that take memory only once they are written to."""
    try:
        return np.frombuffer(mmap.mmap(-1, 4 * LARGE), F32)
    except (OSError, ValueError) as reason:
        pytest.skip(f"the system gives no {4 * LARGE:,} bytes of addresses: {reason}")


def apart(x, *shape, last=1):
    """A view of which all but the last dimension step over 2^30 elements, or 2^31 in all."""
    steps = [4 << 30] + [4 << 10] * (len(shape) - 2)
    return np.lib.stride_tricks.as_strided(x, shape, (*steps[: len(shape) - 1], 4 * last))


def filled(view, seed):
    view[...] = np.random.default_rng(seed).standard_normal(view.shape)
    return view


def test_strides_and_indices_beyond_2_to_the_31(c, vast):
    a = filled(apart(vast, 3, 40), 0)
    x = np.ascontiguousarray(a)
    assert same(c.matmul(a, normal(40, 70)), c.matmul(x, normal(40, 70)))
    assert same(c.matmul(normal(50, 40), a.T), c.matmul(normal(50, 40), x.T))
    assert same(c.multiply(a, x), c.multiply(x, x)) and same(c.add(a, a[:, :1]), c.add(x, x[:, :1]))
    q = filled(apart(vast[77:], 3, 2, 9, 16), 1)
    given, flat = [q] * 3, [np.ascontiguousarray(q)] * 3
    y, lse = c.attention(*given, None, None, True, 0.25)
    assert same((y, lse), c.attention(*flat, None, None, True, 0.25))
    assert same(c.attention_backward(y, *given, None, None, True, 0.25, y, lse, False)[:3],
                c.attention_backward(y, *flat, None, None, True, 0.25, y, lse, False)[:3])


def test_rows_beyond_2_to_the_31(c, vast):
    table = vast.reshape(-1, 64)
    ids = np.array([0, len(table) - 1, len(table) // 2, len(table) - 1])
    filled(table[-1:], 2)
    assert same(c.embedding(table, ids), table[ids])
    dy, last = normal(4, 64), table[-1].copy()
    assert c.embedding_backward(dy, ids, len(table), table) is table
    assert same(table[-1], c.add(c.add(last, dy[1]), dy[3])) and same(table[0], dy[0])


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
def test_packed_rows_beyond_2_to_the_31(c, vast, format):
    """A table of zeros but for its last 16 rows."""
    bits = vast.view(np.uint8)
    last, scales = c.pack(normal(64, 16), format), None
    panels = 1 + 2**31 // last.codes.size
    codes = bits[: panels * last.codes.nbytes].view(last.codes.dtype).reshape(
        panels, *last.codes.shape[1:])
    codes[-1] = last.codes[0]
    if last.scales is not None:
        scales = np.zeros((panels, *last.scales.shape[1:]), np.uint16)
        scales[-1] = last.scales[0]
    table = Packed(format, (16 * panels, 64), 1, codes, scales)
    found = c.embedding(table, np.array([0, 16 * panels - 1, 16 * panels - 16]))
    assert same(found[1:], c.unpack(last).T[[15, 0]]) and not found[0].any()


def test_images_beyond_2_to_the_31(c, vast):
    """The corners of an image of 65,537 x 32,768 pixels, and their neighbours."""
    x = vast[: 65537 * 32768].reshape(1, 1, 65537, 32768)
    x[0, 0, ::65536, [0, 1, -2, -1]] = normal(4, 2)
    w, dy, stride = normal(1, 1, 1, 2), normal(1, 1, 2, 2, seed=1), (65536, 32766)
    small = np.ascontiguousarray(x[:, :, ::65536, [0, 1, -2, -1]])
    assert same(c.convolve(x, w, stride, (0, 0), 1), c.convolve(small, w, (1, 2), (0, 0), 1))
    assert same(c.convolve_weight_adjoint(dy, x, (1, 2), stride, (0, 0), 1),
                c.convolve_weight_adjoint(dy, small, (1, 2), (1, 2), (0, 0), 1))
    assert same(c.max_pool2d(x, (1, 2), stride, (0, 0)),
                c.max_pool2d(small, (1, 2), (1, 2), (0, 0)))
    assert same(c.average_pool2d(x, (1, 2), stride, (0, 0)),
                c.average_pool2d(small, (1, 2), (1, 2), (0, 0)))


def test_parameters_of_more_than_2_to_the_31_elements_in_all(c):
    """Most of them are the same zeros again and again, which an update leaves as they are."""
    lib.minifm_set_threads(1)
    zeros, first, last = np.zeros(2**17, F32), normal(70_000), normal(70_000, seed=1)
    between = [zeros] * 2**14
    wanted = c.sum_of_squares([last])
    assert c.sum_of_squares([*between, last]) == wanted
    averages = np.zeros_like(first), np.zeros_like(last)
    c.ema([averages[0], *between, averages[1]], [first, *between, last], 0.75)
    assert same(averages, (first * F32(0.25), last * F32(0.25))) and not zeros.any()


# -- the ceilings that a benchmark holds kernels against -------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_a_ceiling_reads_and_copies_all_that_it_says(every_isa, threads):
    lib.minifm_set_threads(threads)
    x = np.random.default_rng(0).integers(0, 2**63, 1207, np.uint64)
    room = np.full(x.size + 2, 7, np.uint64)
    given, to = (ffi.from_buffer("uint64_t[]", array) for array in (x, room[1:-1]))
    assert lib.minifm_read(given, x.size) == int(x.sum())
    lib.minifm_copy(to, given, x.size - 1)
    assert same(room[1:-2], x[:-1]) and (room[[0, -2, -1]] == 7).all()
    once, twice = lib.minifm_multiply_adds(1000, 0), lib.minifm_multiply_adds(2000, 0)
    assert twice == 2 * once and once % (2 * 1000 * threads) == 0 < once
    pairs, none = lib.minifm_multiply_adds(1000, 1), every_isa.isa != "avx512bf16"
    assert (pairs == 0) == none and pairs % (4 * 1000 * threads) == 0
