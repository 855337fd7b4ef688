"""Learning to undo noise: batches are functions of the step, pieces equal the whole, resumed runs
equal uninterrupted ones, and what does not fit is refused in one line.

Data are noise and networks tiny: what is tested is that the same numbers come out.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifm as mf
from minifm.errors import ConfigError
from minifm.generation.condition import Table
from minifm.generation.diffusion import Pipeline
from minifm.media import PICTURE, SOUND, Examples
from minifm.media.drawing import write_png
from minifm.models import DiT, DiTConfig, UNet, UNetConfig
from minifm.tensor import Tensor
from minifm.training import denoising, told
from minifm.training.denoising import (
    DenoisingTrainConfig,
    ExamplesConfig,
    HeldOutExamples,
    NoiseConfig,
    NoiseObjective,
    TrainingExamples,
)
from minifm.training.networks import recipe_of, shape_for
from minifm.training.told import Sketches

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = {"widths": (8, 16), "attention": (1,), "layers": 1, "head_width": 8, "groups": 4}
CONFIG = DenoisingTrainConfig(steps=5, batch=6, accumulate=2, warmup=1, average=0.5,
                              evaluate_every=2, evaluate_batches=2, save_every=2, seed=3)


def examples(N=14, shape=(1, 4, 4), classes=3, kind=PICTURE):
    rng = mf.Rng(7)
    return Examples(
        kind=kind, values=rng.child("values").integers(0, 256, (N, *shape)).astype(np.uint8),
        labels=(np.arange(N) % classes).astype(np.int32) if classes else None,
        classes=tuple("abcdefgh"[:classes]), captions=None,
        parts={"training": np.arange(N - 4), "held_out": np.arange(N - 4, N)},
        description={"name": "noise", "sha256": "0" * 64})


LABELS = Table({"labels": np.arange(4)}, np.arange(14) % 3)       # of three classes, and none


def batches(kind=TrainingExamples, config=NoiseConfig(), part="training", **more):
    data = examples()
    options = {"batch": 6, "rng": mf.Rng(1), "table": LABELS, "description": {"none": 3}} | more
    return kind(data, data.parts[part], config, **options)


# -- batches ---------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_the_step():
    forwards, backwards = batches(), batches()
    found = [forwards.batch(step) for step in range(5)]
    for step in reversed(range(5)):
        for x, y in zip(found[step], backwards.batch(step), strict=True):
            assert x.tobytes() == y.tobytes()
    assert not np.array_equal(found[0][1], found[1][1])         # noise is new in each step


@given(rows=st.integers(1, 13))
def test_each_round_has_every_example_once(rows):
    data = examples()
    made = TrainingExamples(data, data.parts["training"], NoiseConfig(), batch=rows, rng=mf.Rng(2),
                            table=Table({}, np.zeros(14, int)), description={})
    seen = np.concatenate([made.batch(step)[0] for step in range(20)])[:20]
    rounds = [sorted(x.tobytes() for x in part) for part in (seen[:10], seen[10:])]
    assert rounds[0] == rounds[1] == sorted(
        x.tobytes() for x in data.take(data.parts["training"]))
    assert seen[:10].tobytes() != seen[10:].tobytes()           # in another order


def test_labels_are_left_out_as_often_as_asked():
    for drop in (0.0, 0.3):
        made = batches(config=NoiseConfig(drop=drop), batch=1000)
        dropped = np.mean(made.batch(0)[3] == 3)
        assert abs(dropped - drop) <= 4 * np.sqrt(drop * (1 - drop) / 1000)


def test_half_of_the_pictures_are_mirrored():
    plain, mirrored = (batches(config=NoiseConfig(flip=flip), batch=400).batch(0)[0]
                       for flip in (False, True))
    turned = np.array([not np.array_equal(x, y) for x, y in zip(plain, mirrored)])
    np.testing.assert_array_equal(mirrored[turned], plain[turned][..., ::-1])
    assert abs(turned.mean() - 0.5) <= 4 * 0.5 / np.sqrt(400)


def test_held_out_batches_are_all_examples_once_with_their_labels():
    made = batches(HeldOutExamples, NoiseConfig(drop=0.9, flip=True), "held_out", batch=3)
    data = examples()
    assert made.count == 2
    x0, labels = (np.concatenate([made.batch(i)[place] for i in range(2)]) for place in (0, 3))
    np.testing.assert_array_equal(x0, data.take(data.parts["held_out"]))
    np.testing.assert_array_equal(labels, data.labels[data.parts["held_out"]])


@pytest.mark.parametrize("config", [NoiseConfig(), NoiseConfig(schedule="flow"),
                                    NoiseConfig(schedule="flow", times="lognormal"),
                                    NoiseConfig(times="lognormal", noise_steps=50)])
def test_times_are_those_of_the_schedule(config):
    times = batches(config=config, batch=200).batch(0)[2]
    schedule = config.scheduler.schedule
    assert times.min() >= schedule.least and times.max() <= schedule.greatest
    assert times.std() > 0.05 * config.noise_steps


# -- the objective ---------------------------------------------------------------------------------


class Silent:
    """Predicts 0 everywhere."""

    def __call__(self, x, t, **condition):
        return Tensor(np.zeros(x.shape, x.dtype))


def test_the_loss_of_predicting_nothing_is_the_mean_square_of_the_target():
    batch = batches(config=NoiseConfig(predict="epsilon")).batch(0)
    objective = NoiseObjective(NoiseConfig(predict="epsilon"), keywords=("labels",))
    loss = objective.loss(Silent(), batch, denominator=6, rng=None)
    expected = np.mean(batch[1].astype(np.float64) ** 2)
    assert abs(loss.item() - expected) <= 1e-5 * expected
    assert objective.count(batch) == objective.tokens(batch) == 6


@pytest.mark.parametrize("arch", ["unet", "dit"])
def test_pieces_add_up_to_the_batch(arch):
    noise = NoiseConfig()
    network = network_of(arch, noise)
    objective, batch = NoiseObjective(noise, keywords=("labels",)), batches().batch(0)
    whole = objective.loss(network, batch, denominator=6, rng=None).item()
    pieces = [objective.loss(network, tuple(x[i : i + 2] for x in batch), denominator=6,
                             rng=None).item() for i in (0, 2, 4)]
    assert abs(sum(pieces) - whole) <= 1e-5 * abs(whole)
    assert objective.flops(network, batch) > 6 * network.config.parameters


def network_of(arch, noise, data=None):
    made = shape_for(arch, recipe_of(data or examples(), noise))
    if arch == "unet":
        return UNet(UNetConfig(**SHAPE | made), mf.Rng(0))
    return DiT(DiTConfig(**dict(layers=2, heads=2, width=8) | made), mf.Rng(0))


@pytest.mark.parametrize("settings, part", [
    ({"schedule": "flow", "predict": "v"}, "predict: v does not go with the schedule flow"),
    ({"predict": "flow"}, "predict: flow does not go"),
    ({"zero_terminal": True, "predict": "epsilon"}, "zero_terminal: at noise alone"),
    ({"schedule": "flow", "zero_terminal": True}, "zero_terminal"),
    ({"drop": 1.0}, "drop: expected"), ({"weighting": "none"}, "weighting: expected one of")])
def test_what_cannot_be_learnt_is_refused(settings, part):
    with pytest.raises(ConfigError, match=part):
        NoiseConfig(**settings)


# -- the run ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """The data called "noise" are those above; snapshots are made in few steps."""
    monkeypatch.setattr(told, "SHOWN_STEPS", 2)
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: examples())


def run_in(directory, config=CONFIG, **more):
    options = {"noise": NoiseConfig(), "shape": SHAPE, "shown": False} | more
    return denoising.prepare(directory, ExamplesConfig(data="noise"), config, **options)


def everything(trainer):
    log = [{k: v for k, v in line.items() if "per_second" not in k and k != "utilisation"}
           for line in trainer.metrics.read()]
    arrays = {name: p.numpy().tobytes() for name, p in trainer.model.parameters().items()}
    return arrays, log, trainer.best


@pytest.mark.parametrize("split", [1, 3])
def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path, split):
    whole = run_in(tmp_path / "whole").trainer
    whole.train()
    run_in(tmp_path / "run").trainer.train(until=split)
    trainer = run_in(tmp_path / "run", resume=True).trainer
    trainer.train()
    assert everything(trainer) == everything(whole)
    files = [sorted((tmp_path / run / "samples").iterdir()) for run in ("run", "whole")]
    assert [[f.name for f in run] for run in files] == [
        ["step-00000002.png", "step-00000004.png", "step-00000005.png"]] * 2
    assert [[f.read_bytes() for f in run] for run in files][0] == \
        [f.read_bytes() for f in files[1]]
    assert all(line["examples"] == 6 * line["step"] for line in trainer.metrics.read()
               if "loss" in line)


def test_a_checkpoint_has_the_averaged_network_and_its_recipe(tmp_path):
    prepared = run_in(tmp_path / "run", noise=NoiseConfig(schedule="linear", predict="epsilon"))
    prepared.trainer.train()
    found = Pipeline.load(tmp_path / "run" / "last")
    assert found.recipe == prepared.recipe
    assert found.recipe.classes == ("a", "b", "c") and found.recipe.shape == (1, 4, 4)
    with prepared.trainer.judged():
        for name, p in prepared.trainer.model.parameters().items():
            np.testing.assert_array_equal(found.network.parameters()[name].numpy(), p.numpy())
    # … and so had the last snapshot.
    asked = prepared.trainer.sketch.asked
    assert asked[:6] + asked[-5:] == ["a"] * 6 + ["c"] * 5 and len(asked) == 16
    Sketches(tmp_path / "again", found.recipe, asked, CONFIG.seed)(found.network, 5)
    name = "step-00000005.png"
    assert (tmp_path / "again" / name).read_bytes() == \
        (tmp_path / "run" / "samples" / name).read_bytes()
    config = json.loads((tmp_path / "run/last/config.json").read_text())
    assert (config["_class_name"], config["num_class_embeds"]) == ("UNet2DModel", 4)
    scheduler = json.loads((tmp_path / "run/last/scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["beta_schedule"]) == ("epsilon", "linear")


@pytest.mark.parametrize("changed", [{"predict": "epsilon"}, {"schedule": "linear"},
                                     {"drop": 0.5}])
def test_a_run_is_not_resumed_by_another_objective(tmp_path, changed):
    run_in(tmp_path / "run").trainer.train(until=1)
    with pytest.raises(ConfigError, match=next(iter(changed))):
        run_in(tmp_path / "run", resume=True, noise=replace(NoiseConfig(), **changed))


def test_a_network_to_start_from_must_make_the_same(tmp_path, monkeypatch):
    run_in(tmp_path / "run").trainer.train(until=1)
    last = tmp_path / "run" / "last"
    begun = run_in(tmp_path / "more", initial=last, shape={}).trainer.model
    for name, p in Pipeline.load(last).network.parameters().items():
        np.testing.assert_array_equal(begun.parameters()[name].numpy(), p.numpy())
    with pytest.raises(ConfigError, match="predicts v, and this run is of epsilon"):
        run_in(tmp_path / "x", initial=last, shape={}, noise=NoiseConfig(predict="epsilon"))
    with pytest.raises(ConfigError, match="knows 3 classes, and this run is of 0"):
        run_in(tmp_path / "x", initial=last, shape={}, noise=NoiseConfig(labels=False))
    with pytest.raises(ConfigError, match="arch"):
        run_in(tmp_path / "x", initial=last, shape={}, arch="dit")
    monkeypatch.setattr(denoising, "open_examples",
                        lambda wanted, say: examples(shape=(3, 4, 4)))
    with pytest.raises(ConfigError, match="pictures of 1 channel, and this run is of pictures"):
        run_in(tmp_path / "x", initial=last, shape={})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("data, options, part", [
    (examples(shape=(1, 5, 5)), {}, "size: examples of 5 × 5, and a UNet of 2 levels takes "
                                    "multiples of 2"),
    (examples(shape=(1, 16), kind=SOUND), {}, "a unet makes pictures, not sounds"),
    (examples(shape=(1, 16), kind=SOUND), {"arch": "dit", "noise": NoiseConfig(flip=True)},
     "flip: a sound has no left and right"),
    (examples(), {"config": replace(CONFIG, recompute=True)}, "recompute"),
    (examples(shape=(1, 5, 5)), {"arch": "dit", "shape": {"patch": (2, 2)}}, "patch: 2 does not")])
def test_what_the_network_cannot_read_is_refused(tmp_path, monkeypatch, data, options, part):
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: data)
    with pytest.raises(ConfigError, match=part):
        run_in(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_dit_learns_sounds(tmp_path, monkeypatch):
    sounds = examples(shape=(1, 32), kind=SOUND)
    sounds.description["rate"] = 100
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: sounds)
    trainer = run_in(tmp_path / "run", arch="dit", noise=NoiseConfig(schedule="flow"),
                     shape={"patch": (4,), "layers": 1, "heads": 2, "width": 8}).trainer
    trainer.train(until=2)
    found = Pipeline.load(tmp_path / "run" / "last")
    assert found.sample(["a", "c"]).shape == (2, 1, 32)
    assert (found.recipe.rate, found.recipe.kind) == (100, SOUND)


# -- the command line ------------------------------------------------------------------------------


def test_a_folder_of_pictures_becomes_a_model(tmp_path, capsys, monkeypatch):
    pytest.importorskip("PIL")
    from minifm import cli
    monkeypatch.undo()
    values = mf.Rng(4).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    for place, picture in enumerate(values):
        write_png(tmp_path / "data" / "ab"[place % 2] / f"{place}.png", picture)
    words = ["pretrain", "--arch", "unet", "--data", str(tmp_path / "data"), "--out",
             str(tmp_path / "run"), "--steps", "2", "--batch", "4", "--widths", "8", "16",
             "--groups", "4", "--head-width", "8", "--predict", "epsilon"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "squared error a number" in out and "sample" in out
    assert "in 2 classes" in err and "predicts epsilon under cosine noise" in err
    assert Pipeline.load(tmp_path / "run" / "last").recipe.classes == ("a", "b")
    assert cli.main(["pretrain", "--resume", "--out", str(tmp_path / "run"), "--force"]) == 0
    assert cli.main([*words, "--resume", "--predict", "v"]) == 2
    assert "predict" in capsys.readouterr().err


@pytest.mark.parametrize("words, part", [
    (["--tokenizer", "bytes"], "unet has no such setting"),
    (["--classes", "3"], "--classes"), (["--data", "nowhere"], "nowhere: no such file"),
    (["--predict", "noise"], "predict: expected one of"), (["--patch", "2"], "--patch")])
def test_wrong_flags_are_one_line(tmp_path, capsys, monkeypatch, words, part):
    from minifm import cli
    monkeypatch.undo()
    assert cli.main(["pretrain", "--arch", "unet", "--out", str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1
