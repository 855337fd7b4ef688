"""Adapters: against the real library, the laws that they obey, their files, their runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import AVAILABLE
from hypothesis import given
from hypothesis import strategies as st
from modelling import assert_same_function, in_float64, randomised
from opaque import OpaqueBackend
from safetensors.numpy import load_file, save_file
from test_cli import minifm, refused  # noqa: F401  (fixtures)
from test_hub import files_of

import minifm as mf
from minifm.backends.reference.packed import FORMATS
from minifm.errors import LISTED, ConfigError, FormatError, UserError
from minifm.generation import Sampling, tokens
from minifm.hub import base_of, load_adapter, load_model, read_adapter, save_adapter, save_model
from minifm.models import (
    GPT,
    T5,
    Bert,
    BertConfig,
    GPTConfig,
    Llama,
    LlamaConfig,
    T5Config,
    Transformer,
    TransformerConfig,
    pack_model,
    packed_format,
    unpack_model,
    with_head,
)
from minifm.models.heads import SequenceClassifier
from minifm.models.seq2seq import Seq2SeqModel
from minifm.nn import (
    AdapterConfig,
    Linear,
    LoRA,
    Module,
    adapter_config,
    add_adapters,
    freeze_layers,
    merge_adapters,
    remove_adapters,
    train_only,
    trainable,
)
from minifm.nn.adapter import adapted_layers
from minifm.nn.freezing import freeze
from minifm.text import Tokenizer
from minifm.training import checkpoint, memory
from minifm.training.config import TrainConfig
from minifm.training.objectives import CausalLanguageModel, MaskedLanguageModel
from minifm.training.optim import AdamW
from minifm.training.trainer import Trainer, computed_part

GOLDEN = Path(__file__).parent / "golden"
V, SHAPE = 37, {"vocabulary": 37, "layers": 2, "heads": 2, "width": 16}
LLAMA = LlamaConfig(**SHAPE, context=24, key_heads=1, hidden=20)
# Every kind of model, and every kind of layer that an adapter may stand in.
MODELS = {
    "gpt": (GPT, GPTConfig(**SHAPE, context=24)),
    "llama": (Llama, replace(LLAMA, biases=True)),
    "experts": (Llama, replace(LLAMA, experts=3)),
    "bert": (Bert, BertConfig(**SHAPE, context=24, hidden=20, dropout=0.0, pooler=True,
                               sentence_head=True)),
    "t5": (T5, T5Config(**SHAPE, head_width=8, hidden=20, dropout=0.0)),
    "transformer": (Transformer, TransformerConfig(**SHAPE, context=24, hidden=20,
                                                   dropout=0.0)),
}
EACH = pytest.mark.parametrize("kind", MODELS)
EACH_FORMAT = pytest.mark.parametrize("format", FORMATS)
ON_C = pytest.mark.skipif("c" not in AVAILABLE, reason="no C backend")
SMALL = AdapterConfig(rank=3, alpha=5.0)


def plain(kind):
    model_class, config = MODELS[kind]
    return randomised(model_class(config))


def random_adapters(model, seed=1):
    """`model`, of whose adapters every number is random: `up` no longer hides them."""
    for name, parameter in trainable(model).items():
        noise = mf.Rng(seed).child(name).normal(parameter.shape)
        parameter.data = mf.backend().multiply(noise, 0.2)
    return model


def adapted(kind, config=SMALL):
    model = plain(kind)
    add_adapters(model, config, rng=mf.Rng(0))
    return random_adapters(model)


def inputs_of(model, rows=2, length=9, seed=0):
    """What `model` reads."""
    rng = mf.Rng(seed)
    names = ("source", "ids") if isinstance(model, Seq2SeqModel) else ("ids",)
    return [rng.child(name).integers(0, V, (rows, length)) for name in names]


def logits(model, **options):
    with mf.no_grad():
        return model(*inputs_of(model), **options).numpy()


def loss_of(model, **options):
    """The mean loss of the next tokens, each row's first after its last."""
    *read, ids = inputs_of(model)
    return model.loss(*read, ids, np.roll(ids, -1, 1), **options)


def bits(model):
    return {name: p.numpy().tobytes() for name, p in model.parameters().items()}


# -- the real library ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama", "bert", "t5"])
def golden(request):
    directory = GOLDEN / f"adapter-{request.param}"
    return GOLDEN / request.param, directory, load_file(directory / "outputs.safetensors")


def with_adapter(base, directory):
    model = load_model(base)
    load_adapter(model, directory)
    return model


def gradients_of(model, outputs, dtype):
    """{our name: the gradient of Σ logits · direction}; BERT's pairs have a direction, too."""
    direction = outputs["direction"].astype(dtype)
    if "source" in outputs:
        total = (model(outputs["source"], outputs["ids"]) * direction).sum()
    elif isinstance(model, Bert):
        x = model.features(outputs["ids"])
        total = (model.logits(x) * direction).sum()
        total = total + (model.sentence_logits(x) * direction[:, 0, :2]).sum()
    else:
        total = (model(outputs["ids"]) * direction).sum()
    total.backward()
    return {name: p.grad for name, p in trainable(model).items()}


def by_our_names(model, outputs, prefix):
    """{our name: what `outputs` has under `prefix` and the name in files}."""
    names, found = model.stored_names(model.config), {}
    for ours in trainable(model):
        layer, adapter, part = ours.partition(".adapter.")
        if adapter:
            theirs = names[f"{layer}.weight"].name.removesuffix(".weight")
            name, turned = f"{theirs}.lora_{'A' if part == 'down' else 'B'}.weight", True
        else:
            name, turned = names[ours].name, names[ours].transposed
        array = outputs[f"{prefix}base_model.model.{name}"]
        found[ours] = array.T if turned and array.ndim == 2 else array
    return found


def test_logits_equal_the_real_librarys(backend, golden):
    base, directory, outputs = golden
    model = with_adapter(base, directory)
    read = [outputs[name] for name in ("source", "ids") if name in outputs]
    with mf.no_grad():
        y = model(*read).numpy()
    assert np.abs(y - outputs["logits"]).max() <= 2 * outputs["error.logits"][0]


