"""The laws of files: what is saved comes back to the bit, the official library agrees both ways,
and a bad file is one FormatError that names the file, the key and the reason.
"""

import contextlib
import json
import math
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st
from opaque import OpaqueBackend
from safetensors.numpy import load_file, save_file

import minifm as mf
from minifm import hub
from minifm.errors import LISTED, ConfigError, FormatError, UserError
from minifm.hub.arrays import DTYPES
from minifm.models import GPT, MODELS, GPTConfig
from minifm.models.stored import Stored
from minifm.text import Tokenizer

GOLDEN = Path(__file__).parent / "golden" / "gpt2"
CONFIG = GPTConfig(vocabulary=257, context=8, layers=2, heads=2, width=8, hidden=12)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NUMPY_DTYPES = sorted({dtype for name, dtype in DTYPES.items() if name != "BF16"}, key=str)


def random_model(config=CONFIG):
    """A model with every parameter random."""
    model = GPT(config)
    for name, parameter in model.parameters().items():
        parameter.data = mf.backend().multiply(mf.Rng(0).child(name).normal(parameter.shape), 0.2)
    return model


def arrays_of(model):
    return {name: np.array(parameter.numpy()) for name, parameter in model.parameters().items()}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def files_of(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory that holds a saved model; not to be written to."""
    directory = tmp_path_factory.mktemp("saved")
    hub.save_model(random_model(), directory, Tokenizer.bytes())
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    """The same directory, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_json(file, **changes):
    contents = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in contents.items() if v is not ...}))


def change_weights(directory, change):
    """Rewrite the weights after change({name: array})."""
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file(weights, directory / WEIGHTS)


@contextlib.contextmanager
def cheaply(memory):
    """Fails when the block takes more memory, in bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < memory
    finally:
        tracemalloc.stop()


def raw(header, data=b"", length=None):
    """The bytes of a file with this header, JSON or already bytes, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


# -- arrays: to the bit, and as the official library does ----------------------------------------


@st.composite
def arrays(draw):
    """{name: array}: any dtype, any bits, 0-d and empty ones, laid out in several ways."""
    found = {}
    for name in draw(st.lists(st.text(max_size=5), unique=True, max_size=5)):
        dtype = draw(st.sampled_from(NUMPY_DTYPES))
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        size = math.prod(shape) * dtype.itemsize
        data = draw(st.binary(min_size=size, max_size=size))
        if dtype.kind == "b":
            data = bytes(byte & 1 for byte in data)
        array = np.frombuffer(data, dtype).reshape(shape)
        layout = draw(st.sampled_from(["plain", "transposed", "reversed", "big-endian"]))
        if layout == "transposed":
            array = np.array(array.T, order="C").T
        elif layout == "reversed":
            array = np.flip(np.flip(array).copy())
        elif layout == "big-endian":
            array = array.astype(dtype.newbyteorder(">"), copy=True)
        found[name] = array
    return found


def in_plain_layout(found):
    return {name: np.array(array, array.dtype.newbyteorder("="), order="C")
            for name, array in found.items()}


@given(arrays())
def test_save_load_save_is_byte_identical(given_arrays):
    with tempfile.TemporaryDirectory() as directory:
        first, second = Path(directory, "first"), Path(directory, "second")
        hub.save_arrays(given_arrays, first)
        loaded = hub.load_arrays(first)
        assert_same_bits(loaded, in_plain_layout(given_arrays))
        hub.save_arrays(dict(reversed(loaded.items())), second)
        assert first.read_bytes() == second.read_bytes()
        assert all(array.flags.writeable and array.flags.c_contiguous and array.flags.aligned
                   for array in loaded.values())


@given(arrays())
def test_the_official_library_agrees_both_ways(given_arrays):
    plain = in_plain_layout(given_arrays)
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory, "ours"), Path(directory, "theirs")
        hub.save_arrays(given_arrays, ours)
        save_file(plain, theirs, {"format": "pt"})
        assert ours.read_bytes() == theirs.read_bytes()
        assert_same_bits(load_file(ours), plain)
        assert_same_bits(hub.load_arrays(theirs), plain)


def test_special_values_keep_their_bits(tmp_path):
    patterns = {np.float16: [0x7E01, 0xFC00, 0x8000, 0x0001, 0x7D01],
                np.float32: [0x7FC00001, 0xFF800000, 0x80000000, 0x00000001, 0x7FA00001],
                np.float64: [0x7FF8000000000001, 0xFFF << 52, 1 << 63, 1, 0x7FF4000000000001]}
    given_arrays = {dtype.__name__: np.array(bits, f"u{np.dtype(dtype).itemsize}").view(dtype)
                    for dtype, bits in patterns.items()}
    given_arrays |= {"scalar": np.array(-0.0), "empty": np.zeros((3, 0, 2), np.int8)}
    hub.save_arrays(given_arrays, tmp_path / "file")
    assert_same_bits(hub.load_arrays(tmp_path / "file"), given_arrays)


