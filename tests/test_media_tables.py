"""MNIST, CIFAR and .npy: the files as they are published, and pickles that are never run."""

import gzip
import os
import pickle
import pickletools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm import media
from minifm.errors import ConfigError, FormatError
from minifm.media import MediaConfig, tables
from minifm.media.pickled import read_pickle
from minifm.rng import Rng


def noise(*shape, seed=0):
    return Rng(seed).integers(0, 256, shape).astype(np.uint8)


def opened(path, **settings):
    said = []
    return media.open(path, MediaConfig(**settings), say=said.append), said


# -- MNIST -----------------------------------------------------------------------------------------


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + \
        array.tobytes()


def save_mnist(directory, pack=False):
    made = {}
    for name, count in (("train", 30), ("t10k", 6)):
        made[name] = noise(count, 28, 28, seed=count), np.arange(count, dtype=np.uint8) % 10
        for kind, array in zip(("images-idx3", "labels-idx1"), made[name]):
            content = idx(array)
            path = directory / f"{name}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(content) if pack else content)
    return made


@pytest.mark.parametrize("pack", [False, True])
def test_mnist(tmp_path, pack):
    made = save_mnist(tmp_path, pack)
    found, said = opened(tmp_path)
    assert found.shape == (1, 28, 28) and found.count == 36 and said == []
    assert found.classes == tuple("0123456789")
    for part, name in (("training", "train"), ("held_out", "t10k")):
        values, labels = made[name]
        where = found.parts[part]
        assert np.array_equal(np.round((found.take(where)[:, 0] + 1) * 127.5), values)
        assert np.array_equal(found.labels[where], labels)
    pytest.importorskip("PIL")
    found, said = opened(next(tmp_path.glob("train-images*")), size=14)
    assert found.shape == (1, 14, 14) and said == ["converted: resized to 14 × 14 (30)"]
    assert found.labels.tolist() == made["train"][1].tolist() and len(found.parts["held_out"]) < 30


@pytest.mark.parametrize("content, match", [
    (b"", "not an idx file"), (b"\0\0\x0d\3" + bytes(12), "not an idx file of unsigned bytes"),
    (b"\0\0\x08\3\0\0", "cut short in its header"),
    (idx(noise(3, 4, 4))[:-1], "expected 3 × 4 × 4 bytes, as its header says, got 47"),
    (idx(noise(3, 4, 4)) + b"0", "expected 3 × 4 × 4 bytes, as its header says, got more"),
    (b"\0\0\x08\3" + b"\xff" * 12, "expected 4294967295 × .* got 0"),
    (idx(noise(0, 4, 4)), "expected 0 × 4 × 4 bytes, as its header says, got 0"),
    (b"\0\0\x08\0", "cut short in its header")])
def test_idx_files_that_are_refused(tmp_path, content, match):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"{path.name}: {match}"):
        opened(tmp_path)
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(content))
    with pytest.raises(FormatError, match=f"{packed.name}: {match}"):
        opened(packed)
    packed.write_bytes(gzip.compress(content)[:-4] if content else b"\x1f\x8b")
    with pytest.raises(FormatError, match=f"{packed.name}: "):
        opened(packed)


def test_no_more_is_unpacked_than_the_header_says(tmp_path):
    """Of a hundred million zeros behind a small array, memory sees a page or so."""
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(noise(3, 4, 4)) + bytes(100_000_000), 9))
    tracemalloc.start()
    with pytest.raises(FormatError, match="as its header says, got more"):
        opened(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_labels_of_another_number_are_refused(tmp_path):
    save_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(noise(5)))
    with pytest.raises(FormatError, match="t10k-labels-idx1-ubyte: 5 labels for 6 pictures"):
        opened(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert opened(tmp_path)[0].labels is None


# -- CIFAR -----------------------------------------------------------------------------------------

CLASSES = ["airplane", "automobile"]


def as_python_2(batch):
    """The pickle that Python 2 made of CIFAR's batches: protocol 2, and byte strings."""
    out = [b"\x80\x02}("]
    for key, value in batch.items():
        out.append(b"U" + bytes([len(key)]) + key.encode())
        if isinstance(value, np.ndarray):
            rows = value.shape
            out.append(b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85"
                       b"U\x01bq\x03\x87Rq\x04(K\x01" + pickle.dumps(rows, 2)[2:-1] +
                       b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ"
                       b"\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", value.size) +
                       value.tobytes() + b"tb")
        else:
            out.append(pickle.dumps(value, 2)[2:-1])
    return b"".join(out) + b"u."


