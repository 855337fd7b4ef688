"""The benchmark: every op from its declaration, figures that can be believed, what users type.

Nothing here asserts how fast anything is.
"""

import json
import math

import numpy as np
import pytest

import minifm as mf
from minifm import backends
from minifm.backends import ceilings
from minifm.cli import bench as verb
from minifm.cli import main
from minifm.op import OPS
from minifm.testing import benchmark, machine, recording
from minifm.testing.benchmark import Bench, Subject
from minifm.testing.draw import Benchmark
from minifm.testing.example import Example, example

AVAILABLE = [name for name in backends.NAMES if backends.why_not(name) is None]
EVERY_OP = [pytest.param(name, id=name) for name in list(OPS)]
# What never computes: the results are views of the operands.
VIEWS = {"Reshape": {"forward", "backward"}, "Transpose": {"forward", "backward"},
         "BroadcastTo": {"forward", "backward"}, "GetItem": {"forward"}, "Split": {"forward"},
         "Concatenate": {"backward"}, "Pad": {"backward"}, "Sum": {"backward"},
         "Add": {"backward"}}
TINY = {"*B": (2, 3), "*X": (5, 8), "*M": (2,), "B": 2, "T": 4, "S": 4, "H": 2, "D": 8, "R": 2,
        "C": 8, "M": 3, "N": 8, "K": 4, "V": 9, "images": 1, "image": (6, 5), "channels": 2,
        "groups": 2}


@pytest.fixture(scope="module")
def tiny():
    """A Bench of every backend on tiny arrays, for hardly any time."""
    return Bench(AVAILABLE, seconds=1e-3, sizes=TINY, footprint=0, ceiling_seconds=1e-3)


@pytest.fixture
def quick(monkeypatch, tiny):
    """`minifm bench` measures nothing for long."""
    monkeypatch.setattr(benchmark, "Bench", lambda names, seconds, sizes: Bench(
        names, 1e-3, TINY | sizes, 0, 1e-3))
    monkeypatch.setattr(benchmark, "IDLE", 1e-4)


# -- the table of ops ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_OP)
def test_every_op_is_timed_on_every_backend_from_its_declaration(name, tiny):
    rows = tiny.rows(name)
    assert [(row.phase, row.backend) for row in rows] == [
        (phase, backend) for phase in ("forward", "backward") for backend in AVAILABLE]
    for row in rows:
        assert row.op == name and 0 < row.fastest <= row.median <= row.slowest
        assert row.samples >= benchmark.LEAST
        assert (row.bytes == 0) == (row.phase in VIEWS.get(name, ())), row
        assert (row.flops is not None) == (OPS[name].flops.__func__ is not mf.op.Op.flops.__func__)
        if row.flops:
            assert row.flops > 0 and row.limit == "FMA"
        if row.limit:
            assert row.rate == pytest.approx((row.flops or row.bytes) / row.median)
            assert row.fraction > 0
        assert (row.ratio is None) == (row.backend == "numpy")
        assert row.cached


@pytest.mark.parametrize("name", EVERY_OP)
def test_a_benchmarks_usual_arrays_have_a_realistic_size(name):
    made = example(OPS[name], Benchmark())
    size = sum(x.nbytes for x in recording.arrays_in(made.inputs))
    assert 2**19 <= size <= 2**27, f"{made} holds {size / 2**20:.2f} MB"


def test_copies_fill_the_footprint_and_share_no_memory():
    made = example(OPS["Multiply"], Benchmark({"*X": (100,)}))
    subject = Subject(made, backends.get("numpy"), footprint=10_000)
    assert len(subject.copies) == 9 and subject.filled == 9 * 1200
    places = [x.__array_interface__["data"][0] for _, inputs, _ in subject.copies for x in inputs]
    assert len(set(places)) == 18
    calls = subject.calls("backward")
    for _ in range(20):
        next(calls)


def test_a_backward_pass_may_be_timed_again_and_again(backend):
    for name in OPS:
        node, outputs = example(OPS[name], Benchmark(TINY)).node()
        dys = recording.cotangents(backend, outputs)
        first, again = (recording.arrays_in(node.backward(*dys)) for _ in range(2))
        for a, b in zip(first, again, strict=True):
            assert np.array_equal(a, b), name


# -- what a call costs -----------------------------------------------------------------------------


def cost(name, *inputs, options=None, phase="forward", backend="numpy"):
    varied = tuple(i for i, x in enumerate(inputs) if getattr(x, "dtype", None) == np.float32)
    made = Example(OPS[name], inputs, options or {}, varied)
    return recording.costs(made, backends.get(backend))[0][phase]


def ones(*shape):
    return np.ones(shape, np.float32)