def test_every_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    data = np.arange(1 << 16, dtype=np.uint16).tobytes()
    header = {"all": entry("BF16", [256, 256], 0, 1 << 17), "one": entry("BF16", [], 1 << 17,
                                                                         (1 << 17) + 2)}
    (tmp_path / "file").write_bytes(raw(header, data + b"\x80\x3f"))
    loaded = hub.load_arrays(tmp_path / "file")
    expected = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    assert loaded["all"].dtype == np.float32 and loaded["all"].shape == (256, 256)
    assert loaded["all"].tobytes() == expected
    assert loaded["one"].shape == () and loaded["one"] == 1.0


@pytest.mark.parametrize("name, array, said", [
    ("a", np.zeros(1, np.complex128), "a: an array of complex128 cannot be saved"),
    ("a", np.array(["text"]), "cannot be saved"),
    ("a", np.array([None]), "cannot be saved"),
    ("__metadata__", np.zeros(1), "cannot be called '__metadata__'"),
    ("\ud800", np.zeros(1), "cannot be called"),
    (7, np.zeros(1), "cannot be called 7"),
])
def test_what_the_format_does_not_have_is_not_saved(tmp_path, name, array, said):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match=said):
        hub.save_arrays({"b": np.zeros(1), name: array}, tmp_path / "file")
    assert files_of(tmp_path) == {"file": b"old"}


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(28, "No space left on device")
    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        hub.save_arrays({"a": np.zeros(9)}, tmp_path / "file")
    assert files_of(tmp_path) == {"file": b"old"}


def test_arrays_may_lie_in_another_order_than_the_headers(tmp_path):
    header = {"c": entry("U8", [1], 1, 2), "b": entry("U8", [1], 0, 1), "a": entry("U8", [0], 0, 0)}
    (tmp_path / "file").write_bytes(raw(header, b"\1\2"))
    assert_same_bits(hub.load_arrays(tmp_path / "file"), load_file(tmp_path / "file"))
    assert hub.load_arrays(tmp_path / "file")["c"] == 2


# -- bad files -----------------------------------------------------------------------------------

A, DATA = entry("F32", [2], 0, 8), bytes(8)
TWICE = b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, ' \
        b'"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}'

