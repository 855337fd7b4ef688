"""BERT, RoBERTa and ModernBERT against the real library's outputs, their algebra, their files."""

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
from safetensors.numpy import load_file, save_file
from test_cli import book, minifm, refused  # noqa: F401  (fixtures)

import minifm as mf
from minifm import ops
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.hub import load_model, save_model
from minifm.models import Bert, BertConfig, ModernBert, ModernBertConfig, modernbert, pack_model
from minifm.models.bert import ARCHITECTURES, PRESETS, ROBERTA_PRESETS
from minifm.text import Tokenizer
from minifm.training.objectives import LearningConfig, objective_of

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["bert", "bert-masked", "bert-encoder", "roberta", "roberta-encoder", "modernbert",
         "modernbert-encoder"]
V = 37
BERT = BertConfig(vocabulary=V, context=24, layers=2, heads=2, width=16, hidden=20)
# Of its three blocks the second looks two tokens to either side.
MODERN = ModernBertConfig(vocabulary=V, context=24, layers=3, heads=2, width=16, hidden=20,
                          window=4, every=2, padding=0)
# Between them they have every part that an encoder may have.
CONFIGS = {
    "masked": replace(BERT, activation="relu"),
    "all": replace(BERT, pooler=True, sentence_head=True),
    "roberta": replace(BERT, layout="roberta", padding=3, types=1),
    "modern": MODERN,
}
EACH = pytest.mark.parametrize("kind", CONFIGS)


def random_model(config, std=0.2):
    return randomised(config.model(config), std=std)


def random_ids(*shape, high=V, name="ids"):
    return mf.Rng(0).child(name).integers(0, high, shape)


def some_targets(*shape):
    """Two of three do not count."""
    targets = random_ids(*shape, name="targets")
    return np.where(np.arange(targets.size).reshape(shape) % 3 == 1, targets, -100)


def oracle(config, ids, **inputs):
    """The logits in float64, by the reference."""
    with mf.use("numpy"), mf.no_grad():
        return in_float64(random_model(config))(ids, **inputs).numpy()


def gradients_of(model):
    """Those that the loss reached: a pooler without a target has none."""
    return [p.grad for p in model.parameters().values() if p.grad is not None]


# -- the real library's outputs -----------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    outputs = load_file(GOLDEN / request.param / "outputs.safetensors")
    mask = np.arange(outputs["ids"].shape[1]) < outputs["lengths"][:, None]
    types = {"types": outputs["types"]} if "types" in outputs else {}
    return GOLDEN / request.param, outputs, {"key_mask": mask, **types}


def found_by(model, outputs, inputs):
    """{name: array} of each of the model's outputs that the golden file has."""
    x, mask = model.features(outputs["ids"], **inputs), inputs["key_mask"]
    found = {"features": x, "logits": model.logits,
             "pooled": lambda x: model.pooled(x, mask),
             "sentence_logits": lambda x: model.sentence_logits(x, mask)}
    return {name: (value(x) if callable(value) else value).numpy()
            for name, value in found.items() if name in outputs}


def test_outputs_equal_the_real_librarys(backend, golden):
    directory, outputs, inputs = golden
    found = found_by(load_model(directory), outputs, inputs)
    assert found.keys() == {name.removeprefix("error.") for name in outputs
                            if name.startswith("error.")}
    for name, y in found.items():
        real = inputs["key_mask"] if y.ndim == 3 else slice(None)
        error = np.abs(y - outputs[name])[real].max()
        # Six numbers may all be near by luck; what they are made of is not nearer than features.
        allowed = max(outputs[f"error.{name}"][0], outputs["error.features"][0])
        assert error <= 2 * allowed, name


def test_outputs_loss_and_gradients_equal_the_real_librarys_in_float64(golden):
    directory, outputs, inputs = golden
    with mf.use("numpy"):
        model = in_float64(load_model(directory))
        for name, y in found_by(model, outputs, inputs).items():
            real = inputs["key_mask"] if y.ndim == 3 else slice(None)
            np.testing.assert_allclose(y[real], outputs[name][real], rtol=1e-10, atol=1e-12)
        loss = golden_loss(model, outputs, inputs)
        assert loss.item() == pytest.approx(outputs["loss"][0], rel=1e-12)
        loss.backward()
    assert_gradients(model, outputs)


