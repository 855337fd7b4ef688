"""Diffusion models that go on learning: what they know stays theirs, only those weights change that
should, adapters are found again with their base, and one new thing is taught beside the old.

Data are noise and networks tiny: what is tested is that the same numbers come out.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from networks import randomised

import minifm as mf
from minifm import cli, hub
from minifm.atomic import write_json
from minifm.cli.sample import labels_of, learnt_from
from minifm.diffusion.scheduler import Scheduler
from minifm.errors import ConfigError, FormatError
from minifm.evaluation.made import resembling
from minifm.generation.diffusion import Pipeline, Recipe, SampleConfig
from minifm.media import PICTURE, Examples
from minifm.media.drawing import write_png
from minifm.models import (
    AutoencoderConfig,
    AutoencoderKL,
    Composite,
    DiTConfig,
    UNetConfig,
)
from minifm.models.classes import class_tables, with_class
from minifm.models.clip import TextTower, TextTowerConfig
from minifm.text.captions import caption_tokenizer
from minifm.training import denoising, told, tuning
from minifm.training.concept import ConceptConfig
from minifm.training.denoising import ExamplesConfig
from minifm.training.tuning import TuneConfig, TuneStepsConfig

pytestmark = pytest.mark.usefixtures("undrawn")

UNET = UNetConfig(inputs=1, outputs=1, size=4, widths=(8, 16), attention=(1,), layers=1,
                  head_width=8, groups=4, classes=4)
DIT = DiTConfig(inputs=1, size=(4, 4), patch=(2, 2), layers=2, heads=2, width=8, classes=3)
SCHEDULER = Scheduler(objective="epsilon", noise="linear", steps=50, spacing="trailing", limit=1.0)
STEPS = {"steps": 4, "batch": 4, "warmup": 1, "average": 0.5, "evaluate_every": 2, "save_every": 2,
         "seed": 3}
CONCEPT = ConceptConfig(concept="new", prior=10)
LORA = TuneConfig(method="lora")


def examples(N=14, classes=3, captions=False):
    rng = mf.Rng(7)
    return Examples(
        kind=PICTURE, values=rng.child("v").integers(0, 256, (N, 1, 4, 4)).astype(np.uint8),
        labels=(np.arange(N) % classes).astype(np.int32) if classes else None,
        classes=tuple("abcdefgh"[:classes]),
        captions=tuple(f"a {'abc'[i % 3]}" for i in range(N)) if captions else None,
        parts={"training": np.arange(N - 4), "held_out": np.arange(N - 4, N)},
        description={"name": "noise", "sha256": "0" * 64})


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """The data called "noise" are those above; snapshots are few, and made in few steps."""
    monkeypatch.setattr(told, "SHOWN_STEPS", 2)
    monkeypatch.setattr(told, "SHOWN", 4)
    monkeypatch.setattr("minifm.training.concept.PRIOR_STEPS", 2)
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: examples())


def saved(directory, config=UNET, classes=("a", "b", "c"), **more):
    """A base model on disk, as pretraining leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    network = randomised(config.model(config, mf.Rng(0)))
    hub.save_model(network, directory)
    Recipe(SCHEDULER, PICTURE, (1, 4, 4), classes, **more).save(directory)
    return directory


