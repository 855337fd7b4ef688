"""Weights in low precision: every code, the arithmetic of products, and who may read them.

The bounds follow from the formats: half a step of a code, half a step of the rounded factor.
"""

import numpy as np
import pytest
from conftest import AVAILABLE
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm import backends
from minifm.backends.reference import Reference
from minifm.backends.reference.packed import FORMATS, Packed, rounded_to_bf16, widened
from minifm.errors import ConfigError, GraphError, ShapeError
from minifm.testing import parity

F32, U = np.float32, parity.U
INTS = ("int8", "int4")
STEP, TINY = 2.0**-8, 2.0**-134     # the roundings of bf16: of a number's size, and at the least
BYTES = {"fp32": 128, "bf16": 64, "int8": 34, "int4": 18}       # of a group
SHAPES = [(1, 64, 16), (1, 768, 50), (2, 33, 17), (3, 1, 1), (4, 769, 65), (5, 70, 33),
          (19, 800, 100), (40, 385, 160), (0, 32, 5), (3, 0, 5), (2, 5, 0)]
EACH_SHAPE = pytest.mark.parametrize("m, k, n", SHAPES, ids=str)
EACH_FORMAT = pytest.mark.parametrize("format", FORMATS)
ISAS = backends.get("c").available_isas() if "c" in AVAILABLE else []


