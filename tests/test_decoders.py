"""Every decoder against the real library's outputs, and the algebra that all of them obey."""

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
from safetensors.numpy import load_file

import minifm as mf
from minifm.errors import ConfigError
from minifm.generation import Sampling, tokens
from minifm.generation.decoder import Decoder
from minifm.hub import load_model
from minifm.models import GPT, GPTConfig, Llama, LlamaConfig, pack_model
from minifm.models import llama as llama_file
from minifm.nn.experts import unevenness

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["gpt2", "openai-gpt", "gpt-neo", "llama", "llama-linear", "llama-yarn", "mistral",
         "mixtral", "qwen2", "qwen3"]
V = 37
LLAMA = LlamaConfig(vocabulary=V, context=24, layers=2, heads=4, key_heads=2, width=16, hidden=20)
# Between them they have every part that a decoder may have.
CONFIGS = {
    "gpt": GPTConfig(vocabulary=V, context=24, layers=2, heads=2, width=16),
    "gpt1": GPTConfig(vocabulary=V, context=24, layers=2, heads=2, width=16, layout="openai-gpt"),
    "banded": GPTConfig(vocabulary=V, context=24, layers=3, heads=2, width=16, layout="gpt_neo",
                        window=3),
    "llama": LLAMA,
    "window": replace(LLAMA, window=4, window_from=1, head_norms=True, tied=True),
    "experts": replace(LLAMA, experts=3, window=6, head_width=6),
}
EACH = pytest.mark.parametrize("kind", CONFIGS)


def random_model(kind, seed=0, std=0.2):
    config = CONFIGS[kind]
    return randomised(config.model(config), seed, std)


def random_ids(*shape, seed=0):
    return mf.Rng(seed).child("ids").integers(0, V, shape)


def oracle(kind, ids, **inputs):
    """The logits in float64, by the reference."""
    with mf.use("numpy"), mf.no_grad():
        return in_float64(random_model(kind))(ids, **inputs).numpy()


# -- the real library's outputs -----------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return GOLDEN / request.param, load_file(GOLDEN / request.param / "outputs.safetensors")


def test_logits_equal_the_real_librarys(backend, golden):
    directory, outputs = golden
    mask = np.arange(outputs["ids"].shape[1]) < outputs["lengths"][:, None]
    y = load_model(directory)(outputs["ids"], key_mask=mask).numpy()
    assert np.abs(y - outputs["logits"])[mask].max() <= 2 * outputs["logits_error"][0]


def test_features_loss_and_gradients_equal_the_real_librarys_in_float64(golden):
    directory, outputs = golden
    with mf.use("numpy"):
        model = in_float64(load_model(directory))
        ids = outputs["ids"][:2]
        np.testing.assert_allclose(model.features(ids).numpy(), outputs["features"][:2],
                                   rtol=1e-10, atol=1e-12)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        assert loss.item() == pytest.approx(outputs["loss"][0], rel=1e-12)
        loss.backward()
    assert_gradients(model, outputs)


def test_greedy_continuation_equals_the_real_librarys(backend, golden):
    directory, outputs = golden
    steps = tokens(load_model(directory), [outputs["ids"][0]], Sampling(temperature=0), 16,
                   mf.Rng(0))
    assert [step[0] for step in steps] == outputs["greedy"].tolist()


def test_what_the_real_library_saved_comes_back_from_our_files(golden, tmp_path):
    directory, _ = golden
    assert_files_come_back(directory, tmp_path)


# -- laws ---------------------------------------------------------------------------------------


@EACH
@given(t=st.integers(0, 11), token=st.integers(0, 36))
def test_causality_a_later_token_leaves_earlier_outputs_bitwise(backend, kind, t, token):
    model, ids = random_model(kind), random_ids(2, 12)
    changed = ids.copy()
    changed[:, t] = token
    before, after = model(ids).numpy(), model(changed).numpy()
    if backend.name == "c" or kind != "experts":
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
    # How many tokens an expert gets depends on all of them, and NumPy's BLAS adds accordingly.
    assert_same_function(after[:, :t], before[:, :t], oracle(kind, ids)[:, :t])
    assert (ids[:, t] == token).all() or not np.array_equal(before[:, t:], after[:, t:])