BAD = {
    "no bytes": (b"", None, "0 bytes are no safetensors file"),
    "seven bytes": (bytes(7), None, "7 bytes are no safetensors file"),
    "no header": (struct.pack("<Q", 0), None, "not JSON"),
    "header cut": (raw({"a": A}, DATA)[:30], None, "cannot be in these 30 bytes"),
    "header length absurd": (raw({"a": A}, DATA, length=2**64 - 1), None, "cannot be in these"),
    "header length past the end": (raw({"a": A}, DATA, length=100), None, "cannot be in these"),
    "header not JSON": (raw(b"{]"), None, "not JSON"),
    "header not UTF-8": (raw(b'{"\xff": 1}'), None, "not JSON"),
    "header not an object": (raw(b"[]"), None, "expected a JSON object, got list"),
    "header nested without end": (raw(b'{"a":' + b"[" * 10**6), None, "not JSON"),
    "number without end": (raw(b'{"a":' + b"9" * 10**5 + b"}"), None, "not JSON"),
    "a pickle": (b"\x80\x04\x95" + bytes(60), None, "cannot be in these"),
    "twice": (raw(TWICE), "a", "comes twice"),
    "part twice": (raw(b'{"a": {"dtype": "U8", "dtype": "I8"}}'), "dtype", "comes twice"),
    "half a character": (raw(b'{"\\ud800": {}}'), r"'\ud800'", "half a character"),
    "metadata not strings": (raw({"__metadata__": {"a": 1}}), "__metadata__", "of strings"),
    "metadata not an object": (raw({"__metadata__": "pt"}), "__metadata__", "of strings"),
    "no entry": (raw({"a": 3}), "a", "expected dtype, shape and data_offsets"),
    "part missing": (raw({"a": {"dtype": "U8", "shape": []}}), "a", "expected dtype, shape and"),
    "dtype unknown": (raw({"a": entry("F8_E4M3", [8], 0, 8)}, DATA), "a", "'F8_E4M3' is not read"),
    "dtype no string": (raw({"a": entry(["F32"], [2], 0, 8)}, DATA), "a", "is not read"),
    "size negative": (raw({"a": entry("F32", [-2, -1], 0, 8)}, DATA), "a", "shape [-2, -1]"),
    "size a float": (raw({"a": entry("F32", [2.0], 0, 8)}, DATA), "a", "shape [2.0] is not"),
    "size a bool": (raw({"a": entry("U8", [True], 0, 1)}, b"1"), "a", "shape [True] is not"),
    "shape a number": (raw({"a": entry("F32", 2, 0, 8)}, DATA), "a", "shape 2 is not"),
    "shape overflows": (raw({"a": entry("F32", [2**33, 2**33], 0, 8)}, DATA), "a", "is not that"),
    "shape overflows to 2": (raw({"a": entry("F32", [2**63, 2, 1], 0, 8)}, DATA), "a", "is not"),
    "empty shape overflows": (raw({"a": entry("F32", [0, 2**62], 0, 0)}), "a", "is not that"),
    "too many sizes": (raw({"a": entry("U8", [1] * 65, 0, 1)}, b"1"), "a", "is not that"),
    "sizes without end": (raw({"a": entry("U8", [10**4000] * 5000, 0, 1)}, b"1"), "a", "is not"),
    "offsets past the end": (raw({"a": entry("F32", [3], 0, 12)}, DATA), "a", "is the file whole?"),
    "offsets absurd": (raw({"a": entry("F32", [2], 0, 2**70)}, DATA), "a", "data_offsets"),
    "offsets negative": (raw({"a": entry("F32", [2], -8, 0)}, DATA), "a", "data_offsets"),
    "offsets backwards": (raw({"a": entry("F32", [0], 8, 0)}, DATA), "a", "data_offsets"),
    "one offset": (raw({"a": entry("F32", [2], 8)}, DATA), "a", "data_offsets"),
    "offsets of another size": (raw({"a": entry("F32", [3], 0, 8)}, DATA), "a", "takes 12 bytes"),
    "overlap": (raw({"a": A, "b": entry("F32", [1], 4, 8)}, DATA), "b", "overlaps another array"),
    "the same bytes": (raw({"a": A, "b": A}, DATA), "b", "overlaps another array"),
    "gap": (raw({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3)), "b", "gap"),
    "gap in front": (raw({"a": entry("F32", [1], 4, 8)}, DATA), "a", "after a gap"),
    "bytes behind": (raw({"a": A}, bytes(9)), None, "1 bytes at the end"),
    "truncated": (raw({"a": A}, bytes(7)), "a", "is the file whole?"),
    "bool of 2": (raw({"a": entry("BOOL", [2], 0, 2)}, b"\1\2"), "a", "neither 0 nor 1"),
    "name of two lines": (raw({"a\nb": 3}), r"'a\nb'", "expected dtype"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_format_error(tmp_path, copy, case):
    data, key, reason = BAD[case]
    for file, load in ((tmp_path / "file", lambda: hub.load_arrays(tmp_path / "file")),
                       (copy / WEIGHTS, lambda: hub.load_model(copy))):
        file.write_bytes(data)
        with cheaply(memory=1_000_000 + 4 * len(data)), pytest.raises(FormatError) as refusal:
            load()
        assert refusal.value.file == str(file)
        assert "\n" not in str(refusal.value)
        if case != "bool of 2" or file.name == "file":      # a model's file has all else amiss, too
            assert refusal.value.key == key and reason in refusal.value.reason
            assert len(str(refusal.value)) < 1000


def test_a_header_beyond_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    with pytest.raises(FormatError, match="a header of 100000001 bytes cannot be"):
        hub.load_arrays(tmp_path / "file")


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(writer, bytes(8))          # whoever opens it after all fails, and does not wait
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(FormatError, match=f"{name}: is not a file"):
            hub.load_arrays(tmp_path / name)
    os.close(writer)
    with pytest.raises(FormatError, match="absent: cannot be read: No such file"):
        hub.load_arrays(tmp_path / "absent")


@st.composite
def spoilt(draw):
    """The bytes of a good file after a few edits, most of them in the header's text."""
    with tempfile.TemporaryDirectory() as directory:
        hub.save_arrays(draw(arrays()), Path(directory, "file"))
        good = Path(directory, "file").read_bytes()
    n = int.from_bytes(good[:8], "little")
    text, data = bytearray(good[8 : 8 + n]), bytearray(good[8 + n :])
    for _ in range(draw(st.integers(1, 2))):
        part = draw(st.sampled_from([text, text, data])) or text
        place = draw(st.integers(0, max(len(part) - 1, 0)))
        digits = [i for i, byte in enumerate(text) if 48 <= byte <= 57]
        kind = draw(st.sampled_from(["flip", "digit", "digit", "cut", "add", "remove"]))
        if kind == "cut":
            del part[place:]
        elif kind == "add":
            part[place:place] = draw(st.sampled_from([b" ", b"0", b"\0", b",", b"{}", b"\"a"]))
        elif kind == "remove":
            del part[place : place + draw(st.integers(1, 9))]
        elif kind == "flip" and part:
            part[place] ^= 1 << draw(st.integers(0, 7))
        elif digits:
            text[draw(st.sampled_from(digits))] = 48 + draw(st.integers(0, 9))
    whole = raw(bytes(text), bytes(data))
    return whole[: draw(st.sampled_from([None] * 7 + [draw(st.integers(0, len(whole)))]))]


STRICTER = ("comes twice", "is not read", "neither 0 nor 1", "is not that of an array")


@given(st.lists(spoilt(), min_size=10, max_size=10))
def test_a_spoilt_file_loads_as_in_the_official_library_or_is_refused(files):
    for data in files:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory, "file")
            file.write_bytes(data)
            try:
                theirs = {name: part["data"] for name, part in safetensors.deserialize(data)}
            except safetensors.SafetensorError:
                theirs = None
            try:
                ours = {name: array.tobytes() for name, array in hub.load_arrays(file).items()}
            except FormatError as refusal:
                assert theirs is None or any(s in refusal.reason for s in STRICTER), refusal
            else:
                assert theirs is not None
                bf16 = {name for name in ours if len(ours[name]) != len(theirs[name])}
                assert {name: ours[name] for name in ours.keys() - bf16} \
                    == {name: bytes(theirs[name]) for name in theirs.keys() - bf16}


# -- a model's directory -------------------------------------------------------------------------


def test_a_saved_model_loads_to_the_bit(backend, tmp_path):
    model = random_model()
    hub.save_model(model, tmp_path)
    loaded = hub.load_model(tmp_path)
    assert loaded.config == model.config
    assert_same_bits(arrays_of(loaded), arrays_of(model))
    ids = np.arange(8)[None]
    np.testing.assert_array_equal(loaded(ids).numpy(), model(ids).numpy())


def test_a_model_on_a_backend_with_arrays_of_its_own(saved, tmp_path):
    with mf.use(OpaqueBackend()):
        hub.save_model(hub.load_model(saved), tmp_path)
    assert files_of(tmp_path)[WEIGHTS] == files_of(saved)[WEIGHTS]


def test_the_files_are_those_of_the_ecosystem(saved):
    assert sorted(files_of(saved)) == ["config.json", "generation_config.json", WEIGHTS,
                                       "tokenizer.json", "tokenizer_config.json"]
    with safetensors.safe_open(saved / WEIGHTS, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    golden = set(load_file(GOLDEN / WEIGHTS))       # two layers there, too; the head is not twice
    assert names == golden
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["eos_token_id"] == 256
    assert json.loads((saved / "generation_config.json").read_text()) == {
        "_from_model_config": True, "bos_token_id": 256, "eos_token_id": 256}
    assert Tokenizer.load(saved).json == Tokenizer.bytes().json


@given(st.integers(1500, 40_000))
def test_save_load_save_of_a_model_is_byte_identical(saved, shard_bytes):
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        hub.save_model(hub.load_model(saved), first, Tokenizer.load(saved), shard_bytes=shard_bytes)
        hub.save_model(hub.load_model(first), second, Tokenizer.load(first),
                       shard_bytes=shard_bytes)
        assert files_of(first) == files_of(second)


@given(st.integers(1000, 30_000))
def test_sharded_is_single(saved, shard_bytes):
    model = hub.load_model(saved)
    with tempfile.TemporaryDirectory() as directory:
        hub.save_model(model, directory, shard_bytes=shard_bytes)
        assert_same_bits(arrays_of(hub.load_model(directory)), arrays_of(model))
        index = Path(directory, INDEX)
        whole = {}
        for path in Path(directory).glob("*.safetensors"):
            shard = load_file(path)
            assert len(shard) == 1 or sum(x.nbytes for x in shard.values()) <= shard_bytes
            assert not shard.keys() & whole.keys()
            whole |= shard
        assert_same_bits(whole, load_file(saved / WEIGHTS))
        if index.exists():
            described = json.loads(index.read_text())
            assert described["weight_map"].keys() == whole.keys()
            assert described["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
            assert described["metadata"]["total_parameters"] == model.config.parameters


def test_what_an_earlier_save_left_is_not_found_instead(tmp_path):
    small = GPTConfig(**vars(CONFIG) | {"layers": 1})
    (tmp_path / "notes.safetensors").write_text("not the model's")
    for config, most in ((CONFIG, 10**9), (small, 1000), (CONFIG, 2000), (small, 10**9)):
        model = random_model(config)
        hub.save_model(model, tmp_path, shard_bytes=most)
        assert_same_bits(arrays_of(hub.load_model(tmp_path)), arrays_of(model))
    assert sorted(files_of(tmp_path)) == ["config.json", "generation_config.json", WEIGHTS,
                                          "notes.safetensors"]


def test_a_model_may_be_saved_over_what_it_was_loaded_from(copy):
    model = hub.load_model(copy)
    before = arrays_of(model)
    hub.save_model(model, copy, shard_bytes=3000)
    assert_same_bits(arrays_of(hub.load_model(copy)), before)
    assert_same_bits(arrays_of(model), before)


def test_saving_asks_for_a_directory_and_a_size(tmp_path):
    with pytest.raises(UserError, match="absent: expected a directory that exists"):
        hub.save_model(random_model(), tmp_path / "absent")
    with pytest.raises(ConfigError, match="shard_bytes: expected a positive number, got 0"):
        hub.save_model(random_model(), tmp_path, shard_bytes=0)
    assert not files_of(tmp_path)


def test_weights_that_lie_transposed_in_files(tmp_path, monkeypatch):
    class Turned(GPT):
        @staticmethod
        def stored_names(config):
            return {ours: Stored(stored.name, transposed="expand.weight" in ours)
                    for ours, stored in GPT.stored_names(config).items()}
    model = random_model()
    hub.save_model(model, tmp_path)
    plain = load_file(tmp_path / WEIGHTS)
    monkeypatch.setitem(MODELS, "gpt2", Turned)
    with pytest.raises(FormatError, match=r"c_fc.weight is \[8, 12\], expected \[12, 8\]"):
        hub.load_model(tmp_path)
    turned = Turned(CONFIG)
    for name, parameter in turned.parameters().items():
        parameter.data = model.parameters()[name].data
    hub.save_model(turned, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    for name, array in plain.items():
        np.testing.assert_array_equal(stored[name], array.T if "c_fc.weight" in name else array)
    loaded = hub.load_model(tmp_path)
    assert_same_bits(arrays_of(loaded), arrays_of(model))
    assert all(p.numpy().flags.c_contiguous for p in loaded.parameters().values())


# -- directories of other libraries --------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16"])
def test_other_precisions_load_as_float32(copy, dtype):
    weights = load_file(copy / WEIGHTS)
    header, data = {}, b""
    for name, array in weights.items():
        if dtype == "BF16":
            part = array.view(np.uint16).reshape(*array.shape, 2)[..., 1].tobytes()
            weights[name] = (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        else:
            part = array.astype(DTYPES[dtype]).tobytes()
            weights[name] = np.frombuffer(part, DTYPES[dtype]).reshape(array.shape).astype("f4")
        header[name] = entry(dtype, array.shape, len(data), len(data) + len(part))
        data += part
    (copy / WEIGHTS).write_bytes(raw(header, data))
    names = GPT.stored_names(CONFIG)
    assert_same_bits(arrays_of(hub.load_model(copy)),
                     {ours: weights[stored.name] for ours, stored in names.items()})


def test_float64_beyond_float32_is_refused(copy):
    def too_large(weights):
        weights["transformer.ln_f.bias"] = np.full(8, 1e39)
    change_weights(copy, too_large)
    with pytest.raises(FormatError, match="ln_f.bias: has numbers beyond float32"):
        hub.load_model(copy)


def test_old_spellings_buffers_and_a_repeated_head_load(saved, copy):
    def old(weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["lm_head.weight"] = weights["wte.weight"]
        for i in range(CONFIG.layers):
            weights[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), bool))
            weights[f"h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    change_weights(copy, old)
    assert_same_bits(arrays_of(hub.load_model(copy)), arrays_of(hub.load_model(saved)))


def test_a_head_without_its_embedding_stands_for_both(saved, copy):
    def only_head(weights):
        weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    change_weights(copy, only_head)
    assert_same_bits(arrays_of(hub.load_model(copy)), arrays_of(hub.load_model(saved)))


def test_a_head_that_is_not_the_embedding_is_refused(copy):
    def untied(weights):
        weights["lm_head.weight"] = weights["transformer.wte.weight"].copy()
        weights["lm_head.weight"][3, 4] += 1
    change_weights(copy, untied)
    with pytest.raises(FormatError, match="differs from .*; in this model they are one tensor"):
        hub.load_model(copy)


def test_gpt2s_two_tokenizer_files_are_enough(copy):
    vocabulary = json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"]
    (copy / "tokenizer.json").unlink()
    (copy / "vocab.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": 256}))
    (copy / "merges.txt").write_text("#version: 0.2\n")
    tokenizer, model = Tokenizer.load(copy), hub.load_model(copy)
    assert tokenizer.vocabulary == model.config.vocabulary == 257


# -- a directory that is not as expected ---------------------------------------------------------


def test_every_difference_is_listed_in_one_error(copy):
    def spoil(weights):
        del weights["transformer.wpe.weight"], weights["transformer.h.1.ln_1.bias"]
        weights["transformer.ln_f.weight"] = np.zeros((2, 4), np.float32)
        weights["transformer.h.0.ln_2.bias"] = np.zeros(8, np.int32)
        weights["transformer.h.2.ln_1.bias"] = np.zeros(8, np.float32)
        weights["classifier"] = np.zeros(3, np.float32)
    change_weights(copy, spoil)
    with pytest.raises(FormatError) as refusal:
        hub.load_model(copy)
    assert refusal.value.file == str(copy / WEIGHTS)
    assert sorted(refusal.value.reason.removeprefix("does not fit config.json: ").split("; ")) == [
        "classifier is unknown",
        "transformer.h.0.ln_2.bias is I32, expected one of F64, F32, F16, BF16",
        "transformer.h.1.ln_1.bias is missing",
        "transformer.h.2.ln_1.bias is unknown",
        "transformer.ln_f.weight is [2, 4], expected [8]",
        "transformer.wpe.weight is missing"]


def test_a_small_model_is_told_by_its_tensors_even_when_none_is_there(copy):
    change_weights(copy, dict.clear)
    with pytest.raises(FormatError) as refusal:
        hub.load_model(copy)
    missing = len(GPT.stored_names(CONFIG))
    assert refusal.value.reason.count("is missing") == LISTED
    assert refusal.value.reason.endswith(f"; and {missing - LISTED} more")


def test_a_directory_without_weights_is_told_what_is_missing(copy):
    (copy / WEIGHTS).unlink()
    with pytest.raises(FormatError, match=f"neither {WEIGHTS} nor {INDEX} is here$"):
        hub.load_model(copy)
    with pytest.raises(FormatError, match=r"config.json: cannot be read: No such file"):
        hub.load_model(copy / "absent")


def test_a_pickle_is_never_opened(copy):
    (copy / WEIGHTS).unlink()
    ran = copy / "ran"
    (copy / "pytorch_model.bin").write_bytes(b"cos\nmkdir\n(S'%s'\ntR." % os.fsencode(ran))
    with pytest.raises(FormatError, match="pytorch_model.bin may be a pickle, .* is not opened"):
        hub.load_model(copy)
    assert not ran.exists()


@pytest.mark.parametrize("changes, said", [
    ({"model_type": "mamba"}, f"model_type: expected one of {', '.join(MODELS)}, got 'mamba'"),
    ({"model_type": ...}, f"model_type: expected one of {', '.join(MODELS)}, got None"),
    ({"model_type": ["gpt2"]}, "model_type: expected one of gpt2"),
    ({"n_embd": ..., "n_head": ...}, "config.json: lacks n_embd, n_head"),
    ({"n_layer": 0}, "config.json: layers: expected at least 1, got 0"),
    ({"n_layer": "2"}, "config.json: layers: expected an integer, got '2'"),
    ({"n_head": 3}, "config.json: heads: 3 heads do not divide the width 8"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
    ({"layer_norm_epsilon": "small"}, "norm_epsilon: expected a number, got 'small'"),
    ({"activation_function": ["gelu"]}, "activation: expected a string, got ['gelu']"),
])
def test_a_config_that_is_not_ours_names_the_file_and_the_key(copy, changes, said):
    change_json(copy / "config.json", **changes)
    with pytest.raises(FormatError) as refusal:
        hub.load_model(copy)
    assert said in str(refusal.value) and refusal.value.file == str(copy / "config.json")
    assert str(refusal.value).count("config.json") == 1


@pytest.mark.parametrize("text", ["", "[]", "{", "\ufeff{}", "null", "[" * 10**5, '{"a": 1e}'])
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_json_that_is_none_is_refused(copy, name, text):
    (copy / WEIGHTS).unlink()
    (copy / name).write_text(text)
    with pytest.raises(FormatError) as refusal:
        hub.load_model(copy)
    assert refusal.value.file == str(copy / name)


@pytest.mark.parametrize("changes", [
    {"vocab_size": 10**12}, {"n_positions": 2**62}, {"n_embd": 2**40}, {"n_inner": 10**30},
    {"n_layer": 10**9}, {"n_layer": 2000}, {"vocab_size": 10**6},
])
def test_a_huge_model_is_refused_before_it_takes_memory(copy, changes):
    change_json(copy / "config.json", **changes)
    said = "are not half of the model that config.json describes"
    with cheaply(memory=500_000), pytest.raises(FormatError, match=said):
        hub.load_model(copy)


def test_layers_without_width_take_no_memory_either(copy):
    """A large file of noise must not pass as half of a model of countless tiny layers."""
    change_json(copy / "config.json", n_embd=1, n_head=1, n_inner=1, n_layer=100_000)
    save_file({"noise": np.zeros(2_000_000, np.float32)}, copy / WEIGHTS)
    said = "2000000 numbers in 1 tensors are not half"
    with cheaply(memory=500_000), pytest.raises(FormatError, match=said):
        hub.load_model(copy)


@example(key="n_layer", value=10**4000)
@given(key=st.sampled_from(sorted(GPT.config_to_hub(CONFIG))), value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**4000) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2)))
def test_any_value_in_a_config_loads_or_is_refused(saved, key, value):
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(shutil.copytree(saved, Path(directory, "copy")))
        change_json(copy / "config.json", **{key: value})
        try:
            assert_same_bits(arrays_of(hub.load_model(copy)), arrays_of(hub.load_model(saved)))
        except FormatError as refusal:
            assert str(copy) in refusal.file


@pytest.fixture
def sharded(saved, tmp_path):
    hub.save_model(hub.load_model(saved), tmp_path, shard_bytes=4000)
    return tmp_path


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "in/side.safetensors",
                                  "..", "", "model.bin", "..\\outside.safetensors", None, 3,
                                  ["model.safetensors"], "nul\0.safetensors", "two\n.safetensors/"])
