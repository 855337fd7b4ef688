"""The classifier in whose features pictures are compared, and the judge that it becomes: it learns,
is read again as it was, and refuses what it cannot judge."""

import json
from dataclasses import replace

import numpy as np
import pytest
from modelling import in_float64, randomised
from networks import assert_parts_are_the_models, assert_save_load_save_is_byte_identical

import minifm as mf
from minifm.errors import ConfigError, FormatError, ShapeError
from minifm.evaluation.distribution import Real
from minifm.hub import save_arrays
from minifm.media import PICTURE, SOUND, Examples
from minifm.models import ClassifierConfig, PictureClassifier
from minifm.training import checkpoint, denoising, judging, told
from minifm.training.judging import judge_of, seen, widths_for

pytestmark = pytest.mark.usefixtures("undrawn")

CONFIG = ClassifierConfig(inputs=2, classes=3, widths=(4, 6), layers=1, groups=2)


# -- the classifier --------------------------------------------------------------------------------


def test_the_list_of_parts_is_the_models():
    assert_parts_are_the_models(CONFIG, CONFIG.parts())
    assert_parts_are_the_models(replace(CONFIG, widths=(4,), layers=2),
                                replace(CONFIG, widths=(4,), layers=2).parts())


@pytest.mark.parametrize("H, W", [(8, 8), (4, 12)])
def test_flops_are_those_that_are_counted(H, W):
    model, x = randomised(PictureClassifier(CONFIG)), mf.Rng(0).normal((3, 2, H, W))
    x = mf.Tensor(x, requires_grad=True)
    with mf.FlopCounter() as counter:
        y = model(x)
        assert counter.total == 3 * CONFIG.flops(H, W)
        y.sum().backward()
    assert counter.total == 3 * CONFIG.flops(H, W, training=True)


def test_features_are_what_the_last_layer_reads():
    with mf.use("numpy"):
        model = in_float64(randomised(PictureClassifier(CONFIG)))
        x = mf.Rng(1).host_normal((3, 2, 8, 8), np.float64)
        features = model.features(x).numpy()
        assert features.shape == (3, 6)
        logits = features @ model.output.weight.numpy() + model.output.bias.numpy()
        np.testing.assert_allclose(model(x).numpy(), logits, rtol=1e-12)
        np.testing.assert_allclose(model(x[1:2]).numpy(), logits[1:2], rtol=1e-9)


def test_save_load_save_is_byte_identical(tmp_path):
    assert assert_save_load_save_is_byte_identical(
        randomised(PictureClassifier(CONFIG)), tmp_path).config == CONFIG


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="groups: 2 groups do not divide the width 7"):
        replace(CONFIG, widths=(4, 7))
    with pytest.raises(ConfigError, match="widths: expected at least one"):
        replace(CONFIG, widths=())
    for shape in ((1, 2, 7, 8), (1, 1, 8, 8), (2, 8, 8)):
        with pytest.raises(ShapeError, match=r"expected pictures \[B, 2, H, W\] with H and W mult"):
            PictureClassifier(CONFIG)(np.zeros(shape, np.float32))


@pytest.mark.parametrize("size, levels", [((8, 8), 2), ((32, 32), 4), ((28, 28), 3), ((64, 64), 4),
                                          ((7, 7), 1), ((8, 12), 2), ((12, 9), 1)])
def test_levels_follow_from_the_size(size, levels):
    widths = widths_for(*size)
    assert len(widths) == levels and not any(n % 2 ** (levels - 1) for n in size)


# -- the judge -------------------------------------------------------------------------------------