@EACH
@given(chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_cache_in_any_chunking_is_the_full_forward(backend, kind, chunks):
    model, ids = random_model(kind), random_ids(3, min(sum(chunks), 24))
    with mf.no_grad():
        full, cache, parts = model(ids).numpy(), model.cache(3), []
        for chunk in chunks:
            piece = ids[:, int(cache.lengths[0]) :][:, :chunk]
            if piece.size:
                parts.append(model(piece, cache=cache).numpy())
    cached = np.concatenate(parts, 1)
    if backend.name == "c":
        np.testing.assert_array_equal(cached, full)
    assert_same_function(cached, full, oracle(kind, ids))


@EACH
@pytest.mark.parametrize("format", [None, "int8"])
def test_a_token_that_is_repeated_by_its_kernels_is_that_of_the_full_forward(backend, kind, format):
    model, ids = random_model(kind), random_ids(2, 20)
    if format:
        pack_model(model, format)
    with mf.no_grad():
        full, decoder = model(ids).numpy(), Decoder(model, 2)
        found = [decoder(ids[:, :7]).copy()]
        found += [decoder(ids[:, t : t + 1]).copy() for t in range(7, 20)]
    if backend.name == "c":
        np.testing.assert_array_equal(np.stack(found, 1), full[:, 6:])
        # Which experts a token takes is decided anew each time: no kernels of before can say.
        assert (decoder.repeat == decoder._next) == (kind == "experts")
    elif not format:
        assert_same_function(np.stack(found, 1), full[:, 6:], oracle(kind, ids)[:, 6:])


@EACH
@given(lengths=st.lists(st.integers(1, 10), min_size=2, max_size=4), more=st.integers(1, 4))
def test_batched_with_cache_is_each_row_alone(backend, kind, lengths, more):
    model, ids = random_model(kind), random_ids(len(lengths), 10 + 2 * more)
    with mf.no_grad():
        cache = model.cache(len(lengths))
        got = [model(ids[:, : max(lengths)], cache=cache, counts=lengths).numpy()]
        pieces = np.stack([row[n : n + 2 * more] for row, n in zip(ids, lengths)])
        got.append(model(pieces[:, :1], cache=cache).numpy())
        got.append(model(pieces[:, 1:], cache=cache).numpy())
        for b, n in enumerate(lengths):
            alone = model(ids[b : b + 1, : n + 2 * more]).numpy()
            together = np.concatenate([got[0][b, :n], got[1][b], got[2][b]])
            if backend.name == "c":
                np.testing.assert_array_equal(together, alone[0])
            exact = oracle(kind, ids[b : b + 1, : n + 2 * more])[0]
            assert_same_function(together, alone[0], exact)


@EACH
@given(left=st.integers(0, 6), right=st.integers(0, 6))
def test_padding_on_either_side_never_changes_a_real_position(backend, kind, left, right):
    model, ids = random_model(kind), random_ids(2, 9)
    padded = np.pad(ids, ((0, 0), (left, right)), constant_values=5)
    mask = np.pad(np.ones(ids.shape, bool), ((0, 0), (left, right)))
    y = model(padded, key_mask=mask).numpy()[:, left : left + 9]
    assert_same_function(y, model(ids).numpy(), oracle(kind, ids))


@EACH
@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_documents_that_share_a_row_are_each_alone(backend, kind, lengths):
    model, ids = random_model(kind), random_ids(1, sum(lengths))
    ends = np.cumsum(lengths)
    starts = np.repeat(ends - lengths, lengths)[None]
    packed = model(ids, document_starts=starts).numpy()
    for first, last in zip(ends - lengths, ends):
        alone = model(ids[:, first:last]).numpy()
        assert_same_function(packed[:, first:last], alone, oracle(kind, ids[:, first:last]))


@EACH
def test_counts_follow_from_the_configuration(backend, kind):
    config, ids = CONFIGS[kind], random_ids(3, 20)
    model = config.model(config, mf.Rng(0))
    assert sum(p.numpy().size for p in model.parameters().values()) == config.parameters
    if getattr(config, "window", None):     # what it hides, an op's own count does not know
        return
    with mf.FlopCounter() as counter:
        model(ids)
    assert counter.total == 60 * config.flops_per_token(20)
    with mf.FlopCounter() as counter:
        model.loss(ids, ids).backward()
    logits_again = 60 * 2 * config.vocabulary * config.width
    assert counter.total - logits_again == 60 * config.flops_per_token(20, training=True)


@EACH
def test_recomputation_gives_the_same_bits(backend, kind):
    ids = random_ids(2, 9)
    found = []
    for recompute in (False, True):
        model = random_model(kind)
        loss = model.loss(ids[:, :-1], ids[:, 1:], recompute=recompute)
        loss.backward()
        found.append([loss.numpy()] + [p.grad for p in model.parameters().values()])
    for plain, again in zip(*found):
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(again))