def test_a_shard_outside_the_directory_is_refused(sharded, name):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    change_json(sharded / INDEX, weight_map=places | {"transformer.wpe.weight": name})
    with pytest.raises(FormatError, match="expected the name of a .safetensors file") as refusal:
        hub.load_model(sharded)
    assert refusal.value.file == str(sharded / INDEX)
    assert refusal.value.key == "transformer.wpe.weight" and "\n" not in str(refusal.value)


def test_an_index_that_disagrees_with_its_shards_lists_how(sharded):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    first, last = places["transformer.wte.weight"], places["transformer.ln_f.bias"]
    del places["transformer.wpe.weight"]
    places |= {"transformer.ln_f.bias": first, "more": last}
    change_json(sharded / INDEX, weight_map=places)
    with pytest.raises(FormatError) as refusal:
        hub.load_model(sharded)
    assert refusal.value.file == str(sharded / INDEX)
    assert [line for line in refusal.value.reason.split("; ") if "lacks" in line] == [
        f"{first} lacks transformer.ln_f.bias", f"{last} lacks more"]
    assert f"{last} holds transformer.ln_f.bias, which is not listed there" in refusal.value.reason
    assert "holds transformer.wpe.weight, which is not listed there" in refusal.value.reason


@pytest.mark.parametrize("contents", [{}, {"weight_map": []}, {"weight_map": None}])
def test_an_index_without_a_map_is_refused(sharded, contents):
    (sharded / INDEX).write_text(json.dumps(contents))
    with pytest.raises(FormatError, match="weight_map: expected an object of file names"):
        hub.load_model(sharded)