def golden_loss(model, outputs, inputs):
    if "logits" not in outputs:
        x = model.features(outputs["ids"], **inputs)
        loss = (x * x * inputs["key_mask"][..., None].astype(np.float64)).sum()
        if "pooled" not in outputs:
            return loss
        pooled = model.pooled(x, inputs["key_mask"])
        return loss + (pooled * pooled).sum()
    sentences = {"sentence_targets": outputs["sentence_targets"]} \
        if "sentence_logits" in outputs else {}
    return model.loss(outputs["ids"], outputs["targets"], **sentences, **inputs)


def test_what_the_real_library_saved_comes_back_from_our_files(golden, tmp_path):
    directory, _, _ = golden
    assert_files_come_back(directory, tmp_path)
    again = tmp_path / "again"
    again.mkdir()
    save_model(load_model(tmp_path), again)
    for file in ("model.safetensors", "config.json"):
        assert (again / file).read_bytes() == (tmp_path / file).read_bytes()
    said, meant = (json.loads((place / "config.json").read_text())
                   for place in (tmp_path, directory))
    ours_alone = {"attention_probs_dropout_prob", "torch_dtype", "bos_token_id", "eos_token_id",
                  "cls_token_id", "sep_token_id"}
    shared = (said.keys() & meant.keys()) - ours_alone
    assert len(shared) > 12 and {key: said[key] for key in shared} == {
        key: meant[key] for key in shared}


# -- laws ---------------------------------------------------------------------------------------


@EACH
@given(left=st.integers(0, 6), right=st.integers(0, 6), filler=st.integers(0, V - 1))
def test_padding_on_either_side_never_changes_a_real_position(backend, kind, left, right, filler):
    config, sides = CONFIGS[kind], ((0, 0), (left, right))
    model, ids = random_model(config), random_ids(2, 9)
    types = {"types": random_ids(2, 9, high=config.types, name="types")} \
        if hasattr(config, "types") else {}
    padded = {name: np.pad(array, sides) for name, array in types.items()}
    padded["key_mask"] = np.pad(np.ones((2, 9), bool), sides)
    x = model.features(np.pad(ids, sides, constant_values=filler), **padded)
    y = model.logits(x).numpy()[:, left : left + 9]
    assert_same_function(y, model(ids, **types).numpy(), oracle(config, ids, **types))
    if kind == "all":
        plain = model.features(ids, **types)
        np.testing.assert_allclose(model.sentence_logits(x, padded["key_mask"]).numpy(),
                                   model.sentence_logits(plain).numpy(), rtol=1e-4, atol=1e-5)


@EACH
@given(rows=st.integers(1, 4), length=st.integers(1, 17))
def test_batched_is_each_row_alone(backend, kind, rows, length):
    config = CONFIGS[kind]
    model, ids = random_model(config), random_ids(rows, length)
    together = model(ids).numpy()
    for b in range(rows):
        alone = model(ids[b : b + 1]).numpy()
        if backend.name == "c":
            np.testing.assert_array_equal(together[b : b + 1], alone)
        assert_same_function(together[b : b + 1], alone, oracle(config, ids[b : b + 1]))


@EACH
def test_every_token_looks_at_all_others(backend, kind):
    model, ids = random_model(CONFIGS[kind]), random_ids(1, 6)
    before = model(ids).numpy()
    for t in (0, 5):
        changed = ids.copy()
        changed[0, t] = (ids[0, t] + 1) % V
        assert (np.abs(model(changed).numpy() - before).max(-1) > 0).all()


def test_types_and_places_are_told_apart(backend):
    model, ids = random_model(BERT), np.full((1, 4), 7)
    y = model(ids).numpy()
    assert all(np.abs(y[0, 0] - y[0, t]).max() > 1e-3 for t in range(1, 4))
    np.testing.assert_array_equal(model(ids, types=np.zeros((1, 4), int)).numpy(), y)
    assert np.abs(model(ids, types=np.array([[0, 0, 1, 1]])).numpy() - y).max() > 1e-3