def examples(N=120, side=8, **changes):
    """Bright on the left, or on the right, with noise; "c" is dark."""
    rng, labels = mf.Rng(3), np.arange(N) % 3
    x = rng.child("x").host_normal((N, 1, side, side)) * 0.3 - 0.5
    x[labels == 0, ..., : side // 2] += 1
    x[labels == 1, ..., side // 2 :] += 1
    parts = {"training": np.arange(N - 30), "held_out": np.arange(N - 30, N)}
    whole = Examples(
        kind=PICTURE, values=np.clip(x, -1, 1), labels=labels.astype(np.int32),
        classes=tuple("abc"), captions=None, parts=parts,
        description={"name": "halves", "sha256": "1" * 64})
    return replace(whole, **changes)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(judging, "STEPS", 12)
    monkeypatch.setattr(judging, "BATCH", 24)
    monkeypatch.setattr(judging, "WIDTHS", (8, 16))


def test_a_judge_learns_is_kept_and_read_again(tmp_path):
    data = examples()
    judge = judge_of(tmp_path / "judge", data)
    assert judge.accuracy > 0.9
    x = data.take(data.parts["held_out"])
    features, labels = seen(judge.network, x)
    assert np.mean(labels == data.labels[data.parts["held_out"]]) == judge.accuracy
    np.testing.assert_array_equal(features, judge.held_out)
    np.testing.assert_array_equal(judge.features(x), features)
    np.testing.assert_array_equal(
        judge.real.features, judge.features(data.take(data.parts["training"])))
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "judge").rglob("*.*") if f.is_file()}
    again = judge_of(tmp_path / "judge", data)
    assert again.accuracy == judge.accuracy and again.reference(30) == judge.reference(30)
    assert all(f.stat().st_mtime_ns == at for f, at in files.items() if f.name != "metrics.jsonl")


def test_a_judge_that_was_stopped_becomes_the_same(tmp_path, monkeypatch):
    whole = judge_of(tmp_path / "whole", examples())
    trainer = judging._trainer(tmp_path / "part", examples(), 0, False)
    trainer.train(until=5)
    again = judge_of(tmp_path / "part", examples())
    assert checkpoint.steps_in(tmp_path / "part")[-1] == 12
    np.testing.assert_array_equal(again.real.features, whole.real.features)


def test_quality_falls_with_what_is_wrong(tmp_path):
    data = examples()
    judge = judge_of(tmp_path / "judge", data)
    x = data.take(data.parts["held_out"])
    noise = mf.Rng(9).host_normal(x.shape)
    found = [judge.quality(x + noise * much, 30) for much in (0, 0.3, 1.0)]
    assert found[0] == judge.reference(30)
    distances = [quality.frechet_distance for quality in found]
    assert distances == sorted(distances) and distances[2] > 3 * distances[0]
    assert found[2].precision < found[0].precision
    one = judge.quality(np.repeat(x[:1], 30, 0), 30)        # always the same picture
    assert one.recall < 0.1 < 0.6 < found[0].recall
    assert (judge.size(500), judge.size(20)) == (30, 20)


def test_what_a_judge_cannot_do_is_refused(tmp_path):
    for data, part in ((examples(labels=None), "have no classes"),
                       (examples(kind=SOUND), "not at sounds"),
                       (examples(classes=("a",)), "have no classes")):
        with pytest.raises(ConfigError, match=part):
            judge_of(tmp_path / "judge", data)
    assert not (tmp_path / "judge").exists()
    judge_of(tmp_path / "judge", examples())
    other = examples(description={"name": "halves", "sha256": "2" * 64})
    with pytest.raises(ConfigError, match="examples"):
        judge_of(tmp_path / "judge", other)
    file = tmp_path / "judge" / judging.FEATURES
    save_arrays({"training": np.zeros((3, 16))}, file)
    with pytest.raises(FormatError, match="delete it"):
        judge_of(tmp_path / "judge", examples())
    file.unlink()
    assert isinstance(judge_of(tmp_path / "judge", examples()).real, Real)


# -- a run that is judged --------------------------------------------------------------------------