def test_gradients_equal_the_real_librarys(backend, golden):
    base, directory, outputs = golden
    model = with_adapter(base, directory)
    expected = by_our_names(model, outputs, "gradient.")
    found = gradients_of(model, outputs, np.float32)
    assert len(found) == sum(name.startswith("gradient.") for name in outputs)
    shares = [(np.linalg.norm(found[name] - g) / np.linalg.norm(g)) ** 2
              for name, g in expected.items()]
    assert np.sqrt(np.mean(shares)) <= 2 * outputs["error.gradients"][0]


def test_gradients_equal_the_real_librarys_in_float64(golden):
    base, directory, outputs = golden
    with mf.use("numpy"):
        model = in_float64(with_adapter(base, directory))
        found = gradients_of(model, outputs, np.float64)
    for name, g in by_our_names(model, outputs, "gradient.").items():
        np.testing.assert_allclose(found[name], g, rtol=1e-8, atol=1e-11, err_msg=name)


def test_what_the_real_library_saved_comes_back_from_our_files(golden, tmp_path):
    base, directory, _ = golden
    save_adapter(with_adapter(base, directory), tmp_path)
    weights = "adapter_model.safetensors"
    assert (tmp_path / weights).read_bytes() == (directory / weights).read_bytes()
    ours, theirs = (json.loads((place / "adapter_config.json").read_text())
                    for place in (tmp_path, directory))
    named = {"target_modules", "modules_to_save"}       # one may name the same layers differently
    assert ours.keys() <= theirs.keys()
    assert {key: ours[key] for key in ours.keys() - named} == \
        {key: theirs[key] for key in ours.keys() - named}


# -- laws ----------------------------------------------------------------------------------------


@EACH
def test_a_new_adapter_is_bitwise_the_base_model(backend, kind):
    model = plain(kind)
    before, loss = logits(model), loss_of(model).item()
    add_adapters(model, AdapterConfig(), rng=mf.Rng(0))
    assert all(np.any(layer.adapter.down.numpy()) for layer in adapted_layers(model).values())
    assert logits(model).tobytes() == before.tobytes() and loss_of(model).item() == loss
    random_adapters(model)
    assert np.abs(logits(model) - before).max() > 0.01
    remove_adapters(model)
    assert logits(model).tobytes() == before.tobytes()


ACTIVATIONS = [None, mf.relu, mf.silu, mf.gelu, mf.gelu_tanh, mf.gelu_quick]
SIZES = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65])


@given(M=SIZES, K=SIZES, N=SIZES, rank=st.integers(1, 9), activation=st.sampled_from(ACTIVATIONS),
       bias=st.booleans(), residual=st.booleans())
def test_of_any_shape_and_with_every_activation(backend, M, K, N, rank, activation, bias, residual):
    layer = randomised(Linear(K, N, std=1, rng=None, bias=bias), std=1)
    x, r = (mf.Tensor(mf.Rng(2).child(i).normal((M, n))) for i, n in enumerate((K, N)))
    before = layer(x, activation, r if residual else None).numpy()
    layer.adapter = LoRA(K, N, AdapterConfig(rank=rank), rng=mf.Rng(1))
    after = layer(x, activation, r if residual else None).numpy()
    np.testing.assert_array_equal(after, before)


@given(M=SIZES, K=SIZES, N=SIZES, rank=st.integers(1, 9))
def test_merged_is_unmerged_within_the_rounding_of_both(backend, M, K, N, rank):
    """|fl(x W) - x W| ≤ γ_K |x| |W|, and so on: the adapter's product is rounded K + r + 3 times on
    its way through x, r + 3 + K times on its way through W, and added in."""
    config = AdapterConfig(rank=rank)
    layer = randomised(Linear(K, N, std=1, rng=None, bias=False), std=1)
    x = mf.Tensor(mf.Rng(2).normal((M, K)))
    layer.adapter = randomised(LoRA(K, N, config, rng=None), seed=1, std=1)
    A, B, W = (np.abs(p.numpy().astype(np.float64)) for p in
               (layer.adapter.down, layer.adapter.up, layer.weight))
    most = np.abs(x.numpy()) @ (W + config.scale * (A @ B))
    n, u = K + rank + 4, 2.0 ** -24
    unmerged = layer(x).numpy()
    change = merge_adapters(layer, x)
    merged = layer(x).numpy()
    assert layer.adapter is None and change == np.abs(merged - unmerged).max()
    assert (np.abs(merged - unmerged) <= 2 * n * u / (1 - n * u) * most).all()


@EACH
def test_a_merged_model_is_the_unmerged_one(backend, kind):
    model = adapted(kind)
    before = logits(model)
    change = merge_adapters(model, *inputs_of(model))
    assert change == np.abs(logits(model) - before).max() <= 1e-5 * np.abs(before).max()
    assert adapter_config(model) is None and merge_adapters(model) is None


@EACH
def test_a_merged_model_is_the_unmerged_one_in_float64(kind):
    with mf.use("numpy"):
        model = in_float64(adapted(kind))
        before = logits(model)
        assert merge_adapters(model, *inputs_of(model)) <= 1e-12 * np.abs(before).max()


@EACH
def test_only_adapters_get_gradients_and_moments(backend, kind):
    model = adapted(kind)
    loss_of(model).backward()
    for name, parameter in model.parameters().items():
        assert (parameter.grad is not None) == (".adapter." in name) == parameter.requires_grad, \
            name
    assert all(np.any(p.grad) for name, p in trainable(model).items() if "decoder.0" not in name)


class Gradients(mf.op.Observer):
    """The shapes of all gradients that products give in a backward pass, by x and by the weight."""

    def __init__(self):
        self.found = []

    def after(self, op, phase, arrays):
        if phase == "backward" and type(op).__name__ in ("Linear", "LinearCrossEntropy"):
            self.found.append([None if x is None else x.shape for x in arrays[:2]])


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_a_frozen_weight_costs_no_product(backend, kind):
    model = adapted(kind)
    loss = loss_of(model)
    with Gradients() as seen:
        loss.backward()
    weights = [dw for _, dw in seen.found if dw is not None]
    assert sorted(weights) == sorted(p.shape for p in trainable(model).values())
    # Below the first adapters nothing is trained: no gradient goes on from there.
    first = {"gpt": 1, "llama": 3}[kind]
    assert sum(dx is None for dx, _ in seen.found) == 2 * first