@EACH
def test_the_loss_is_that_of_the_targets_that_count(backend, kind):
    model, ids, targets = random_model(CONFIGS[kind]), random_ids(3, 8), some_targets(3, 8)
    every = ops.token_losses(model(ids), targets).numpy()
    assert model.loss(ids, targets).item() == pytest.approx(every[targets >= 0].mean(), rel=1e-5)
    assert model.loss(ids, targets, denominator=100).item() == pytest.approx(every.sum() / 100,
                                                                            rel=1e-5)


@EACH
def test_pieces_of_a_batch_add_up_to_it(kind):
    """In float64, loss and gradients, the second sentences' too."""
    ids, targets, sentences = random_ids(4, 8), some_targets(4, 8), np.array([0, 1, -100, 1])
    found = []
    with mf.use("numpy"):
        for pieces in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
            model, loss = in_float64(random_model(CONFIGS[kind])), 0.0
            for rows in pieces:
                both = {"sentence_targets": sentences[rows], "sentence_denominator": 3} \
                    if kind == "all" else {}
                part = model.loss(ids[rows], targets[rows], denominator=(targets >= 0).sum(),
                                  **both)
                part.backward()
                loss += part.item()
            found.append([loss] + gradients_of(model))
    assert len(found[0]) == len(found[1]) > 20
    for whole, added in zip(*found):
        np.testing.assert_allclose(added, whole, rtol=1e-12, atol=1e-14)


def test_a_batch_without_a_target_has_no_loss_and_no_gradient(backend):
    model = random_model(BERT)
    loss = model.loss(random_ids(2, 5), np.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not np.any(p.grad) for p in model.parameters().values())


@EACH
def test_counts_follow_from_the_configuration(backend, kind):
    config, ids, targets = CONFIGS[kind], random_ids(3, 20), some_targets(3, 20)
    if kind == "modern":        # what a window hides is counted where it is computed, not here
        config = replace(config, window=40)
    model = config.model(config, mf.Rng(0))
    assert sum(p.numpy().size for p in model.parameters().values()) == config.parameters
    sentences = {"sentence_targets": np.array([0, 1, 0])} if kind == "all" else {}
    with mf.FlopCounter() as counter:
        x = model.features(ids)
        model.logits(x)
        if sentences:
            model.sentence_logits(x)
    assert counter.total == pytest.approx(60 * config.flops_per_token(20), rel=1e-12)
    with mf.FlopCounter() as counter:
        model.loss(ids, targets, **sentences).backward()
    counted = np.mean(targets != -100)
    assert counter.total == pytest.approx(
        60 * config.flops_per_token(20, training=True, counted=counted), rel=1e-12)


@pytest.mark.parametrize("name, count", [
    ("bert-base", 109514298), ("bert-large", 335174458), ("roberta-base", 124697433),
    ("roberta-large", 355412057)])
def test_published_models_have_their_published_size(name, count):
    """With the masked head, without the pooler, as the real library counts them."""
    assert BertConfig(**(PRESETS | ROBERTA_PRESETS)[name]).parameters == count


@pytest.mark.parametrize("name, count", [
    ("modernbert-base", 149655232), ("modernbert-large", 395881664)])
def test_a_published_modernbert_has_its_published_size(name, count):
    assert ModernBertConfig(**modernbert.PRESETS[name]).parameters == count


def seen_by(model, ids):
    """bool [T, T]: whether the logits at one place change with the token at another."""
    T, before = ids.shape[1], model(ids).numpy()[0]
    seen = []
    for t in range(T):
        changed = ids.copy()
        changed[0, t] = (ids[0, t] + 1) % V
        seen.append(np.abs(model(changed).numpy()[0] - before).max(-1) > 0)
    return np.array(seen).T