def captioned(directory):
    """The same of a model of captions."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = caption_tokenizer(["a a", "a b", "a c"], 300)
    tower = TextTower(TextTowerConfig(layers=1, heads=2, width=8, vocabulary=tokenizer.vocabulary,
                                      context=12, end=tokenizer.end_of_text), mf.Rng(1))
    config = replace(UNET, classes=None, memory_width=8, vector_width=8)
    model = Composite(randomised(config.model(config, mf.Rng(0))), randomised(tower),
                      tokenizer=tokenizer)
    hub.save_model(model, directory)
    Recipe(SCHEDULER, PICTURE, (1, 4, 4)).save(directory)
    return directory


def run_in(directory, base, tune=TuneConfig(), config=(), **more):
    return tuning.prepare(directory, base, ExamplesConfig(data="noise"), tune, STEPS | dict(config),
                          **{"shown": False} | more)


def everything(trainer):
    log = [{k: v for k, v in line.items() if "per_second" not in k and k != "utilisation"}
           for line in trainer.metrics.read()]
    return {name: p.numpy().tobytes() for name, p in trainer.model.parameters().items()}, log, \
        trainer.best


def numbers(model):
    return {name: p.numpy().copy() for name, p in model.parameters().items()}


def changed(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


# -- one class more --------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [UNET, DIT, replace(DIT, shared=False)])
def test_a_class_more_leaves_the_others_and_none_as_they_were(config):
    old = randomised(config.model(config, mf.Rng(0)))
    new = with_class(old)
    assert new.config.classes == config.classes + 1
    assert len(class_tables(new)) == (2 if config.model is DIT.model and not config.shared else 1)
    x = mf.Tensor(mf.Rng(1).host_normal((4, 1, 4, 4)))
    told, same = np.array([0, 1, 2, 3]), np.array([0, 1, 2, 4])     # 3 was none, and is 4 now
    np.testing.assert_array_equal(old(x, 7, labels=told).numpy(), new(x, 7, labels=same).numpy())
    for name, table in class_tables(new).items():
        rows = class_tables(old)[name].weight.numpy()
        np.testing.assert_allclose(table.weight.numpy()[3], rows[:3].mean(0), rtol=1e-6)


# -- the run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, tune, more", [
    (UNET, TuneConfig(), {}), (DIT, LORA, {}), (UNET, TuneConfig(), {"concept": CONCEPT}),
    (DIT, LORA, {"concept": CONCEPT})])
def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path, config, tune, more):
    base = saved(tmp_path / "base", config)
    whole = run_in(tmp_path / "whole", base, tune, **more).trainer
    whole.train()
    run_in(tmp_path / "parts", base, tune, **more).trainer.train(until=3)
    second = run_in(tmp_path / "parts", base, tune, resume=True, **more).trainer
    assert second.step == 3
    second.train()
    assert everything(second) == everything(whole)


CAPTION = ConceptConfig(concept="new", prompt="a new one", prior=10, prior_prompts=("a a", "a b"))


@pytest.mark.parametrize("tune, more", [(TuneConfig(train_encoder=True), {}),
                                        (LORA, {"concept": CAPTION})])
def test_a_model_of_captions_resumes_and_loads(tmp_path, monkeypatch, tune, more):
    monkeypatch.setattr(denoising, "open_examples",
                        lambda wanted, say: examples(captions=True, classes=0))
    base = captioned(tmp_path / "base")
    before = numbers(Pipeline.load(base).network)
    whole = run_in(tmp_path / "whole", base, tune, **more).trainer
    whole.train()
    run_in(tmp_path / "parts", base, tune, **more).trainer.train(until=3)
    second = run_in(tmp_path / "parts", base, tune, resume=True, **more).trainer
    second.train()
    assert everything(second) == everything(whole)
    found, how = Pipeline.load(tmp_path / "whole" / "last"), SampleConfig(steps=2)
    moved = changed(before, numbers(found.network))
    encoders = {name for name in before if name.startswith("encoder.")}
    assert moved - encoders == (set() if tune is LORA else set(before) - encoders)
    assert bool(moved & encoders) == tune.train_encoder
    made = found.sample(["a new one", "a a", None], how)
    with whole.judged():
        expected = Pipeline(whole.model, found.recipe).sample(["a new one", "a a", None], how)
    np.testing.assert_array_equal(made, expected)


def test_a_network_in_latents_is_taught_there(tmp_path, monkeypatch):
    data = replace(examples(), values=np.repeat(np.repeat(examples().values, 2, 2), 2, 3))
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: data)
    shape = AutoencoderConfig(inputs=1, outputs=1, size=8, widths=(4, 8), layers=1, latents=2,
                              groups=2)
    pictures = randomised(AutoencoderKL(shape, mf.Rng(1)))
    config = replace(UNET, inputs=2, outputs=2)
    base = tmp_path / "base"
    base.mkdir()
    hub.save_model(Composite(randomised(config.model(config, mf.Rng(0))), None, pictures), base)
    Recipe(SCHEDULER, PICTURE, (1, 8, 8), ("a", "b", "c")).save(base)
    trainer = run_in(tmp_path / "run", base, LORA, concept=CONCEPT).trainer
    assert trainer.batches.batch(0)[0].shape == (4, 2, 4, 4)
    before = numbers(trainer.model)
    trainer.train()
    moved = changed(before, numbers(trainer.model))
    assert moved == {name for name in before if name == "network.labels.weight"
                     or ".adapter." in name}
    made = Pipeline.load(tmp_path / "run" / "last").sample(["new"], SampleConfig(steps=2))
    assert made.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("config, tune, more, expected", [
    (UNET, TuneConfig(), {}, lambda name: True),
    (UNET, TuneConfig(freeze=1), {}, lambda name: not name.startswith(
        ("time", "labels", "first", "down.0"))),
    (UNET, TuneConfig(freeze=1), {"concept": CONCEPT}, lambda name: not name.startswith(
        ("time", "first", "down.0"))),
    (DIT, LORA, {}, lambda name: ".attention." in name and ".adapter." in name),
    (UNET, LORA, {}, lambda name: ".attention." in name and ".adapter." in name),
    (UNET, LORA, {"concept": CONCEPT}, lambda name: name == "labels.weight" or ".adapter." in name),
    (DIT, LORA, {"concept": CONCEPT, "adapter": {"targets": ("modulate",)}},
     lambda name: name == "embedder.labels.weight" or ".modulate.adapter." in f".{name}")])
def test_only_those_weights_change_that_should(tmp_path, config, tune, more, expected):
    trainer = run_in(tmp_path / "run", saved(tmp_path / "base", config), tune, **more).trainer
    before = numbers(trainer.model)
    trainer.train()
    assert changed(before, numbers(trainer.model)) == {name for name in before if expected(name)}


@pytest.mark.parametrize("config", [UNET, DIT, replace(DIT, shared=False)])
@pytest.mark.parametrize("more", [{}, {"concept": CONCEPT}])
def test_adapters_are_found_with_their_base_and_merge_into_it(tmp_path, capsys, config, more):
    base = saved(tmp_path / "base", config)
    trainer = run_in(tmp_path / "run", base, LORA, {"average": 0.0}, **more).trainer
    trainer.train()
    asked, how = ["a", "new" if more else "b", None], SampleConfig(steps=3)
    found = Pipeline.load(tmp_path / "run" / "last")
    assert found.recipe == trainer.companion
    assert found.recipe.classes == ("a", "b", "c", "new")[: 4 if more else 3]
    made = found.sample(asked, how)
    np.testing.assert_array_equal(made, Pipeline(trainer.model, found.recipe).sample(asked, how))
    assert not np.allclose(made[0], Pipeline.load(base).sample(["a"], how)[0], atol=1e-4)
    words = ["merge", str(tmp_path / "run"), "--out", str(tmp_path / "whole")]
    assert cli.main(words) == 0, capsys.readouterr().err
    plain = Pipeline.load(tmp_path / "whole")
    assert plain.recipe == found.recipe
    assert not any(".adapter." in name for name in plain.network.parameters())
    np.testing.assert_allclose(plain.sample(asked, how), made, atol=1e-4)


def test_adapters_of_a_model_of_captions_merge_into_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(denoising, "open_examples",
                        lambda wanted, say: examples(captions=True, classes=0))
    run_in(tmp_path / "run", captioned(tmp_path / "base"), LORA).trainer.train()
    made = Pipeline.load(tmp_path / "run" / "last").sample(["a a", None], SampleConfig(steps=2))
    words = ["merge", str(tmp_path / "run" / "last"), "--out", str(tmp_path / "whole")]
    assert cli.main(words) == 0, capsys.readouterr().err
    plain = Pipeline.load(tmp_path / "whole")
    assert not any(".adapter." in name for name in plain.network.parameters())
    np.testing.assert_allclose(plain.sample(["a a", None], SampleConfig(steps=2)), made, atol=1e-4)
    assert cli.main(words[:-1] + [str(tmp_path / "again"), "--format", "int8"]) == 2
    assert "format: " in capsys.readouterr().err


def test_adapters_over_another_base_are_refused(tmp_path):
    base = saved(tmp_path / "base")
    run_in(tmp_path / "run", base, LORA, concept=CONCEPT).trainer.train()
    network = hub.load_model(base)
    network.first.bias.data = network.first.bias.data + 1
    hub.save_model(network, base)
    with pytest.raises(FormatError, match="learnt over other weights"):
        Pipeline.load(tmp_path / "run" / "last")


@pytest.mark.parametrize("classless, drop", [(True, 0.1), (False, 0.0)])
def test_the_recipe_stays_the_models_own(tmp_path, classless, drop):
    base = saved(tmp_path / "base", classless=classless)
    prepared = run_in(tmp_path / "run", base)
    prepared.trainer.train()
    found = Pipeline.load(tmp_path / "run" / "last").recipe
    assert found == Pipeline.load(base).recipe == prepared.recipe
    objective = prepared.trainer.objective
    assert objective.scheduler == SCHEDULER and objective.config.drop == drop
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["verb"] == "finetune" and run["settings"]["drop"] == drop
    assert prepared.trainer.batches.batch(0)[2].max() < SCHEDULER.steps


# -- a concept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight, rows", [(1.0, 2), (3.0, 3), (0.5, 1)])
def test_a_step_has_as_much_of_what_is_known_as_its_weight_says(tmp_path, weight, rows):
    base = saved(tmp_path / "base")
    concept = replace(CONCEPT, prior_weight=weight)
    prepared = run_in(tmp_path / "run", base, TuneConfig(examples=5), {"average": 0.0},
                      concept=concept, steps=TuneStepsConfig(drop=0))
    batch, prior = prepared.trainer.batches.batch, np.load(tmp_path / "run" / "prior.npy")
    pictures, seen = examples().take(examples().parts["training"]), set()
    for step in range(5):
        x0, _, _, labels = batch(step)
        np.testing.assert_array_equal(labels == 3, np.arange(4) < 4 - rows)
        for x, label in zip(x0, labels):
            known = pictures if label == 3 else prior
            (place,) = {i for i, y in enumerate(known) if np.array_equal(x, y)}
            assert label == 3 or label == place % 3
            seen |= {place} if label == 3 else set()
    assert len(seen) <= 5
    expected = Pipeline.load(base).sample(
        [name for name, _ in zip("abcabcabcabc", range(10))], SampleConfig(steps=2, seed=3))
    np.testing.assert_array_equal(prior, np.clip(expected, -1, 1))
    held_out = prepared.trainer.held_out.batch(0)
    assert list(held_out[3]) == [3, 3, 3, 3] and prepared.trainer.held_out.count == 2


def test_without_weight_nothing_is_kept(tmp_path):
    prepared = run_in(tmp_path / "run", saved(tmp_path / "base"),
                      concept=ConceptConfig(concept="new", prior_weight=0.0),
                      steps=TuneStepsConfig(drop=0))
    assert set(prepared.trainer.batches.batch(0)[3]) == {3}
    assert not (tmp_path / "run" / "prior.npy").exists()


@pytest.mark.parametrize("settings, part", [
    ({"concept": "a"}, "knows 'a' already"),
    ({"concept": "new", "prompt": "a new one"}, "prompt: .* has learnt the classes"),
    ({"concept": "new", "prior_weight": 9.0, "prior": 10}, "prior_weight: 9.0 in a batch of 4")])
def test_what_cannot_be_taught_is_refused(tmp_path, settings, part):
    with pytest.raises(ConfigError, match=part):
        run_in(tmp_path / "run", saved(tmp_path / "base"), concept=ConceptConfig(**settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings, part", [
    ({"prompt": "a new"}, "prompt: it is of --concept"),
    ({"prior": 20}, "prior: it is of --concept"),
    ({"prior_weight": 0.0}, "prior_weight: it is of --concept"),
    ({"prior_guidance": 2.0}, "prior_guidance: it is of --concept"),
    ({"concept": "n", "prior_weight": 0.0, "prior_guidance": 2.0}, "prior_guidance: it is of"),
    ({"concept": "n", "prior_weight": 0.0, "prior_prompts": ("a",)}, "prior_prompts: it is of"),
    ({"concept": " "}, "concept: expected a"),
    ({"concept": "new", "prompt": "a cat"}, "prompt: expected a caption with 'new'"),
    ({"concept": "new", "prior": 9}, "prior: expected at least 10")])
def test_settings_of_a_concept_are_checked(settings, part):
    with pytest.raises(ConfigError, match=part):
        ConceptConfig(**settings)


def test_a_model_without_names_is_taught_none(tmp_path):
    base = saved(tmp_path / "base", replace(UNET, classes=None), ())
    with pytest.raises(ConfigError, match="without --concept it learns the pictures"):
        run_in(tmp_path / "run", base, concept=CONCEPT)
    with pytest.raises(ConfigError, match="prior_prompts: expected what the model is to keep"):
        run_in(tmp_path / "run", captioned(tmp_path / "text"), concept=CONCEPT)


def test_what_was_taught_is_checked_beside_what_was_known(tmp_path, capsys, monkeypatch):
    base = saved(tmp_path / "base")
    write_json({"verb": "pretrain", "settings": {"data": "noise"}}, base / "run.json")
    run = tmp_path / "run"
    run_in(run, base, TuneConfig(examples=5), concept=CONCEPT).trainer.train()
    pipeline = Pipeline.load(run / "last")
    found = learnt_from(run, pipeline)
    assert found.classes == ("a", "b", "c", "new") and found.count == 28
    own = found.labels == 3
    assert own.sum() == 14 and not own[:14].any()
    assert {part: int(own[places].sum()) for part, places in found.parts.items()} \
        == {"training": 5, "held_out": 4}
    data = examples()
    real = data.take(data.parts["held_out"])
    alike = resembling(replace(found, labels=np.where(own, 3, 0)), real, np.full(4, 0))
    assert alike.by_class == {"a": 1.0}             # of equals, the first is the nearest
    words = ["sample", str(run), "--steps", "2", "--check", "--count", "8", "--out"]
    assert cli.main([*words, str(tmp_path / "a.npy")]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "by the nearest held-out example" in said and "new: " in said
    with pytest.raises(ConfigError, match="the data have no examples of none of these"):
        labels_of(["a", "none of these"], found)


# -- what does not fit -----------------------------------------------------------------------------


def colour():
    data = examples()
    return replace(data, values=np.repeat(data.values, 3, 1))


@pytest.mark.parametrize("data, tune, part", [
    (colour, {}, "has pictures of 3 channels, and .* makes pictures of 1 channel"),
    (lambda: replace(examples(), values=np.zeros((14, 1, 8, 8), np.uint8)), {},
     "has pictures of 8 × 8, and .* makes pictures of 4 × 4"),
    (lambda: examples(classes=5), {}, "has the classes d, e, which .* does not know"),
    (lambda: examples(classes=0), {}, "has no classes, which .* learns by"),
    (examples, {"examples": 11}, "examples: expected at most the 10"),
    (examples, {"train_encoder": True}, "train_encoder: .* has learnt the classes"),
    (examples, {"freeze": 40}, "layers to freeze: expected 0 …")])
def test_what_does_not_fit_is_one_line(tmp_path, monkeypatch, data, tune, part):
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: data())
    with pytest.raises(ConfigError, match=part):
        run_in(tmp_path / "run", saved(tmp_path / "base"), TuneConfig(**tune))
    assert not (tmp_path / "run").exists()


def test_an_adapter_is_merged_before_it_learns_more(tmp_path):
    run_in(tmp_path / "run", saved(tmp_path / "base"), LORA).trainer.train()
    with pytest.raises(ConfigError, match="this is an adapter of one: merge it first"):
        run_in(tmp_path / "again", tmp_path / "run")


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Six pictures in a folder, of no class."""
    folder = tmp_path / "five"
    folder.mkdir()
    for i in range(6):
        write_png(folder / f"{i}.png", mf.Rng(i).integers(0, 256, (8, 8, 1)).astype(np.uint8))
    return folder