def save_cifar(directory, write):
    made = {}
    for name, count in (("data_batch_1", 5), ("data_batch_2", 4), ("test_batch", 3)):
        made[name] = noise(count, 3 * 1024, seed=count), [i % 2 for i in range(count)]
        write(directory / name, *made[name])
    return made


def write_binary(path, values, labels):
    rows = np.concatenate([np.array(labels, np.uint8)[:, None], values], 1)
    path.with_suffix(".bin").write_bytes(rows.tobytes())
    (path.parent / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")


def write_python_2(path, values, labels):
    path.write_bytes(as_python_2({"data": values, "labels": labels, "batch_label": "a"}))
    (path.parent / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}, 2))


def python_3(protocol):
    def write(path, values, labels):
        batch = {b"data": values, b"fine_labels": labels, b"filenames": [b"a.png", b"b.png"]}
        path.write_bytes(pickle.dumps(batch, protocol))
        (path.parent / "meta").write_bytes(
            pickle.dumps({b"fine_label_names": [name.encode() for name in CLASSES]}, protocol))
    return write


@pytest.mark.parametrize("write", [write_binary, write_python_2, *map(python_3, range(2, 5))])
def test_cifar(tmp_path, write):
    made = save_cifar(tmp_path, write)
    found, said = opened(tmp_path)
    assert found.shape == (3, 32, 32) and found.classes == tuple(CLASSES) and said == []
    values = np.concatenate([array for array, _ in made.values()]).reshape(-1, 3, 32, 32)
    everything = np.arange(12)
    assert np.array_equal(np.round((found.take(everything) + 1) * 127.5), values)
    assert found.labels.tolist() == sum((labels for _, labels in made.values()), [])
    assert found.parts["held_out"].tolist() == [9, 10, 11]
    one = next(tmp_path.glob("data_batch_1*"))
    assert opened(one)[0].count == 5


def test_cifar_100s_rows_have_two_labels(tmp_path):
    rows = noise(4, 2 + 3 * 1024)
    rows[:, 0], rows[:, 1] = 7, range(4)
    (tmp_path / "train.bin").write_bytes(rows.tobytes())
    found, _ = opened(tmp_path)
    assert found.labels.tolist() == [0, 1, 2, 3]
    (tmp_path / "train.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(FormatError, match="train.bin: 12,295 bytes, which is not a number of rows"):
        opened(tmp_path)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


CALLS = [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (exec, "open({!r}, 'w')"),
         (__import__, "os"), (np.load, "{}"), (getattr, "{}", "upper"), (open, "{}", "w")]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0].__name__)
@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_is_ever_run(tmp_path, call, protocol):
    """What a pickle would call is refused by name; the same pickle, loaded, would have done it."""
    trap = tmp_path / "sprung"
    evil = Evil(call[0], *(text.format(str(trap)) for text in call[1:]))
    for value in (evil, {"data": evil}, {"data": noise(1, 3072), "labels": [evil]}):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(FormatError, match="data_batch_1: a pickle that (names|says)"):
            opened(tmp_path)
    assert not trap.exists()


def test_the_trap_works(tmp_path):
    """So the test above can fail."""
    trap = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Evil(open, str(trap), "w"))).close()
    assert trap.exists()


@pytest.mark.parametrize("content", [
    b"cbuiltins\nlen\n(tR.", b"(ios\nsystem\n.", b"(cos\nsystem\no.", b"\x80\x02P1\n.",
    b"cnumpy\n.",
    b"\x80\x04\x8c\x02os\x8c\x06system\x93.", b"\x82\x01.", b"cnumpy\nndarray\n)\x81.",
    b"cnumpy\nndarray\n)R.", b"cnumpy.core.multiarray\n_reconstruct\n)R.", b"", b".", b"e.", b"K",
    b"q\x01.", b"h\x05.", b"]]a", b"}]s.", b"}K\x01s.", b"NNb.", b"\x80\x02X\xff\xff\xff\x7fa.",
    b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0rot\x86R.", b"]q\x01h\x01a.", b"\x8a\xffabc.", b"0." * 9,
    b"}(]K\x01u.", pickle.dumps({"data": np.zeros(3)}, 2), pickle.dumps({"data": b"x"}, 2),
    pickle.dumps({"data": noise(2, 3072), "labels": [1]}, 2), pickle.dumps([1], 2),
    pickle.dumps({"data": noise(2, 3072), "labels": [1, "x"]}, 2)])
