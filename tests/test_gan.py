"""The generative adversarial network: its parts and files; what each side learns and from which
gradients; runs that resume bitwise, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import in_float64, randomised
from networks import assert_parts_are_the_models, assert_save_load_save_is_byte_identical
from opaque import OpaqueBackend

import minifm as mf
from minifm.errors import ConfigError, ShapeError
from minifm.hub import load_model
from minifm.media import PICTURE, Examples
from minifm.models import GAN, GANConfig
from minifm.nn import held
from minifm.training import pictures
from minifm.training.adversarial import (
    Adversarial,
    AdversarialConfig,
    AdversarialTrainConfig,
    forged,
    softplus,
)
from minifm.training.denoising import ExamplesConfig

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = {"widths": (4, 8), "layers": 1, "groups": 2, "noise": 3, "told": 6}
CONFIG = GANConfig(inputs=1, size=4, classes=3, **SHAPE)
TRAIN = AdversarialTrainConfig(steps=4, batch=6, accumulate=2, warmup=1, average=0.5,
                               evaluate_every=2, evaluate_batches=2, save_every=2, seed=3)


def examples(N=14, classes=3, shape=(1, 4, 4)):
    values = mf.Rng(7).child("values").integers(0, 256, (N, *shape)).astype(np.uint8)
    return Examples(
        kind=PICTURE, values=values, captions=None, classes=tuple("abcdef"[:classes]),
        labels=(np.arange(N) % classes).astype(np.int32) if classes else None,
        parts={"training": np.arange(N - 4), "held_out": np.arange(N - 4, N)},
        description={"name": "noise", "sha256": "0" * 64})


def objective_of(config=CONFIG, **settings):
    objective = Adversarial(AdversarialConfig(**settings))
    objective.model = config
    return objective


# -- the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, classes=0, layers=2, size=8)])
def test_the_list_of_parts_is_the_models(config):
    model = assert_parts_are_the_models(config, config.parts())
    generator = sum(p.data.size for p in model.generator.parameters().values())
    assert config.generator_parameters == generator


def test_flops_are_those_of_a_step():
    model, objective = GAN(CONFIG, mf.Rng(0)), objective_of()
    batch = objective.arrays(examples(), np.arange(6), mf.Rng(1))
    with mf.FlopCounter() as counter:
        model(batch[1], labels=batch[3])
    assert counter.total == 6 * CONFIG.flops()
    with mf.FlopCounter() as counter:
        objective.loss(model, batch, denominator=6, rng=None).backward()
    # What is told is 6 % at most: the first layers of a network need no gradient of their input.
    assert counter.total <= objective.flops(model, batch) <= 1.06 * counter.total


def test_pictures_by_one_and_together_and_by_another_backend():
    z, labels = mf.Rng(2).host_normal((3, 3), np.float64), np.array([2, 0, 1])
    with mf.use("numpy"):
        model = in_float64(randomised(GAN(CONFIG)))
        made = model(z, labels=labels)
        seen = model.judged(made, labels=labels).numpy()
        assert made.shape == (3, 1, 4, 4) and np.abs(made.numpy()).max() <= 1
        for i in range(3):
            one = slice(i, i + 1)
            np.testing.assert_allclose(model(z[one], labels=labels[one]).numpy(),
                                       made.numpy()[one], rtol=1e-9)
            np.testing.assert_allclose(
                model.judged(made[one], labels=labels[one]).numpy(), seen[one], rtol=1e-9)
        assert np.abs(model(z, labels=labels[::-1].copy()).numpy() - made.numpy()).max() > 1e-3
        plain = randomised(GAN(CONFIG))(np.float32(z), labels=labels).numpy()
    with mf.use(OpaqueBackend()):
        other = randomised(GAN(CONFIG))(mf.Tensor(np.float32(z)), labels=labels)
        np.testing.assert_array_equal(other.numpy(), plain)


def test_save_load_save_is_byte_identical(tmp_path):
    assert assert_save_load_save_is_byte_identical(
        randomised(GAN(CONFIG)), tmp_path).config == CONFIG


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="size: expected a multiple of 2, for 2 levels, got 5"):
        replace(CONFIG, size=5)
    model, z = GAN(CONFIG), np.zeros((2, 3), np.float32)
    for inputs, part in (((z[:, :2], np.zeros(2, int)), r"expected noise \[B, 3\], got \[2, 2\]"),
                         ((z, np.zeros(3, int)), r"expected labels \[2\], got \[3\]"),
                         ((z, None), r"expected labels \[2\], got none")):
        with pytest.raises(ShapeError, match=part):
            model(inputs[0], labels=inputs[1])
    with pytest.raises(ShapeError, match="expected no labels"):
        GAN(replace(CONFIG, classes=0))(z, labels=np.zeros(2, int))


# -- what is learnt --------------------------------------------------------------------------------


@given(st.floats(-800, 800))
def test_softplus(x):
    with mf.use("numpy"):
        found = softplus(mf.Tensor(np.array([x], np.float64))).item()
    assert found == pytest.approx(np.logaddexp(0, x), rel=1e-12, abs=1e-15)


def gradients(model, loss):
    for p in model.parameters().values():
        p.grad = None
    loss.backward()
    return {name: np.zeros(p.shape) if p.grad is None else p.grad.copy()
            for name, p in model.parameters().items()}


def test_each_side_gets_the_gradients_of_its_own_loss():
    """In one step, those that two optimizers would get in two: of the generator by what deceives,
    with the discriminator as it was; of the discriminator by what it gets wrong."""
    with mf.use("numpy"):
        model, objective = in_float64(randomised(GAN(CONFIG))), objective_of(penalty=0.3)
        batch = objective.arrays(examples(), np.arange(6), mf.Rng(1))
        x, z, nudge, labels = (np.float64(a) if a.dtype == np.float32 else a for a in batch)
        found = gradients(model, objective.loss(model, (x, z, nudge, labels), denominator=6,
                                                rng=None))
        deceived = gradients(model, mf.ops.mean(softplus(-model.judged(
            model(z, labels=labels), labels=labels))))
        made = model(z, labels=labels).numpy()
        wrong = mf.ops.mean(softplus(-model.judged(x, labels=labels))) \
            + mf.ops.mean(softplus(model.judged(made, labels=labels)))
        for y in (x, made):
            slope = (model.judged(y + 0.05 * nudge, labels=labels)
                     - model.judged(y, labels=labels)) * 20.0
            wrong = wrong + mf.ops.mean(slope * slope) * 0.15
        wrong = gradients(model, wrong)
    assert any(np.abs(g).max() > 1e-3 for name, g in deceived.items() if "discriminator" in name)
    for name, g in found.items():
        expected = (deceived if name.startswith("generator") else wrong)[name]
        np.testing.assert_allclose(g, expected, rtol=1e-8, atol=1e-10, err_msg=name)


def test_the_slope_is_that_of_the_discriminator():
    """By nudges, in the mean over many, |dD/dx|² as backward has it: 5 standard errors, and 1 % for
    what a nudge of 0.001 sees of the curvature."""
    n = 4000
    with mf.use("numpy"):
        model = in_float64(randomised(GAN(CONFIG)))
        x = mf.Tensor(mf.Rng(3).host_normal((1, 1, 4, 4), np.float64), requires_grad=True)
        model.judged(x, labels=np.array([1])).sum().backward()
        exact = float((x.grad**2).sum())
        objective, many = objective_of(nudge=0.001), np.repeat(x.numpy(), n, 0)
        nudge = mf.Rng(4).host_normal((n, 1, 4, 4), np.float64)
        slopes = objective._discriminated(model, many, mf.Tensor(many), nudge,
                                          {"labels": np.full(n, 1)})[1].numpy() / 2
    assert abs(slopes.mean() - exact) <= 5 * slopes.std() / np.sqrt(n) + 0.01 * exact


def test_what_is_held_gets_no_gradient_and_keeps_what_it_has():
    model = GAN(CONFIG, mf.Rng(0))
    model.discriminator.output.bias.grad = had = np.ones(1, np.float32)
    model.discriminator.labels.weight.requires_grad = False
    with held(model.discriminator):
        made = model(np.ones((2, 3), np.float32), labels=np.array([0, 1]))
        loss = model.judged(made, labels=np.array([0, 1])).sum()
    loss.backward()
    assert model.discriminator.output.bias.grad is had and had == 1
    grads = {name: p.grad for name, p in model.parameters().items()}
    assert all(g is None for name, g in grads.items()
               if name.startswith("discriminator") and name != "discriminator.output.bias")
    assert grads["generator.last.weight"] is not None
    free = [p.requires_grad for p in model.discriminator.parameters().values()]
    assert free.count(False) == 1


# -- the run ---------------------------------------------------------------------------------------


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr(pictures, "open_examples", lambda wanted, say: examples())


def run_in(directory, **more):
    options = {"shape": SHAPE, "shown": False, "arch": "gan"} | more
    return pictures.prepare(directory, ExamplesConfig(data="noise"), TRAIN, **options).trainer


def everything(trainer):
    log = [{k: v for k, v in line.items() if "per_second" not in k and k != "utilisation"}
           for line in trainer.metrics.read()]
    return {name: p.numpy().tobytes() for name, p in trainer.model.parameters().items()}, log


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path, data):
    whole = run_in(tmp_path / "whole")
    before = {name: p.numpy().copy() for name, p in whole.model.parameters().items()}
    whole.train()
    run_in(tmp_path / "run").train(until=1)
    trainer = run_in(tmp_path / "run", resume=True)
    trainer.train()
    assert everything(trainer) == everything(whole)
    moved = [name for name, p in whole.model.parameters().items()
             if not np.array_equal(p.numpy(), before[name])]
    assert {"generator.last.weight", "discriminator.trunk.first.weight"} <= set(moved)
    line = next(line for line in trainer.metrics.read() if "generator" in line)
    assert line["loss"] == pytest.approx(
        line["generator"] + line["discriminator"] + 0.05 * line["slope"], rel=1e-5)
    files = [sorted((tmp_path / run / "samples").iterdir()) for run in ("run", "whole")]
    assert [f.name for f in files[0]] == ["step-00000002.png", "step-00000004.png"]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_what_is_made_is_the_same_for_the_same_noise(tmp_path, data):
    run_in(tmp_path / "run").train(until=1)
    model = load_model(tmp_path / "run" / "last")
    labels = np.arange(300) % 3
    made = forged(model, labels, mf.Rng(5))
    assert made.shape == (300, 1, 4, 4)
    np.testing.assert_array_equal(made, forged(model, labels, mf.Rng(5)))
    z = mf.Rng(5).host_normal((300, 3))
    np.testing.assert_allclose(made[298:], model(z[298:], labels=labels[298:]).numpy(), atol=1e-5)


def test_pictures_that_are_not_square_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "open_examples", lambda wanted, say: examples(shape=(1, 4, 8)))
    with pytest.raises(ConfigError, match="a gan makes square pictures, these have 4 × 8"):
        run_in(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("sklearn")
    from minifm import cli
    words = ["pretrain", "--arch", "gan", "--data", "digits", "--out", str(tmp_path / "run"),
             "--steps", "1", "--batch", "4", "--widths", "8", "--evaluate-batches", "1"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "nats a picture, of both sides" in out and "GAN" in err
    assert cli.main([*words, "--divergence", "1"]) == 2
    assert "gan has no such setting (autoencoder has" in capsys.readouterr().err