def test_a_block_of_the_neighbourhood_sees_half_a_window_on_either_side(backend):
    """The last block of two looks at two tokens on either side of those that the first sees: with
    the first one's attention silenced, that is all."""
    model, ids = random_model(replace(MODERN, layers=2)), random_ids(1, 11)
    assert seen_by(model, ids).all()
    output = model.blocks[0].attention.output.weight
    output.data = output.data * 0
    apart = np.abs(np.arange(11)[:, None] - np.arange(11))
    np.testing.assert_array_equal(seen_by(model, ids), apart <= 2)


def test_places_are_told_apart_by_how_far_they_are_from_each_other(backend):
    """A text that stands elsewhere in a row is the same text; in another order it is another."""
    model, ids = random_model(MODERN), random_ids(1, 7)
    exact = oracle(MODERN, ids)
    moved, mask = np.pad(ids, ((0, 0), (5, 0))), np.arange(12)[None] >= 5
    assert_same_function(model(moved, key_mask=mask).numpy()[:, 5:], model(ids).numpy(), exact)
    turned = model(ids[:, ::-1]).numpy()[:, ::-1]
    assert np.abs(turned - exact).max() > 1e-3


@given(length=st.integers(1, 30), side=st.one_of(st.none(), st.integers(1, 40)))
def test_neighbours_are_counted(length, side):
    apart = np.abs(np.arange(length)[:, None] - np.arange(length))
    seen = apart <= (length if side is None else side)
    assert modernbert.neighbours(length, side) == pytest.approx(seen.sum() / length, rel=1e-12)


@pytest.mark.parametrize("pooling", modernbert.POOLING)
def test_a_sequence_is_read_by_its_first_token_or_by_the_mean_of_all(backend, pooling):
    model, ids = random_model(replace(MODERN, pooling=pooling)), random_ids(2, 6)
    x, mask = model.features(ids), np.arange(6) < np.array([[4], [6]])
    values = x.numpy()
    chosen = values[:, 0] if pooling == "cls" else \
        np.stack([values[0, :4].mean(0), values[1].mean(0)])
    np.testing.assert_allclose(model.summary(x, mask).numpy(),
                               model.reader(mf.Tensor(chosen)).numpy(), rtol=1e-4, atol=1e-5)


@EACH
def test_recomputation_gives_the_same_bits_with_dropout_too(backend, kind):
    config, ids, targets = CONFIGS[kind], random_ids(2, 9), some_targets(2, 9)
    if kind != "modern":                    # which has no dropout
        config = replace(config, dropout=0.2)
    mask, found = np.arange(9) < np.array([[9], [6]]), []
    for recompute in (False, True):
        model = random_model(config)
        loss = model.loss(ids, targets, key_mask=mask, rng=mf.Rng(3), recompute=recompute)
        loss.backward()
        found.append([loss.numpy()] + gradients_of(model))
    plain = random_model(config).loss(ids, targets, key_mask=mask).item()
    assert (plain != found[0][0]) == (kind != "modern")
    for plain, again in zip(*found, strict=True):
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(again))


@EACH
def test_packed_weights_compute_nearly_the_same(backend, kind):
    model, ids = random_model(replace(CONFIGS[kind], width=32, hidden=64)), random_ids(2, 9)
    names = set(model.products(model.config))
    plain = {"sentence_head.weight"} if kind == "all" else set()
    if kind != "modern":
        plain |= {"position_embedding.weight", "type_embedding.weight"}
    assert {n for n, p in model.parameters().items() if p.ndim == 2} - names == plain
    before = model(ids).numpy()
    pack_model(model, "bf16")
    assert 0 < np.abs(model(ids).numpy() - before).max() < 0.05 * np.abs(before).max()


# -- files --------------------------------------------------------------------------------------


def rewritten(directory, tmp_path, change, **config):
    """A copy of a directory whose {name: array} is changed, and whose config.json."""
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    arrays = change(load_file(copy / "model.safetensors"))
    save_file(arrays, copy / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps(stored))
    return copy


def assert_equal_models(a, b):
    assert a.config == b.config
    theirs = b.parameters()
    for name, parameter in a.parameters().items():
        np.testing.assert_array_equal(parameter.numpy(), theirs[name].numpy(), err_msg=name)