@EACH
def test_gradients_are_those_of_the_written_out_sum(kind):
    """In float64: the adapter's gradients are those of W + scale · down @ up by the chain rule."""
    with mf.use("numpy"):
        model = in_float64(adapted(kind))
        loss_of(model).backward()
        merged = in_float64(adapted(kind))
        pairs = {name: layer.adapter for name, layer in adapted_layers(merged).items()}
        merge_adapters(merged)
        for name in pairs:
            merged.modules()[name].weight.requires_grad = True
        loss_of(merged).backward()
        for name, adapter in pairs.items():
            dw = merged.modules()[name].weight.grad
            own = model.modules()[name].adapter
            if dw is None:              # an expert that no token has chosen
                assert own.down.grad is None and own.up.grad is None
                continue
            scale, down, up = SMALL.scale, adapter.down.data, adapter.up.data
            for found, expected in ((own.down.grad, dw @ up.T), (own.up.grad, down.T @ dw)):
                np.testing.assert_allclose(found, scale * expected, rtol=1e-9, atol=1e-12)


@EACH
def test_adapters_run_on_opaque_arrays(kind):
    with mf.use("numpy"):
        model = adapted(kind)
        expected = logits(model), loss_of(model).item()
    with mf.use(OpaqueBackend()):
        model = adapted(kind, replace(SMALL, dropout=0.1))
        assert (logits(model) == expected[0]).all() and loss_of(model).item() == expected[1]
        loss_of(model, rng=mf.Rng(0)).backward()
        assert merge_adapters(model, *inputs_of(model)) < 1e-5


def test_scales():
    assert AdapterConfig(rank=16, alpha=8).scale == 0.5
    assert AdapterConfig(rank=16, alpha=8, rank_stabilised=True).scale == 2


# -- dropout -------------------------------------------------------------------------------------


def test_dropout_acts_on_what_enters_an_adapter(backend):
    config = AdapterConfig(rank=3, dropout=0.4)
    adapter = randomised(LoRA(33, 17, config, rng=None))
    x, rng = mf.Tensor(mf.Rng(5).normal((9, 33))), mf.Rng(7)
    dropped = mf.dropout(x, 0.4, rng=rng)
    undropped = LoRA(33, 17, replace(config, dropout=0.0), rng=None)
    undropped.down, undropped.up = adapter.down, adapter.up
    assert (adapter(x, rng=rng).numpy() == undropped(dropped).numpy()).all()
    assert (adapter(x).numpy() == undropped(x).numpy()).all()
    assert not (adapter(x, rng=rng).numpy() == undropped(x).numpy()).any()


@EACH
def test_every_adapter_has_noise_of_its_own(backend, kind):
    """With `rng`, each one drops out; each by another key; again with the same, the same."""
    model = adapted(kind, replace(SMALL, dropout=0.25))
    rng, keys = mf.Rng(3), []

    class Keys(mf.op.Observer):
        def before(self, op, phase, arrays, options):
            if type(op).__name__ == "Dropout" and phase == "forward":
                keys.append(options["key"])

    with mf.no_grad(), Keys():
        first = loss_of(model, rng=rng).item()
    layers = [name for name in adapted_layers(model) if "experts" not in name]
    assert len(layers) <= len(set(keys)) == len(keys) <= len(adapted_layers(model))
    assert loss_of(model, rng=rng).item() == first != loss_of(model, rng=mf.Rng(4)).item()
    assert loss_of(model).item() == loss_of(model, rng=None).item() != first
    recomputed = loss_of(model, rng=rng, recompute=True)
    recomputed.backward()
    again = {name: p.grad for name, p in trainable(model).items()}
    model.zero_grad()
    loss_of(model, rng=rng).backward()
    for name, p in trainable(model).items():
        assert (p.grad is None and again[name] is None) or (p.grad == again[name]).all(), name


def test_dropout_where_a_model_has_none_is_refused(backend):
    model, before = plain("bert"), logits(plain("bert"))
    with pytest.raises(ConfigError, match="within blocks only, not in pooler"):
        add_adapters(model, AdapterConfig(targets=("query", "pooler"), dropout=0.1),
                     rng=mf.Rng(0))
    assert (logits(model) == before).all() and len(trainable(model)) == len(model.parameters())


# -- which layers, which weights -----------------------------------------------------------------


@pytest.mark.parametrize("kind, targets, expected", [
    ("gpt", ("project",), ["attention.project"]),
    ("gpt", ("output",), ["attention.output", "perceptron.output"]),
    ("gpt", ("perceptron.output",), ["perceptron.output"]),
    ("gpt", ("all-linear",), ["attention.project", "attention.output", "perceptron.expand",
                              "perceptron.output"]),
    ("llama", ("query", "gate"), ["attention.query", "perceptron.gate"]),
])
def test_targets_are_ends_of_names(kind, targets, expected):
    model = plain(kind)
    add_adapters(model, AdapterConfig(targets=targets), rng=mf.Rng(0))
    assert list(adapted_layers(model)) == [f"blocks.{i}.{name}" for i in (0, 1)
                                           for name in expected]


def test_all_linear_means_the_blocks(backend):
    model = plain("bert")
    add_adapters(model, AdapterConfig(whole=("sentence_head",)), rng=mf.Rng(0))
    assert len(adapted_layers(model)) == 12
    assert {name for name in trainable(model) if ".adapter." not in name} == \
        {"sentence_head.weight", "sentence_head.bias"}


