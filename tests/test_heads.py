"""Heads for other tasks: against the real library's outputs, their laws, their files."""

import functools
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import assert_files_come_back, assert_gradients, in_float64, randomised
from opaque import OpaqueBackend
from safetensors.numpy import load_file, save_file

import minifm as mf
from minifm import ops
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.hub import load_causal, load_model, save_model
from minifm.models import (
    GPT,
    MODELS,
    T5,
    Bert,
    BertConfig,
    GPTConfig,
    HeadConfig,
    LlamaConfig,
    ModernBertConfig,
    SequenceClassifier,
    T5Config,
    TokenClassifier,
    pack_model,
    with_head,
)
from minifm.models.heads import HEADS, described, new_parameters
from minifm.training.optim import AdamW

GOLDEN = Path(__file__).parent / "golden" / "heads"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
V, T = 37, 9
LABELS = ("no", "perhaps", "yes")
BERT = BertConfig(vocabulary=V, context=24, layers=2, heads=2, width=16, hidden=20, dropout=0.0)
BODIES = {
    "bert": BERT,
    "roberta": replace(BERT, layout="roberta", padding=3),
    "gpt": GPTConfig(vocabulary=V, context=24, layers=2, heads=2, width=16),
    "llama": LlamaConfig(vocabulary=V, context=24, layers=2, heads=4, key_heads=2, width=16,
                         hidden=20, window=4),
    "modernbert": ModernBertConfig(vocabulary=V, context=24, layers=3, heads=2, width=16, hidden=20,
                                   window=4, every=2, padding=0),
}
BY_TASK = {head.task: head for head in HEADS}
CASES = [(body, task) for body in BODIES for task in BY_TASK]
EACH = pytest.mark.parametrize("body, task", CASES)
EACH_BODY, ANY_TASK = pytest.mark.parametrize("body", BODIES), st.sampled_from(list(BY_TASK))


def config_of(body, task, **settings):
    labels = {} if task == "question" else {"labels": LABELS}
    return HeadConfig(BODIES[body], task, **labels | settings)


def random_model(config):
    return randomised(BY_TASK[config.task](config))


@functools.cache
def model_of(body, task, backend):
    """One for all examples of a law; `backend` is the active one's name."""
    return random_model(config_of(body, task))


def random_ids(*shape, high=V, name="ids"):
    return mf.Rng(0).child(name).integers(0, high, shape)


def some_targets(task, rows, length=T):
    """Of tokens, two of three count; of sequences and questions, not the last."""
    if task == "token":
        targets = random_ids(rows, length, high=3, name="targets")
        return np.where(np.arange(targets.size).reshape(targets.shape) % 3 == 1, -100, targets)
    targets = random_ids(rows, high=3, name="targets") if task == "sequence" else \
        random_ids(rows, 2, high=length, name="targets")
    targets[-1] = -100
    return targets


def assert_near(y, same, bitwise):
    """The same logits but for rounding. These are too few for the error of some of them to say how
    large that of others may be: sums of 16 products of what two blocks have made, none above 10."""
    if bitwise:
        np.testing.assert_array_equal(y, same)
    np.testing.assert_allclose(y, same, rtol=1e-4, atol=1e-5)


# -- the real library's outputs -----------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    outputs = load_file(GOLDEN / request.param / "outputs.safetensors")
    inputs = {"key_mask": np.arange(outputs["ids"].shape[1]) < outputs["lengths"][:, None]}
    if "types" in outputs:
        inputs["types"] = outputs["types"]
    return GOLDEN / request.param, outputs, inputs


def test_the_head_is_the_one_that_the_files_name(golden):
    directory, _, _ = golden
    task = directory.name.split("-")[1]
    model = load_model(directory)
    assert type(model) is BY_TASK.get(task, SequenceClassifier)
    assert model.config.problem == {"labels": "multi_label_classification",
                                    "number": "regression"}.get(task, "single_label_classification")
    assert model.config.labels == {"question": ("LABEL_0", "LABEL_1"), "number": ("LABEL_0",)}.get(
        task, ("bad", "so-so", "good"))
    assert model.config.head_dropout == (0.3 if task == "token" else 0)


