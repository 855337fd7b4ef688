"""Making examples: the same whatever the batch, guided as asked, true to what is known; and the
check of what was made."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import randomised

import minifm as mf
from minifm import cli, hub
from minifm.diffusion.samplers import SAMPLERS
from minifm.diffusion.scheduler import Scheduler
from minifm.errors import ConfigError, FormatError
from minifm.evaluation.made import NEAR, distances, nearest, recognised
from minifm.generation.diffusion import Known, Pipeline, Recipe, SampleConfig
from minifm.media import PICTURE, Examples
from minifm.media.drawing import write_png
from minifm.models import GPT, DiTConfig, GPTConfig, UNetConfig
from minifm.tensor import Tensor

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = (1, 4, 4)
SCHEDULER = Scheduler(objective="v", noise="cosine", spacing="trailing", limit=1.0)
UNET = UNetConfig(inputs=1, outputs=1, size=4, widths=(8, 16), attention=(1,), layers=1,
                  head_width=8, groups=4, classes=4)
DIT = DiTConfig(inputs=1, size=(4, 4), patch=(2, 2), layers=2, heads=2, width=8, classes=3)


def pipeline(config=UNET, classes=("a", "b", "c"), **more):
    return Pipeline(randomised(config.model(config, mf.Rng(0))),
                    Recipe(SCHEDULER, PICTURE, SHAPE, classes, **more))


class Knows:
    """Predicts v of data that are always `point`, exactly."""

    config = UNetConfig(inputs=1, outputs=1, size=4, widths=(4,), groups=4, attention=())

    def __init__(self, point):
        self.point = point

    def __call__(self, x, t):
        level = SCHEDULER.schedule.at(t)
        noise = (x - self.point * float(level.alpha)) * (1 / float(level.sigma))
        return noise * float(level.alpha) - self.point * float(level.sigma)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "flow_euler"])
def test_who_knows_the_data_finds_them(sampler):
    point = Tensor(np.linspace(-0.9, 0.9, 16, dtype=np.float32).reshape(1, *SHAPE))
    found = Pipeline(Knows(point), Recipe(SCHEDULER, PICTURE, SHAPE)).sample(
        [None] * 3, SampleConfig(steps=10, sampler=sampler))
    np.testing.assert_allclose(found, np.broadcast_to(point.numpy(), found.shape), atol=2e-4)


@pytest.mark.parametrize("config", [UNET, DIT])
def test_examples_do_not_depend_on_the_batch_or_on_others(config):
    made, labels = pipeline(config), ["a", "b", "c", "a", None]
    whole = made.sample(labels, SampleConfig(steps=4, eta=0.5, guidance=2))
    for batch in (1, 2, 3):
        found = made.sample(labels, SampleConfig(steps=4, eta=0.5, guidance=2, batch=batch))
        np.testing.assert_allclose(found, whole, atol=1e-4)
    first = made.sample(labels[:2], SampleConfig(steps=4, eta=0.5, guidance=2))
    np.testing.assert_allclose(first, whole[:2], atol=1e-4)
    assert not np.allclose(whole[0], whole[3], atol=0.01)           # other noise, same class


def test_a_seed_makes_the_same_and_another_another():
    made = pipeline()
    one, again, other = (made.sample(["a"], SampleConfig(steps=3, seed=seed)) for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize("config", [UNET, DIT])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_goes_so_many_times_as_far(config, guidance):
    made, x = pipeline(config), Tensor(mf.Rng(5).host_normal((2, *SHAPE)))
    found = made.model(["b", "c"], SampleConfig(guidance=guidance))(x, 500.0).numpy()
    with_it, without = (made.network(x, 500.0, labels=np.array(labels)).numpy()
                        for labels in ([1, 2], [3, 3]))
    np.testing.assert_allclose(found, without + guidance * (with_it - without), atol=1e-5)
    assert not np.allclose(with_it, without, atol=0.01)


def test_guidance_beyond_the_data_leaves_x_at_its_level():
    """x = α x₀ + σ ε must hold of the clipped estimate: else the steps do not fit together."""
    class Exaggerates(Knows):
        config = UNET

        def __call__(self, x, t, labels):
            return super().__call__(x, t) * (2.0 if labels[0] < 3 else 1.0)

    made = Pipeline(Exaggerates(Tensor(np.full((1, *SHAPE), 0.8, np.float32))),
                    Recipe(SCHEDULER, PICTURE, SHAPE, ("a", "b", "c")))
    seen = []
    made.sample(["a"], SampleConfig(steps=8, guidance=3),
                watch=lambda i, level, x, found: seen.append((level, x.numpy(), found)))
    assert seen.pop(0)[2] is None                           # where it begins
    assert any(np.abs(found.x0.numpy()).max() == 1 for _, _, found in seen)         # clipped
    for (level, x, _), (_, _, after) in zip(seen, seen[1:]):
        mixed = level.alpha * after.x0.numpy() + level.sigma * after.noise.numpy()
        np.testing.assert_allclose(mixed, x, atol=1e-5)


def test_what_is_known_stays():
    known = mf.Rng(6).uniform(SHAPE) * 1.8 - 0.9
    mask = np.zeros((1, 4, 4), np.float32)
    mask[:, :2] = 1
    for sampler in ("ddim", "ddpm", "dpm_2m", "heun"):
        found = pipeline().sample(["a"] * 2, SampleConfig(steps=5, sampler=sampler),
                                  known=Known(part=known, mask=mask))
        np.testing.assert_allclose(found[:, :, :2], np.broadcast_to(known[:, :2], (2, 1, 2, 4)),
                                   atol=1e-5)
        assert not np.allclose(found[0, :, 2:], found[1, :, 2:], atol=0.01)


def test_little_strength_leaves_the_start():
    point = Tensor(np.zeros((1, *SHAPE), np.float32))
    start = mf.Rng(6).uniform(SHAPE) * 1.8 - 0.9
    seen = []
    Pipeline(Knows(point), Recipe(SCHEDULER, PICTURE, SHAPE)).sample(
        [None], SampleConfig(steps=20, strength=0.1), known=Known(start=start),
        watch=lambda i, level, x, found: i < 0 or seen.append(found.noise.numpy()))
    assert len(seen) == 2                           # of 20 steps
    level = SCHEDULER.levels(20)[18]                # what was given shows, as if it were noise
    excess = seen[0][0] - mf.Rng(0).child("sample", "start").host_normal(SHAPE)
    np.testing.assert_allclose(excess, start * (level.alpha / level.sigma), atol=1e-3)


@given(frames=st.integers(2, 6), steps=st.integers(6, 9))
def test_a_strip_goes_from_the_data_to_noise_and_back(frames, steps):
    point = Tensor(np.full((1, *SHAPE), 0.5, np.float32))
    x0 = mf.Rng(6).uniform((2, *SHAPE)) * 1.8 - 0.9
    strip = Pipeline(Knows(point), Recipe(SCHEDULER, PICTURE, SHAPE)).strip(
        x0, [None] * 2, SampleConfig(steps=steps), frames=frames)
    assert strip.shape == (2, 2 * frames - 1, *SHAPE)
    np.testing.assert_array_equal(strip[:, 0], x0)
    np.testing.assert_allclose(strip[:, -1], 0.5, atol=2e-4)
    shares = [np.vdot(strip[:, i], x0) / np.vdot(x0, x0) for i in range(frames)]
    assert abs(shares[-1]) < abs(shares[0]) == 1


@pytest.mark.parametrize("labels, config, more, part", [
    (["z"], {}, {}, "classes: the model knows a, b, c, not z"),
    (["a"], {"sampler": "flow_euler"}, {}, "sampler: the model has learnt cosine noise"),
    (["a"], {"guidance": 2.0}, {"classless": False}, "guidance: the model has never learnt"),
    ([None], {}, {"classless": False}, "guidance: the model has never learnt"),
    (["a"], {"steps": 2000}, {}, "steps: expected 1 … 1000")])
def test_what_the_model_cannot_make_is_refused(labels, config, more, part):
    with pytest.raises(ConfigError, match=part):
        pipeline(**more).sample(labels, SampleConfig(**config))


def test_a_model_without_classes_has_no_guidance():
    plain = UNetConfig(**{**vars(UNET), "classes": None})
    made = pipeline(plain, classes=())
    assert made.sample([None], SampleConfig(steps=2)).shape == (1, *SHAPE)
    for labels, config, part in ((["a"], {}, "classes: "), ([None], {"guidance": 2}, "guidance: ")):
        with pytest.raises(ConfigError, match=part + "the model has learnt without classes"):
            made.sample(labels, SampleConfig(**config))


# -- files -----------------------------------------------------------------------------------------


def saved(directory, made):
    directory.mkdir()
    hub.save_model(made.network, directory)
    made.recipe.save(directory)
    return directory


@pytest.mark.parametrize("config", [UNET, DIT])
def test_a_saved_pipeline_makes_the_same(tmp_path, config):
    made = pipeline(config)
    found = Pipeline.load(saved(tmp_path / "model", made))
    assert found.recipe == made.recipe
    x = [p.sample(["a", "c"], SampleConfig(steps=3)).tobytes() for p in (made, found)]
    assert x[0] == x[1]


def test_a_directory_of_another_library_has_numbers_for_classes(tmp_path):
    place = saved(tmp_path / "model", pipeline())
    (place / "examples.json").unlink()
    (tmp_path / "whole").mkdir()
    place.rename(tmp_path / "whole" / "unet")
    (tmp_path / "whole" / "scheduler").mkdir()
    file = tmp_path / "whole" / "unet" / "scheduler_config.json"
    file.rename(tmp_path / "whole" / "scheduler" / file.name)
    found = Pipeline.load(tmp_path / "whole").recipe
    assert (found.classes, found.shape, found.kind) == (("0", "1", "2"), SHAPE, PICTURE)


def test_a_recipe_of_another_size_is_named(tmp_path):
    place = saved(tmp_path / "model", pipeline())
    said = json.loads((place / "examples.json").read_text())
    (place / "examples.json").write_text(json.dumps(said | {"shape": [1, 8, 8]}))
    with pytest.raises(FormatError, match=r"examples of \[1, 8, 8\] in 3 classes; the network "):
        Pipeline.load(place)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "smell"}', "[" * 9999,
                                  '{"kind": "picture", "shape": [1, 4, 4], "classes": ["a"], '
                                  '"rate": null, "classless": true}'])
def test_a_damaged_recipe_is_named(tmp_path, text):
    place = saved(tmp_path / "model", pipeline())
    (place / "examples.json").write_text(text)
    with pytest.raises(FormatError, match="examples.json"):
        Pipeline.load(place)


def test_a_language_model_makes_no_pictures(tmp_path):
    hub.save_model(GPT(GPTConfig(vocabulary=8, context=4, layers=1, heads=1, width=4)), tmp_path)
    with pytest.raises(ConfigError, match="expected a network of a diffusion model, got a GPT"):
        Pipeline.load(tmp_path)


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sample") / "model"
    return saved(directory, pipeline())


def sampled(model, out, *words):
    return cli.main(["sample", str(model), "--steps", "3", "--out", str(out), *map(str, words)])


def test_samples_are_written(model, tmp_path, capsys):
    assert sampled(model, tmp_path / "x.npy", "--classes", "a,c", "--count", 4, "--seed", 1) == 0
    expected = Pipeline.load(model).sample(["a", "a", "c", "c"], SampleConfig(steps=3, seed=1))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert "4 pictures" in capsys.readouterr().out
    assert sampled(model, tmp_path / "x.png", "--strip", "--count", 2) == 0
    assert sampled(model, tmp_path / "y.png", "--classes", "none") == 0


def test_an_animation_and_a_picture_to_start_from(model, tmp_path, capsys):
    Image = pytest.importorskip("PIL.Image")
    assert sampled(model, tmp_path / "x.gif", "--gif", "--count", 2) == 0
    with Image.open(tmp_path / "x.gif") as image:
        assert image.n_frames == 4                  # the noise, and where each of 3 steps led
    start = mf.Rng(1).integers(0, 256, (4, 4, 1)).astype(np.uint8)
    write_png(tmp_path / "start.png", start)
    write_png(tmp_path / "mask.png", np.array([[0] * 4] * 2 + [[255] * 4] * 2, np.uint8)[..., None])
    assert sampled(model, tmp_path / "x.npy", "--init-image", tmp_path / "start.png",
                   "--mask", tmp_path / "mask.png", "--count", 2) == 0
    found = np.load(tmp_path / "x.npy")
    for x in found:
        np.testing.assert_allclose(x[0, :2], start[:2, :, 0] / 127.5 - 1, atol=1e-5)
    assert sampled(model, tmp_path / "x.npy", "--init-image", tmp_path / "start.png",
                   "--strength", 0.4) == 0


@pytest.mark.parametrize("words, part", [
    (["--classes", "a,z"], "classes: "), (["--count", "0"], "count: expected at least 1"),
    (["--strip", "--gif"], "--strip and --gif: choose one"), (["--gif"], ".gif"),
    (["--strength", "0.5"], "--init-image is left, which is missing"),
    (["--mask", "x.png"], "mask: it says what stays of --init-image"),
    (["--init-image", "nowhere.png"], "nowhere.png"), (["--guidance", "-1"], "guidance: expected"),
    (["--sampler", "best"], "sampler: expected one of"), (["--size", "9"], "--size is unknown"),
    (["--sampler", "euler", "--eta", "0.5"], "eta: only ddim has it, and euler is to be used"),
    (["--rescale", "0.7"], "rescale: it is of --guidance, which is 1"),
    (["--classes", "none", "--guidance", "2"], "guidance: it leads towards what is asked for"),
    (["--strip", "--init-image", "x.png", "--strength", "0.5"], "strength: --strip goes all the"),
    (["--classes", "a,b,c", "--count", "2"], "count: expected at least one for each of the 3")])
def test_what_goes_wrong_is_one_line(model, tmp_path, capsys, words, part):
    assert sampled(model, tmp_path / "x.png", *words) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1 and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("words", [["x.png"], ["x.npy"], ["x.png", "--strip"], ["x.gif", "--gif"]])
def test_weights_that_are_no_numbers_make_no_file(tmp_path, capsys, words):
    made = pipeline()
    next(iter(made.network.parameters().values())).data[:] = np.nan
    saved(tmp_path / "model", made)
    out = tmp_path / words[0]
    assert sampled(tmp_path / "model", out, "--count", "2", "--steps", "2", *words[1:]) == 2
    err = capsys.readouterr().err
    assert "2 of the 2 examples" in err and err.count("\n") == 1 and not out.exists()


def test_a_kind_is_not_written_to_files_of_another(model, tmp_path, capsys):
    assert sampled(model, tmp_path / "x.wav") == 2
    assert "a picture is written to .png, .npy, not to .wav" in capsys.readouterr().err


# -- the check of what was made --------------------------------------------------------------------


def real(N=60):
    """Examples of two classes: bright on the left, or on the right."""
    labels = np.arange(N) % 2
    values = mf.Rng(3).integers(0, 60, (N, *SHAPE))
    values[labels == 0, :, :, :2] += 190
    values[labels == 1, :, :, 2:] += 190
    return Examples(PICTURE, values.astype(np.uint8), labels.astype(np.int32), ("left", "right"),
                    None, {"training": np.arange(N - 20), "held_out": np.arange(N - 20, N)},
                    {"name": "halves"})


def test_distances_are_those_of_the_nearest():
    x, others = (mf.Rng(i).host_normal((n, 5), np.float64) for i, n in ((1, 7), (2, 9)))
    expected = [min(np.sqrt(np.mean((row - other) ** 2)) for other in others) for row in x]
    for at_once in (1, 3, 100):
        np.testing.assert_allclose(nearest(x, others, at_once), expected, rtol=1e-12)
    many = np.zeros((4_000, 3072))          # 256 times as many differences would be 25 GB
    assert nearest(many[:256] + 1, many).tolist() == [1.0] * 256


def test_copies_are_found_and_new_examples_are_not():
    data = real()
    training, held_out = (data.take(data.parts[part]) for part in ("training", "held_out"))
    copied, own = distances(data, training), distances(data, held_out)
    assert (copied.copies, copied.near, copied.made.max()) == (1.0, 1.0, 0.0)
    assert own.copies == 0 and abs(own.near - NEAR) <= 1 / len(held_out)


def test_a_classifier_says_what_was_made():
    pytest.importorskip("sklearn")
    data = real()
    made, labels = data.take(data.parts["held_out"]), data.labels[data.parts["held_out"]]
    found = recognised(data, made, labels)
    assert (found.real, found.made, found.by_class) == (1.0, 1.0, {"left": 1.0, "right": 1.0})
    half = recognised(data, made, np.zeros_like(labels))        # all were to be on the left
    assert (half.made, half.by_class) == (0.5, {"left": 0.5})
