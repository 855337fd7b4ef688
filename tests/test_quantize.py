"""Models in low precision: what they answer, their files, the commands that make and use them."""

import json
import re

import numpy as np
import pytest
from conftest import AVAILABLE
from opaque import OpaqueBackend
from test_cli import book, minifm, refused  # noqa: F401  (fixtures)
from test_hub import files_of

import minifm as mf
from minifm.backends.reference.packed import FORMATS, Packed
from minifm.cli.quantize import FEW
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.generation.generate import generate
from minifm.generation.sampling import Sampling
from minifm.hub import load_arrays, load_model, save_arrays, save_model
from minifm.hub.directory import STORED
from minifm.models import GPT, GPTConfig, pack_model, packed_format
from minifm.text import Tokenizer

# Rows of 40 end in the middle of a group, those of 56 in that of a panel.
CONFIG = GPTConfig(vocabulary=257, context=16, layers=2, heads=4, width=40, hidden=56)
EACH_FORMAT = pytest.mark.parametrize("format", FORMATS)
EACH_STORED = pytest.mark.parametrize("format", STORED)
IDS = np.random.default_rng(0).integers(0, 257, (3, 16))
# The largest change of a logit, in standard deviations of the logits: some thirty weights of
# relative error 2^-9, 1 / 400, 1 / 25 in a row of this small model, twice over.
CHANGE = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.05, "int4": 0.6}


def random_model():
    model = GPT(CONFIG)
    for name, parameter in model.parameters().items():
        drawn = mf.Rng(0).child(name).normal(parameter.shape)
        parameter.data = mf.backend().multiply(drawn, 0.2)
    return model


def packed_model(format):
    model = random_model()
    pack_model(model, format)
    return model


def logits(model, ids=IDS, **options):
    with mf.no_grad():
        return model(ids, **options).numpy()


# -- models --------------------------------------------------------------------------------------


@EACH_FORMAT
def test_a_packed_model_answers_nearly_the_same(backend, format):
    before, model = logits(random_model()), packed_model(format)
    change = np.abs(logits(model) - before).max()
    assert (change > 0 or format == "fp32") and change <= CHANGE[format] * before.std()
    for name, parameter in model.parameters().items():
        is_packed = isinstance(parameter.data, Packed)
        assert is_packed == (name in GPT.products(CONFIG)) == (not parameter.requires_grad)
    assert packed_format(model) == format and packed_format(random_model()) is None
    loss = [m.loss(IDS[:, :-1], IDS[:, 1:]).item() for m in (random_model(), model)]
    assert abs(loss[1] - loss[0]) < CHANGE[format] * before.std()
    with pytest.raises(ConfigError, match=f"packed already, as {format}"):
        pack_model(model, "int8")


@EACH_FORMAT
def test_a_packed_model_answers_like_one_of_the_same_numbers(format):
    """What every code and scale stands for, as plain weights: the reference model."""
    with mf.use("numpy"):
        model, plain = packed_model(format), random_model()
        for name, parameter in plain.parameters().items():
            parameter.data = model.parameters()[name].numpy()
        bound = CHANGE["int8"] if format.startswith("int") else 1e-5
        found, wanted = logits(model), logits(plain)
    assert np.abs(found - wanted).max() <= bound * wanted.std()


@pytest.mark.skipif("c" not in AVAILABLE, reason="no C backend")
@EACH_FORMAT
def test_batched_is_single_and_cached_is_full_bitwise(format):
    with mf.use("c"):
        model = packed_model(format)
        full = logits(model)
        for row in range(3):
            assert (logits(model, IDS[row : row + 1]) == full[row]).all()
        cache, parts = model.cache(3), []
        for begin, end in ((0, 5), (5, 6), (6, 7), (7, 16)):
            parts.append(logits(model, IDS[:, begin:end], cache=cache))
        assert (np.concatenate(parts, 1) == full).all()


@EACH_FORMAT
def test_a_packed_model_writes(backend, format):
    model, tokenizer = packed_model(format), Tokenizer.bytes()
    options = {"strategy": Sampling(temperature=0), "max_tokens": 6}
    together = generate(model, tokenizer, ["ab", "cdef"], **options)
    alone = [generate(model, tokenizer, [prompt], **options)[0] for prompt in ("ab", "cdef")]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