def test_logits_equal_the_real_librarys(backend, golden):
    directory, outputs, inputs = golden
    y = load_model(directory)(outputs["ids"], **inputs).numpy()
    real = inputs["key_mask"] if y.ndim == 3 else slice(None)
    assert np.abs(y - outputs["logits"])[real].max() <= 2 * outputs["error"][0]


def test_logits_loss_and_gradients_equal_the_real_librarys_in_float64(golden):
    directory, outputs, inputs = golden
    with mf.use("numpy"):
        model = in_float64(load_model(directory))
        y = model(outputs["ids"], **inputs).numpy()
        real = inputs["key_mask"] if y.ndim == 3 else slice(None)
        np.testing.assert_allclose(y[real], outputs["logits"][real], rtol=1e-10, atol=1e-12)
        loss = model.loss(outputs["ids"], outputs["targets"], **inputs)
        assert loss.item() == pytest.approx(outputs["loss"][0], rel=1e-12)
        loss.backward()
    assert_gradients(model, outputs)


def test_what_the_real_library_saved_comes_back_from_our_files(golden, tmp_path):
    directory, _, _ = golden
    assert_files_come_back(directory, tmp_path)
    said, meant = (json.loads((place / "config.json").read_text())
                   for place in (tmp_path, directory))
    # What stands under a head is tied to no head of its own; the rest is said in two ways.
    ours_alone = {"attention_probs_dropout_prob", "torch_dtype", "bos_token_id", "eos_token_id",
                  "cls_token_id", "sep_token_id", "tie_word_embeddings", "rope_parameters",
                  "max_window_layers"}
    shared = {key for key, value in meant.items() if key in said and value is not None} - ours_alone
    assert len(shared) > 10 and {key: said[key] for key in shared} == {
        key: meant[key] for key in shared}


# -- laws ---------------------------------------------------------------------------------------


@EACH_BODY
@given(task=ANY_TASK, left=st.integers(0, 6), right=st.integers(0, 6),
       filler=st.integers(0, V - 1))
def test_padding_on_either_side_never_changes_a_real_position(backend, body, task, left, right,
                                                              filler):
    ids, targets, sides = random_ids(3, T), some_targets(task, 3), ((0, 0), (left, right))
    model = model_of(body, task, backend.name)
    padded, mask = np.pad(ids, sides, constant_values=filler), np.pad(np.ones((3, T), bool), sides)
    y, alone = model(padded, key_mask=mask).numpy(), model(ids).numpy()
    y = y if y.ndim == 2 else y[:, left : left + T]
    assert_near(y, alone, bitwise=backend.name == "c" and left == 0)
    moved = np.pad(targets, sides, constant_values=-100) if task == "token" else \
        np.where(targets < 0, -100, targets + left * (task == "question"))
    assert model.loss(padded, moved, key_mask=mask).item() == pytest.approx(
        model.loss(ids, targets).item(), rel=1e-4)


@EACH_BODY
@given(task=ANY_TASK, rows=st.integers(1, 4), length=st.integers(1, 17))
def test_batched_is_each_row_alone(backend, body, task, rows, length):
    model, ids = model_of(body, task, backend.name), random_ids(rows, length)
    together = model(ids).numpy()
    for b in range(rows):
        alone = model(ids[b : b + 1]).numpy()
        assert_near(together[b : b + 1], alone, bitwise=backend.name == "c")