# -- windows, experts ---------------------------------------------------------------------------


def test_a_token_beyond_the_windows_of_all_layers_changes_nothing(backend):
    config = replace(LLAMA, window=3)
    model = Llama(config, mf.Rng(1))
    ids = random_ids(1, 12)
    changed = ids.copy()
    changed[0, 4] = (ids[0, 4] + 1) % V
    difference = np.abs(model(ids).numpy() - model(changed).numpy())[0].max(-1)
    # Token 4 reaches tokens 5, 6 in the first layer, and by those 7, 8 in the second.
    assert (difference[:4] == 0).all() and (difference[9:] == 0).all()
    assert (difference[4:9] > 0).all()


def test_every_other_block_of_a_banded_gpt_looks_only_so_far_back(backend):
    config, ids = CONFIGS["banded"], random_ids(1, 12)
    model, changed = random_model("banded"), ids.copy()
    changed[0, 4] = (ids[0, 4] + 1) % V
    for whole in (model.blocks[0], model.blocks[2]):        # let those with a window work alone
        whole.attention.output.weight.data = mf.backend().zeros((16, 16), np.float32)
    difference = np.abs(model(ids).numpy() - model(changed).numpy())[0].max(-1)
    assert (difference[:4] == 0).all() and (difference[7:] == 0).all()
    assert (difference[4:7] > 0).all()
    wide, full = (randomised(GPT(replace(config, window=window)))(ids).numpy()
                  for window in (12, None))
    np.testing.assert_array_equal(wide, full)


@pytest.mark.parametrize("wrong, message", [
    ({"window": 4}, "window: files of gpt2 know of none, those of gpt_neo do"),
    ({"layout": "openai-gpt", "hidden": 20}, "hidden: in openai-gpt it is four times the width"),
    ({"layout": "openai-gpt", "activation": "gelu"}, "activation: openai-gpt has one of gelu_new"),
    ({"layout": "gpt-j"}, "layout: expected one of gpt2, openai-gpt, gpt_neo, got 'gpt-j'"),
])
def test_an_impossible_gpt_names_its_field(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIGS["gpt"], **wrong)


@pytest.mark.parametrize("change, message", [
    ({"attention_types": [[["local", "global"], 1], [["local"], 1]]}, "attention_types: expected"),
    ({"num_layers": 4}, "attention_types: expected global, or global and local in turn for 4"),
    ({"num_layers": "three"}, "num_layers: expected a number of blocks, got 'three'"),
    ({"hidden_size": None}, "lacks hidden_size"),
])
def test_another_pattern_of_windows_is_refused(change, message):
    stored = GPT.config_to_hub(CONFIGS["banded"]) | change
    with pytest.raises(ConfigError, match=message):
        GPT.config_from_hub({k: v for k, v in stored.items() if v is not None})


@pytest.mark.parametrize("config", [
    CONFIGS["gpt"], CONFIGS["gpt1"], CONFIGS["banded"], replace(CONFIGS["banded"], window=None),
    replace(CONFIGS["gpt1"], activation="silu", dropout=0.2)])
def test_a_gpt_comes_back_from_its_config_json(config):
    assert GPT.config_from_hub(GPT.config_to_hub(config)) == config