def older(name):
    """The name that the first files have."""
    if "LayerNorm" in name:
        return name.replace(".weight", ".gamma").replace(".bias", ".beta")
    return name


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_other_spellings_of_the_same_weights_load(name, tmp_path):
    prefix = name + "."
    head = {"bert": "cls.predictions", "roberta": "lm_head"}[name]

    def change(arrays):
        changed = {older(key): array for key, array in arrays.items()}
        table = arrays[f"{prefix}embeddings.word_embeddings.weight"]
        return changed | {
            f"{prefix}embeddings.position_ids": np.arange(34)[None],
            f"{head}.decoder.weight": table, f"{head}.decoder.bias": arrays[f"{head}.bias"]}

    copy = rewritten(GOLDEN / name, tmp_path, change)
    assert_equal_models(load_model(copy), load_model(GOLDEN / name))


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert"])
def test_an_encoder_loads_with_a_prefix_as_well_as_without(name, tmp_path):
    bare, prefix = GOLDEN / f"{name}-encoder", {"modernbert": "model"}.get(name, name)
    copy = rewritten(bare, tmp_path,
                     lambda arrays: {f"{prefix}.{key}": array for key, array in arrays.items()})
    assert_equal_models(load_model(copy), load_model(bare))


def test_parts_that_the_architecture_leaves_out_are_not_read(tmp_path):
    """As in the published bert-base-uncased, which has all heads, and a config of only one."""
    whole = load_model(GOLDEN / "bert")
    for architecture, lacking in (("BertForMaskedLM", "pooler"), ("BertModel", "masked_head"),
                                  ("BertForNextSentencePrediction", "masked_head")):
        copy = rewritten(GOLDEN / "bert", tmp_path / architecture, dict,
                         architectures=[architecture])
        model = load_model(copy)
        assert getattr(model, lacking) is None and model.config.architecture == architecture
        theirs = whole.parameters()
        for name, parameter in model.parameters().items():
            np.testing.assert_array_equal(parameter.numpy(), theirs[name].numpy())


