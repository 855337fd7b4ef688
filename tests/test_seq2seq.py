"""Encoder-decoders against the real library's outputs, and the algebra that they obey."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import (
    assert_files_come_back,
    assert_gradients,
    assert_same_function,
    in_float64,
    randomised,
)
from opaque import OpaqueBackend
from safetensors.numpy import load_file, save_file

import minifm as mf
from minifm import cli
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.hub import load_model, save_model
from minifm.models import (
    T5,
    T5Config,
    Transformer,
    TransformerConfig,
    pack_model,
    t5,
    transformer,
)
from minifm.text import Tokenizer
from minifm.training.memory import kept_bytes

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["marian", "marian-swish", "t5", "t5-v1.1"]
V = 37
# Between them they have every part that an encoder-decoder may have.
CONFIGS = {
    "transformer": TransformerConfig(vocabulary=V, context=24, layers=2, decoder_layers=3, heads=2,
                                     width=16, hidden=20, start=36, padding=35),
    "t5": T5Config(vocabulary=V, layers=3, decoder_layers=2, heads=2, width=16, head_width=6,
                   hidden=20, buckets=8, distance=12),
    "t5-v1.1": T5Config(vocabulary=V, layers=2, heads=2, width=16, head_width=8, hidden=20,
                        buckets=4, distance=9, **t5.V1_1),
}
EACH = pytest.mark.parametrize("kind", CONFIGS)


def model_class(kind):
    return T5 if kind.startswith("t5") else Transformer


def random_model(kind, seed=0, std=0.2):
    return randomised(model_class(kind)(CONFIGS[kind]), seed, std)


def random_ids(*shape, seed=0):
    return mf.Rng(seed).child("ids").integers(0, V, shape)


def random_sources(*shape):
    return random_ids(*shape, seed=1)


def oracle(kind, source, ids, **inputs):
    """The logits in float64, by the reference."""
    with mf.use("numpy"), mf.no_grad():
        return in_float64(random_model(kind))(source, ids, **inputs).numpy()


def assert_same(y, full, exact):
    """Bitwise on the C backend, and within rounding on every other."""
    if mf.backend().name == "c":
        np.testing.assert_array_equal(y, full)
    assert_same_function(y, full, exact)


# -- the real library's outputs -----------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return GOLDEN / request.param, load_file(GOLDEN / request.param / "outputs.safetensors")


def mask_of(outputs):
    return np.arange(outputs["source"].shape[1]) < outputs["lengths"][:, None]


def test_memory_and_logits_equal_the_real_librarys(backend, golden):
    directory, outputs = golden
    model, mask = load_model(directory), mask_of(outputs)
    memory = model.encode(outputs["source"], key_mask=mask).numpy()
    assert np.abs(memory - outputs["memory"])[mask].max() <= 2 * outputs["error.memory"][0]
    y = model(outputs["source"], outputs["ids"], source_mask=mask).numpy()
    assert np.abs(y - outputs["logits"]).max() <= 2 * outputs["error.logits"][0]


def test_memory_loss_and_gradients_equal_the_real_librarys_in_float64(golden):
    directory, outputs = golden
    source, mask = outputs["source"], mask_of(outputs)
    with mf.use("numpy"):
        model = in_float64(load_model(directory))
        memory = model.encode(source, key_mask=mask).numpy()
        np.testing.assert_allclose(memory[mask], outputs["memory"][mask], rtol=1e-10, atol=1e-12)
        loss = model.loss(source, outputs["ids"], outputs["targets"], source_mask=mask)
        assert loss.item() == pytest.approx(outputs["loss"][0], rel=1e-12)
        loss.backward()
    assert_gradients(model, outputs)


def greedy(model, source, mask, count):
    """The likeliest target, token by token, with a cache."""
    with mf.no_grad():
        memory = model.recall(model.encode(source, key_mask=mask))
        cache, ids = model.cache(len(source), count), [np.full(len(source), model.config.start)]
        for _ in range(count):
            logits = model.decode(ids[-1][:, None], memory, memory_mask=mask, cache=cache)
            ids.append(logits.numpy()[:, -1].argmax(-1))
    return np.stack(ids[1:], 1)


def test_greedy_target_equals_the_real_librarys(backend, golden):
    directory, outputs = golden
    mask, count = mask_of(outputs), len(outputs["greedy"])
    written = greedy(load_model(directory), outputs["source"], mask, count)
    assert written[2].tolist() == outputs["greedy"].tolist()
    # With three random post-norms after each other, little but their offsets reaches the head.
    assert len(set(written[2].tolist())) > 1 or directory.name == "marian-swish"


def test_logits_token_by_token_equal_the_real_librarys(backend, golden):
    directory, outputs = golden
    model, mask, ids = load_model(directory), mask_of(outputs), outputs["ids"]
    memory, cache = model.recall(model.encode(outputs["source"], key_mask=mask)), model.cache(3, 9)
    y = [model.decode(ids[:, t : t + 1], memory, memory_mask=mask, cache=cache).numpy()
         for t in range(ids.shape[1])]
    error = np.abs(np.concatenate(y, 1) - outputs["logits"]).max()
    assert error <= 2 * outputs["error.logits"][0]


def test_what_the_real_library_saved_comes_back_from_our_files(golden, tmp_path):
    directory, _ = golden
    assert_files_come_back(directory, tmp_path)


@pytest.mark.parametrize("side, both", [("both", True), ("before", False)])
def test_distances_fall_into_the_real_librarys_buckets(side, both):
    outputs = load_file(GOLDEN / "t5" / "outputs.safetensors")
    found = t5.bucket_of(np.arange(-300, 301), 32, 128, both)
    assert found.tolist() == outputs[f"buckets.{side}"].tolist()
    # On both sides, bucket 16 would be a distance of 0 behind the query: it is the query's own.
    assert set(range(32)) - set(found.tolist()) == ({16} if both else set())


# -- laws ---------------------------------------------------------------------------------------


@EACH
@given(t=st.integers(0, 8), token=st.integers(0, V - 1))
def test_causality_a_later_target_token_leaves_earlier_outputs_bitwise(backend, kind, t, token):
    model, source, ids = random_model(kind), random_sources(2, 7), random_ids(2, 9)
    changed = ids.copy()
    changed[:, t] = token
    before, after = model(source, ids).numpy(), model(source, changed).numpy()
    np.testing.assert_array_equal(before[:, :t], after[:, :t])
    assert (ids[:, t] == token).all() or not np.array_equal(before[:, t:], after[:, t:])


@EACH
@given(s=st.integers(0, 6))
def test_every_source_token_reaches_every_target_token(backend, kind, s):
    model, source, ids = random_model(kind), random_sources(1, 7), random_ids(1, 5)
    changed = source.copy()
    changed[:, s] = (source[:, s] + 1) % V
    difference = np.abs(model(source, ids).numpy() - model(changed, ids).numpy())
    assert (difference.max(-1) > 0).all()


@EACH
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_cache_in_any_chunking_is_the_full_forward(backend, kind, chunks):
    model, source = random_model(kind), random_sources(3, 7)
    ids = random_ids(3, min(sum(chunks), 24))
    with mf.no_grad():
        full, parts, cache = model(source, ids).numpy(), [], model.cache(3, 24)
        memory = model.recall(model.encode(source))
        for chunk in chunks:
            piece = ids[:, int(cache.lengths[0]) :][:, :chunk]
            if piece.size:
                parts.append(model.decode(piece, memory, cache=cache).numpy())
    assert_same(np.concatenate(parts, 1), full, oracle(kind, source, ids))


@EACH
def test_a_cache_of_bf16_rounds_keys_and_values_of_the_target(backend, kind):
    model, source, ids = random_model(kind), random_sources(2, 7), random_ids(2, 9)
    with mf.no_grad():
        full, memory = model(source, ids).numpy(), model.recall(model.encode(source))
        y = model.decode(ids, memory, cache=model.cache(2, 9, "bf16")).numpy()
    assert 0 < np.abs(y - full).max() < 2 ** -8 * np.abs(full).max()


@EACH
def test_it_runs_on_arrays_that_only_the_backend_can_read(kind):
    def loss_gradients_and_target():
        model, source, ids = random_model(kind), random_sources(2, 7), random_ids(2, 6)
        mask = np.arange(7) < np.array([[7], [4]])
        loss = model.loss(source, ids, ids, source_mask=mask)
        loss.backward()
        gradients = [mf.backend().to_numpy(p.grad) for p in model.parameters().values()]
        model.config = replace(model.config, start=3)
        return [loss.numpy(), greedy(model, source, mask, 4), *gradients]

    with mf.use("numpy"):
        expected = loss_gradients_and_target()
    with mf.use(OpaqueBackend()):
        found = loss_gradients_and_target()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@EACH
@given(lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 8)), min_size=2, max_size=4),
       more=st.integers(1, 4))
def test_batched_with_cache_is_each_row_alone(backend, kind, lengths, more):
    """Sources and targets of any lengths, padded on the right."""
    sizes, counts = (list(column) for column in zip(*lengths))
    rows, every = len(lengths), range(len(lengths))
    model, source = random_model(kind), random_sources(rows, max(sizes))
    ids, mask = random_ids(rows, 8 + more), np.arange(max(sizes)) < np.array(sizes)[:, None]
    with mf.no_grad():
        cache = model.cache(rows, 8 + more)
        memory = model.recall(model.encode(source, key_mask=mask))
        first = model.decode(ids[:, : max(counts)], memory, memory_mask=mask, cache=cache,
                             counts=counts).numpy()
        pieces = np.stack([ids[b, counts[b] : counts[b] + more] for b in every])
        rest = [model.decode(pieces[:, t : t + 1], memory, memory_mask=mask, cache=cache).numpy()
                for t in range(more)]
        for b in every:
            mine = source[b : b + 1, : sizes[b]], ids[b : b + 1, : counts[b] + more]
            together = np.concatenate([first[b, : counts[b]], *(logits[b] for logits in rest)])
            assert_same(together, model(*mine).numpy()[0], oracle(kind, *mine)[0])


@EACH
@given(left=st.integers(0, 5), right=st.integers(0, 5))
def test_padding_on_either_side_of_the_source_changes_nothing(backend, kind, left, right):
    model, source, ids = random_model(kind), random_sources(2, 9), random_ids(2, 6)
    padded = np.pad(source, ((0, 0), (left, right)), constant_values=5)
    mask = np.pad(np.ones(source.shape, bool), ((0, 0), (left, right)))
    y, full = model(padded, ids, source_mask=mask).numpy(), model(source, ids).numpy()
    assert_same_function(y, full, oracle(kind, source, ids))


@EACH
def test_recomputation_gives_the_same_bits(backend, kind):
    source, ids, found = random_sources(2, 7), random_ids(2, 9), []
    for recompute in (False, True):
        model = random_model(kind)
        model.config = replace(model.config, dropout=0.25)
        loss = model.loss(source, ids[:, :-1], ids[:, 1:], rng=mf.Rng(3), recompute=recompute)
        loss.backward()
        found.append([loss.numpy()] + [p.grad for p in model.parameters().values()])
    for plain, again in zip(*found):
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(again))


@EACH
def test_losses_of_pieces_add_up_to_that_of_the_batch(kind):
    with mf.use("numpy"):
        model, source, ids = in_float64(random_model(kind)), random_sources(4, 7), random_ids(4, 6)
        targets = ids.copy()
        targets[0, 2:] = -100
        whole = model.loss(source, ids, targets).item()
        pieces = [model.loss(source[rows], ids[rows], targets[rows], denominator=20).item()
                  for rows in (slice(0, 1), slice(1, 4))]
    assert sum(pieces) == pytest.approx(whole, rel=1e-12)


@EACH
def test_dropout_acts_only_with_rng_and_is_the_same_for_the_same(backend, kind):
    model, source, ids = random_model(kind), random_sources(2, 7), random_ids(2, 6)
    plain = model(source, ids).numpy()
    model.config = replace(model.config, dropout=0.5)
    np.testing.assert_array_equal(model(source, ids).numpy(), plain)
    once, again, other = (model(source, ids, rng=mf.Rng(seed)).numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, plain) and not np.array_equal(once, other)


@EACH
def test_counts_follow_from_the_configuration(backend, kind):
    config, source, ids = CONFIGS[kind], random_sources(3, 20), random_ids(3, 20)
    model = model_class(kind)(config, mf.Rng(0))
    assert sum(p.numpy().size for p in model.parameters().values()) == config.parameters
    with mf.FlopCounter() as counter:
        model(source, ids)
    assert counter.total == 60 * config.flops_per_token(20)
    with mf.FlopCounter() as counter:
        model.loss(source, ids, ids).backward()
    again = 60 * 2 * V * config.width       # the logits, in the backward pass
    assert counter.total - again == 60 * config.flops_per_token(20, training=True)


@pytest.mark.parametrize("presets, config, sizes, tolerance", [
    # The paper counts to the million, with a vocabulary of "about 37000".
    (transformer.PRESETS, TransformerConfig,
     {"transformer-base": 65e6, "transformer-big": 213e6}, 0.03),
    (t5.PRESETS, T5Config, {"t5-small": 60.5e6, "t5-base": 222.9e6, "t5-large": 737.7e6,
                            "t5-3b": 2851.6e6, "t5-11b": 11307.3e6, "t5-v1.1-small": 77.0e6,
                            "t5-v1.1-base": 247.6e6, "t5-v1.1-large": 783.2e6}, 1e-3),
])
def test_presets_have_the_published_sizes(presets, config, sizes, tolerance):
    found = {name: config(**preset).parameters for name, preset in presets.items()}
    for name, size in sizes.items():
        assert found[name] == pytest.approx(size, rel=tolerance), name


@EACH
def test_a_new_models_logits_begin_at_a_moderate_size(kind):
    config = replace(CONFIGS[kind], width=64, head_width=32, hidden=128) if kind != "transformer" \
        else replace(CONFIGS[kind], width=64, hidden=128)
    y = model_class(kind)(config, mf.Rng(0))(random_sources(4, 20), random_ids(4, 20)).numpy()
    assert 0.5 < y.std() < 3


# -- positions ----------------------------------------------------------------------------------


def test_positions_are_sines_then_cosines():
    with mf.use("numpy"):
        table = transformer.Sinusoids(5, 6)(np.arange(5), np.float64).numpy()
    assert table[0].tolist() == [0, 0, 0, 1, 1, 1]
    angles = [3 / 10000 ** (2 * i / 6) for i in range(3)]
    np.testing.assert_allclose(table[3], [*np.sin(angles), *np.cos(angles)], rtol=1e-15)


def test_each_stacks_distances_are_learnt_from_every_block(backend):
    model, source, ids = random_model("t5"), random_sources(2, 7), random_ids(2, 9)
    model.loss(source, ids, ids).backward()
    for table in (model.encoder_distances, model.decoder_distances):
        gradient = mf.backend().to_numpy(table.weight.grad)
        assert gradient.shape == (8, 2) and np.abs(gradient).max() > 0
    # A decoder's keys behind the query are hidden: distances up to 8 are all that it has seen.
    seen = set(t5.bucket_of(-np.arange(9), 8, 12, False).tolist())
    unseen = [bucket for bucket in range(8) if bucket not in seen]
    assert unseen and np.abs(gradient[unseen]).max() == 0


# -- files and mistakes -------------------------------------------------------------------------


def with_config(directory, to, **changes):
    """A copy of a golden directory, its config.json changed; None takes a key out."""
    shutil.copytree(directory, to, dirs_exist_ok=True)
    stored = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps({k: v for k, v in stored.items() if v is not None}))
    return to


def test_a_head_of_its_own_is_told_in_the_published_way_and_in_the_new_one(tmp_path):
    new = GOLDEN / "t5-v1.1"
    old = with_config(new, tmp_path, scale_decoder_outputs=None, tie_word_embeddings=False)
    assert load_model(old).config == load_model(new).config
    assert not load_model(new).config.tied and not load_model(new).config.scaled_features


@pytest.mark.parametrize("name, shared, repeats", [
    ("marian", "model.shared.weight", ["lm_head.weight", "model.encoder.embed_tokens.weight",
                                       "model.decoder.embed_tokens.weight"]),
    ("t5", "shared.weight", ["lm_head.weight", "encoder.embed_tokens.weight",
                             "decoder.embed_tokens.weight"]),
])
def test_a_file_may_repeat_the_one_table_but_not_another(name, shared, repeats, tmp_path):
    with_config(GOLDEN / name, tmp_path)
    file = tmp_path / "model.safetensors"
    arrays = load_file(file)
    save_file(arrays | {key: arrays[shared] for key in repeats}, file)
    np.testing.assert_array_equal(load_model(tmp_path).token_embedding.weight.numpy(),
                                  arrays[shared])
    save_file(arrays | {repeats[0]: arrays[shared] + 1}, file)
    with pytest.raises(FormatError, match="in this model they are one tensor"):
        load_model(tmp_path)


def test_what_no_model_reads_may_stand_in_a_file(tmp_path):
    for name, key in (
            ("marian", "model.encoder.embed_positions.weight"),
            ("t5", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight")):
        directory = with_config(GOLDEN / name, tmp_path / name)
        file = directory / "model.safetensors"
        save_file(load_file(file) | {key: np.ones((8, 3), np.float32)}, file)
        load_model(directory)
        save_file(load_file(file) | {"surplus": np.ones(3, np.float32)}, file)
        with pytest.raises(FormatError, match="surplus is unknown"):
            load_model(directory)


@EACH
@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_a_packed_model_computes_the_same_from_its_files(backend, kind, format, tmp_path):
    model, source, ids = random_model(kind), random_sources(2, 7), random_ids(2, 6)
    plain = model(source, ids).numpy()
    pack_model(model, format)
    packed = model(source, ids).numpy()
    assert 0 < np.abs(packed - plain).max() < 0.1 * np.abs(plain).max()
    save_model(model, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path)(source, ids).numpy(), packed)


@EACH
def test_the_configuration_comes_back_from_config_json(kind):
    config = replace(CONFIGS[kind], dropout=0.125, start=2, end=3, padding=4)
    stored = json.loads(json.dumps(model_class(kind).config_to_hub(config)))
    assert model_class(kind).config_from_hub(stored) == config


def test_a_decoder_reads_the_start_and_then_what_it_wrote():
    read = random_model("transformer").read_before([[5, 6, 7], [8, -100, -100]])
    assert read.tolist() == [[36, 5, 6], [36, 8, 35]]


@pytest.mark.parametrize("kind, wrong, message", [
    ("transformer", {"heads": 3}, "heads: 3 heads do not divide the width 16"),
    ("transformer", {"width": 15, "heads": 3}, "width: expected an even number, .*, got 15"),
    ("transformer", {"start": V}, "start: expected a token below the vocabulary of 37, got 37"),
    ("transformer", {"activation": "swish"}, "activation: expected one of"),
    ("t5", {"padding": V}, "padding: expected a token below the vocabulary of 37, got 37"),
    ("t5", {"buckets": 5}, "buckets: expected an even number, .*, got 5"),
    ("t5", {"distance": 4}, "distance: expected more than 4, half the buckets, got 4"),
    ("t5", {"layers": 0}, "layers: expected at least 1, got 0"),
])
def test_an_impossible_configuration_names_its_field(kind, wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIGS[kind], **wrong)


@pytest.mark.parametrize("kind, change, message", [
    ("transformer", {"d_model": None}, "lacks d_model"),
    ("transformer", {"normalize_before": True}, "normalize_before=True is not supported"),
    ("transformer", {"decoder_ffn_dim": 21}, "decoder_ffn_dim=21 is not supported, only 20"),
    ("transformer", {"decoder_vocab_size": 9}, "decoder_vocab_size=9 is not supported, only 37"),
    ("transformer", {"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
    ("t5", {"num_layers": None, "d_kv": None}, "lacks num_layers, d_kv"),
    ("t5", {"feed_forward_proj": "sparse-relu"}, "feed_forward_proj: expected an activation, or"),
    ("t5", {"feed_forward_proj": "gated-swish"}, "activation: expected one of .*, got 'swish'"),
])
def test_a_foreign_feature_in_config_json_is_refused(kind, change, message):
    stored = model_class(kind).config_to_hub(CONFIGS[kind]) | change
    with pytest.raises(ConfigError, match=message):
        model_class(kind).config_from_hub({k: v for k, v in stored.items() if v is not None})


def test_a_head_that_no_file_describes_is_not_saved():
    with pytest.raises(ConfigError, match="scaled_features: files have .*, got False with tied"):
        T5.config_to_hub(replace(CONFIGS["t5"], scaled_features=False))


@EACH
def test_mistaken_inputs_are_named(kind):
    model, source, ids = random_model(kind), random_sources(2, 7), random_ids(2, 6)
    with pytest.raises(ShapeError, match=r"expected token ids \[B, T\], got \[7\]"):
        model(source[0], ids)
    with pytest.raises(ShapeError, match="a memory of as many rows as the ids have, 2, got 1"):
        model(source[:1], ids)
    with pytest.raises(ShapeError, match=r"expected targets \[B, T\], got \[6\]"):
        model.read_before(ids[0])
    model.config = replace(model.config, start=None)
    with pytest.raises(ConfigError, match="the configuration lacks start or padding"):
        model.read_before(ids)


def test_more_tokens_than_the_context_are_refused(backend):
    model = random_model("transformer")
    with pytest.raises(ShapeError, match="25 tokens do not fit the context of 24"):
        model.encode(random_sources(1, 25))
    with pytest.raises(ShapeError, match="25 tokens do not fit the context of 24"):
        model(random_sources(1, 5), random_ids(1, 25))


@pytest.mark.parametrize("words", [
    ["evaluate", "MODEL", "--data", "TEXT"], ["quantize", "MODEL", "--text", "TEXT", "--format",
                                             "int8", "--out", "OUT"]])
def test_commands_for_texts_refuse_it_in_one_line(words, tmp_path, capsys):
    directory, book = tmp_path / "model", tmp_path / "book.txt"
    directory.mkdir()
    book.write_text("\n\n".join(f"Once upon a time there were {n}." for n in range(2000)))
    save_model(T5(replace(CONFIGS["t5"], vocabulary=300), mf.Rng(0)), directory, Tokenizer.bytes())
    places = {"MODEL": directory, "TEXT": book, "OUT": tmp_path / "out"}
    assert cli.main([str(places.get(word, word)) for word in words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" …")]
    assert said == [f"minifm: {directory}: expected a model that predicts the next token, got a T5"]
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_loss_never_holds_the_logits_of_all_tokens(kind):
    """Nothing that the graph keeps is as large as they are, nor what an op makes."""
    V, shape = 5000, (16, 20)
    model = model_class(kind)(replace(CONFIGS[kind], vocabulary=V), mf.Rng(0))
    source, targets = np.arange(48).reshape(16, 3), np.arange(320).reshape(shape)
    with mf.MemoryMeter() as meter:
        loss = model.loss(source, targets, targets)
    logits = 4 * V * targets.size
    assert kept_bytes(loss) < logits / 2 and meter.largest[0] < logits / 2