class Copier:
    """Makes real examples of the classes that it is asked for, at first with noise."""

    def __init__(self, data):
        self.data, self.shown = data, []

    def made(self, network, labels):
        training = self.data.parts["training"]
        known = self.data.labels[training]
        places = [np.flatnonzero(known == label)[i % 20] for i, label in enumerate(labels)]
        x = self.data.take(training[places])
        return x + network * mf.Rng(1).host_normal(x.shape)

    def __call__(self, network, step):
        self.shown.append(step)


def test_a_curve_measures_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    maker = Copier(examples())
    labels = np.arange(60) % 3
    curve = judging.QualityCurve(tmp_path, maker.data, labels, maker, seed=2)
    curve.teach()
    found = [curve.measure(noise) for noise in (1.0, 0.0)]
    assert found[0]["frechet_distance"] > 3 * found[1]["frechet_distance"]
    assert found[1] == curve.judge.quality(maker.made(0.0, labels), 30).figures
    assert curve.reference == curve.judge.reference(30).figures
    for step, figures in enumerate(found):
        judging.Metrics(tmp_path / "metrics.jsonl").append({"step": step, "scores": figures})
    curve.sketch(0.0, 1)
    assert maker.shown == [1] and (tmp_path / "quality.png").stat().st_size > 5000


def test_classes_are_drawn_as_often_as_they_are_there():
    data = examples(labels=np.repeat(np.arange(3), [12, 48, 60]).astype(np.int32))
    places = judging.drawn_places(data, 9000, mf.Rng(0))
    assert set(places) <= set(data.parts["training"])
    labels = data.labels[places]
    expected = np.array([12, 48, 30]) / 90
    found = np.bincount(labels, minlength=3) / 9000
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / 9000))
    assert len(labels) == 9000 and np.array_equal(
        judging.drawn_places(data, 9000, mf.Rng(0)), places)


def judged_run(directory, data, monkeypatch, **more):
    monkeypatch.setattr(told, "SHOWN_STEPS", 2)
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: data)
    config = denoising.DenoisingTrainConfig(steps=4, batch=6, warmup=1, evaluate_every=2,
                                            evaluate_batches=1, save_every=2, average=0.5)
    shape = {"widths": (8, 16), "attention": (1,), "layers": 1, "head_width": 8, "groups": 4}
    return denoising.prepare(
        directory, denoising.ExamplesConfig(), config, shape=shape, shown=False,
        **{"judging": judging.JudgeConfig(judge=24)} | more).trainer


def test_a_judged_run_goes_on_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    whole = judged_run(tmp_path / "whole", examples(), monkeypatch)
    whole.train()
    judged_run(tmp_path / "run", examples(), monkeypatch).train(until=2)
    trainer = judged_run(tmp_path / "run", examples(), monkeypatch, resume=True)
    trainer.train()
    scores = [[line["scores"] for line in run.metrics.read() if "scores" in line]
              for run in (whole, trainer)]
    assert scores[0] == scores[1] and len(scores[0]) == 2
    distances = [each["frechet_distance"] for each in scores[0]]
    assert trainer.best == whole.best and trainer.best["score"] == min(distances)
    assert trainer.best["step"] == 2 + 2 * int(np.argmin(distances))
    assert judged_run(tmp_path / "run", examples(), monkeypatch, resume=True,
                      judging=judging.JudgeConfig()).best is None   # another measure says it now
    settings = json.loads((tmp_path / "whole" / "run.json").read_text())["settings"]
    assert settings["judge"] == 24


def test_a_run_that_cannot_be_judged_is_refused_before_it_begins(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="judge: the data have no classes"):
        judged_run(tmp_path / "run", examples(labels=None, classes=()), monkeypatch)
    few = {"training": np.arange(100), "held_out": np.arange(100, 103)}
    with pytest.raises(ConfigError, match="judge: the data have 3 held_out examples"):
        judged_run(tmp_path / "run", examples(parts=few), monkeypatch)
    with pytest.raises(ConfigError, match="judge: expected 0, or at least 6 pictures"):
        judging.JudgeConfig(judge=3)
    assert not (tmp_path / "run").exists()