@EACH_BODY
def test_a_sequence_is_judged_by_all_of_its_tokens_and_by_no_padding(backend, body):
    model, ids = random_model(config_of(body, "sequence")), random_ids(1, T)
    mask = np.arange(T) < 7
    before = model(ids, key_mask=mask[None]).numpy()
    for t in range(T):
        changed = ids.copy()
        changed[0, t] = (ids[0, t] + 1) % V
        moved = np.abs(model(changed, key_mask=mask[None]).numpy() - before).max()
        assert (moved > 0) == mask[t]


@EACH
def test_the_loss_is_that_of_the_targets_that_count(backend, body, task):
    model, ids, targets = random_model(config_of(body, task)), random_ids(4, T), some_targets(
        task, 4)
    logits = model(ids)
    logits = logits.transpose(0, 2, 1) if task == "question" else logits
    every = ops.token_losses(logits, targets).numpy()
    assert 0 < (targets >= 0).sum() < targets.size
    assert model.loss(ids, targets).item() == pytest.approx(every[targets >= 0].mean(), rel=1e-5)
    assert model.loss(ids, targets, denominator=100).item() == pytest.approx(every.sum() / 100,
                                                                            rel=1e-5)


def test_the_losses_of_many_labels_and_of_numbers(backend):
    many = random_model(config_of("bert", "sequence", problem="multi_label_classification"))
    ids, targets = random_ids(4, T), random_ids(4, 3, high=2, name="targets")
    targets[1, 2] = -100
    x = many(ids).numpy().astype(np.float64)
    likely = 1 / (1 + np.exp(-x))
    each = -np.where(targets == 1, np.log(likely), np.log(1 - likely))
    assert many.loss(ids, targets).item() == pytest.approx(each[targets >= 0].mean(), rel=1e-5)
    assert many.loss(ids, targets, denominator=50).item() == pytest.approx(
        each[targets >= 0].sum() / 50, rel=1e-5)
    some = random_model(config_of("gpt", "sequence", problem="regression", labels=("a", "b")))
    values = np.linspace(-1, 1, 8).reshape(4, 2)
    squares = (some(ids).numpy() - values) ** 2
    assert some.loss(ids, values).item() == pytest.approx(squares.mean(), rel=1e-5)
    assert some.loss(ids, values, denominator=50).item() == pytest.approx(squares.sum() / 50,
                                                                         rel=1e-5)


@EACH
def test_pieces_of_a_batch_add_up_to_it(body, task):
    """In float64, loss and gradients."""
    ids, targets, found = random_ids(4, T), some_targets(task, 4), []
    with mf.use("numpy"):
        for pieces in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
            model, loss = in_float64(random_model(config_of(body, task))), 0.0
            for rows in pieces:
                part = model.loss(ids[rows], targets[rows],
                                  denominator=ops.count_targets(targets))
                part.backward()
                loss += part.item()
            found.append([loss] + [p.grad for p in model.parameters().values()])
    for whole, added in zip(*found):
        np.testing.assert_allclose(added, whole, rtol=1e-12, atol=1e-14)


@EACH
def test_counts_follow_from_the_configuration(backend, body, task):
    config, ids, targets = config_of(body, task), random_ids(3, 20), some_targets(task, 3, 20)
    if body in ("llama", "modernbert"):     # what a window hides, an op's own count does not know
        config = replace(config, body=replace(config.body, window=100))
    model = BY_TASK[task](config, mf.Rng(0))
    assert sum(p.numpy().size for p in model.parameters().values()) == config.parameters
    with mf.FlopCounter() as counter:
        model(ids)
    assert counter.total == pytest.approx(60 * config.flops_per_token(20), rel=1e-12)
    with mf.FlopCounter() as counter:
        model.loss(ids, targets).backward()
    assert counter.total == pytest.approx(60 * config.flops_per_token(20, training=True), rel=1e-12)