@pytest.mark.parametrize("kind, architecture", [(k, a) for k, a in ARCHITECTURES.items()])
def test_every_architecture_comes_back_from_its_files(kind, architecture, tmp_path):
    layout, pooler, masked, sentence = kind
    model = random_model(replace(BERT, layout=layout, pooler=pooler, masked_head=masked,
                                 sentence_head=sentence, padding=2))
    save_model(model, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["architectures"] == [architecture] and stored["model_type"] == layout
    assert stored["max_position_embeddings"] == 24 + (3 if layout == "roberta" else 0)
    assert_equal_models(load_model(tmp_path), model)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_modernbert_comes_back_from_its_files(layers, tmp_path):
    """By the keys that published files have, too, which newer ones say in other ways."""
    config = replace(MODERN, layers=layers, theta=1e4, near_theta=500.0, pooling="mean",
                     norm_epsilon=1e-6)
    model = random_model(config)
    save_model(model, tmp_path)
    assert_equal_models(load_model(tmp_path), model)
    stored = json.loads((tmp_path / "config.json").read_text())
    older = {key: value for key, value in stored.items()
             if key not in ("layer_types", "rope_parameters")}
    newer = {key: value for key, value in stored.items()
             if not key.startswith(("global_", "local_rope"))}
    assert ModernBert.config_from_hub(older) == config
    if layers > 1:                          # a list of one does not tell the distance
        assert ModernBert.config_from_hub(newer) == config
    copy = rewritten(GOLDEN / "modernbert", tmp_path, lambda arrays: arrays | {
        "decoder.weight": arrays["model.embeddings.tok_embeddings.weight"]})
    assert_equal_models(load_model(copy), load_model(GOLDEN / "modernbert"))


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_packed_weights_come_back_from_files(format, tmp_path):
    model, ids = random_model(replace(BERT, width=32, hidden=64)), random_ids(1, 5)
    pack_model(model, format)
    save_model(model, tmp_path)
    np.testing.assert_array_equal(load_model(tmp_path)(ids).numpy(), model(ids).numpy())


@pytest.mark.parametrize("change, message", [
    (lambda a: a | {"cls.predictions.decoder.weight": np.ones((61, 24), "f4")},
     "differs from .*; in this model they are one tensor"),
    (lambda a: a | {"cls.predictions.decoder.bias": 1 - a["cls.predictions.bias"]}, "differs from"),
    (lambda a: a | {"bert.extra": np.zeros(2, "f4")}, "bert.extra is unknown"),
    (lambda a: {k: v for k, v in a.items() if k != "bert.pooler.dense.bias"},
     "bert.pooler.dense.bias is missing"),
    (lambda a: a | {"bert.pooler.dense.bias": np.zeros(3, "f4")}, r"is \[3\], expected \[24\]"),
])
def test_a_file_that_does_not_fit_says_where(change, message, tmp_path):
    copy = rewritten(GOLDEN / "bert", tmp_path, change)
    with pytest.raises(FormatError, match=message):
        load_model(copy)


@pytest.mark.parametrize("name, change, message", [
    ("bert", {"architectures": ["BertForMultipleChoice"]},
     "architectures: expected one of BertForPreTraining, .*BertModel, .*got 'BertForMultipleCh"),
    ("bert", {"architectures": "BertModel"}, "architectures: expected a list, got 'BertModel'"),
    ("bert", {"architectures": ["RobertaModel"]}, "architectures: expected one of Bert"),
    ("bert", {"position_embedding_type": "relative_key"}, "embedding_type='relative_key' is not"),
    ("bert", {"is_decoder": True}, "is_decoder=True is not supported, only False"),
    ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
    ("bert", {"hidden_act": "tanh"}, "activation: expected one of .*, got 'tanh'"),
    ("bert", {"num_attention_heads": 5}, "heads: 5 heads do not divide the width 24"),
    ("bert", {"pad_token_id": None}, "padding: expected an integer, got None"),
    ("modernbert", {"norm_bias": True}, "norm_bias=True is not supported, only False"),
    ("modernbert", {"mlp_dropout": 0.1}, "mlp_dropout=0.1 is not supported"),
    ("modernbert", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2},
     "layer_types: expected full_attention in the first layer and then at one distance"),
    ("modernbert", {"layer_types": "full"}, "layer_types: expected a list of 4, one for each"),
    ("modernbert", {"num_hidden_layers": 10 ** 12}, "layer_types: expected a list of 10000000000"),
    ("modernbert", {"global_attn_every_n_layers": 0},
     "global_attn_every_n_layers: expected an integer of at least 1, got 0"),
    ("modernbert", {"rope_parameters": [1]}, "rope_parameters: expected an object, got .1."),
    ("modernbert", {"rope_parameters": {"full_attention": 2.5}},
     "rope_parameters: full_attention: expected an object, got 2.5"),
    ("modernbert", {"rope_scaling": {"factor": 2}}, "rope_scaling: expected positions that are no"),
    ("modernbert", {"classifier_pooling": "max"}, "pooling: expected one of cls, mean, got 'max'"),
    ("modernbert", {"architectures": ["ModernBertForMultipleChoice"]},
     "architectures: expected one of ModernBertForMaskedLM, ModernBertModel, .*got 'ModernBertFo"),
    ("roberta", {"max_position_embeddings": 2}, "context: expected at least 1, got 0"),
    ("roberta", {"pad_token_id": "one"}, "a value is not of its type"),
])
def test_a_foreign_feature_in_config_json_is_refused(name, change, message, tmp_path):
    copy = rewritten(GOLDEN / name, tmp_path, dict, **change)
    with pytest.raises(FormatError, match=message):
        load_model(copy)


@pytest.mark.parametrize("words", [
    ("generate", "{bert}", "a"), ("quantize", "{bert}", "--format", "int8", "--out", "{out}")])
def test_commands_for_decoders_refuse_an_encoder(minifm, tmp_path, words):  # noqa: F811
    bert, out = tmp_path / "bert", tmp_path / "out"
    bert.mkdir()
    save_model(random_model(replace(BERT, vocabulary=300)), bert, Tokenizer.bytes())
    words = [word.format(bert=bert, out=out) for word in words]
    refused(minifm(*words), "bert: expected a model that", "got a Bert")
    assert not (out / "model.safetensors").exists()