@pytest.mark.parametrize("settings, said", [
    ({"targets": ("q_proj",)}, "'q_proj'; there are project, output, expand, and all-linear"),
    ({"targets": ("roject",)}, "no linear layer is called 'roject'"),
    ({"targets": ()}, "targets: expected"),
    ({"targets": ("norm",)}, "no linear layer is called 'norm'"),
    ({"whole": ("head",)}, "whole: no part is called 'head'; there are token_embedding"),
    ({"whole": ("blocks",)}, "whole: no part is called 'blocks'"),
    ({"targets": ("project",), "whole": ("attention",)}, "all of project is trained whole"),
    ({"rank": 0}, "rank: expected at least 1"), ({"alpha": 0.0}, "alpha: expected more than 0"),
    ({"dropout": 1.0}, "dropout: expected"), ({"targets": "query"}, "targets: expected a list"),
])
def test_what_cannot_be_adapted_is_one_line_and_changes_nothing(backend, settings, said):
    model = plain("gpt")
    before = bits(model)
    with pytest.raises(ConfigError) as failure:
        add_adapters(model, AdapterConfig(**settings), rng=mf.Rng(0))
    assert said in str(failure.value) and "\n" not in str(failure.value)
    assert bits(model) == before and len(trainable(model)) == len(before)


def test_adapters_come_once(backend):
    model = adapted("gpt")
    for add in (lambda: add_adapters(model, SMALL, rng=mf.Rng(0)),
                lambda: load_adapter(model, GOLDEN / "adapter-gpt2")):
        with pytest.raises(ConfigError, match="has adapters already"):
            add()


@pytest.mark.parametrize("kind, count, first", [
    ("gpt", 0, "blocks.0.attention_norm.gain"), ("gpt", 1, "blocks.1.attention_norm.gain"),
    ("gpt", 2, "norm.gain"), ("llama", 2, "norm.gain"), ("bert", 1, "blocks.1.attention_norm.gain"),
    ("t5", 0, "encoder.0.attention_norm.gain"), ("t5", 3, "decoder.1.attention_norm.gain"),
    ("transformer", 4, "logits_bias")])
def test_freezing_layers(backend, kind, count, first):
    model = plain(kind)
    freeze_layers(model, count)
    names = list(model.parameters())
    assert list(trainable(model)) == names[names.index(first):]
    loss_of(model).backward()
    assert all((p.grad is None) or p.requires_grad for p in model.parameters().values())
    with pytest.raises(ConfigError, match="expected 0 … [24], got 9"):
        freeze_layers(model, 9)


class Headed(Module):
    def __init__(self):
        self.body, self.output = plain("gpt"), Linear(16, 2, std=1, rng=None)


def test_freezing_layers_of_a_body_under_a_head():
    model = Headed()
    freeze_layers(model, 2)
    assert list(trainable(model)) == ["body.norm.gain", "body.norm.bias", "output.weight",
                                      "output.bias"]
    train_only(model, ["output"])           # not the layers in blocks that are called so, too
    assert list(trainable(model)) == ["output.weight", "output.bias"]


def test_what_is_trained_whole_has_no_adapter():
    model = Headed()
    add_adapters(model, AdapterConfig(targets=("output",), whole=("output", "blocks.0")),
                 rng=mf.Rng(0))
    assert list(adapted_layers(model)) == ["body.blocks.1.attention.output",
                                           "body.blocks.1.perceptron.output"]
    assert sum(".adapter." not in name for name in trainable(model)) == 2 + 12


def test_a_head_alone(backend):
    model = plain("bert")
    train_only(model, ["sentence_head", "masked_head.dense"])
    assert list(trainable(model)) == ["masked_head.dense.weight", "masked_head.dense.bias",
                                      "sentence_head.weight", "sentence_head.bias"]
    with pytest.raises(ConfigError, match="no part is called 'head'"):
        train_only(model, ["head"])


# -- packed weights (QLoRA) ----------------------------------------------------------------------


def packed_with_adapters(format, unpacked=False):
    model = plain("gpt")
    pack_model(model, format)
    if unpacked:
        unpack_model(model)
    add_adapters(model, SMALL, rng=mf.Rng(0))
    return random_adapters(model)


@EACH_FORMAT
@given(M=SIZES, K=SIZES, N=SIZES, bias=st.booleans())
def test_a_packed_layers_gradients_are_those_over_its_numbers(backend, format, M, K, N,
                                                                      bias):
    """Given what arrives from above, no gradient depends on how the weight is stored."""
    found = []
    for packed in (True, False):
        layer = randomised(Linear(K, N, std=1, rng=None, bias=bias), std=1)
        w = mf.backend().pack(layer.weight.data, format)
        layer.weight.data = w if packed else mf.backend().unpack(w)
        layer.weight.requires_grad = False
        layer.adapter = randomised(LoRA(K, N, SMALL, rng=None), seed=1)
        x, dy = (mf.Rng(2).child(i).normal((M, n)) for i, n in enumerate((K, N)))
        x = mf.Tensor(x, requires_grad=True)
        layer(x).backward(dy)
        assert layer.weight.grad is None
        found.append([layer.adapter.down.grad, layer.adapter.up.grad, x.grad])
    *own, dx = [over_codes == over_numbers for over_codes, over_numbers in zip(*found)]
    assert all(same.all() for same in own)
    # NumPy's BLAS adds in an order that follows the layout: two roundings of N terms, and of a sum.
    most = np.abs(dy) @ np.abs(mf.backend().unpacked(w)).T + np.abs(found[0][2])
    assert dx.all() or backend.name == "numpy"
    assert (np.abs(found[0][2] - found[1][2]) <= 2 * (N + 2) * 2.0 ** -24 * most).all()


@EACH_FORMAT
def test_a_packed_models_gradients_are_those_over_its_numbers(backend, format):
    """fp32 and bf16 within the rounding of float32; the int formats round what enters a product,
    too, to 1/254 of the largest of 32: some percent of a gradient, after two blocks."""
    packed, unpacked = packed_with_adapters(format), packed_with_adapters(format, unpacked=True)
    assert packed_format(packed) == format and packed_format(unpacked) is None
    for model in (packed, unpacked):
        loss_of(model).backward()
    with mf.use("numpy"):
        oracle = in_float64(packed_with_adapters(format, unpacked=True))
        loss_of(oracle).backward()
    for name, p in trainable(packed).items():
        full, exact = trainable(unpacked)[name].grad, trainable(oracle)[name].grad
        if format in ("fp32", "bf16") and mf.backend().name == "c":
            assert_same_function(p.grad, full, exact)
        bound = 0.05 if format.startswith("int") else 1e-5
        assert np.linalg.norm(p.grad - exact) <= bound * np.linalg.norm(exact), name