def test_bytes_are_what_an_op_must_read_and_write():
    x, row = ones(10, 8), ones(8)
    assert cost("Add", x, row).bytes == 4 * (80 + 8 + 80)
    assert cost("Subtract", x, x.copy(), phase="backward").bytes == 4 * (80 + 80)   # dy, -dy
    assert cost("Multiply", x, x.copy(), phase="backward").bytes == 4 * 5 * 80
    assert cost("Gelu", x, phase="backward").bytes == 4 * 3 * 80
    assert cost("Sum", x, options={"axis": 0}).bytes == 4 * (80 + 8)
    assert cost("Transpose", x, options={"axes": (1, 0)}).bytes == 0


def test_a_lookup_reads_only_what_it_returns():
    ids = np.array([0, 3, 3])
    assert cost("Embedding", ones(1000, 8), ids).bytes == 3 * 8 + 2 * 4 * 3 * 8
    assert cost("GetItem", ones(1000, 8), options={"index": ids}).bytes == 2 * 4 * 3 * 8


def test_what_a_backend_leaves_to_numpy_is_named():
    if "c" not in AVAILABLE:
        pytest.skip("needs the C extension")
    assert cost("Log", ones(4), backend="c").on_numpy == ("log",)
    assert cost("Exp", ones(4), backend="c").on_numpy == ()
    assert cost("Softmax", np.ones((8, 6), np.float32)[:, ::2], backend="c").copied == ("softmax",)


def test_a_recorder_computes_what_its_backend_computes(backend):
    recorder = recording.Recorder(backend)
    made = example(OPS["Linear"], Benchmark(TINY))
    with backends.use(recorder):
        node, (y,) = made.node()
        node.backward(ones(*y.shape))
    _, (expected,) = made.node()
    assert np.array_equal(y, expected)
    assert [call.verb for call in recorder.calls if call.verb != "from_numpy"] == [
        "linear", "linear_backward", "copy"]


def flops(name, *shapes, **options):
    return OPS[name].flops(*(None if s is None else np.empty(s) for s in shapes), **options)