@EACH_FORMAT
def test_a_packed_model_runs_on_opaque_arrays(format):
    with mf.use("numpy"):
        wanted = logits(packed_model(format))
    with mf.use(OpaqueBackend()):
        assert (logits(packed_model(format)) == wanted).all()


def test_a_model_that_cannot_be_packed_is_left_as_it_was(backend):
    model = random_model()
    model.blocks[1].perceptron.output.weight.data[3, 3] = np.nan
    with pytest.raises(ShapeError, match="finite"):
        pack_model(model, "int8")
    assert packed_format(model) is None
    assert all(parameter.requires_grad for parameter in model.parameters().values())


# -- files ---------------------------------------------------------------------------------------


@EACH_FORMAT
def test_a_packed_model_comes_back_to_the_bit(backend, tmp_path, format):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    model = packed_model(format)
    save_model(model, first, Tokenizer.bytes())
    loaded = load_model(first)
    assert packed_format(loaded) == (None if format == "fp32" else format)
    assert (logits(loaded) == logits(model)).all()
    save_model(loaded, second, Tokenizer.bytes())
    assert files_of(first) == files_of(second)


@EACH_STORED
def test_files_are_the_same_whatever_the_backend_and_the_shards(tmp_path, format):
    seen = []
    for number, name in enumerate(AVAILABLE):
        with mf.use("numpy"):
            model = random_model()
        for parameter in model.parameters().values():
            parameter.data = mf.use("numpy").backend.copy(parameter.data)
        with mf.use(name):
            pack_model(model, format)
            place = tmp_path / str(number)
            place.mkdir()
            save_model(model, place)
            seen.append(files_of(place))
            split = tmp_path / f"{number} split"
            split.mkdir()
            save_model(model, split, shard_bytes=5000)
            assert len(list(split.glob("*.safetensors"))) > 3
            assert (logits(load_model(split)) == logits(model)).all()
    assert all(files == seen[0] for files in seen)


@EACH_STORED
def test_a_stored_weight_is_as_documented(backend, tmp_path, format):
    model = packed_model(format)
    save_model(model, tmp_path)
    arrays = load_arrays(tmp_path / "model.safetensors")
    for ours, stored, rows in (("token_embedding", "wte", lambda w: w),
                               ("blocks.1.attention.project", "h.1.attn.c_attn", lambda w: w.T)):
        w, name = rows(model.parameters()[ours + ".weight"].numpy()), f"transformer.{stored}.weight"
        if format == "bf16":
            assert (rows(arrays[name]) == w).all()
            continue
        codes, scales = arrays[name + ".codes"], arrays[name + ".scales"]
        if format == "int4":
            codes = np.concatenate([codes & 15, codes >> 4], -1).astype(np.int8) - 8
        numbers = (codes * scales[..., None]).reshape(len(w), -1)
        assert (numbers[:, : w.shape[1]] == w).all() and not numbers[:, w.shape[1] :].any()