def test_flops_of_a_window_are_those_of_the_pairs_that_it_shows():
    config = replace(LLAMA, window=4)
    pairs = sum(min(i + 1, 4) for i in range(20))
    whole = config.flops_per_token(20) - replace(LLAMA, window=None).flops_per_token(20)
    # Without a window, 20 tokens count as half a square: 20²/2 pairs; 4 x pairs in products.
    expected = LLAMA.layers * 4 * 16 * (pairs - 4 / 2 - 20 * 20 / 2) / 20
    assert whole == pytest.approx(expected)


def test_each_token_goes_through_its_likeliest_experts_alone(backend):
    config = replace(LLAMA, experts=3, experts_chosen=1)
    model = random_model_of(config)
    part = model.blocks[0].perceptron
    x = mf.Tensor(mf.Rng(5).normal((2, 6, 16)))
    best = np.asarray(mf.backend().to_numpy(part.router(x.reshape((12, 16))).data)).argmax(-1)
    y = part(x).reshape((12, 16)).numpy()
    for i, expert in enumerate(part.experts):
        alone = expert(x.reshape((12, 16))).numpy()
        if backend.name == "c":
            np.testing.assert_array_equal(y[best == i], alone[best == i])
        np.testing.assert_allclose(y[best == i], alone[best == i], rtol=1e-5, atol=1e-6)
    assert len(set(best.tolist())) > 1
    model.loss(*(random_ids(2, 6),) * 2).backward()
    assert np.abs(part.router.weight.grad).max() == 0      # one expert: its weight is always 1


def balanced(model, ids, balance=1.0, **choice):
    """(the loss, how unevenly tokens go to the experts, what training makes small)."""
    model.config = replace(model.config, balance=balance)
    total, figures = model.training_loss(ids[:, :-1], ids[:, 1:], **choice)
    loss = model.loss(ids[:, :-1], ids[:, 1:], **choice).item()
    assert figures["loss"] == pytest.approx(loss, rel=1e-5) and len(figures) == 2
    return loss, figures["unevenness"], total