def test_a_missing_or_damaged_shard_is_named(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FormatError, match="is the file whole") as refusal:
        hub.load_model(sharded)
    assert refusal.value.file == str(shard)
    shard.unlink()
    with pytest.raises(FormatError, match="cannot be read: No such file") as refusal:
        hub.load_model(sharded)
    assert refusal.value.file == str(shard)


def test_shards_may_be_links_as_in_the_hubs_cache(sharded, saved, tmp_path_factory):
    blobs = tmp_path_factory.mktemp("blobs")
    for number, shard in enumerate(sorted(sharded.glob("model-*.safetensors"))):
        shard.rename(blobs / str(number))
        shard.symlink_to(blobs / str(number))
    assert_same_bits(arrays_of(hub.load_model(sharded)), arrays_of(hub.load_model(saved)))


# -- names ---------------------------------------------------------------------------------------


def test_a_directory_stands_for_itself_and_a_run_for_its_last_checkpoint(saved, tmp_path):
    assert hub.resolve(saved) == saved and hub.resolve(str(saved)) == saved
    shutil.copytree(saved, tmp_path / "step-00000005")
    assert hub.resolve(tmp_path) == tmp_path
    (tmp_path / "last").symlink_to("step-00000005")
    assert hub.resolve(tmp_path) == (tmp_path / "step-00000005").resolve()
    assert hub.resolve(tmp_path / "last") == tmp_path / "last"
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve(tmp_path) == tmp_path
    (tmp_path / "config.json").unlink()
    (tmp_path / "last").unlink()
    (tmp_path / "last").mkdir()             # copied without links
    assert hub.resolve(tmp_path) == (tmp_path / "last").resolve()


