"""Ways to make pictures beside each other: shapes of one size, latents of each class, a whole study
and one that was stopped, its report, and what is refused.

Data are simple and networks tiny: what is tested is that what is reported is so.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

import minifm as mf
from minifm.cli import main
from minifm.cli.compare import cells, rows_of, table
from minifm.comparison import contestants, study
from minifm.comparison.study import CompareConfig, begin, picked, take_up
from minifm.errors import ConfigError, FormatError
from minifm.evaluation.made import distances, recognised
from minifm.media import PICTURE, SOUND, Examples
from minifm.models import ARCHITECTURES, AutoencoderConfig, AutoencoderKL, UNetConfig
from minifm.training import denoising, judging, pictures, told
from minifm.training.denoising import ExamplesConfig
from minifm.training.pictures import OBJECTIVES

pytestmark = pytest.mark.usefixtures("undrawn")

ROWS = ["autoencoder", "vae", "vae, N(0, 1)", "gan", "diffusion"]


def examples(N=90, **changes):
    """Bright on the left, or on the right, with noise."""
    labels = np.arange(N) % 2
    x = mf.Rng(3).child("x").host_normal((N, 1, 8, 8)) * 0.3 - 0.5
    x[labels == 0, ..., :4] += 1
    x[labels == 1, ..., 4:] += 1
    whole = Examples(
        kind=PICTURE, values=np.clip(x, -1, 1), labels=labels.astype(np.int32), classes=("a", "b"),
        captions=None, parts={"training": np.arange(N - 20), "held_out": np.arange(N - 20, N)},
        description={"name": "halves", "sha256": "1" * 64})
    return replace(whole, **changes)


# -- contestants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, classes", [((1, 8, 8), 10), ((1, 16, 16), 62), ((3, 32, 32), 10),
                                            ((1, 28, 28), 10)])
def test_all_have_as_many_weights(shape, classes):
    data = examples(values=np.zeros((90, *shape), np.float32), classes=tuple(range(classes)))
    counts = {}
    for each in contestants.contestants(data):
        follows = {"inputs": shape[0], "outputs": shape[0], "size": shape[1],
                   "classes": classes + 1} if each.arch == "unet" else \
            OBJECTIVES[each.arch].shape_for(data)
        counts[each.name] = ARCHITECTURES[each.arch].config(**each.shape | follows).parameters
    assert list(counts) == ["autoencoder", "vae", "gan", "diffusion"]
    for count in counts.values():
        assert abs(count / counts["diffusion"] - 1) <= 0.1


def test_a_size_that_none_has_is_refused():
    with pytest.raises(ConfigError, match="no network of 2 levels has about 50 weights"):
        contestants.nearest(2, 50, lambda widths: UNetConfig(
            widths=widths, attention=(1,), head_width=8, groups=8))


def coder(drawn=True):
    model = AutoencoderKL(AutoencoderConfig(inputs=1, outputs=1, size=8, widths=(4, 8), layers=1,
                                            groups=2, latents=1), mf.Rng(0))
    if not drawn:
        model.narrow()
    return model


@pytest.mark.parametrize("drawn", [True, False])
def test_latents_of_a_class_have_the_moments_of_what_is_drawn(drawn):
    """D = 16 latents. Of class 1 there are too few pictures for a covariance of its own."""
    labels = (np.arange(90) % 9 == 0).astype(np.int32)
    data, model = examples(labels=labels), coder(drawn)
    found = contestants.latent_gaussians(model, data)
    posterior = model.encode(data.take(np.arange(70)))
    z = np.float64(posterior.mean.numpy()).reshape(70, 16)
    variance = np.exp(np.float64(posterior.log_variance.numpy())).reshape(70, 16)
    known = labels[:70]
    assert found.shape == (1, 4, 4)
    for k in range(2):
        np.testing.assert_allclose(found.mean[k], z[known == k].mean(0), rtol=1e-6, atol=1e-7)
    own = np.cov(z[known == 0].T, ddof=0) + np.diag(variance[known == 0].mean(0))
    np.testing.assert_allclose(found.spread[0] @ found.spread[0], own, atol=1e-6)
    away = z - np.stack([z[known == k].mean(0) for k in known])
    shared = away.T @ away / 70 + np.diag(variance.mean(0))
    np.testing.assert_allclose(found.spread[1] @ found.spread[1], shared, atol=1e-6)


def test_pictures_are_made_of_the_gaussian_of_their_class():
    data, model = examples(), coder()
    gaussians = contestants.latent_gaussians(model, data)
    still = replace(gaussians, spread=np.zeros_like(gaussians.spread))
    made = contestants.Fitted(model, still, np.array([1, 0, 1]), 0).make()
    z = gaussians.mean[[1, 0, 1]].astype(np.float32).reshape(3, 1, 4, 4)
    np.testing.assert_allclose(made, model.decode(z).numpy(), atol=1e-6)
    noise = mf.Rng(0).child("sample").host_normal((3, 16), np.float64)
    z = [gaussians.mean[k] + gaussians.spread[k] @ noise[i] for i, k in enumerate((1, 0, 1))]
    expected = model.decode(np.float32(z).reshape(3, 1, 4, 4)).numpy()
    made = contestants.Fitted(model, gaussians, np.array([1, 0, 1]), 0).make()
    np.testing.assert_allclose(made, expected, atol=1e-5)
    labels = np.zeros(300, int)
    makers = (contestants.Fitted(model, gaussians, labels, 0),
              contestants.Drawn(model, (1, 4, 4), labels, 0))
    for maker in makers:
        np.testing.assert_array_equal(maker.make(), maker.make())
    noise = mf.Rng(0).child("sample").host_normal((300, 1, 4, 4))
    np.testing.assert_allclose(makers[1].make(), model.decode(noise).numpy(), atol=1e-5)


# -- the study -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Networks of some thousand weights, a judge of few steps, samples in few."""
    monkeypatch.setattr(judging, "STEPS", 12)
    monkeypatch.setattr(judging, "WIDTHS", (8, 16))
    monkeypatch.setattr(told, "SHOWN_STEPS", 2)
    monkeypatch.setattr(contestants, "widths_for", lambda H, W: (8, 16))
    monkeypatch.setattr(contestants, "CLOSE", 0.5)
    monkeypatch.setattr(contestants, "GROUPS", 4)
    monkeypatch.setattr(contestants, "unet_shape", lambda H, W: {
        "widths": (8, 16), "attention": (), "layers": 1, "head_width": 8, "groups": 8})
    for module in (study, pictures, denoising):
        monkeypatch.setattr(module, "open_examples", lambda wanted, say: examples())