def test_pickles_that_are_refused(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(FormatError, match="data_batch_1: "):
        opened(tmp_path)


@given(value=st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) |
    st.tuples(inner, inner), max_leaves=12), protocol=st.integers(0, 4))
def test_what_is_plain_is_read_as_it_is(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol), "x") == value


@given(content=st.binary(max_size=200) | st.lists(
    st.sampled_from(pickletools.opcodes).map(lambda op: op.code.encode("latin-1") + b"\1\0\0\0a\n"),
    max_size=20).map(b"".join))
def test_damage_never_gets_through(content):
    try:
        read_pickle(content, "x")
    except FormatError as error:
        assert str(error).startswith("x: a ")


# -- .npy ------------------------------------------------------------------------------------------


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


@pytest.mark.parametrize("kind, shape, wanted", [
    ("picture", (6, 9, 9), (1, 9, 9)), ("picture", (6, 9, 9, 3), (3, 9, 9)),
    ("picture", (6, 3, 9, 9), (3, 9, 9)), (None, (6, 9, 9, 3), (3, 9, 9)),
    (None, (6, 1, 9, 9), (1, 9, 9)), ("solid", (6, 9, 9, 9), (1, 9, 9, 9)),
    ("solid", (6, 1, 4, 5, 6), (1, 4, 5, 6)), ("video", (6, 4, 9, 9), (1, 4, 9, 9)),
    ("video", (6, 4, 9, 9, 3), (3, 4, 9, 9)), ("video", (6, 3, 4, 9, 9), (3, 4, 9, 9))])
def test_arrays_of_many_examples(tmp_path, kind, shape, wanted):
    array = noise(*shape)
    found, said = opened(save(tmp_path / "a.npy", array), kind=kind)
    assert found.count == 6 and found.shape == wanted and said == []
    assert found.kind is getattr(media, (kind or "picture").upper())
    values = np.round((found.take(np.arange(6)) + 1) * 127.5)
    moved = values if values.shape == shape else \
        values[:, 0] if len(wanted) > len(shape) - 1 else np.moveaxis(values, 1, -1)
    assert np.array_equal(moved, array)


@pytest.mark.parametrize("kind, shape", [("picture", (9, 9)), ("picture", (9, 9, 3)),
                                         ("solid", (9, 9, 9)), ("video", (5, 9, 9))])
def test_a_folder_of_arrays_of_one_example(tmp_path, kind, shape):
    for i in range(4):
        save(tmp_path / "ab"[i % 2] / f"{i}.npy", noise(*shape, seed=i))
    found, _ = opened(tmp_path, kind=kind)
    assert found.count == 4 and found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 0, 1, 1]


def test_values(tmp_path):
    """Black is -1 and white 1, whatever they are stored as."""
    for array, expected in (
            (np.array([0, 1, 1, 0], np.uint8), [-1, 1, 1, -1]),
            (np.array([False, True, True, False]), [-1, 1, 1, -1]),
            (np.array([0, 0.25, 1, 0.5]), [-1, -0.5, 1, 0]),
            (np.array([-1, 0.25, 1, 0.5], np.float16), [-1, 0.25, 1, 0.5])):
        made = np.stack([array.reshape(1, 2, 2), np.roll(array, 1).reshape(1, 2, 2)])
        found, _ = opened(save(tmp_path / "a.npy", made))
        assert found.take([0]).reshape(-1).tolist() == expected


def test_one_file_with_a_negative_number_tells_of_all(tmp_path):
    for i, low in enumerate((0.0, -0.5, 0.25)):
        save(tmp_path / f"{i}.npy", np.array([[low, 1.0], [0.5, 0.5]]))
    found, _ = opened(tmp_path, kind="picture")
    assert found.take([0])[0, 0].tolist() == [[0, 1], [0.5, 0.5]]