def test_a_home_directory_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert hub.resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize("name", ["./gpt2", "/nowhere/gpt2", "~/gpt2-not-there", "a/b/c", "runs/x/",
                                  "", "../gpt2", "two words", ".hidden", "a\nb", "nul\0"])
def test_what_can_only_be_a_path_never_asks_the_hub(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)       # importing it would fail
    with pytest.raises(UserError, match="no such directory"):
        hub.resolve(name)


def test_a_file_is_no_directory(saved):
    with pytest.raises(UserError, match="config.json: expected a directory, this is a file"):
        hub.resolve(saved / "config.json")


SERVER = """
import http.server, json, pathlib, sys, threading
files = {path.name: path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()}
files |= {"pytorch_model.bin": b"never", "model.onnx": b"never"}
sha, asked = "0123456789" * 4, []

class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        asked.append(path)
        if path.startswith("/api/models/org/model"):
            tree = [{"type": "file", "path": name, "oid": f"{i:040}", "size": len(data)}
                    for i, (name, data) in enumerate(files.items())]
            info = {"id": "org/model", "sha": sha, "siblings": [], "private": False, "tags": [],
                    "downloads": 0, "likes": 0}
            self.answer(json.dumps(tree if "/tree/" in path else info).encode())
        elif path.startswith("/org/model/resolve/"):
            self.answer(files[path.rpartition("/")[2]])
        elif path.startswith("/api/models/org/broken"):
            self.answer(b"", 500)
        else:
            self.answer(b"", 404, [("X-Error-Code", "RepoNotFound")])

    do_HEAD = do_GET

    def answer(self, data, code=200, headers=()):
        self.send_response(code)
        for name, value in [("Content-Length", str(len(data))), ("X-Repo-Commit", sha),
                            ("ETag", f'"{hash(data):x}"'), *headers]:
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *ignored):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
print(" ".join(asked))
"""