CONFIG = CompareConfig(steps=10, batch=8, count=40)


def test_a_study_measures_all_and_goes_on_where_it_was_stopped(tmp_path, quick, capsys):
    pytest.importorskip("sklearn")
    begun, heard = begin(tmp_path / "run", ExamplesConfig(), CONFIG), []
    assert begun.steps["diffusion"] == 10 and len(begun.steps) == 4
    first = begun.remaining()[0]
    config = first.config(begun.steps[first.name], 8, 0)
    first.prepare(tmp_path / "run" / first.name, begun.wanted, config, shown=False) \
        .trainer.train(until=4)                                         # as a kill leaves it
    taken = take_up(tmp_path / "run")
    assert taken.steps == begun.steps and taken.config == CONFIG
    found = taken.run(heard.append, shown=False)
    assert found == json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["name"] for row, _ in rows_of(found)] == ["real, held out", *ROWS]
    check_rows(found, begun, tmp_path / "run")
    again = take_up(tmp_path / "run").run(heard.append, shown=False)    # nothing is left to do
    assert again == found
    # The whole from the command line: nothing but the report is made again.
    assert main(["compare", "--resume", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert all(line in out for line in table(found))
    page = (tmp_path / "run" / "report.html").read_text()
    for row, line in rows_of(found):
        assert all(text in page for text in cells(row, line).values())
        assert (tmp_path / "run" / row["pictures"]).exists() and row["pictures"] in page
    assert main(["compare", "--out", str(tmp_path / "run")]) == 2
    assert main(["compare", "--resume", "--out", str(tmp_path / "run"), "--count", "50"]) == 2
    err = capsys.readouterr().err
    assert "already holds a comparison" in err and "count: a comparison that is resumed" in err


def check_rows(found, begun, place):
    """Figures in the report are those of the pictures that lie beside it; operations are alike."""
    data, labels = examples(), begun.labels
    judge = judging.judge_of(place / "judge", data)
    for row, line in rows_of(found)[1:]:
        x = np.load(place / row["pictures"].replace(".png", ".npy"))
        assert x.shape == (40, 1, 8, 8) and np.abs(x).max() <= 1
        quality = judge.quality(x, 20)
        assert row["frechet_distance"] == quality.frechet_distance and row["size"] == 20
        assert (row["precision"], row["recall"]) == (quality.precision, quality.recall)
        assert row["nearest"] == np.median(distances(data, x).made)
        asked = row["name"] != "vae, N(0, 1)"
        assert row["recognised"] == (recognised(data, x, labels).made if asked else None)
        assert line["step"] == begun.steps[line["contestant"]] and line["training_seconds"] > 0
        if line["step"] > study.LEAST_STEPS:
            assert line["flops"] == pytest.approx(begun.flops, rel=0.51 / line["step"] + 1e-9)
    assert found["reference"]["recognised"] == recognised(
        data, data.take(np.arange(70, 90)), data.labels[70:]).real


def test_minutes_become_steps(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(study, "seconds_of_diffusion", lambda *given: 0.25)
    begun = begin(tmp_path / "run", ExamplesConfig(), CompareConfig(minutes=1.0))
    assert begun.steps["diffusion"] == 240
    assert begun.flops == 240 * 64 * study.cost(begun.contestants[-1], examples())


def test_columns_are_classes():
    x, labels = np.arange(12.0).reshape(12, 1, 1, 1), np.arange(12) % 3
    seen = picked(x, labels, 4).reshape(study.ROWS, 4)
    np.testing.assert_array_equal(seen[:, :3] % 3, [[0, 1, 2]] * 4)
    np.testing.assert_array_equal(seen[:, 0], [0, 3, 6, 9])
    np.testing.assert_array_equal(seen[:, 3], 1)        # of which there is none: white
    few = picked(5 + x[:5], labels[:5], 3).reshape(4, 3)        # none stands for another twice
    np.testing.assert_array_equal(few, [[5, 6, 7], [8, 9, 1], [1, 1, 1], [1, 1, 1]])
    assert picked(x, labels, 4, most=2).shape == (study.ROWS * 2, 1, 1, 1)


@pytest.mark.parametrize("data, part", [
    (examples(labels=None, classes=()), "the data have no classes"),
    (examples(kind=SOUND), "not at sounds"),
    (examples(values=np.zeros((90, 1, 8, 4), np.float32)), "a gan makes square pictures")])
def test_data_that_cannot_be_compared_on_are_refused(tmp_path, quick, monkeypatch, data, part):
    monkeypatch.setattr(study, "open_examples", lambda wanted, say: data)
    with pytest.raises(ConfigError, match=part):
        begin(tmp_path / "run", ExamplesConfig(), CONFIG)
    assert not (tmp_path / "run").exists()


def test_a_study_is_taken_up_as_it_was(tmp_path, quick, monkeypatch):
    begin(tmp_path / "run", ExamplesConfig(), CONFIG)
    monkeypatch.setattr(study, "open_examples", lambda wanted, say: examples(
        description={"name": "halves", "sha256": "2" * 64}))
    with pytest.raises(ConfigError, match="the data are not those of the comparison"):
        take_up(tmp_path / "run")
    (tmp_path / "run" / study.FILE).write_text('{"format": 1}')
    with pytest.raises(FormatError, match="no comparison can be read"):
        take_up(tmp_path / "run")
    with pytest.raises(ConfigError, match="there is no comparison to go on with"):
        take_up(tmp_path / "other")


@pytest.mark.parametrize("words, part", [
    (["--minutes", "0"], "minutes: expected more than 0"), (["--count", "2"], "count: expected"),
    (["--steps", "3"], "steps: expected at least 10"),
    (["--steps", "20", "--minutes", "1"], "steps: so many of them, or --minutes"),
    (["--data", "nowhere"], "nowhere: no such file"), (["--size", "9"], "size: the digits have 8")])
def test_wrong_words_are_told_in_one_line(tmp_path, capsys, words, part):
    pytest.importorskip("sklearn")
    assert main(["compare", "--out", str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