def test_sounds_and_clouds(tmp_path):
    waves = Rng(0).host_normal((5, 300)) / 10
    found, _ = opened(save(tmp_path / "a.npy", waves), kind="sound", rate=4000)
    assert found.shape == (1, 300) and found.description["rate"] == 4000
    assert np.array_equal(found.take(np.arange(5))[:, 0], waves)
    with pytest.raises(ConfigError, match="rate: an array does not say"):
        opened(tmp_path / "a.npy", kind="sound")
    for i in range(3):
        save(tmp_path / "clouds" / f"{i}.npy", Rng(i).host_normal((50 + i, 3)))
    found, said = opened(tmp_path / "clouds", size=12)
    assert found.kind is media.SOLID and found.shape == (1, 12, 12, 12)
    assert said == ["converted: points to voxels (3)"]
    assert opened(tmp_path / "clouds")[0].shape == (1, 16, 16, 16)


@pytest.mark.parametrize("array, kind, match", [
    (noise(6, 9, 9), None, r"shape \(6, 9, 9\) may hold pictures, solids or others"),
    (noise(6, 9, 9, 5), "picture", r"shape \(6, 9, 9, 5\); a picture is one of NCHW"),
    (noise(9), "solid", r"shape \(9,\); a solid is one of"),
    (np.zeros((2, 4, 4)) / 0.5 - 3, "picture", "floats of -3 … -3; expected 0 … 1 or -1 … 1"),
    (np.full((2, 4, 4), np.nan), "picture", r"\[0, 0, 0\]: nan is no number"),
    (np.full((4, 3), np.inf), None, r"\[0, 0\]: inf is no number"),
    (np.zeros((2, 4, 4), np.int32), "picture", "values of int32"),
    (np.zeros((2, 4, 4), complex), "picture", "values of complex128"),
    (np.zeros((0, 4, 4), np.uint8), "picture", r"nothing in it: its shape is \(0, 4, 4\)"),
    (np.array([{}]), "picture", "of Python objects")])
def test_arrays_that_are_refused(tmp_path, array, kind, match):
    with pytest.raises((FormatError, ConfigError), match=rf"a.npy: (.*){match}"):
        opened(save(tmp_path / "a.npy", array), kind=kind)


def test_arrays_of_other_shapes_are_passed_by(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.npy", noise(6, 6, 6, seed=i))
    save(tmp_path / "z.npy", noise(7, 7, 7))
    (tmp_path / "y.npy").write_bytes(b"\x93NUMPY\1\0")
    found, said = opened(tmp_path, kind="solid")
    assert found.count == 3 and len(said) == 2
    assert "y.npy: no .npy file" in said[0] and "z.npy: examples of shape (1, 7, 7, 7)" in said[1]
    (tmp_path / "y.npy").unlink()
    with pytest.raises(ConfigError, match="solids of side 6, which --size 8 does not resize"):
        opened(tmp_path, kind="solid", size=8)


def test_an_evil_array_is_not_run(tmp_path):
    trap = tmp_path / "sprung"
    save(tmp_path / "a.npy", np.array([Evil(open, str(trap), "w")], object))
    with pytest.raises(ConfigError, match="a.npy"):
        opened(tmp_path / "a.npy", kind="picture")
    evil = pickle.dumps(Evil(open, str(trap), "w"))
    (tmp_path / "a.npy").write_bytes(evil)
    with pytest.raises(ConfigError, match="a.npy: no .npy file"):
        opened(tmp_path / "a.npy", kind="picture")
    assert not trap.exists()


def test_a_header_may_not_claim_more_than_is_there(tmp_path):
    path = save(tmp_path / "a.npy", noise(3, 4, 4))
    path.write_bytes(path.read_bytes().replace(b"(3, 4, 4), }", b"(3000000, 4, 4), }"))
    with pytest.raises(ConfigError, match="a.npy: no .npy file"):
        opened(path, kind="picture")


def test_pictures_are_resized(tmp_path):
    pytest.importorskip("PIL")
    found, said = opened(save(tmp_path / "a.npy", noise(4, 10, 12)), kind="picture", size=5)
    assert found.shape == (1, 5, 5)
    assert said == ["converted: cropped to a square (4), resized to 5 × 5 (4)"]
    assert tables.resized(noise(2, 1, 5, 5), 5, {}).shape == (2, 1, 5, 5)