@ON_C
@EACH_FORMAT
def test_a_step_over_packed_weights_is_kernels_alone(format):
    with mf.use("c") as backend:
        model = packed_with_adapters(format)
        backend.fallbacks.clear(), backend.copies.clear()
        loss_of(model, rng=mf.Rng(0)).backward()
        assert not backend.fallbacks and not backend.copies["unpack"]


@EACH_FORMAT
def test_adapters_learn_over_packed_weights(backend, format):
    """The last norm learns, too: without that the logits of this random model stay small."""
    model = plain("gpt")
    pack_model(model, format)
    add_adapters(model, AdapterConfig(rank=8, whole=("norm",)), rng=mf.Rng(0))
    optimizer, losses = AdamW(model.parameters()), []
    for _ in range(40):
        loss = loss_of(model)
        losses.append(loss.item())
        loss.backward()
        optimizer.update(0.05)
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]


def test_unpacking_gives_the_numbers_of_the_codes(backend):
    model, packed = plain("gpt"), plain("gpt")
    pack_model(packed, "int4")
    numbers = {name: p.numpy().copy() for name, p in packed.parameters().items()}
    with pytest.raises(ConfigError, match="packed as int4, which cannot hold the sum"):
        add_adapters(packed, SMALL, rng=mf.Rng(0))
        merge_adapters(packed)
    unpack_model(packed)
    assert packed_format(packed) is None
    assert all((p.numpy() == numbers[name]).all() for name, p in packed.parameters().items()
               if name in numbers)
    assert (packed.token_embedding.weight.numpy() != model.token_embedding.weight.numpy()).any()


# -- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt", "llama"])
def test_an_adapted_model_writes_what_its_full_forward_says(backend, kind):
    """With the cache, and on C by recorded kernels (generation/decoder.py)."""
    model = adapted(kind)
    ids = list(inputs_of(model)[0][0])
    written = [step[0] for step in tokens(model, [ids], Sampling(temperature=0), 6, mf.Rng(0))]
    for token in written:
        with mf.no_grad():
            assert token == np.argmax(model(np.array([ids])).numpy()[0, -1])
        ids.append(token)


# -- files ---------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    """A small GPT of single bytes, in files."""
    place = tmp_path / "base"
    place.mkdir()
    config = GPTConfig(vocabulary=257, context=32, layers=2, heads=2, width=16)
    save_model(randomised(GPT(config)), place, Tokenizer.bytes())
    return place


def tuned(base, **settings):
    model = load_model(base)
    add_adapters(model, replace(SMALL, base=str(base), **settings), rng=mf.Rng(0))
    return random_adapters(model)


def changed(base):
    """The model of those files trained on, in the same shapes."""
    model = load_model(base)
    model.blocks[0].perceptron_norm.gain.data[3] += 1e-6
    save_model(model, base)


def test_another_base_of_the_same_shapes_is_noticed(backend, base, tmp_path):
    place, said = tmp_path / "place", "sha256: the adapter has learnt over other weights"
    place.mkdir()
    model = tuned(base, whole=("norm",))
    save_model(model, place)
    save_model(load_model(base), base, shard_bytes=5000)        # the same weights in other files
    assert bits(load_model(place)) == bits(model)
    changed(base)
    with pytest.raises(FormatError, match=said) as told:
        load_model(place)
    assert str(place / "adapter_base.json") in str(told.value)
    assert "a GPT" in str(told.value) and "delete this file" in str(told.value)
    untouched = load_model(base)
    before = bits(untouched)
    with pytest.raises(FormatError, match=said):
        load_adapter(untouched, place)
    assert bits(untouched) == before and adapter_config(untouched) is None
    (place / "adapter_base.json").unlink()                      # the way out; and peft's adapters
    assert adapter_config(load_model(place)) is not None


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_an_adapter_knows_over_which_format_it_has_learnt(backend, base, tmp_path, format):
    place, model, ids = tmp_path / "place", tuned(base), np.arange(20).reshape(2, 10)
    place.mkdir()
    pack_model(model, format)
    save_model(model, place)
    loaded = load_model(place)                                  # comes packed as it learnt
    assert packed_format(loaded) == format and bits(loaded) == bits(model)
    with mf.no_grad():
        assert (loaded(ids).numpy() == model(ids).numpy()).all()
    said = f"format: the adapter has learnt over weights that are packed as {format}, those of "
    with pytest.raises(FormatError, match=said + "the model are not packed; if you mean"):
        load_adapter(load_model(base), place)
    changed(base)
    with pytest.raises(FormatError, match="sha256: the adapter has learnt over other"):
        load_model(place)


def test_what_is_trained_whole_is_not_packed(backend):
    """The head of a RoBERTa has a layer that products read, and which learns beside adapters."""
    bert = Bert(replace(MODELS["bert"][1], layout="roberta", pooler=False, sentence_head=False),
                mf.Rng(0))
    model = with_head(bert, SequenceClassifier, ("a", "b"), rng=mf.Rng(1))
    add_adapters(model, replace(SMALL, whole=("dense", "output")), rng=mf.Rng(2))
    pack_model(model, "int8")
    assert packed_format(model) == "int8"
    assert {"dense.weight", "output.weight"} <= trainable(model).keys()
    model.loss(np.array([[1, 2, 3]]), np.array([1])).backward()
    assert np.abs(model.dense.weight.grad).max() > 0