def test_a_new_class_from_a_folder(tmp_path, monkeypatch, capsys, pictures):
    monkeypatch.undo()
    base, run = saved(tmp_path / "base"), str(tmp_path / "run")
    words = ["finetune", str(base), "--data", str(pictures), "--concept", "new", "--out", run,
             "--steps", "2", "--batch", "4", "--prior", "10", "--method", "lora", "--rank", "2"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "6 pictures and 10 that the model made" in said.err
    assert "2 of 5 and 2 of 9 examples" in said.err
    assert f"sample {run}/last --classes new" in said.out
    assert cli.main(["finetune", "--resume", "--out", run, "--steps", "3", "--force"]) == 0
    assert "resumed after step 2" in capsys.readouterr().err
    out = tmp_path / "made.npy"
    assert cli.main(["sample", run, "--classes", "new,a", "--count", "4", "--steps", "2", "--out",
                     str(out)]) == 0
    assert np.load(out).shape == (4, 1, 4, 4)


def test_the_help_is_of_diffusion_models_where_one_is_named(tmp_path, capsys):
    (tmp_path / "scheduler_config.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        cli.main(["finetune", str(tmp_path), "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "Teach a diffusion model" in said and "--concept STR" in said
    assert "stdlib" not in said                         # examples, too, are of such models
    assert "(default: digits)" not in said              # --data has none, and --targets another:
    assert "all-linear: all in the blocks --dropout" in said


@pytest.mark.parametrize("words, part", [
    (["--rank", "2"], "rank: only for --method lora"),
    (["--schedule", "cosine"], "--schedule is unknown"),
    (["--method", "lora", "--freeze", "1"], "freeze: only for method full"),
    (["--data", "no-such"], "no-such: no such file")])
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, pictures, words, part):
    monkeypatch.undo()
    base, run = saved(tmp_path / "base"), tmp_path / "run"
    given = ["finetune", str(base), "--out", str(run), "--concept", "new"]
    given += words if "--data" in words else ["--data", str(pictures), *words]
    assert cli.main(given) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("minifm: ") and part in said
    assert not run.exists()