@pytest.fixture(params=ISAS or [pytest.param(None, marks=pytest.mark.skip("no C backend"))])
def c(request):
    """The C backend on each instruction set."""
    backend = backends.get("c")
    isa = backend.isa
    backend.set_isa(request.param)
    with backends.use(backend):
        yield backend
    backend.set_isa(isa)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def same(a, b):
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def groups_of(rows):
    """[N, K] as [N, G, 32], padded with zeros."""
    N, K = rows.shape
    return np.pad(rows, ((0, 0), (0, -K % 32))).reshape(N, -(-K // 32), 32)


def product(backend, x, packed):
    return backend.linear(x, packed, None, None, None)[0]


# -- the codes -----------------------------------------------------------------------------------


def test_bf16_rounds_to_nearest_even():
    """Every number of 16 bits, both of its neighbours' midpoints and what lies just beside them."""
    bits = np.arange(0, 0x7F80, dtype=np.uint32)
    low, high = (bits << 16).view(F32), ((bits + 1) << 16).view(F32)
    middle = ((bits << 16) + 0x8000).view(F32)
    even = bits + bits % 2
    for sign, mark in ((1, 0), (-1, 0x8000)):
        assert (rounded_to_bf16(sign * low) == bits + mark).all()
        assert (rounded_to_bf16(sign * middle) == even + mark).all()
        assert (rounded_to_bf16(sign * np.nextafter(middle, low)) == bits + mark).all()
        assert (rounded_to_bf16(sign * np.nextafter(middle, high)) == bits + 1 + mark).all()
    assert np.isnan(widened(rounded_to_bf16(np.array([np.nan, -np.nan], F32)))).all()
    payload = np.array([0x7F800001], np.uint32).view(F32)       # a NaN whose upper half is inf's
    assert np.isnan(widened(rounded_to_bf16(payload))).all()


@EACH_FORMAT
def test_a_group_takes_the_bytes_that_are_promised(backend, format):
    packed = backend.pack(normal(64, 32), format)
    assert packed.nbytes == 2 * 32 * BYTES[format]
    assert packed.shape == (64, 32) and packed.dtype == F32


@EACH_FORMAT
@given(seed=st.integers(0, 99), scale=st.sampled_from([1, 1e-3, 1e-36, 1e30]),
       k=st.sampled_from([1, 31, 32, 33, 100]))
def test_the_error_of_a_weight_is_within_half_a_step(backend, format, seed, scale, k):
    w = normal(k, 7, seed=seed) * F32(scale)
    found = backend.unpack(backend.pack(w, format)).astype(float)
    if format == "fp32":
        assert same(found.astype(F32), w)
        return
    if format == "bf16":
        assert (np.abs(found - w) <= STEP * np.abs(w.astype(float)) + TINY).all()
        return
    rows, errors = groups_of(w.T.astype(float)), groups_of((found - w).T)
    if format == "int8":
        step = np.abs(rows).max(-1, keepdims=True) / 127 * (1 + STEP)
        assert (np.abs(errors) <= step / 2 * (1 + 8 * U) + 127 * TINY).all()
        return
    # No worse than the plain rule, which makes the largest weight -8, codes clipped at 7.
    largest = np.take_along_axis(rows, np.abs(rows).argmax(-1, keepdims=True), -1)
    scales = widened(rounded_to_bf16((largest / -8).astype(F32))).astype(float)
    plain = np.clip(np.rint(rows / scales), -8, 7) * scales - rows
    assert ((errors**2).sum(-1) <= (plain**2).sum(-1) * (1 + 1e-4)).all()


@EACH_FORMAT
@EACH_SHAPE
def test_codes_are_the_references_whatever_the_layout(c, format, m, k, n):
    w = normal(k, n)
    w[: k // 2] *= F32(1e-38)           # scales that are subnormal, or nothing at all
    wanted = Reference().pack(w, format)
    parts = Reference().packed_parts(wanted)
    for layout in (w, np.asfortranarray(w), np.pad(w, 5)[5:-5, 5:-5], w[::-1].copy()[::-1]):
        packed = c.pack(layout, format)
        assert all(same(a, b) for a, b in zip(c.packed_parts(packed), parts))
    table = c.pack(np.ascontiguousarray(w.T), format, inner=1)
    assert same(c.unpack(table), Reference().unpack(wanted).T.copy())
    assert same(c.unpack(table.transpose((1, 0))), Reference().unpack(wanted))
    again = c.packed_from_parts(format, w.shape, 0, *c.packed_parts(packed))
    assert same(c.unpack(again), c.unpack(packed))
    x = normal(m, k, seed=1)
    assert same(product(c, x, again), product(c, x, packed))


# -- products ------------------------------------------------------------------------------------


@EACH_FORMAT
@EACH_SHAPE
def test_a_product_is_within_its_bound(backend, format, m, k, n):
    check_product(backend, format, m, k, n)


@EACH_FORMAT
@EACH_SHAPE
def test_a_product_is_within_its_bound_on_every_instruction_set(c, format, m, k, n):
    check_product(c, format, m, k, n)


def check_product(backend, format, m, k, n):
    x, packed = normal(m, k), backend.pack(normal(k, n, seed=1), format)
    w = backend.unpack(packed).astype(float)
    error = np.abs(product(backend, x, packed) - x.astype(float) @ w)
    terms = k if format not in INTS else k // 32 + 5        # roundings on the way of a number
    bound = terms * U / (1 - terms * U) * 1.01 * (np.abs(x).astype(float) @ np.abs(w))
    if format in INTS:                                      # and x, off by up to half a step
        steps = np.abs(groups_of(x.astype(float))).max(-1) / 127            # [M, G]
        bound += 0.501 * steps @ np.abs(groups_of(w.T)).sum(-1).T
    assert error.shape == (m, n) and (error <= bound).all()


@pytest.mark.parametrize("format", INTS)
@EACH_SHAPE
def test_int_products_are_bitwise_the_references(c, format, m, k, n):
    w, x = normal(k, n), normal(m, k, seed=1)
    x[:, : k // 3] *= F32(1e-39)            # groups of zeros and of subnormal numbers
    with np.errstate(all="ignore"):
        wanted = product(Reference(), x, Reference().pack(w, format))
    assert same(product(c, x, c.pack(w, format)), wanted)


@pytest.mark.parametrize("format", ["fp32", "bf16"])
@EACH_SHAPE
def test_float_products_are_bitwise_those_of_the_plain_weight(c, format, m, k, n):
    w, x = normal(k, n), normal(m, k, seed=1)
    packed = c.pack(w, format)
    assert same(product(c, x, packed), c.matmul(x, c.unpack(packed)))


@EACH_FORMAT
@pytest.mark.parametrize("k, n", [(70, 33), (800, 700), (96, 5000)])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads(c, format, k, n):
    x, packed = normal(37, k), c.pack(normal(k, n, seed=1), format)
    whole, threads = product(c, x, packed), c.threads
    try:
        for count in (1, 2, 5):
            mf.backend().set_threads(count)
            for rows in (slice(0, 1), slice(36, 37), slice(3, 5), slice(7, 11), slice(0, 12),
                         slice(5, 37), slice(0, 37)):
                assert same(product(c, x[rows], packed), whole[rows])
    finally:
        c.set_threads(threads)


@EACH_FORMAT
@pytest.mark.parametrize("m", [1, 6, 50])
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
def test_linear_is_its_parts(c, format, m, activation):
    x, packed, b = normal(m, 40), c.pack(normal(40, 91, seed=1), format), normal(91)
    residual = normal(m, 91, seed=2)
    z = c.add(product(c, x, packed), b)
    y = z if activation is None else getattr(c, activation)(z)
    found, kept = c.linear(x, packed, b, activation, residual)
    assert same(found, c.add(y, residual)) and (activation is None or same(kept, z))


@EACH_FORMAT
def test_what_is_not_finite_in_x_spoils_its_row_alone(backend, format):
    x, packed = normal(6, 70), backend.pack(normal(70, 20, seed=1), format)
    clean = product(backend, x, packed)
    x[1, 3], x[3, 40], x[4, 69] = np.nan, np.inf, -np.inf
    with np.errstate(all="ignore"):
        found = product(backend, x, packed)
    assert not np.isfinite(found[[1, 3, 4]]).any() and same(found[[0, 2, 5]], clean[[0, 2, 5]])
    if format in INTS:
        assert np.isnan(found[[1, 3, 4]]).all()
    assert not product(backend, np.zeros_like(x), packed).any()


@EACH_FORMAT
def test_packing_writes_its_codes_whole_and_nothing_else(c, format, monkeypatch):
    """Codes and scales lie in bytes that all begin as one value, then as another."""
    from minifm.backends.c import packed as module
    for _, k, n in SHAPES:
        found = []
        for canary in (0xA5, 0x5A):
            with monkeypatch.context() as patch:
                patch.setattr(module.np, "empty",
                              lambda size, dtype, value=canary: np.full(size, value, dtype))
                packed = c.pack(normal(k, n), format)
            found.append([x for x in (packed.codes, packed.scales) if x is not None])
            for array in found[-1]:
                whole = array
                while whole.base is not None:
                    whole = whole.base
                inside = np.frombuffer(whole, np.uint8)
                start = array.ctypes.data - whole.ctypes.data
                outside = np.delete(inside, slice(start, start + array.nbytes))
                assert outside.size == 64 and (outside == canary).all()
        assert all(same(a, b) for a, b in zip(*found))


@EACH_FORMAT
def test_a_product_and_a_lookup_write_their_output_whole_and_nothing_else(c, format, monkeypatch):
    """Outputs lie between canaries and begin as NaN."""
    from minifm.backends.c import packed as module
    made = []

    def surrounded(shape, dtype=F32):
        whole = np.full(np.prod(shape, dtype=int) + 128, np.nan, dtype)
        made.append(whole)
        return whole[64:-64].reshape(shape)

    for m, k, n in SHAPES:
        x, packed = normal(m, k), c.pack(normal(k, n, seed=1), format)
        table = packed.transpose((1, 0))
        with monkeypatch.context() as patch:
            patch.setattr(module.np, "empty", surrounded)
            found = c.linear(x, packed, None, "relu", None)[1]
            rows = c.embedding(table, np.arange(n))
        for whole in made:
            assert np.isnan(whole[:64]).all() and np.isnan(whole[-64:]).all()
            assert not np.isnan(whole[64:-64]).any()
        assert found.shape == (m, n) and rows.shape == (n, k)
        made.clear()


# -- look-ups, gradients, refusals -----------------------------------------------------------------


@EACH_FORMAT
@pytest.mark.parametrize("width", [1, 32, 50])
def test_one_packed_table_serves_the_lookup_and_the_head(backend, format, width):
    table = normal(41, width)
    packed = backend.pack(table, format, inner=1)
    plain = backend.unpack(packed)
    ids = np.array([[0, 40, 7], [7, 1, 39]])
    assert same(backend.to_numpy(backend.embedding(packed, ids)), plain[ids])
    head = backend.transpose(packed, (1, 0))
    assert head.shape == (width, 41)
    x = normal(3, width)
    assert same(product(backend, x, head),
                product(backend, x, backend.pack(np.ascontiguousarray(table.T), format)))
    for wrong in (-1, 41):
        with pytest.raises(ShapeError, match=f"index {wrong} is outside 0 … 40"):
            backend.embedding(packed, np.array([0, wrong]))


@EACH_FORMAT
def test_gradients_pass_through_a_packed_weight_and_not_into_it(backend, format):
    w, x = normal(40, 9), mf.Tensor(normal(2, 3, 40), requires_grad=True)
    packed = mf.pack(mf.Tensor(w), format)
    y = mf.linear(x, packed, activation=mf.gelu)
    y.sum().backward()
    plain = mf.Tensor(x.data, requires_grad=True)
    mf.linear(plain, mf.Tensor(backend.unpack(packed.data)), activation=mf.gelu).sum().backward()
    allowed = 1e-5 if format not in INTS else 0.2           # the derivative is taken where x was
    assert np.abs(x.grad - plain.grad).max() <= allowed * np.abs(plain.grad).max()
    frozen = mf.Tensor(packed.data)
    frozen.requires_grad = True
    for use in (lambda: mf.linear(x, frozen), lambda: mf.embedding(frozen, np.array([1])),
                lambda: mf.linear_cross_entropy(normal(2, 9), frozen, np.array([1, 2]))):
        with pytest.raises(GraphError, match=f"packed as {format} cannot be trained"):
            use()


@EACH_FORMAT
def test_the_fused_loss_reads_a_packed_table(backend, format):
    table, targets = normal(30, 40), np.array([3, -100, 29])
    packed = mf.pack(mf.Tensor(table), format, inner=1)
    x = mf.Tensor(normal(3, 40), requires_grad=True)
    fused = mf.linear_cross_entropy(x, packed, targets)
    fused.backward()
    found, x.grad = x.grad, None
    plain = mf.cross_entropy(mf.linear(x, packed.transpose(1, 0)), targets)
    plain.backward()
    assert abs(fused.item() - plain.item()) < 1e-5
    assert np.abs(found - x.grad).max() < 1e-5


def test_a_packed_weight_is_stale_once_its_parameter_has_changed(backend):
    weight = mf.Tensor(normal(8, 5), requires_grad=True)
    packed, x = mf.pack(weight, "int8"), normal(2, 8)
    mf.linear(x, packed)
    weight.version += 1
    with pytest.raises(GraphError, match="packed as int8 is stale.*pack it again"):
        mf.linear(x, packed)
    mf.linear(x, mf.pack(weight, "int8"))
    packed = mf.pack(weight, "int8")
    del weight                                              # nothing can change it any more
    assert mf.linear(x, packed).shape == (2, 5)


def test_what_cannot_be_packed_is_refused(backend):
    w = normal(8, 5)
    with pytest.raises(ConfigError, match="expected one of fp32, bf16, int8, int4, got 'int2'"):
        backend.pack(w, "int2")
    for wrong in (w.astype(float), w[0], np.zeros((2, 2), np.int64)):
        with pytest.raises(ShapeError, match="expected a float32 matrix"):
            backend.pack(wrong, "int8")
    with pytest.raises(ShapeError, match="packed already, as bf16"):
        backend.pack(backend.pack(w, "bf16"), "int8")
    for value in (np.nan, np.inf):
        w[3, 2] = value
        for format in INTS:
            with pytest.raises(ShapeError, match="int formats need finite weights"):
                backend.pack(w, format)
        for format in ("fp32", "bf16"):
            assert np.array_equal(backend.unpack(backend.pack(w, format))[3, 2], F32(value),
                                  equal_nan=True)


@EACH_FORMAT
def test_only_linear_and_embedding_read_a_packed_weight(backend, format):
    packed, x = backend.pack(normal(8, 5), format), normal(2, 8)
    refused = pytest.raises(ShapeError, match=f"packed as {format} serves .* only")
    for misuse in (lambda: mf.Tensor(packed) + 1, lambda: mf.matmul(x, mf.Tensor(packed)),
                   lambda: mf.Tensor(packed).sum(), lambda: mf.gelu(mf.Tensor(packed)),
                   lambda: mf.Tensor(packed).reshape(40), lambda: mf.Tensor(packed)[0],
                   lambda: np.asarray(packed), lambda: packed + x, lambda: np.exp(packed)):
        with refused:
            misuse()
    with pytest.raises(ShapeError, match="read along axis 1; pack it with inner=1"):
        backend.embedding(packed, np.array([1]))
    with pytest.raises(ShapeError, match="read along axis 0; pack it with inner=0"):
        product(backend, x, backend.pack(normal(8, 5), format, inner=1))
    with pytest.raises(ShapeError):
        mf.linear(normal(2, 7), mf.Tensor(packed))
    assert same(mf.Tensor(packed).numpy(), backend.unpack(packed))
    assert f"Packed({format}, shape (8, 5))" == repr(packed) and isinstance(packed, Packed)