@EACH
def test_recomputation_gives_the_same_bits_with_dropout_too(backend, body, task):
    config = config_of(body, task)
    if body == "modernbert":                # has dropout before the head alone
        config = replace(config, dropout=0.2)
    else:
        config = replace(config, body=replace(config.body, dropout=0.2))
    ids, mask = random_ids(2, T), np.arange(T) < np.array([[9], [6]])
    targets = some_targets(task, 2)
    targets = np.where(mask, targets, -100) if task == "token" else targets % 6
    found = []
    for recompute in (False, True):
        model = random_model(config)
        loss = model.loss(ids, targets, key_mask=mask, rng=mf.Rng(3), recompute=recompute)
        loss.backward()
        found.append([loss.numpy()] + [p.grad for p in model.parameters().values()])
    for plain, again in zip(*found):
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(again))


@EACH
def test_dropout_is_on_what_the_head_reads_as_in_the_original(backend, body, task):
    """The bodies here have none."""
    head = config_of(body, task).head
    ids, rng = random_ids(64, T), mf.Rng(1)
    if head.dropout == 0:
        model = random_model(config_of(body, task))
        np.testing.assert_array_equal(model(ids, rng=rng).numpy(), model(ids).numpy())
        with pytest.raises(ConfigError, match=f"dropout: {head.architecture} has none before"):
            config_of(body, task, dropout=0.5)
        return
    assert config_of(body, task).head_dropout == (0.1 if body in ("gpt", "llama") else 0.0)
    model = random_model(config_of(body, task, dropout=0.5))
    model.output.bias.data = mf.backend().multiply(model.output.bias.data, 0.0)
    weight = model.output.weight
    weight.data = mf.backend().from_numpy(np.eye(*weight.shape, dtype=np.float32))
    dropped = model(ids, rng=rng).numpy()
    assert 0.3 < (dropped != 0).mean() < 0.7
    x = model.features(ids)
    x = model.body.summary(x) if head.whole else model.body.each(x)
    if head.dense:
        x = ops.tanh(model.dense(ops.dropout(x, 0.5, rng=rng.child("head", "dense"))))
    x = ops.dropout(x, 0.5, rng=rng.child("head", "output"))
    np.testing.assert_allclose(dropped, x.numpy()[..., :weight.shape[1]], rtol=1e-5, atol=1e-6)


@EACH
def test_every_op_of_a_head_is_asked_of_the_backend(body, task):
    config, ids, targets = config_of(body, task), random_ids(2, T), some_targets(task, 2)
    mask = np.arange(T) < np.array([[9], [7]])
    targets = np.where(mask, targets, -100) if task == "token" else targets % 6
    found = []
    for backend in ("numpy", OpaqueBackend()):
        with mf.use(backend):
            model = random_model(config)
            loss = model.loss(ids, targets, key_mask=mask, rng=mf.Rng(3))
            loss.backward()
            found.append([loss.numpy(), mf.backend().to_numpy(model.output.weight.grad)])
    for plain, hidden in zip(*found):
        np.testing.assert_array_equal(hidden, plain)


@EACH
def test_packed_weights_compute_nearly_the_same(backend, body, task):
    config = config_of(body, task)
    config = replace(config, body=replace(
        config.body, width=32, hidden=64, **{"head_width": None} if body == "llama" else {}))
    model, ids = random_model(config), random_ids(2, T)
    before = model(ids).numpy()
    pack_model(model, "bf16")
    assert 0 < np.abs(model(ids).numpy() - before).max() < 0.05 * np.abs(before).max()


# -- a head on a model that is there ---------------------------------------------------------------


def base_model(body):
    """A language model, with all the heads of its own that it may have."""
    parts = {"bert": {"pooler": True, "sentence_head": True}}.get(body, {})
    config = replace(BODIES[body], **parts)
    return randomised(config.model(config))