def test_what_does_not_fit_is_one_line(tmp_path):
    save_model(packed_model("int4"), tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    stored, arrays = json.loads(config.read_text()), load_arrays(weights)

    def fails(*parts, said=None, held=None):
        config.write_text(json.dumps(stored | ({"quantization_config": said} if said else {})))
        save_arrays(arrays if held is None else held, weights)
        with pytest.raises(FormatError) as failure:
            load_model(tmp_path)
        assert all(part in str(failure.value) for part in parts), failure.value
        assert "\n" not in str(failure.value)

    said = stored["quantization_config"]
    for other in ({"quant_method": "gptq", "bits": 4}, said | {"format": "int3"},
                  said | {"group_size": 64}, "int4"):
        fails("quantization_config", "expected quant_method minifm", said=other)
    fails("wte.weight is missing", "attn.c_attn.weight.codes is unknown", "; and ",
          said={"quant_method": "minifm", "format": "bf16"})
    fails("wte.weight.codes is [257, 2, 16], expected [257, 2, 32]", said=said | {
        "format": "int8"})
    # `load_arrays` gives scales as float32, so these files have F32 where BF16 belongs.
    fails("wte.weight.scales is F32, expected one of BF16")
    held = dict(arrays)
    del held["transformer.h.0.attn.c_attn.weight.scales"]
    fails("transformer.h.0.attn.c_attn.weight.scales is missing", held=held)


# -- commands ------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path):
    """A model of single bytes, and its tokenizer."""
    place = tmp_path / "model"
    place.mkdir()
    save_model(random_model(), place, Tokenizer.bytes())
    return place


@EACH_STORED
def test_quantize_writes_a_directory_that_generates_and_says_what_it_changed(
        minifm, book, directory, tmp_path, format):  # noqa: F811
    out = tmp_path / "out"
    status, said, complaint = minifm("quantize", directory, "--format", format, "--out", out,
                                     "--text", book, "--tokens", 300)
    assert (status, complaint) == (0, "")
    assert f"{out}: the weights of products in {format}, all else in float32" in said
    before, after = map(float, re.search(r"perplexity +(\S+) -> (\S+) .* over 300 tokens of",
                                         said).groups())
    assert 1 < before and abs(after / before - 1) < 0.05
    largest = float(re.search(r"logits +change by at most ([\d.]+),", said)[1])
    with mf.no_grad():
        assert 0 < largest < 1 and packed_format(load_model(out)) == format
    words = ("Hello", "--temperature", 0, "--max-tokens", 5)
    written = minifm("generate", out, *words)
    assert written[0] == 0
    assert minifm("generate", directory, *words, "--format", format) == written
    assert minifm("generate", out, *words, "--format", format) == written


def test_quantize_measures_on_what_the_models_run_has_held_out(minifm, book, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    assert minifm("pretrain", "--data", book, "--out", run, "--layers", 1, "--heads", 2, "--width",
                  32, "--context", 16, "--batch", 2, "--tokenizer", "bytes", "--steps", 2)[0] == 0
    status, said, _ = minifm("quantize", run, "--format", "int8", "--out", tmp_path / "int8")
    assert status == 0 and re.search(r"over [\d,]+ tokens of held out part of", said)
    refused(minifm("pretrain", "--data", book, "--out", tmp_path / "next", "--init",
                   tmp_path / "int8", "--batch", 2), "packed as int8", "not trained")


def test_a_text_too_short_to_judge_by_is_called_so(minifm, directory, tmp_path):  # noqa: F811
    for name, tokens, few in (("a", FEW - 1, True), ("b", FEW, False)):
        (tmp_path / "text").write_text("words " * tokens)
        status, said, complaint = minifm("quantize", directory, "--format", "int8", "--out",
                                         tmp_path / name, "--text", tmp_path / "text", "--tokens",
                                         tokens)
        assert status == 0 and f"over {tokens:,} tokens" in said
        assert ("too few to judge by" in complaint) == few


def test_without_text_quantize_says_that_it_has_not_measured(minifm, directory, tmp_path):  # noqa: F811
    status, said, complaint = minifm("quantize", directory, "--format", "int8", "--out",
                                     tmp_path / "out")
    assert status == 0 and "perplexity" not in said and "--text" in complaint


def test_a_users_mistakes_are_one_line_and_leave_nothing(
        minifm, book, directory, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    minifm("quantize", directory, "--format", "int8", "--out", out, "--text", book, "--tokens", 50)
    before = sorted(tmp_path.iterdir())
    words = ("--format", "int4", "--out", tmp_path / "other", "--text")
    refused(minifm("quantize", directory, "--format", "int4", "--out", out), "exists already")
    refused(minifm("quantize", out, *words, book), "packed already, as int8")
    refused(minifm("quantize", directory, *words, tmp_path / "none"), "none")
    refused(minifm("quantize", directory, *words, book, "--tokens", 0), "at least 1, got 0")
    refused(minifm("quantize", tmp_path / "none", *words, book), "no such directory")
    refused(minifm("generate", out, "a", "--format", "int4"), "packed already, as int8")
    assert sorted(tmp_path.iterdir()) == before
    assert minifm("quantize", directory, "--format", "int5", "--out", out)[0] == 2