def test_flops_count_every_product_once():
    assert flops("Linear", (2, 3, 4), (4, 5), None, None) == 2 * 6 * 4 * 5
    assert flops("Matmul", (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert flops("Matmul", (2, 1, 3, 4), (7, 4, 5)) == 14 * 2 * 3 * 4 * 5
    assert flops("Matmul", (0, 3, 4), (1, 4, 5)) == 0
    assert flops("LinearCrossEntropy", (2, 3, 4), (9, 4), (2, 3)) == 2 * 6 * 4 * 9
    assert flops("Conv2d", (2, 4, 7, 8), (6, 2, 3, 3), None, groups=2) == 2 * 2 * 6 * 30 * 18


@pytest.mark.parametrize("T, S", [(1, 1), (1, 9), (4, 9), (64, 64), (9, 4)])
def test_attentions_flops_are_those_of_the_pairs_that_look_at_each_other(T, S):
    shapes = (2, 6, T, 8), (2, 3, S, 8), (2, 3, S, 10), None, None
    pairs = {False: T * S, True: int(np.tri(T, S, S - T).sum())}
    for causal in (False, True):
        found = flops("Attention", *shapes, causal=causal, scale=1)
        exact = 2 * 12 * pairs[causal] * (8 + 10)
        diagonal = 12 * min(T, S) * (8 + 10)        # counted half: a triangle is T²/2
        assert found == (exact - diagonal if causal else exact)


# -- ceilings --------------------------------------------------------------------------------------


def test_ceilings_are_positive_and_say_how(backend):
    found = [ceilings.flop_ceiling(seconds=0.01), *ceilings.memory_ceilings(0.01)]
    for ceiling in found:
        assert 0 < ceiling.rate < math.inf and ceiling.how


def test_a_ceiling_is_that_of_the_instruction_set_and_leaves_it_as_it_was():
    if "c" not in AVAILABLE:
        pytest.skip("needs the C extension")
    native = backends.get("c")
    chosen = native.isa
    try:
        for isa in native.available_isas():
            native.set_isa(isa)
            assert isa in ceilings.flop_ceiling(native, 1e-3).how
            assert native.available_isas()[0] in ceilings.flop_ceiling(
                backends.get("numpy"), 1e-3).how
            assert native.isa == isa
    finally:
        native.set_isa(chosen)


def test_without_the_extension_numpy_measures_and_says_so(monkeypatch, quick, capsys):
    monkeypatch.setattr(ceilings, "_native", lambda: None)
    assert "NumPy's product" in ceilings.flop_ceiling(seconds=1e-3).how
    assert "NumPy" in ceilings.memory_ceilings(1e-3)[0].how
    assert main(["bench", "--op", "add", "--backend", "numpy"]) == 0
    assert "without the C extension" in capsys.readouterr().out


def test_the_cache_is_that_of_the_system_or_a_usual_one(monkeypatch, tmp_path):
    assert ceilings.last_level_cache() > 0
    monkeypatch.setattr(ceilings, "CACHES", tmp_path)
    assert ceilings.last_level_cache() == ceilings.USUAL_CACHE
    for i, size in enumerate(("32K", "1M", "768K", "")):
        (tmp_path / f"index{i}").mkdir()
        (tmp_path / f"index{i}" / "size").write_text(size + "\n")
    assert ceilings.last_level_cache() == 1 << 20


# -- the clock -------------------------------------------------------------------------------------


def test_backends_take_turns_and_each_turn_has_a_sample():
    order = []

    def calls(name):
        while True:
            order.append(name)
            yield

    turns = benchmark.take_turns([calls("a"), calls("b")], seconds=0.02)
    assert len(turns) == 2 and len(turns[0]) == len(turns[1]) >= benchmark.LEAST
    assert all(samples and min(samples) > 0 for own in turns for samples in own)
    changes = [a for a, b in zip(order, order[1:] + [""]) if a != b]
    assert changes == ["a", "b"] * (len(changes) // 2)


# -- the command -----------------------------------------------------------------------------------


def test_the_table_names_what_a_claim_must_name(quick, capsys):
    assert main(["bench", "--op", "layer_norm", "--op", "Linear"]) == 0
    out = capsys.readouterr().out
    for word in ("machine", "limits", "FMA", "copy", "read", "LayerNorm  x[2, 3, 8]", "Linear",
                 "forward", "backward", "GFLOP/s", "GB/s", *AVAILABLE):
        assert word in out
    if "c" in AVAILABLE:
        assert f"c {backends.get('c').isa}" in out


def test_json_reads_back_as_it_was(quick, tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert main(["bench", "--op", "softmax", "--op", "reshape", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert {"machine", "ceilings", "rows"} <= set(report)
    assert report["machine"]["processor"] and set(report["machine"]["backends"]) == set(AVAILABLE)
    assert report["ceilings"]["copy"]["rate"] > 0
    assert len(report["rows"]) == 2 * 2 * len(AVAILABLE)
    assert set(report["rows"][0]) == set(benchmark.Row.__dataclass_fields__)
    assert report == json.loads(json.dumps(report, allow_nan=False))


@pytest.mark.parametrize("arguments, complaint", [
    (["--op", "liner"], "did you mean linear"),
    (["--op", "?"], "--op: '?' is unknown; there are"),
    (["--backend", "nunpy"], "did you mean numpy"),
    (["--backend", "cuda"], "no CUDA"),
    (["--seconds", "0"], "--seconds"),
    (["--seconds", "nan"], "--seconds"),
    (["--size", "T"], "expected T=256"),
    (["--size", "T=-1"], "expected T=256"),
    (["--size", "T=2x3"], "expected T=256"),
    (["--size", "*B=2xx3"], "expected *B=8x256"),
    (["--size", "tokens=3"], "--size: 'tokens' is unknown"),
    (["--json", "."], "is a directory"),
])
def test_a_mistake_is_one_line_and_status_2(arguments, complaint, capsys):
    assert main(["bench", *arguments]) == 2
    found = capsys.readouterr()
    assert complaint in found.err and found.err.count("\n") == 1 and not found.out


def test_sizes_reach_the_arrays(quick, capsys):
    assert main(["bench", "--op", "linear", "--size", "*B=7", "--size", "N=24"]) == 0
    assert "x[7, 4] weight[4, 24]" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, text", [
    (2.5e-7, "0.25 µs"), (1.234e-5, "12.3 µs"), (9.9999e-4, "1000 µs"), (0.0214, "21.4 ms"),
    (0.1234, "123 ms"), (12.5, "12.5 s")])
def test_times_are_shown_in_three_digits(seconds, text):
    assert verb.time_text(seconds) == text


def test_a_limit_that_was_measured_too_low_is_not_hidden():
    assert not list(verb.remarks({"copy": 10.0}, {"copy": 10.1}, [], 0.0))
    assert "copy" in "".join(verb.remarks({"copy": 10.0}, {"copy": 15.0}, [], 0.0))
    assert "31% of the time" in "".join(verb.remarks({}, {}, [], 0.31))


def test_waiting_for_a_core_is_counted_where_the_system_tells(monkeypatch, tmp_path):
    assert machine.waited() >= 0
    monkeypatch.setattr(machine, "THREADS", tmp_path)
    assert machine.waited() == 0
    for i, text in enumerate(("5 2000000000 7", "1 500000000 2")):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "schedstat").write_text(text)
    assert machine.waited() == 2.5
    (tmp_path / "0" / "schedstat").write_text("")
    assert machine.waited() == 0