@EACH
def test_a_head_stands_on_the_very_layers_of_a_model(backend, body, task):
    base, ids = base_model(body), random_ids(2, T)
    model = with_head(base, BY_TASK[task], config_of(body, task).labels, rng=mf.Rng(5))
    assert model.config == config_of(body, task)
    np.testing.assert_array_equal(model.features(ids).numpy(), base.features(ids).numpy())
    new = new_parameters(model, base)
    expected = ["output.weight"] + ["output.bias"] * model.config.head.bias
    assert new == (["dense.weight", "dense.bias"] if model.config.head.dense else []) + expected
    drawn = np.concatenate([model.parameters()[name].numpy().ravel() for name in new
                            if name.endswith("weight")])
    assert drawn.std() == pytest.approx(0.02, rel=0.5) and np.abs(drawn).min() > 0
    assert sum(p.numpy().size for p in model.parameters().values()) == model.config.parameters
    assert base.config == base_model(body).config        # the model itself is what it was
    own = [p for name, p in base.parameters().items() if "head" in name]
    assert all(p not in model.parameters().values() for p in own)


def test_what_a_model_lacks_below_its_head_is_drawn_and_told(backend):
    masked = randomised(Bert(BERT))                      # it has no pooler
    model = with_head(masked, SequenceClassifier, LABELS, rng=mf.Rng(5))
    assert new_parameters(model, masked) == [
        "body.pooler.weight", "body.pooler.bias", "output.weight", "output.bias"]
    again = with_head(masked, SequenceClassifier, LABELS, rng=mf.Rng(5))
    assert np.abs(model.body.pooler.weight.numpy()).max() > 0
    np.testing.assert_array_equal(model.body.pooler.weight.numpy(),
                                  again.body.pooler.weight.numpy())


def test_a_head_takes_the_place_of_another(backend):
    first = with_head(base_model("bert"), SequenceClassifier, LABELS, rng=mf.Rng(1))
    second = with_head(first, SequenceClassifier, ("a", "b"), dropout=0.3, rng=mf.Rng(2))
    assert second.body.pooler is first.body.pooler
    assert new_parameters(second, first) == ["output.weight", "output.bias"]
    assert second(random_ids(2, T)).shape == (2, 2)
    third = with_head(second, TokenClassifier, LABELS, rng=mf.Rng(3))
    assert third.body.pooler is None and third.config.dropout is None