ASK = """
import sys
from minifm.hub import locate
from minifm.errors import UserError
locate.PATIENCE = 3
try:
    print(locate.resolve(sys.argv[1]))
except UserError as error:
    print("refused:", error)
"""


def resolve_elsewhere(name, cache, **environment):
    """resolve(name) in a process with a cache, a hub and settings of its own: what it printed."""
    # A port where nobody listens.
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(cache),
                   "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
                   "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | environment
    ran = subprocess.run([sys.executable, "-c", ASK, name], env=os.environ | environment,
                         capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.count("\n") == 1, ran.stdout
    return ran.stdout.rstrip("\n")


def test_a_model_is_downloaded_once_and_then_serves_offline(copy, tmp_path):
    for name in ("vocab.json", "merges.txt", INDEX):
        (copy / name).write_text("not used here")
    cache = tmp_path / "cache"
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(copy)], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        found = Path(resolve_elsewhere("org/model", cache, HF_ENDPOINT=endpoint))
        absent = resolve_elsewhere("org/other", cache, HF_ENDPOINT=endpoint)
        broken = resolve_elsewhere("org/broken", cache, HF_ENDPOINT=endpoint)
    finally:
        asked, _ = server.communicate(timeout=20)
    assert files_of(found) == files_of(copy)        # no pickle, nothing that is not read
    assert "pytorch_model.bin" not in asked and "model.onnx" not in asked
    assert absent == "refused: org/other: neither a directory here nor to be had from the hub " \
                     "(there is no such model, or not for everyone)"
    assert "500" in broken
    assert_same_bits(arrays_of(hub.load_model(found)), arrays_of(hub.load_model(copy)))
    assert Path(resolve_elsewhere("org/model", cache)) == found
    assert Path(resolve_elsewhere("org/model", cache, HF_HUB_OFFLINE="1")) == found


def test_a_hub_that_never_answers_is_not_waited_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "(timed out)" in resolve_elsewhere("org/model", tmp_path, HF_ENDPOINT=endpoint)


@pytest.mark.parametrize("name, offline, said", [
    ("gpt2", "0", "refused: gpt2: neither a directory here nor to be had from the hub (it cannot"),
    ("nope.json", "0", "refused: nope.json: no such file"),
    ("org/name", "1", "offline mode is enabled"),
    ("a--b", "0", "Cannot have -- or .. in repo_id"),
])
def test_without_a_hub_the_error_is_one_line_and_comes_soon(tmp_path, name, offline, said):
    assert said in resolve_elsewhere(name, tmp_path, HF_HUB_OFFLINE=offline)