def test_a_config_json_that_lacks_its_shape_says_what():
    stored = Bert.config_to_hub(BERT)
    del stored["hidden_size"], stored["intermediate_size"]
    with pytest.raises(ConfigError, match="lacks hidden_size, intermediate_size"):
        Bert.config_from_hub(stored)


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, message", [
    ({"heads": 3}, "heads: 3 heads do not divide the width 16"),
    ({"padding": V}, f"padding: expected an id below the vocabulary of {V}, got {V}"),
    ({"pooler": True}, "layout: bert is not known with pooler and masked_head; expected the parts"),
    ({"layout": "roberta", "sentence_head": True}, "sentence_head: RoBERTa has none, it learns"),
    ({"layout": "roberta", "pooler": True}, "layout: roberta is not known with pooler and"),
    ({"layout": "albert"}, "layout: expected one of bert, roberta, got 'albert'"),
    ({"types": 0}, "types: expected at least 1, got 0"),
])
def test_an_impossible_configuration_names_its_field(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(BERT, **wrong)


@pytest.mark.parametrize("wrong, message", [
    ({"heads": 3}, "heads: 3 heads do not divide the width 16"),
    ({"heads": 16}, "heads: expected heads of an even width, got 1"),
    ({"padding": V}, f"padding: expected an id below the vocabulary of {V}, got {V}"),
    ({"reader": False}, "masked_head: it stands on the reader; leave that in"),
    ({"pooling": "max"}, "pooling: expected one of cls, mean, got 'max'"),
])
def test_an_impossible_modernbert_names_its_field(wrong, message):
    with pytest.raises(ConfigError, match=message):
        replace(MODERN, **wrong)


@pytest.mark.parametrize("inputs, message", [
    ({"types": np.zeros((2, 4), int)}, r"types: expected \[2, 5\], as the ids have, got \[2, 4"),
    ({"key_mask": np.ones((1, 5), bool)}, r"key_mask: expected \[2, 5\], as .*, got \[1, 5\]"),
    ({"key_mask": np.ones((2, 5), int)}, "key_mask must be bool"),
])
def test_inputs_that_do_not_fit_the_ids_are_refused(backend, inputs, message):
    with pytest.raises(ShapeError, match=message):
        random_model(BERT)(random_ids(2, 5), **inputs)


def test_a_modernbert_does_not_guess_the_next_sentence():
    with pytest.raises(ConfigError, match="next_sentence: a ModernBert has no head that guesses"):
        objective_of(ModernBert, learning=LearningConfig(next_sentence=True))
    assert objective_of(ModernBert).name == "masked"


def test_mistakes_in_use_are_named(backend):
    model, encoder = random_model(BERT), random_model(replace(BERT, masked_head=False, pooler=True))
    with pytest.raises(ShapeError, match=r"Bert: expected token ids \[B, T\], got \[5\]"):
        model(random_ids(5))
    with pytest.raises(ShapeError, match="Bert: 25 tokens do not fit the context of 24"):
        model(random_ids(1, 25))
    with pytest.raises(ShapeError, match=r"targets: expected \[2, 5\], as .*, got \[2, 4"):
        model.loss(random_ids(2, 5), some_targets(2, 4))
    bare = random_model(replace(MODERN, masked_head=False, reader=False))
    with pytest.raises(ConfigError, match="masked_head: this model, a ModernBertModel, has none"):
        bare(random_ids(1, 5))
    with pytest.raises(ConfigError, match="masked_head: this model, a BertModel, has none"):
        encoder(random_ids(1, 5))
    with pytest.raises(ConfigError, match="pooler: this model, a BertForMaskedLM, has none"):
        model.pooled(model.features(random_ids(1, 5)))
    with pytest.raises(ConfigError, match="sentence_head: this model, a BertForMaskedLM, has none"):
        model.loss(random_ids(1, 5), some_targets(1, 5), sentence_targets=np.array([1]))
    padded = np.arange(30) < 24
    assert model(random_ids(1, 30), key_mask=padded[None]).shape == (1, 30, V)
