"""The benchmark: every op from its declaration, figures that can be believed, what users type.

Nothing here asserts how fast anything is.
"""

import ast
import ctypes
import gc
import itertools
import json
import math
import runpy
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minifm as mf
from minifm import backends
from minifm.backends import ceilings
from minifm.backends.reference import Reference
from minifm.backends.reference.fallback import count_fallbacks
from minifm.cli import bench as verb
from minifm.cli import main, parse
from minifm.hub import load_arrays, load_model
from minifm.op import OPS
from minifm.testing import benchmark, cases, denoisers, figure, machine, recording, table
from minifm.testing.benchmark import Bench
from minifm.testing.draw import Benchmark
from minifm.testing.example import Example, example
from minifm.testing.peers import LLAMA, PYTORCH, Library, Peer, Unable, clock
from minifm.testing.subjects import OpSubject, Subject

AVAILABLE = [name for name in backends.NAMES if backends.why_not(name) is None]
EVERY_OP = [pytest.param(name, id=name) for name in list(OPS)]
# What never computes: the results are views of the operands.
VIEWS = {"Reshape": {"forward", "backward"}, "Transpose": {"forward", "backward"},
         "BroadcastTo": {"forward", "backward"}, "GetItem": {"forward"}, "MergeHeads": {"backward"},
         "SplitHeads": {"forward"},
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
    monkeypatch.setattr(benchmark, "Bench", lambda names, seconds, sizes, peers: Bench(
        names, 1e-3, TINY | sizes, 0, 1e-3, peers))
    monkeypatch.setattr(clock, "IDLE", 1e-4)


# -- the table of ops ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_OP)
def test_every_op_is_timed_on_every_backend_from_its_declaration(name, tiny):
    rows = tiny.rows(name)
    assert [(row.phase, row.backend) for row in rows] == [
        (phase, backend) for phase in ("forward", "backward") for backend in AVAILABLE]
    for row in rows:
        assert row.group == name and 0 < row.fastest <= row.median <= row.slowest
        assert row.samples >= benchmark.LEAST
        assert (row.bytes == 0) == (row.phase in VIEWS.get(name, ())), row
        assert (row.flops is not None) == (OPS[name].flops.__func__ is not mf.op.Op.flops.__func__)
        if row.flops:
            assert row.flops > 0 and row.limit == "FMA"
        if row.limit:
            assert row.rate == pytest.approx((row.flops or row.bytes) / row.median)
            assert row.fraction > 0
        assert set(row.versus) == ({"numpy"} if row.backend != "numpy" else set())
        assert row.cached


@pytest.mark.parametrize("name", EVERY_OP)
def test_a_benchmarks_usual_arrays_have_a_realistic_size(name):
    made = example(OPS[name], Benchmark())
    size = sum(x.nbytes for x in recording.arrays_in(made.inputs))
    assert 2**19 <= size <= 2**27, f"{made} holds {size / 2**20:.2f} MB"


def test_copies_fill_the_footprint_and_share_no_memory():
    made = example(OPS["Multiply"], Benchmark({"*X": (100,)}))
    subject = OpSubject(made, backends.get("numpy"), footprint=10_000)
    assert len(subject.copies) == 9 and subject.filled == 9 * 1200
    places = [x.__array_interface__["data"][0] for _, inputs, _ in subject.copies for x in inputs]
    assert len(set(places)) == 18
    calls = subject.calls("backward")
    for _ in range(20):
        next(calls)


@pytest.mark.parametrize("phase", ["forward", "backward", "both"])
def test_results_are_held_for_one_round_of_the_copies_and_no_longer(phase):
    made = example(OPS["Multiply"], Benchmark({"*X": (100,)}))
    phases = ("both",) if phase == "both" else ("forward", "backward")
    subject, results = OpSubject(made, backends.get("numpy"), 10_000, phases), []
    for node, _, _ in subject.copies:
        for method in ("forward", "backward"):
            def noted(*arrays, compute=getattr(node, method)):
                made = compute(*arrays)
                results.extend(map(weakref.ref, made if isinstance(made, tuple) else (made,)))
                return made
            setattr(node, method, noted)
    calls = subject.calls(phase)
    for _ in range(4 * len(subject.copies)):
        next(calls)
    alive = sum(ref() is not None for ref in results)
    assert len(results) == 4 * alive > 0


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


@pytest.fixture
def without_log(monkeypatch):
    """The C backend as it would be without a kernel for `log`."""
    if "c" not in AVAILABLE:
        pytest.skip("needs the C extension")
    backend = type(backends.get("c"))
    monkeypatch.setattr(backend, "log", Reference.log)
    count_fallbacks(backend, Reference, shared=[
        type("Others", (), dict.fromkeys(name for name in dir(Reference) if name != "log"))])


def test_what_a_backend_leaves_to_numpy_is_named(without_log):
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
    from_ops = [call.verb for call in recorder.calls
                if call.verb not in ("enter_thread", "from_numpy")]
    assert from_ops == ["linear", "linear_backward", "copy"]


def flops(name, *shapes, **options):
    return OPS[name].flops(*(None if s is None else np.empty(s) for s in shapes), **options)


def test_flops_count_every_product_once():
    assert flops("Linear", (2, 3, 4), (4, 5), None, None) == 2 * 6 * 4 * 5
    assert flops("Matmul", (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert flops("Matmul", (2, 1, 3, 4), (7, 4, 5)) == 14 * 2 * 3 * 4 * 5
    assert flops("Matmul", (0, 3, 4), (1, 4, 5)) == 0
    assert flops("LinearCrossEntropy", (2, 3, 4), (9, 4), None, (2, 3)) == 2 * 6 * 4 * 9
    assert flops("Conv2d", (2, 4, 7, 8), (6, 2, 3, 3), None, groups=2) == 2 * 2 * 6 * 30 * 18


@pytest.mark.parametrize("T, S", [(1, 1), (1, 9), (4, 9), (64, 64), (9, 4)])
def test_attentions_flops_are_those_of_the_pairs_that_look_at_each_other(T, S):
    shapes = (2, 6, T, 8), (2, 3, S, 8), (2, 3, S, 10), None, None, None, None
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


# -- named sets ------------------------------------------------------------------------------------

UNET = dict(B=2, inputs=2, outputs=2, size=8, widths=(8, 16), layers=1, attention=(1,),
            head_width=8, groups=4)
DIT = dict(B=2, inputs=2, size=(8, 8), layers=2, heads=2, width=16, classes=5)
LITTLE = [
    *(cases.product(layout, "tiny", 3, 4, 5) for layout in ("NN", "NT", "TN")),
    cases.product("NN", "larger", 9, 4, 5), cases.attention(2, 8, H=2, D=4),
    cases.over_rows("softmax", "Softmax", (4, 6)),
    cases.over_rows("layernorm", "LayerNorm", (4, 6), eps=1e-5),
    cases.linear_cross_entropy(5, C=4, V=9), cases.adamw("tiny", [(3, 4), (4,)]),
    cases.convolution("tiny", (1, 2, 5, 5), (3, 2, 3, 3), 2, 1),
    *cases.steps({
        "tiny": ("gpt", dict(L=1, C=8, H=2, T=4, B=2, V=11)),
        "llama": ("llama", dict(L=1, C=8, H=2, K=1, F=12, T=4, B=2, V=11)),
        "bert": ("bert", dict(L=1, C=8, H=2, T=16, B=2, V=11)),
        "unet": ("unet", UNET), "dit": ("dit", DIT)}),
    *cases.calls({"unet B2": ("unet", UNET), "dit B2": ("dit", DIT)}),
    *cases.decoding((1, 8, 2, 1024, 11)),
]


@pytest.mark.parametrize("case", LITTLE, ids=lambda case: f"{case.title} {case.inputs}")
def test_every_case_is_timed_on_every_backend(case, tiny):
    rows = tiny.rows(case)
    assert [(row.phase, row.backend) for row in rows] == [
        (phase, backend) for phase in case.phases for backend in AVAILABLE]
    for row in rows:
        assert row.problem is None and row.title == case.title and row.limit
        assert 0 < row.fastest <= row.median <= row.slowest and row.fraction > 0


def amount(case, tiny):
    """What the first row of a case is held against, and how much of it."""
    row = tiny.rows(case)[0]
    return row.limit, row.rate * row.median


def test_each_case_has_its_proper_limit(tiny):
    weights = 4 * 4 * 5
    for case, limit, expected in [
            (cases.product("NN", "", 3, 4, 5), "read", weights),
            (cases.product("NT", "", 3, 4, 5), "read", weights),
            (cases.product("TN", "", 9, 4, 5), "FMA", 2 * 9 * 4 * 5),
            (cases.attention(2, 8, H=3, D=4), "FMA", 2 * 2 * 3 * 8**2 * 4),
            (cases.linear_cross_entropy(5, C=4, V=9), "FMA", 6 * 5 * 4 * 9),
            (cases.adamw("", [(3, 4), (4,)]), "copy", 28 * 16),
            (cases.over_rows("softmax", "Softmax", (4, 6)), "copy", 2 * 4 * 24)]:
        found = amount(case, tiny)
        assert found == (limit, pytest.approx(expected)), case


def test_a_step_of_decoding_is_held_against_weights_and_cache(tiny):
    L, C, H, T, V = shape = 2, 8, 2, 1024, 11
    after_1, after_512, after_1023, halved, prefill, *packed = cases.decoding(shape)
    block = 12 * C * C + 13 * C
    weights = L * block + V * C + 2 * C + C         # and one position
    for case, position in ((after_1, 1), (after_512, 512), (after_1023, 1023)):
        limit, found = amount(case, tiny)
        assert limit == "read"
        assert found == pytest.approx(4 * (weights + 2 * L * C * (position + 1)))
    assert amount(halved, tiny)[1] == pytest.approx(4 * (weights + L * C * 1024))
    limit, found = amount(prefill, tiny)
    products = 512 * L * 24 * C * C + 2 * V * C     # logits after the last token alone
    assert limit == "FMA" and found == pytest.approx(products + 2 * L * C * 512 * 513)
    matrices, others = L * 12 * C * C + V * C, L * 13 * C + 3 * C
    for case, bytes_each in zip(packed[::5], (2, None, None)):      # int formats: see below
        found = amount(case, tiny)[1]
        if bytes_each:
            assert found == pytest.approx(bytes_each * matrices + 4 * (others + 2 * L * C * 2))
        else:
            assert found < 4 * (weights + 2 * L * C * 2)


def test_the_named_sets_are_those_that_are_promised():
    names = {name: [case.title for case in make()] for name, make in cases.SETS.items()}
    for set_, wanted in {
            "kernels": ("gemm NN 4096³", "gemm TN 16·768→50257", "gemm NT 1·3072→768",
                        "attention T 4096", "softmax 256×50257", "layernorm 4096×768",
                        "gelu 4096×3072", "linear+cross-entropy 4096·768→50257",
                        "adamw GPT-2 124M", "conv2d 7×7 stem 224²"),
            "step": ("step L4", "step L6", "step gpt2", "step llama", "step bert", "step unet",
                     "step dit", "step dit bf16", "step unet by Trainer", "step dit by Trainer"),
            "sample": ("call unet B1", "call unet B8", "call dit B1", "call dit B8 bf16"),
            "decode": ("decode fp32 after 1", "decode bf16 after 512", "decode int8 after 1023",
                       "decode int4 after 1", "decode bf16 after 1023, cache bf16",
                       "prefill fp32 512 tokens")}.items():
        assert set(wanted) <= set(names[set_])
        assert len(set(names[set_])) == len(names[set_])
    assert all(any(case.quick for case in make()) for make in cases.SETS.values())


@pytest.mark.parametrize("only, titles", [
    (["T 64"], ["attention T 64"]),
    (["adamw", "CONV2D 7"], ["adamw GPT-2 124M", "conv2d 7×7 stem"]),
    (["gemm NT 1·768→7"], ["gemm NT 1·768→768"])])
def test_only_picks_cases_by_the_beginnings_of_words(only, titles):
    args = parse(["bench", "--set", "kernels", *(x for text in only for x in ("--only", text))])
    found = [case.title for case in verb.chosen_cases(args)]
    assert len(found) == len(titles) and all(map(str.startswith, found, titles))


def test_adamws_shapes_are_those_of_the_model():
    from minifm.models import GPT, GPTConfig
    model = GPT(GPTConfig(vocabulary=11, context=7, layers=2, heads=2, width=8))
    assert cases.gpt2_shapes(2, 8, 7, 11) == [p.shape for p in model.parameters().values()]


def test_a_case_that_a_backend_cannot_do_says_so(tiny):
    def subject(backend, footprint):
        raise Unable("has no such verb yet")

    case = cases.Case("kernels", "gemm", "new", ("forward",), subject)
    rows = tiny.rows(case)
    assert {row.problem for row in rows} == {"has no such verb yet"}
    assert f"{AVAILABLE[0]}: has no such verb yet" in "".join(table.named_table(rows, True, []))


def test_a_verb_that_must_not_be_left_to_numpy_is_a_problem(monkeypatch, tiny, without_log):
    monkeypatch.setattr(backends.get("c"), "strict", True)
    row = tiny.rows("Log")[AVAILABLE.index("c")]
    assert "'log'" in row.problem and row.median is None
    assert row.problem in "".join(table.op_table([row]))


# -- peers -----------------------------------------------------------------------------------------

FAKE = """
import itertools
import json
import sys
sys.path.insert(0, {folder!r})
from service import serve

def start(threads):
    print("what libraries print does no harm")
    return f"fake, {{threads}} threads", prepare

def prepare(request):
    if request["mode"] == "broken":
        raise ValueError("it cannot\\nor will not")
    if request["mode"] in ("right", "wrong"):
        expected = json.load(open(request["folder"] + "/expected.json"))
        return itertools.repeat(None), {{
            name: [y * (1 + 0.01 * (request["mode"] == "wrong")) for y in numbers]
            for name, numbers in expected.items()}}
    def calls():
        while True:
            if request["mode"] == "dying":
                sys.exit("it has died")
            yield
    return calls()

serve(start)
"""


@pytest.fixture
def fake(tmp_path):
    """A peer process that serves as PyTorch."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(folder=str(Path(clock.__file__).parent)))
    library = Library("PyTorch", "--torch", "torch", str(script))
    with Peer(library, sys.executable, threads=2) as peer:
        yield peer


def test_a_peer_takes_its_turns(fake):
    assert fake.name == "fake, 2 threads"
    bench = Bench(["numpy"], 1e-3, TINY, 0, 1e-3, peers=[fake])
    case = replace(LITTLE[0], modes={"PyTorch": ("eager", "broken")})
    numpy, eager, broken = bench.rows(case)
    assert eager.mode == "eager" and eager.samples >= benchmark.LEAST and eager.fraction is None
    assert broken.problem == "ValueError: it cannot"
    assert numpy.versus["PyTorch"]["mode"] == "eager"
    assert bench.report([numpy])["peers"] == {"PyTorch": "fake, 2 threads"}
    assert not bench.rows(replace(case, modes={}))[1:]


def test_a_peer_that_dies_does_not_end_the_run(fake):
    bench = Bench(["numpy"], 1e-3, TINY, 0, 1e-3, peers=[fake])
    case = replace(LITTLE[0], modes={"PyTorch": ("dying",)})
    for _ in range(2):
        numpy, dead = bench.rows(case)
        assert numpy.median > 0 and dead.problem == "it has died"


class Shared(Subject):
    """Something that a peer must compute, too."""

    costs = {"step": recording.Cost(1, 0, (), ())}

    def __init__(self, precision):
        self.precision = precision

    def calls(self, phase):
        return itertools.repeat(None)

    def share(self, folder):
        expected = {"loss": [2.0], "prediction": [-3.0, 0.0, 1e-9]}
        (Path(folder) / "expected.json").write_text(json.dumps(expected))
        return expected


@pytest.mark.parametrize("precision, agrees", [("fp32", False), ("bf16", True)])
def test_a_peer_that_computes_something_else_is_named_and_not_timed(fake, precision, agrees):
    """1 % is much in float32 and little in bf16."""
    bench = Bench(["numpy"], 1e-3, TINY, 0, 1e-3, peers=[fake])
    case = cases.Case("step", "step", "shared", ("step",), lambda *given: Shared(precision),
                      request={"precision": precision}, modes={"PyTorch": ("right", "wrong")})
    numpy, right, wrong = bench.rows(case)
    assert right.samples and numpy.versus["PyTorch"]["median"] > 0
    assert wrong.problem == (None if agrees else "computes something else: loss differs by 1.0%")
    assert bool(wrong.samples) == agrees


@pytest.mark.parametrize("found", [[2.0, math.nan], [2.0, math.inf]])
def test_what_is_not_finite_agrees_with_nothing(found):
    peer = SimpleNamespace(prepare=lambda request: SimpleNamespace(found={"y": found}))
    with pytest.raises(Unable, match="y differs"):
        benchmark.agreeing(peer, {"mode": "bf16"}, {"y": [2.0, 1.0]})


SUBJECTS = [pytest.param(kind, *model, id=f"{kind.__name__} {model[0]}") for kind in (
    denoisers.DenoisingStep, denoisers.TrainerStep, denoisers.NetworkCall)
    for model in (("unet", UNET), ("dit", DIT))]


@pytest.mark.parametrize("kind, family, sizes", SUBJECTS)
def test_a_peer_is_given_all_that_it_must_compute(backend, kind, family, sizes, tmp_path):
    """From the folder alone, in float64 and by the formulas of v = α ε - σ x₀."""
    subject = kind(backend, family, sizes)
    expected = subject.share(tmp_path)
    given, network = load_arrays(tmp_path / denoisers.SHARED), load_model(tmp_path)
    for p in network.parameters().values():
        assert p.data.any()
        p.data = p.data.astype(np.float64)
    x0, noise = (given[name].astype(np.float64) for name in ("x0", "noise"))
    condition = {"labels": given["labels"]} if family == "dit" else {}
    if kind is denoisers.NetworkCall:
        found = network(mf.Tensor(noise), given["times"], **condition)
        assert np.abs(expected["prediction"] - found.numpy().ravel()).max() < 1e-4
        return
    alpha, sigma = (given[name][given["times"]][:, None, None, None].astype(np.float64)
                    for name in ("alpha", "sigma"))
    found = network(mf.Tensor(alpha * x0 + sigma * noise), given["times"], **condition)
    error = found - mf.Tensor(alpha * noise - sigma * x0)
    loss = mf.mean(error * error)
    loss.backward()
    norm = math.sqrt(sum((p.grad**2).sum() for p in network.parameters().values()))
    assert expected == {"loss": pytest.approx(loss.item(), rel=1e-5),
                        "gradient_norm": pytest.approx(norm, rel=1e-4)}


def test_a_step_by_the_trainer_is_one_of_its_own_and_leaves_no_files(backend):
    subject = denoisers.TrainerStep(backend, "dit", DIT)
    calls, trainer = subject.calls("step"), subject.trainer
    for _ in range(3):
        next(calls)
    assert trainer.step == 4 and trainer.optimizer.steps == 4 and trainer.optimizer.average == 0.995
    assert len(trainer.metrics.read()) == 4
    assert subject.costs["step"].flops == DIT["B"] * trainer.model.config.flops(training=True)
    folder = trainer.directory
    calls.close()
    del calls, subject
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("kind, family, sizes", SUBJECTS)
def test_bf16_is_what_is_computed_where_it_is_asked_for(kind, family, sizes, tmp_path):
    exact, rounded = (next(iter(kind(backends.get("numpy"), family, sizes, precision).share(
        tmp_path).values())) for precision in ("fp32", "bf16"))
    difference = np.abs(np.subtract(exact, rounded)).max() / np.abs(exact).max()
    assert 1e-6 < difference < benchmark.CLOSE_BF16


@pytest.mark.parametrize("script, modules", [
    (PYTORCH.script, {PYTORCH.module}), (LLAMA.script, {LLAMA.module}),
    ("denoising.py", {PYTORCH.module, "diffusers", "safetensors.torch"})])
def test_a_peers_script_compiles_and_needs_no_minifm(script, modules):
    source = (Path(clock.__file__).parent / script).read_text()
    names = [name for node in ast.walk(ast.parse(source)) if isinstance(node, (
        ast.Import, ast.ImportFrom)) for name in (getattr(node, "module", None),
                                                  *(alias.name for alias in node.names))]
    assert modules <= set(names) and not any("minifm" in (name or "") for name in names)


def test_each_format_of_a_llama_model_has_a_file_of_its_own(monkeypatch, tmp_path):
    """llama.cpp reads the float32 file while it writes the other: never the same one."""
    calls = []
    fake = SimpleNamespace(
        llama_model_quantize_default_params=lambda: ctypes.c_int(),
        LLAMA_FTYPE_MOSTLY_Q8_0=7, llama_model_quantize=lambda *paths: calls.append(paths[:2]))
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace())
    monkeypatch.syspath_prepend(str(Path(clock.__file__).parent))
    script = runpy.run_path(str(Path(clock.__file__).parent / LLAMA.script))
    script["stored"].__globals__.update(
        write=lambda path, *shape: None, folder=SimpleNamespace(name=tmp_path))
    assert script["stored"]((1, 2, 3), "Q8_0") != script["stored"]((1, 2, 3), "F32")
    [(source, target)] = calls
    assert source != target


# -- the picture -----------------------------------------------------------------------------------


def test_a_saved_report_is_shown_and_drawn_without_measuring(monkeypatch, quick, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(cases, "SETS", {"kernels": lambda: LITTLE[:-17], "decode": lambda: []})
    data, picture = tmp_path / "a.json", tmp_path / "a.png"
    assert main(["bench", "--set", "kernels", "--json", str(data), "--plot", str(picture)]) == 0
    measured = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(benchmark, "Bench", None)
    again = tmp_path / "b.svg"
    assert main(["bench", "--from", str(data), "--from", str(data), "--plot", str(again)]) == 0
    shown = capsys.readouterr().out
    for row in json.loads(data.read_text())["rows"]:
        for out in (measured, shown):
            assert row["group"] in out and f"  {row['name']}" in out
    words = again.read_text()
    assert "softmax 4×6" in words and "GFLOP/s" in words and "part of the limit" in words


def test_joined_reports_are_held_against_the_highest_limits_of_one_machine(quick, tmp_path,
                                                                           capsys):
    first, second, third = (tmp_path / f"{name}.json" for name in "abc")
    assert main(["bench", "--op", "softmax", "--json", str(first)]) == 0
    report = json.loads(first.read_text())
    report["ceilings"]["copy"]["rate"] *= 4
    report["rows"] = [report["rows"][0] | {"versus": {"PyTorch": {
        "mode": "eager", "median": 2.0, "low": 1.0, "high": 3.0}}}]
    second.write_text(json.dumps(report))
    sources = ["--from", str(first), "--from", str(second)]
    assert main(["bench", *sources, "--json", str(third)]) == 0
    whole = json.loads(third.read_text())
    rate = report["ceilings"]["copy"]["rate"]
    assert whole["ceilings"]["copy"]["rate"] == rate and len(whole["rows"]) == 2 * len(AVAILABLE)
    assert all(row["fraction"] == row["rate"] / rate for row in whole["rows"])
    assert whole["rows"][0]["versus"]["PyTorch"]["median"] == 2.0
    report["machine"]["cores"] += 1
    second.write_text(json.dumps(report))
    capsys.readouterr()
    assert main(["bench", *sources]) == 2
    found = capsys.readouterr()
    assert "different machines" in found.err and "cores" in found.err and not found.out


def test_what_was_measured_before_an_interruption_is_not_lost(monkeypatch, quick, tmp_path):
    path, rows = tmp_path / "bench.json", Bench.rows

    def interrupted(self, case):
        if case == "Gelu":
            raise KeyboardInterrupt
        return rows(self, case)

    monkeypatch.setattr(Bench, "rows", interrupted)
    assert main(["bench", "--op", "softmax", "--op", "gelu", "--json", str(path)]) == 130
    assert {row["group"] for row in json.loads(path.read_text())["rows"]} == {"Softmax"}


def test_groups_of_a_roofline_differ_in_colour():
    groups = [f"group {i}" for i in range(len(figure.COLOURS))]
    colours = figure.colours_of([{"group": group} for group in groups + groups])
    assert len(set(colours.values())) == len(groups) == len(colours)


@pytest.mark.parametrize("low, high, labels", [(0.5, 4, {"2", "5"}), (0.01, 900, set())])
def test_only_decades_of_a_long_axis_have_labels(low, high, labels):
    from matplotlib.figure import Figure
    rows = [{"versus": {"numpy": {"median": ratio, "low": ratio, "high": ratio}}}
            for ratio in (low, high)]
    axes = Figure().subplots()
    figure.draw_ratios(axes, {"a kind": rows})
    shown = {axes.xaxis.get_minor_formatter()(x) for x in (2, 5, 3, 10, 20)}
    assert shown - {"20"} == labels | {""}


def test_a_row_above_its_limit_is_marked():
    row = SimpleNamespace(limit="FMA", set="ops", rate=2e9, fraction=1.2, cached=False)
    assert table._rate(row)[1] == "!120% FMA"
    assert table._rate(SimpleNamespace(**vars(row) | {"fraction": 1.0}))[1] == "100% FMA"
    assert "1 row is above the limit (marked !)" in "".join(table.remarks({}, {}, [row], 0.0, 1.0))


def test_no_two_labels_of_a_roofline_overlap():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = pyplot.figure(figsize=(6, 4)).subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    axes.scatter([], [], label="x")
    axes.legend(loc="lower right")
    random = np.random.default_rng(0)
    figure.place_labels(axes, [(*random.uniform(1, 9, 2), f"case {i}", "red") for i in range(60)],
                        [[(0, 0), (10, 10)]])
    boxes = [figure._words_box(text, axes.figure.canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) > 10
    assert not any(figure._overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    pyplot.close()


def test_without_matplotlib_one_line_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "--plot", "bench.png"]) == 2
    found = capsys.readouterr()
    assert "matplotlib is not installed" in found.err and not found.out


def test_a_file_that_is_no_report_is_refused_in_one_line(tmp_path, capsys):
    for text in ("", "{}", "[1]", '{"rows": [{"op": "Add"}]}'):
        path = tmp_path / "report.json"
        path.write_text(text)
        assert main(["bench", "--from", str(path)]) == 2
        found = capsys.readouterr()
        assert "report.json" in found.err and found.err.count("\n") == 1 and not found.out


def test_joined_reports_keep_every_size_of_an_op(quick, tmp_path, capsys):
    sources = []
    for m in ("64", "128"):
        sources += "--from", str(tmp_path / m)
        assert main(["bench", "--op", "matmul", "--size", f"M={m}", "--json", sources[-1]]) == 0
    capsys.readouterr()
    assert main(["bench", *sources, "--json", str(tmp_path / "both")]) == 0
    rows = json.loads((tmp_path / "both").read_text())["rows"]
    assert len(rows) == 2 * len({(row["phase"], row["backend"]) for row in rows})
    assert capsys.readouterr().out.count("\nMatmul  ") == 2


def test_a_ratio_stands_under_its_own_heading():
    """Also where a case was compared with only some of the libraries."""
    ratio = {"mode": "eager", "median": 2.0, "low": 1.0, "high": 3.0}
    row = benchmark.Row("kernels", "gemm", "NN 1", "forward", "", "c", median=1e-3, fastest=1e-3,
                        slowest=1e-3, limit="FMA", rate=1e9, fraction=0.5,
                        versus={"llama.cpp": ratio})
    line = table.named_table([row], False, ["PyTorch", "llama.cpp"])[0]
    names = [f"× {name}" for name in ("numpy", "PyTorch", "llama.cpp")]
    heading = table._named("", "", "median", "", "rate", "of limit", names)
    assert line.index("eager") + len("eager") == len(heading)


# -- the clock -------------------------------------------------------------------------------------


def test_backends_take_turns_and_each_turn_has_a_sample():
    order = []

    def calls(name):
        while True:
            order.append(name)
            yield

    turns = benchmark.take_turns(
        {name: clock.Timed(calls(name)) for name in "ab"} | {"c": "it cannot"}, seconds=0.02)
    assert turns["c"] == "it cannot"
    assert len(turns["a"]) == len(turns["b"]) >= benchmark.LEAST
    assert all(samples and min(samples) > 0 for name in "ab" for samples in turns[name])
    changes = [a for a, b in zip(order, order[1:] + [""]) if a != b]
    assert changes == ["a", "b"] * (len(changes) // 2)


def test_who_fails_on_the_way_says_why_and_the_others_go_on():
    def calls(good):
        for _ in range(good):
            yield
        raise MemoryError

    turns = benchmark.take_turns({"a": clock.Timed(calls(10**9)), "b": clock.Timed(calls(1))},
                                 seconds=0.01)
    assert turns["b"] == "there is not enough memory" and len(turns["a"]) >= benchmark.LEAST


def test_a_ratio_is_that_to_the_fastest_mode_of_each_library():
    turns = {("numpy", None): [[4.0], [2.0, 8.0]], ("c", None): [[1.0], [1.0]],
             ("PyTorch", "eager"): [[3.0], [3.0]], ("PyTorch", "compile"): [[2.0], [2.5]],
             ("PyTorch", "bf16"): "it cannot"}
    found = benchmark.comparisons("c", turns["c", None], turns)
    assert found == {
        "numpy": {"mode": None, "median": 4.5, "low": 4.0, "high": 5.0},
        "PyTorch": {"mode": "compile", "median": 2.25, "low": 2.0, "high": 2.5}}
    assert "numpy" not in benchmark.comparisons("numpy", turns["numpy", None], turns)


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
    (["--plot", "."], "is a directory"),
    (["--plot", "bench.txt"], "ends in .png"),
    (["--plot", "nowhere/bench.png"], "no directory nowhere"),
    (["--only", "gemm"], "--only: it needs --set"),
    (["--torch", "python"], "--torch: it needs --set"),
    (["--set", "kernels", "--op", "add"], "--op: it belongs to --set ops"),
    (["--set", "step", "--llama", "python"], "--llama: it needs --set decode"),
    (["--set", "step", "--mode", "bf61"], "did you mean bf16"),
    (["--set", "kernels", "--only", "gemm XX"], "there are gemm, attention, softmax"),
    (["--set", "step", "--torch", "/nowhere/python"], "--torch: /nowhere/python: No such file"),
    (["--set", "step", "--torch", "/bin/ls"], "/bin/ls is no Python interpreter that has torch"),
    (["--from", "nowhere.json"], "nowhere.json"),
    (["--from", "bench.json", "--quick"], "--quick: --from measures nothing"),
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
    assert table.time_text(seconds) == text


def test_a_limit_that_was_measured_too_low_is_not_hidden():
    assert not list(table.remarks({"copy": 10.0}, {"copy": 10.1}, [], 0.0, 10.0))
    assert "copy" in "".join(table.remarks({"copy": 10.0}, {"copy": 15.0}, [], 0.0, 10.0))
    assert "In 10 s, threads waited 10.8 s (all of them together)" in "".join(
        table.remarks({}, {}, [], 10.8, 10.0))
    assert not list(table.remarks({}, {}, [], 0.1, 10.0))


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