SETTINGS = [{}, {"targets": ("project",), "rank_stabilised": True, "alpha": 2.5},
            {"targets": ("blocks.1.perceptron.output", "attention.output"), "dropout": 0.25},
            {"whole": ("norm", "position_embedding")}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_save_load_save_is_byte_identical(backend, base, tmp_path, settings):
    model, ids = tuned(base, **settings), np.arange(20).reshape(2, 10)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    save_model(model, first, Tokenizer.bytes())
    assert sorted(file.name for file in first.iterdir()) == [
        "adapter_base.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
        "tokenizer_config.json"]
    loaded = load_model(first)
    assert bits(loaded) == bits(model) and trainable(loaded).keys() == trainable(model).keys()
    with mf.no_grad():
        assert (loaded(ids).numpy() == model(ids).numpy()).all()
    asked, came = adapter_config(model), adapter_config(loaded)
    assert replace(came, targets=asked.targets, whole=asked.whole) == asked
    save_model(loaded, second, Tokenizer.bytes())
    assert files_of(first) == files_of(second)
    assert base_of(first) == base


def test_a_whole_model_takes_the_place_of_an_adapter(backend, base, tmp_path):
    model, place = tuned(base), tmp_path / "place"
    place.mkdir()
    save_model(model, place)
    merge_adapters(model)
    save_model(model, place)
    assert not (place / "adapter_config.json").exists()
    assert bits(load_model(place)) == bits(model)


@pytest.mark.parametrize("said", ["all-linear", r".*(c_attn|c_fc)"])
def test_where_targets_are_no_list_the_tensors_say_which(base, tmp_path, said):
    model = tuned(base, targets=("project", "expand"))
    save_adapter(model, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": said}))
    assert bits(load_model(tmp_path)) == bits(model)


def test_older_spellings_and_half_precision_are_read(base, tmp_path):
    """As for models: GPT-2 without its prefix; float16 is widened."""
    model = tuned(base)
    save_adapter(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    arrays = {name.replace("transformer.", ""): array.astype(np.float16)
              for name, array in load_file(file).items()}
    save_file(arrays, file)
    loaded = load_model(tmp_path)
    for name, p in trainable(model).items():
        expected = p.numpy().astype(np.float16).astype(np.float32)
        assert (trainable(loaded)[name].numpy() == expected).all()


def changed_config(**settings):
    def change(place):
        file = place / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return change


def changed_arrays(change):
    def rewrite(place):
        file = place / "adapter_model.safetensors"
        arrays = load_file(file)
        change(arrays)
        save_file(arrays, file)
    return rewrite


def as_pickle(place):
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")


A = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
B = A.replace("lora_A", "lora_B")
BAD = [
    (changed_config(peft_type="LOHA"), ["adapter_config.json: peft_type", "LORA", "'LOHA'"]),
    (changed_config(peft_type=None), ["peft_type", "None"]),
    (changed_config(use_dora=True), ["use_dora", "not supported"]),
    (changed_config(bias="all"), ["bias", "'all'", "not supported"]),
    (changed_config(rank_pattern={"c_attn": 2}), ["rank_pattern", "not supported"]),
    (changed_config(layers_to_transform=[0]), ["layers_to_transform", "not supported"]),
    (changed_config(something_new=1), ["something_new", "not supported"]),
    (changed_config(init_lora_weights="pissa"), ["init_lora_weights", "'pissa'"]),
    (changed_config(r=4), [f"{A} is [3, 16], expected [4, 16]", f"{B} is [48, 3], expected"]),
    (changed_config(r="3"), ["rank: expected an integer, got '3'"]),
    (changed_config(r=True), ["rank: expected an integer, got True"]),
    (changed_config(use_rslora="yes"), ["rank_stabilised: expected true or false"]),
    (changed_config(base_model_name_or_path=3), ["base: expected a string, got 3"]),
    (changed_config(r=0), ["rank: expected at least 1"]),
    (changed_config(lora_alpha=-1), ["alpha: expected more than 0"]),
    (changed_config(lora_alpha=float("nan")), ["alpha"]),
    (changed_config(lora_dropout=1.5), ["dropout: expected"]),
    (changed_config(target_modules=None), ["target_modules", "list of names"]),
    (changed_config(target_modules=["q_proj"]), [f"{A} is unknown", "no linear layer"]),
    (changed_config(target_modules=["c_fc"]), [f"{A} is unknown"]),
    (changed_config(target_modules=[3]), ["target_modules", "list of names"]),
    (changed_config(modules_to_save="norm"), ["modules_to_save", "list of names"]),
    (changed_config(modules_to_save=["ln_f"]), ["ln_f.weight is missing", "ln_f.bias is missing"]),
    (changed_arrays(lambda arrays: arrays.pop(B)), [f"{B} is missing"]),
    (changed_arrays(lambda arrays: arrays.update({"x.weight": arrays[A]})), ["x.weight is unkn"]),
    (changed_arrays(lambda arrays: arrays.update({A: arrays[A].astype(int)})), [f"{A} is I64"]),
    (changed_arrays(lambda arrays: arrays.update({A: np.full((3, 16), 1e300)})), ["float32"]),
    (as_pickle, ["adapter_model.safetensors is not here", "adapter_model.bin may be a pickle"]),
    (lambda place: (place / "adapter_config.json").write_text("[]"), ["expected a JSON object"]),
    *((lambda place, said=said: (place / "adapter_base.json").write_text(said), parts)
      for said, parts in {
          "{": ["adapter_base.json: not JSON"],
          '{"sha256": "0"}': ["adapter_base.json: format: expected one of null, fp32, bf16, int8",
                             "got nothing"],
          '{"sha256": "0", "format": ["int8"]}': ["format: expected one of null"],
          '{"sha256": 0, "format": null}': ["sha256: expected a digest, got 0"]}.items()),
    (lambda place: (place / "adapter_model.safetensors").write_bytes(b"1234"), ["4 bytes"]),
]


@pytest.mark.parametrize("change, parts", BAD, ids=range(len(BAD)))
def test_a_bad_file_is_one_line_and_leaves_the_model_alone(base, tmp_path, change, parts):
    save_adapter(tuned(base), tmp_path)
    change(tmp_path)
    model = load_model(base)
    before = bits(model)
    with pytest.raises(FormatError) as failure:
        load_adapter(model, tmp_path)
    assert all(part in str(failure.value) for part in parts), failure.value
    assert "\n" not in str(failure.value) and str(tmp_path) in str(failure.value)
    assert bits(model) == before and len(trainable(model)) == len(before)


def test_an_adapter_for_another_model_says_what_differs(base):
    model = load_model(base)                # narrower, and of as many layers
    with pytest.raises(FormatError, match="this model, a GPT: ") as failure:
        load_adapter(model, GOLDEN / "adapter-gpt2")
    assert str(failure.value).count("expected [") == 8      # both matrices of 4 layers
    assert "c_attn.lora_A.weight is [3, 24], expected [3, 16]" in str(failure.value)
    with pytest.raises(FormatError) as failure:
        load_adapter(model, GOLDEN / "adapter-llama")
    assert str(failure.value).count("is unknown") == LISTED
    assert f"; and {28 - LISTED} more; " in str(failure.value)


@pytest.mark.parametrize("name, said", [
    (None, "does not say of which model"), ("./nowhere", "no such directory"),
    ("itself", "is an adapter itself")])
def test_a_base_that_is_not_to_be_had_is_one_line(base, tmp_path, name, said):
    place = tmp_path / "itself"
    place.mkdir()
    save_adapter(tuned(base), place)
    changed_config(base_model_name_or_path=str(place) if name == "itself" else name)(place)
    with pytest.raises(FormatError, match=said) as failure:
        load_model(place)
    assert "base_model_name_or_path" in str(failure.value) and "\n" not in str(failure.value)


def test_what_files_cannot_hold_is_refused(base, tmp_path):
    with pytest.raises(ConfigError, match="no adapters"):
        save_adapter(load_model(base), tmp_path)
    with pytest.raises(UserError, match="expected a directory"):
        save_adapter(tuned(base), tmp_path / "none")
    model = adapted("transformer")
    model.logits_bias.requires_grad = True
    with pytest.raises(ConfigError, match="logits_bias is trained and stands beside other parts"):
        save_adapter(model, tmp_path)
    model = plain("bert")           # whose module of that name holds the tied table, too
    add_adapters(model, AdapterConfig(whole=("masked_head",)), rng=mf.Rng(0))
    with pytest.raises(ConfigError, match="cls.predictions.bias is trained and stands beside"):
        save_adapter(model, tmp_path)


def test_parts_that_are_trained_whole_have_the_names_of_the_largest_modules(tmp_path):
    model = plain("bert")
    add_adapters(model, AdapterConfig(targets=("query",), whole=(
        "masked_head.dense", "masked_head.norm", "sentence_head", "blocks.1.perceptron")),
        rng=mf.Rng(0))
    save_adapter(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == [
        "bert.encoder.layer.1.intermediate", "bert.encoder.layer.1.output.dense",
        "cls.predictions.transform", "cls.seq_relationship"]
    again = plain("bert")
    load_adapter(again, tmp_path)
    assert trainable(again).keys() == trainable(model).keys() and bits(again) == bits(model)
    assert adapter_config(again).whole == (
        "blocks.1.perceptron", "masked_head.dense", "masked_head.norm", "sentence_head")


# -- runs ----------------------------------------------------------------------------------------

RUN = TrainConfig(steps=5, batch=2, warmup=1, save_every=2, learning_rate=0.05, evaluate_every=0,
                  average=0.5, seed=3)


class Noise:
    """Random tokens to learn."""

    count, description = 2, {"kind": "noise"}

    def batch(self, step):
        ids = mf.Rng(1).child(step).integers(0, 257, (2, 13))
        return ids[:, :-1], ids[:, 1:]


def trainer_in(directory, base, format=None, average=RUN.average, **settings):
    model = load_model(base)
    if format:
        pack_model(model, format)
    add_adapters(model, replace(SMALL, base=str(base), dropout=0.1, **settings), rng=mf.Rng(9))
    return Trainer(model, Noise(), replace(RUN, average=average), directory=directory,
                   shown=False, draw=False, tokenizer=Tokenizer.bytes(), check_memory=False)


@pytest.mark.parametrize("format, average", [(None, 0.5), (None, 0.0), ("int4", 0.0)])
def test_a_run_of_adapters_resumes_bitwise(backend, base, tmp_path, format, average):
    settings = {"format": format, "average": average, "whole": ("norm",)}
    before = bits(load_model(base))
    whole, part = (trainer_in(tmp_path / name, base, **settings) for name in ("whole", "part"))
    packed = {name: p.numpy().tobytes() for name, p in whole.model.parameters().items()
              if not p.requires_grad}
    whole.train()
    part.train(until=3)
    resumed = trainer_in(tmp_path / "part", base, **settings)
    resumed.resume()
    assert resumed.step == 3
    resumed.train()
    assert bits(resumed.model) == bits(whole.model)
    assert {k: v.tobytes() for k, v in resumed.optimizer.state().items()} == \
        {k: v.tobytes() for k, v in whole.optimizer.state().items()}
    # What is not trained has no moments, and is as it was.
    assert whole.optimizer.m.keys() == trainable(whole.model).keys()
    after = bits(whole.model)
    assert all(after[name] == packed[name] for name in packed)
    assert format or all(after[name] == before[name] for name in packed)
    assert any(after[name] != before[name] for name in ("norm.gain", "norm.bias"))


def test_a_checkpoint_holds_the_adapter_and_opens_as_a_model(backend, base, tmp_path):
    trainer = trainer_in(tmp_path / "run", base, average=0.0)
    trainer.train()
    last = checkpoint.path_of(tmp_path / "run", 5)
    files = {str(file.relative_to(last)) for file in last.rglob("*") if file.is_file()}
    assert files == {"adapter_base.json", "adapter_config.json", "adapter_model.safetensors",
                     "tokenizer.json", "tokenizer_config.json", "trainer_state/state.json",
                     "trainer_state/optimizer.safetensors"}
    loaded = load_model(last)
    assert bits(loaded) == bits(trainer.model)
    _, arrays = read_adapter(trainer.model, last)
    assert arrays.keys() == trainable(trainer.model).keys()


def test_another_adapter_or_a_damaged_one_is_not_resumed(backend, base, tmp_path):
    trainer_in(tmp_path / "run", base).train(until=2)
    other = trainer_in(tmp_path / "run", base, rank=4)
    with pytest.raises(ConfigError, match="model.adapters.rank: 3 in the checkpoint, 4 now"):
        other.resume()
    with pytest.raises(FormatError, match="expected"):
        other.resume(force=True)
    weights = checkpoint.path_of(tmp_path / "run", 2) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(FormatError, match="damaged"):
        trainer_in(tmp_path / "run", base).resume()


@pytest.mark.parametrize("kind, masked", [("gpt", False), ("llama", False), ("bert", True)])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_work_of_a_step_is_what_is_computed(kind, masked, recompute):
    objective = (MaskedLanguageModel if masked else CausalLanguageModel)(recompute)
    ids = np.arange(48).reshape(4, 12) % V
    batch = ids, np.where(np.arange(12) % 3, -100, ids) if masked else ids
    model = plain(kind)
    assert computed_part(model, objective, batch) == 1
    freeze(model.norm)          # which has no product; BERT has parts that this loss never reads
    tolerance = 0.01 if masked else 1e-12
    assert computed_part(model, objective, batch) == pytest.approx(1, rel=tolerance)
    freeze(model)                                   # the head alone learns, and what is below it
    last = model.masked_head if masked else model.norm
    freeze(last, False)
    everything = objective.flops(model, tuple(x[:1] for x in batch))
    forward = everything / 3
    part = computed_part(model, objective, batch)
    assert forward < part * everything < everything / 2
    assert all(p.grad is None for p in model.parameters().values())
    low = computed_part(adapted(kind), objective, batch)
    assert 0.6 < low < 0.95                         # no weights' gradients; thin matrices' own


def test_the_speed_of_a_run_counts_what_is_computed(base, tmp_path):
    trainer = trainer_in(tmp_path / "run", base, "int4")
    trainer.speed.ceiling = 1e9
    whole = trainer.objective.flops(trainer.model, Noise().batch(0))
    trainer.speed.count = lambda tokens, flops: counted.append(flops)
    counted = []
    trainer.train(until=1)
    assert counted == [trainer.computed * whole] and 0.5 < trainer.computed < 0.95


def test_memory_counts_what_is_trained(base, tmp_path):
    trainer = trainer_in(tmp_path / "run", base, "int4")
    need = memory.estimate(trainer.model, CausalLanguageModel(), Noise().batch(0), RUN)
    count = sum(p.numpy().size for p in trainable(trainer.model).values())
    assert need.gradients == 4 * count and need.moments == 8 * count
    numbers = sum(int(np.prod(p.shape)) for p in trainer.model.parameters().values())
    assert need.weights < 4 * numbers / 2


# -- commands ------------------------------------------------------------------------------------


@pytest.fixture
def adapter(base, tmp_path):
    place = tmp_path / "adapter"
    place.mkdir()
    save_adapter(tuned(base), place)
    return place


WORDS = ("Hello", "--temperature", 0, "--max-tokens", 5)


def test_generate_from_an_adapter_and_from_its_merged_model(minifm, base, adapter, tmp_path):  # noqa: F811
    written = minifm("generate", adapter, *WORDS)
    assert written[0] == 0 and written != minifm("generate", base, *WORDS)
    status, said, complaint = minifm("merge", adapter, "--out", tmp_path / "merged")
    assert (status, complaint) == (0, "") and "a GPT" in said
    change = float(said.split("at most ")[1].split()[0])
    assert 0 < change < 1e-5 and "over 128 tokens" in said
    assert minifm("generate", tmp_path / "merged", *WORDS) == written
    merged = tuned(base)
    merge_adapters(merged)
    assert bits(load_model(tmp_path / "merged")) == bits(merged)
    assert minifm("generate", adapter, *WORDS, "--format", "int8")[0] == 0


def test_merge_rounds_the_base_as_it_was_in_training(minifm, base, adapter, tmp_path):  # noqa: F811
    packed = tuned(base)
    pack_model(packed, "int4")
    (tmp_path / "packed").mkdir()
    save_adapter(packed, tmp_path / "packed")
    model = load_model(base)
    pack_model(model, "int4")
    unpack_model(model)
    add_adapters(model, SMALL, rng=mf.Rng(0))
    merge_adapters(random_adapters(model))
    (adapter / "adapter_base.json").unlink()        # as other libraries write adapters
    for place, words in ((adapter, ("--format", "int4")), (tmp_path / "packed", ())):
        out = tmp_path / f"{place.name}-merged"
        assert minifm("merge", place, *words, "--out", out)[0] == 0
        assert bits(load_model(out)) == bits(model)


def test_merge_takes_another_base_and_other_models(minifm, base, adapter, tmp_path):  # noqa: F811
    changed_config(base_model_name_or_path=None)(adapter)
    assert minifm("merge", adapter, "--base", base, "--out", tmp_path / "merged")[0] == 0
    for name in ("bert", "t5"):
        status, said, _ = minifm("merge", GOLDEN / f"adapter-{name}", "--base", GOLDEN / name,
                                 "--out", tmp_path / name)
        assert status == 0 and "rounding" in said


def test_a_users_mistakes_are_one_line_and_leave_nothing(minifm, base, adapter, tmp_path):  # noqa: F811
    before, out = sorted(tmp_path.iterdir()), ("--out", tmp_path / "merged")
    refused(minifm("merge", base, *out), "expected an adapter")
    refused(minifm("merge", adapter, "--base", adapter, *out), "an adapter itself")
    refused(minifm("merge", adapter, "--out", base), "exists already")
    refused(minifm("merge", GOLDEN / "adapter-gpt2", "--base", base, *out), "expected [3, 16]")
    refused(minifm("merge", adapter, "--format", "int8", *out), "learnt over weights that are not")
    refused(minifm("quantize", adapter, "--format", "int8", *out), "merge it first")
    refused(minifm("pretrain", "--init", adapter, "--data", __file__,
                   "--out", tmp_path / "run"), "merge it first")
    assert sorted(tmp_path.iterdir()) == before
