"""Learning pictures there and back: batches are functions of the step, pieces equal the whole,
resumed runs equal uninterrupted ones, latents are scaled, and what does not fit is refused in one
line.

Data are noise and networks tiny: what is tested is that the same numbers come out.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

import minifm as mf
from minifm.errors import ConfigError
from minifm.hub import load_model
from minifm.media import PICTURE, SOUND, Examples, drawing
from minifm.models import AutoencoderConfig, AutoencoderKL
from minifm.training import pictures
from minifm.training.autoencoding import (
    Autoencoding,
    AutoencodingConfig,
    ThereAndBack,
    scale_latents,
)
from minifm.training.denoising import DenoisingTrainConfig, ExamplesConfig
from minifm.training.rounds import HeldOutPictures, TrainingPictures

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = {"widths": (4, 8), "layers": 1, "groups": 2, "latents": 3}
MODEL = AutoencoderConfig(inputs=1, outputs=1, size=4, **SHAPE)
CONFIG = DenoisingTrainConfig(steps=5, batch=6, accumulate=2, warmup=1, average=0.5,
                              evaluate_every=2, evaluate_batches=2, save_every=2, seed=3)
PLAIN = AutoencodingConfig(drawn=False)


def examples(N=14, shape=(1, 4, 4), kind=PICTURE):
    values = mf.Rng(7).child("values").integers(0, 256, (N, *shape)).astype(np.uint8)
    return Examples(
        kind=kind, values=values, labels=None, classes=(), captions=None,
        parts={"training": np.arange(N - 4), "held_out": np.arange(N - 4, N)},
        description={"name": "noise", "sha256": "0" * 64})


def objective_of(learning):
    made = Autoencoding(learning)
    made.model = MODEL
    return made


def batches(kind=TrainingPictures, learning=AutoencodingConfig(), part="training", batch=6):
    data = examples()
    return kind(objective_of(learning), data, data.parts[part], batch=batch, rng=mf.Rng(1))


# -- what is learnt --------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_the_step():
    forwards, backwards = batches(), batches()
    found = [forwards.batch(step) for step in range(5)]
    for step in reversed(range(5)):
        for x, y in zip(found[step], backwards.batch(step), strict=True):
            assert x.tobytes() == y.tobytes()
    assert [x.shape for x in found[0]] == [(6, 1, 4, 4), (6, 3, 2, 2)]
    assert not np.array_equal(found[0][1], found[1][1])         # noise is new in each step
    assert len(batches(learning=PLAIN).batch(0)) == 1


def test_held_out_batches_are_all_pictures_once():
    made, data = batches(HeldOutPictures, part="held_out", batch=3), examples()
    assert made.count == 2
    seen = np.concatenate([made.batch(i)[0] for i in range(2)])
    np.testing.assert_array_equal(seen, data.take(data.parts["held_out"]))


def test_half_of_the_pictures_are_mirrored():
    plain, mirrored = (batches(learning=AutoencodingConfig(flip=flip), batch=400).batch(0)[0]
                       for flip in (False, True))
    turned = np.array([not np.array_equal(x, y) for x, y in zip(plain, mirrored)])
    np.testing.assert_array_equal(mirrored[turned], plain[turned][..., ::-1])
    assert abs(turned.mean() - 0.5) <= 4 * 0.5 / np.sqrt(400)


@pytest.mark.parametrize("learning, unit", [
    (AutoencodingConfig(divergence=0.25), "number, with 0.25 of the divergence"),
    (PLAIN, "number")])
def test_the_loss_is_squared_error_and_weighed_divergence(learning, unit):
    """By NumPy, from what the model says and gives back; pieces add up to it."""
    model, batch = AutoencoderKL(MODEL, mf.Rng(0)), batches(learning=learning).batch(0)
    objective = objective_of(learning)
    posterior = model.encode(batch[0])
    mean, log = (np.float64(y.numpy()) for y in (posterior.mean, posterior.log_variance))
    z = mean + np.exp(log / 2) * (batch[1] if learning.drawn else 0)
    squared = np.mean((model.decode(np.float32(z)).numpy() - np.float64(batch[0])) ** 2)
    nats = 0.5 * np.sum(mean**2 + np.exp(log) - 1 - log) / 6
    expected = squared + learning.divergence * nats / 16
    loss, told = objective.training_loss(model, batch, denominator=6, rng=None)
    assert abs(loss.item() - expected) <= 1e-5 * expected
    assert told["squared_error"] == pytest.approx(squared, rel=1e-5)
    assert told["divergence"] == pytest.approx(nats, rel=1e-5)
    pieces = [objective.loss(model, tuple(x[i : i + 2] for x in batch), denominator=6,
                             rng=None).item() for i in (0, 2, 4)]
    assert sum(pieces) == pytest.approx(expected, rel=1e-5)
    assert (objective.count(batch), objective.tokens(batch), objective.unit) == (6, 6, unit)
    assert objective.flops(model, batch) == 6 * MODEL.flops(4, training=True)


def test_without_drawing_there_is_no_divergence():
    assert (AutoencodingConfig().divergence, PLAIN.divergence) == (1e-6, 0.0)
    with pytest.raises(ConfigError, match="divergence: points have none; expected 0"):
        AutoencodingConfig(drawn=False, divergence=0.1)
    with pytest.raises(ConfigError, match="divergence: expected at least 0"):
        AutoencodingConfig(divergence=-1.0)


@pytest.mark.parametrize("batch", [3, 64])
def test_latents_of_the_training_pictures_have_mean_0_and_variance_1(batch):
    data, model = examples(N=200), AutoencoderKL(MODEL, mf.Rng(2))
    model.behind.bias.data += 1.5               # means far from 0, variances that count
    scale_latents(model, data, batch)
    x = data.take(data.parts["training"])
    likeliest = np.float64(model.to_latents(x).numpy())
    drawn = model.to_latents(x, rng=mf.Rng(5)).numpy()
    assert abs(likeliest.mean()) < 1e-5
    variances = np.exp(np.float64(model.encode(x).log_variance.numpy())) * model.config.scaling**2
    assert variances.mean() > 0.1
    assert likeliest.var() + variances.mean() == pytest.approx(1, rel=1e-5)
    # five standard errors, were the numbers independent and Gaussian
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / drawn.size)
    np.testing.assert_allclose(model.to_pictures(model.to_latents(x)).numpy(), model(x).numpy(),
                               atol=1e-4)


# -- the run ---------------------------------------------------------------------------------------


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr(pictures, "open_examples", lambda wanted, say: examples())


def run_in(directory, config=CONFIG, **more):
    options = {"shape": SHAPE, "shown": False} | more
    return pictures.prepare(directory, ExamplesConfig(data="noise"), config, **options).trainer


def everything(trainer):
    log = [{k: v for k, v in line.items() if "per_second" not in k and k != "utilisation"}
           for line in trainer.metrics.read()]
    arrays = {name: p.numpy().tobytes() for name, p in trainer.model.parameters().items()}
    return arrays, log, trainer.best, trainer.model.config


@pytest.mark.parametrize("learning", [AutoencodingConfig(divergence=0.01), PLAIN])
def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path, data, learning):
    whole = run_in(tmp_path / "whole", learning=learning)
    whole.train()
    run_in(tmp_path / "run", learning=learning).train(until=3)
    trainer = run_in(tmp_path / "run", learning=learning, resume=True)
    trainer.train()
    assert everything(trainer) == everything(whole)
    files = [sorted((tmp_path / run / "samples").iterdir()) for run in ("run", "whole")]
    assert [f.name for f in files[0]] == [f"step-0000000{n}.png" for n in (2, 4, 5)]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_a_checkpoint_has_the_averaged_network_with_its_latents_scaled(tmp_path, data):
    trainer = run_in(tmp_path / "run")
    trainer.train()
    found = load_model(tmp_path / "run" / "last")
    assert found.config == trainer.model.config and found.config.scaling != 1
    x = examples().take(np.arange(10))
    total = found.to_latents(x).numpy().var() + (
        np.exp(found.encode(x).log_variance.numpy()) * found.config.scaling**2).mean()
    assert total == pytest.approx(1, rel=1e-4)
    config = json.loads((tmp_path / "run/last/config.json").read_text())
    assert config["_class_name"] == "AutoencoderKL" and config["sample_size"] == 4
    with trainer.judged():
        for name, p in trainer.model.parameters().items():
            np.testing.assert_array_equal(found.parameters()[name].numpy(), p.numpy())


def test_a_plain_autoencoder_stays_one(tmp_path, data):
    """What it says of variances has never moved, so that drawing from it changes nothing."""
    run_in(tmp_path / "run", learning=PLAIN).train()
    model, x = load_model(tmp_path / "run" / "last"), examples().take(np.arange(10))
    np.testing.assert_array_equal(model.encode(x).log_variance.numpy(), -30)
    np.testing.assert_allclose(model(x, rng=mf.Rng(0)).numpy(), model(x).numpy(), atol=1e-4)


def test_snapshots_are_held_out_pictures_above_what_comes_back(tmp_path, data, monkeypatch):
    shown = []
    monkeypatch.setattr(drawing, "write_png", lambda path, picture: shown.append(picture))
    model = AutoencoderKL(MODEL, mf.Rng(0))
    ThereAndBack(tmp_path, examples())(model, 7)
    x = examples().take(np.arange(10, 14))
    both = np.concatenate([x, model(x).numpy()])
    np.testing.assert_array_equal(shown[0], drawing.grid(PICTURE.view(both), 4))


def test_snapshots_are_of_pictures_from_everywhere_among_those_held_out(tmp_path):
    data = examples(40)
    data.parts["held_out"] = np.arange(8, 40)
    snapshots = ThereAndBack(tmp_path, data)
    np.testing.assert_array_equal(snapshots.pictures, data.take(np.arange(8, 40, 2)))


def test_a_model_to_start_from(tmp_path, data, monkeypatch):
    run_in(tmp_path / "run").train(until=1)
    last = tmp_path / "run" / "last"
    begun = run_in(tmp_path / "more", initial=last, shape={}).model
    for name, p in load_model(last).parameters().items():
        np.testing.assert_array_equal(begun.parameters()[name].numpy(), p.numpy())
    with pytest.raises(ConfigError, match="widths: the model to start from has its own"):
        run_in(tmp_path / "x", initial=last, shape={"widths": (4, 8)})
    monkeypatch.setattr(pictures, "open_examples", lambda wanted, say: examples(shape=(3, 4, 4)))
    with pytest.raises(ConfigError, match="inputs: the model has 1, and these pictures take 3"):
        run_in(tmp_path / "x", initial=last, shape={})
    assert not (tmp_path / "x").exists()


def test_a_run_is_not_resumed_by_another_objective(tmp_path, data):
    run_in(tmp_path / "run").train(until=1)
    with pytest.raises(ConfigError, match="divergence: 1e-06 in the checkpoint, 0.5 now"):
        run_in(tmp_path / "run", resume=True, learning=AutoencodingConfig(divergence=0.5))
    with pytest.raises(ConfigError, match=r"latents: 3 in the checkpoint, 4 now"):
        run_in(tmp_path / "run", resume=True, shape=SHAPE | {"latents": 4})


@pytest.mark.parametrize("found, options, part", [
    (examples(shape=(1, 5, 4)), {}, "size: pictures of 5 × 4, and an autoencoder of 2 levels takes "
                                    "multiples of 2"),
    (examples(shape=(1, 16), kind=SOUND), {}, "an autoencoder learns pictures, not sounds"),
    (replace(examples(), parts={"training": np.arange(14), "held_out": np.arange(0)}), {},
     "noise has no held_out pictures"),
    (examples(), {"config": replace(CONFIG, recompute=True)}, "recompute")])
def test_what_cannot_be_learnt_is_refused(tmp_path, monkeypatch, found, options, part):
    monkeypatch.setattr(pictures, "open_examples", lambda wanted, say: found)
    with pytest.raises(ConfigError, match=part):
        run_in(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


# -- the command line ------------------------------------------------------------------------------


def test_a_folder_of_pictures_becomes_an_autoencoder(tmp_path, capsys):
    pytest.importorskip("PIL")
    from minifm import cli
    values = mf.Rng(4).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    for place, picture in enumerate(values):
        drawing.write_png(tmp_path / "data" / f"{place}.png", picture)
    words = ["pretrain", "--arch", "autoencoder", "--data", str(tmp_path / "data"), "--out",
             str(tmp_path / "run"), "--steps", "2", "--batch", "4", "--widths", "4", "8",
             "--groups", "2", "--divergence", "0.5"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "squared error a number, with 0.5 of the divergence" in out
    assert "latents of 4 × 4 × 4 numbers for 64" in err
    assert load_model(tmp_path / "run" / "last").config.size == 8
    assert cli.main(["pretrain", "--resume", "--steps", "3", "--force", "--out",
                     str(tmp_path / "run")]) == 0
    assert cli.main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "a.png")]) == 2
    assert "expected a network of a diffusion model, got a AutoencoderKL" in capsys.readouterr().err


@pytest.mark.parametrize("words, part", [
    (["--predict", "v"], "--predict: autoencoder has no such setting (unet, dit has: --arch unet)"),
    (["--scaling", "2"], "--scaling"), (["--preset", "unet-tiny"], "preset: unet-tiny is of unet"),
    (["--no-drawn", "--divergence", "1"], "divergence: points have none")])
def test_wrong_words_are_told_in_one_line(tmp_path, capsys, words, part):
    from minifm import cli
    assert cli.main(["pretrain", "--arch", "autoencoder", "--data", "digits", "--out",
                     str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1