def test_a_model_with_a_head_learns(backend):
    """Whether token 5 is in a text, from 24 texts, by a head and by the body below it."""
    ids = random_ids(24, T)
    targets = (ids == 5).any(1).astype(int)
    ids[:6, 3] = 5
    targets[:6] = 1
    base = GPT(replace(BODIES["gpt"], dropout=0.0), mf.Rng(0))
    model = with_head(base, SequenceClassifier, ("without", "with"), rng=mf.Rng(0))
    optimizer = AdamW(model.parameters(), weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.update(0.01)
    assert (model(ids).numpy().argmax(-1) == targets).all() and loss.item() < 0.2


def test_no_head_stands_on_an_encoder_decoder():
    model = T5(T5Config(vocabulary=V, layers=1, heads=2, width=16))
    with pytest.raises(ConfigError, match="body: no head for a token stands on a T5"):
        with_head(model, TokenClassifier, LABELS, rng=mf.Rng(0))


# -- files --------------------------------------------------------------------------------------


def rewritten(directory, tmp_path, change=dict, **config):
    """A copy of a directory whose {name: array} is changed, and whose config.json (None: without
    the key)."""
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    arrays = change(load_file(copy / "model.safetensors"))
    save_file(arrays, copy / "model.safetensors", metadata={"format": "pt"})
    stored = json.loads((copy / "config.json").read_text()) | config
    (copy / "config.json").write_text(json.dumps(
        {key: value for key, value in stored.items() if value is not None}))
    return copy


def assert_equal_models(a, b):
    assert a.config == b.config and type(a) is type(b)
    theirs = b.parameters()
    for name, parameter in a.parameters().items():
        np.testing.assert_array_equal(parameter.numpy(), theirs[name].numpy(), err_msg=name)


@EACH_BODY
@given(task=ANY_TASK, labels=st.lists(st.text(max_size=3), min_size=3, max_size=4, unique=True),
       dropout=st.none() | st.sampled_from([0.0, 0.25]), padding=st.none() | st.integers(0, V - 1))
def test_a_configuration_comes_back_from_its_config_json(body, task, labels, dropout, padding):
    settings = {"padding": padding} if body in ("gpt", "llama") else {}
    config = config_of(body, task, **settings)
    config = replace(config, dropout=dropout if config.head.dropout != 0 else None)
    if task != "question":
        config = replace(config, labels=tuple(labels))
    stored = json.loads(json.dumps(BY_TASK[task].config_to_hub(config)))
    assert described(MODELS[stored["model_type"]], stored, []) == (BY_TASK[task], config)
    assert json.loads(json.dumps(asdict(config)))["labels"] == list(config.labels)


@EACH
@pytest.mark.parametrize("format", [None, "bf16", "int8"])
def test_a_model_with_a_head_comes_back_from_its_files(body, task, format, tmp_path):
    config = config_of(body, task)
    config = replace(config, body=replace(
        config.body, width=32, hidden=64, **{"head_width": None} if body == "llama" else {}))
    model, ids = random_model(config), random_ids(2, T)
    if format:
        pack_model(model, format)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    np.testing.assert_array_equal(again(ids).numpy(), model(ids).numpy())


def test_what_predicts_the_next_token_refuses_a_head():
    with pytest.raises(ConfigError, match="expected a model that predicts the next token, got a "
                                          "SequenceClassifier"):
        load_causal(GOLDEN / "gpt2-sequence")


def test_parts_of_the_body_that_a_head_leaves_out_are_not_read(tmp_path):
    """As in published files for tokens, whose pooler nothing reads, and a masked head beside it."""
    whole = load_model(GOLDEN / "bert-token")
    copy = rewritten(GOLDEN / "bert-token", tmp_path, lambda arrays: arrays | {
        "bert.pooler.dense.weight": np.ones((12, 12), "f4"),
        "bert.pooler.dense.bias": np.ones(12, "f4"), "cls.predictions.bias": np.ones(31, "f4")})
    assert_equal_models(load_model(copy), whole)


@pytest.mark.parametrize("name", ["bert-question", "bert-token", "roberta-sequence",
                                  "roberta-token", "roberta-question"])
def test_the_head_is_told_by_the_tensors_where_config_json_names_none(name, tmp_path):
    copy = rewritten(GOLDEN / name, tmp_path, architectures=None)
    assert_equal_models(load_model(copy), load_model(GOLDEN / name))


@pytest.mark.parametrize("name", ["bert", "bert-masked", "bert-encoder", "roberta",
                                  "roberta-encoder"])
def test_an_encoder_is_told_by_its_tensors_where_config_json_names_none(name, tmp_path):
    copy = rewritten(GOLDEN.parent / name, tmp_path, architectures=None)
    assert_equal_models(load_model(copy), load_model(GOLDEN.parent / name))


@pytest.mark.parametrize("name, change, config, message", [
    ("bert-sequence", dict, {"architectures": None},    # or of tokens, beside a pooler
     "architectures: expected one of BertForPreTraining, .*BertForQuestionAnswering, got None"),
    ("bert-token", lambda a: {k: v for k, v in a.items() if "classifier" not in k},
     {"architectures": None}, "architectures: expected one of .*, got None"),
    ("gpt2-sequence", dict, {"architectures": ["GPT2LMHeadModel"]}, "score.weight is unknown"),
    ("gpt2-sequence", dict, {"architectures": {"a": 1}}, "architectures: expected a list, got {"),
    ("llama-token", lambda a: {k: v for k, v in a.items() if k != "score.bias"}, {},
     "score.bias is missing"),
    ("llama-token", dict, {"id2label": {"0": "a", "1": "b"}}, r"score.bias is \[3\], expected \[2"),
    ("llama-token", dict, {"id2label": {"0": "a", "2": "b"}}, "id2label: expected a name for each"),
    ("llama-token", dict, {"id2label": ["a", "b"]}, "id2label: expected a name for each of 0, 1"),
    ("llama-token", dict, {"id2label": {"0": "a", "1": 5}}, "labels: expected a list of strings"),
    ("llama-token", dict, {"id2label": {"0": "a", "1": "a"}}, "labels: expected different names"),
    ("llama-token", dict, {"id2label": None, "num_labels": 10**12}, "num_labels: expected 1 … 65"),
    ("llama-token", dict, {"classifier_dropout": 1.5}, "dropout: expected at least 0 and less tha"),
    ("bert-sequence", dict, {"problem_type": "ranking"}, "problem: expected one of single_label_c"),
    ("bert-question", dict, {"num_labels": 3}, "labels: expected two, for where an answer starts"),
    ("gpt2-token", dict, {"pad_token_id": 31}, "padding: expected an id below .* of 31, got 31"),
])
def test_files_of_a_head_that_do_not_fit_say_where(name, change, config, message, tmp_path):
    with pytest.raises(FormatError, match=message):
        load_model(rewritten(GOLDEN / name, tmp_path, change, **config))


def test_an_encoder_with_neither_pooler_nor_head_has_no_files_of_its_own(tmp_path):
    body = load_model(GOLDEN / "bert-token").body
    with pytest.raises(ConfigError, match="layout: files of bert have a pooler, or a head"):
        save_model(body, tmp_path)
    with pytest.raises(ConfigError, match="pooler: this model, a body for a head, has none"):
        body.pooled(body.features(random_ids(1, 4, high=31)))


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task, settings, message", [
    ("sequence", {"labels": ()}, "labels: expected at least 2, got "),
    ("token", {"labels": ("a",)}, r"labels: expected at least 2, got \['a'\]"),
    ("token", {"labels": ("a", "b", "a")}, "labels: expected different names, got"),
    ("token", {"labels": ("a", 3)}, "labels: expected a list of strings, got"),
    ("question", {"labels": LABELS}, "labels: expected two, for where an answer starts and where"),
    ("token", {"problem": "regression"}, "problem: regression is for sequences, not for a token"),
    ("sequence", {"problem": "ranking"}, "problem: expected one of single_label_classification, "),
    ("sequence", {"padding": 1}, "padding: that of the body is meant, where it has one"),
    ("sequence", {"dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
])
def test_an_impossible_configuration_names_its_field(task, settings, message):
    with pytest.raises(ConfigError, match=message):
        config_of("bert", task, **settings)


def test_mistakes_in_use_are_named(backend):
    gpt, ids = random_model(config_of("gpt", "question")), random_ids(2, T)
    with pytest.raises(ConfigError, match="types: a GPT does not tell tokens apart"):
        gpt(ids, types=np.zeros_like(ids))
    mask = np.arange(T) < np.array([[9], [6]])
    with pytest.raises(ShapeError, match="targets: that of row 1 is in its padding"):
        gpt.loss(ids, np.array([[0, 8], [2, 6]]), key_mask=mask)
    with pytest.raises(ConfigError, match="task: expected token for a TokenClassifier, got quest"):
        TokenClassifier(config_of("gpt", "question"))
    with pytest.raises(ConfigError, match="task: expected one of sequence, token, question, got"):
        HeadConfig(BERT, "image")
    number = random_model(config_of("gpt", "sequence", problem="regression", labels=("x",)))
    with pytest.raises(ShapeError, match=r"targets: expected \[2, 1\] or \[2\], got \[3\]"):
        number.loss(ids, np.zeros(3))
    many = random_model(config_of("gpt", "sequence", problem="multi_label_classification"))
    with pytest.raises(ShapeError):
        many.loss(ids, np.zeros(2, int))