def test_the_balance_of_experts_is_the_real_librarys_in_float64():
    outputs = load_file(GOLDEN / "mixtral" / "outputs.safetensors")
    with mf.use("numpy"):
        model = in_float64(load_model(GOLDEN / "mixtral"))
        assert model.config.balance == 0.001            # router_aux_loss_coef
        ids, routing = outputs["ids"][:2], []
        model.features(ids, routing=routing)
        found = unevenness(routing)
        assert found.item() == pytest.approx(outputs["aux_loss"][0], rel=1e-12)
        found.backward()
    for i, block in enumerate(model.blocks):
        np.testing.assert_allclose(block.perceptron.router.weight.grad.T,
                                   outputs[f"aux_gradient.{i}"], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("recompute", [False, True])
def test_training_adds_the_balance_of_experts(recompute):
    with mf.use("numpy"):
        model, ids = in_float64(random_model("experts")), random_ids(3, 9)
        loss, uneven, total = balanced(model, ids, 0.5, recompute=recompute)
        assert total.item() == pytest.approx(loss + 0.5 * uneven, rel=1e-12) and uneven > 2
        total.backward()
        found = model.blocks[0].perceptron.router.weight
        routing = []
        features = model.features(ids[:, :-1], routing=routing)
        gradient, found.grad = found.grad.copy(), None
        (mf.linear_cross_entropy(features, model.head, ids[:, 1:])
         + 0.5 * unevenness(routing)).backward()
        np.testing.assert_allclose(gradient, found.grad, rtol=1e-10, atol=1e-14)
        assert np.abs(gradient).max() > 0


def test_the_gradient_of_the_balance_is_its_slope():
    part = in_float64(random_model("experts")).blocks[0].perceptron

    def uneven(x):
        routing = []
        part(x, routing=routing)
        return unevenness(routing)
    with mf.use("numpy"):
        mf.gradcheck(uneven, [mf.Rng(5).normal((2, 6, 16)).astype(float)])


def test_the_balance_by_hand():
    alike = mf.Tensor(np.stack([np.full(4, 0.5), np.full(4, 0.25)]))
    assert unevenness([alike, alike]).item() == 2               # two of four for each token
    one = mf.Tensor(np.array([[1.0, 1, 0, 0], [0.5, 0.5, 0, 0]]))
    assert unevenness([one]).item() == 4
    other = mf.Tensor(np.array([[0.0, 0, 1, 1], [0, 0, 0.5, 0.5]]))
    assert unevenness([one, other]).item() == 2                 # of all layers together
    # Of five tokens three take the first expert by 0.51, and two the second by all: less than 1.
    close = mf.Tensor(np.array([[0.6, 0.4], [0.306, 0.694]]))
    assert unevenness([close]).item() == pytest.approx(0.9224)


def test_pieces_of_a_batch_weigh_the_balance_by_their_targets():
    model, ids = random_model("experts"), random_ids(4, 9)
    parts = [balanced(model, ids[rows], denominator=32) for rows in (slice(0, 1), slice(1, 4))]
    alone = [balanced(model, ids[rows])[1] for rows in (slice(0, 1), slice(1, 4))]
    assert sum(uneven for _, uneven, _ in parts) == pytest.approx(alone[0] / 4 + alone[1] * 3 / 4)


@pytest.mark.parametrize("change", [{"experts": 0}, {"balance": 0.0}])
def test_without_experts_or_weight_the_loss_is_all(change):
    model, ids = random_model_of(replace(CONFIGS["experts"], **change)), random_ids(2, 9)
    total, figures = model.training_loss(ids, ids)
    assert total.item() == model.loss(ids, ids).item() and figures == {}


def random_model_of(config):
    return randomised(Llama(config))


# -- files and mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "mistral", "mixtral", "qwen2", "qwen3"])
def test_the_layout_follows_from_the_parts(name):
    model = load_model(GOLDEN / name)
    assert llama_file.layout(model.config) == name


@pytest.mark.parametrize("wrong, message", [
    ({"head_norms": True, "biases": True}, "biases: no layout of files has that beside"),
    ({"window": 4, "window_from": 1}, "window_from: no layout"),
    ({"experts": 2, "head_norms": True}, "head_norms: no layout of files has that .* mixtral"),
])
def test_a_mixture_of_parts_that_no_layout_has_is_not_saved(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Llama.config_to_hub(replace(LLAMA, **wrong))


@pytest.mark.parametrize("wrong, message", [
    ({"key_heads": 3}, "4 heads of queries do not share 3 of keys evenly"),
    ({"head_width": 5}, "head_width: expected an even number, got 5"),
    ({"experts": 1}, "experts_chosen: expected at most the 1 that there are, got 2"),
    ({"window": 0}, "window: expected at least 1, got 0"),
])
def test_an_impossible_configuration_names_its_field(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(LLAMA, **wrong)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "su"])
def test_a_scaling_that_no_cache_can_follow_is_refused(kind):
    with pytest.raises(ConfigError, match="rope_scaling: expected one of default, linear, llama3"):
        Llama(replace(LLAMA, scaling={"rope_type": kind, "factor": 2.0}))
    with pytest.raises(ConfigError, match="rope_scaling: linear lacks 'factor'"):
        Llama(replace(LLAMA, scaling={"rope_type": "linear"}))


def test_rows_of_several_documents_have_no_cache(backend):
    model, ids = random_model("llama"), random_ids(1, 4)
    with pytest.raises(ConfigError, match="with a cache, rows are of one document"):
        model(ids, cache=model.cache(1), document_starts=np.zeros((1, 4), int))


@pytest.mark.parametrize("change, message", [
    ({"attention_bias": True}, "attention_bias=True is not supported"),
    ({"hidden_size": None}, "lacks hidden_size"),
    ({"sliding_window": 4, "use_sliding_window": True, "model_type": "qwen2",
      "max_window_layers": 1, "layer_types": ["sliding_attention"] * 2}, "layer_types: expected"),
])
def test_a_foreign_feature_in_config_json_is_refused(change, message):
    stored = {k: v for k, v in (Llama.config_to_hub(LLAMA) | change).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        Llama.config_from_hub(stored)
