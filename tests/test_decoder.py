"""The two stages of DALL·E 2: what a CLIP makes of texts and pictures, a prior and a decoder that
learn from it, and what they make together.

Data are noise and networks tiny: what is tested is that the same numbers come out.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import randomised, weights_of

import minifm as mf
from minifm import cli
from minifm.errors import ConfigError, FormatError, UserError
from minifm.generation.clip import Embedder, Shown, Texts, directions
from minifm.generation.diffusion import Pipeline, SampleConfig
from minifm.generation.prior import PriorPipeline, PriorSampleConfig
from minifm.hub import save_model
from minifm.hub.pictures import PictureScale
from minifm.media import PICTURE, Examples
from minifm.media.drawing import write_array, write_png
from minifm.models import CLIP, CLIPShape, Prior, PriorConfig
from minifm.tensor import Tensor
from minifm.text.captions import caption_tokenizer
from minifm.training import contrastive, decoder, denoising, priors, told
from minifm.training.captioned import CaptionConfig
from minifm.training.contrastive import CaptionedConfig
from minifm.training.decoder import DecoderConfig
from minifm.training.denoising import DenoisingTrainConfig, ExamplesConfig, NoiseConfig
from minifm.training.networks import recipe_of, shape_for
from minifm.training.priors import ClipConfig, PriorTrainConfig

pytestmark = pytest.mark.usefixtures("undrawn")

CAPTIONS = ("letter a", "letter b", "no letter")
CLIP_SHAPE = CLIPShape(joint=8, width=8, layers=1, heads=2, patch=4, text_width=8, text_layers=1,
                       text_heads=2)
PRIOR_SHAPE = {"layers": 1, "heads": 2, "width": 8}
UNET_SHAPE = {"widths": (8, 16), "attention": (1,), "layers": 1, "head_width": 8, "groups": 4}
PRIOR_TRAINING = PriorTrainConfig(steps=5, batch=4, accumulate=2, warmup=1, average=0.5,
                                  evaluate_every=2, evaluate_batches=2, save_every=2, seed=3)
TRAINING = DenoisingTrainConfig(steps=3, batch=4, warmup=1, evaluate_every=2, evaluate_batches=1,
                                save_every=2, seed=3)


def examples(N=14):
    labels = np.arange(N) % 3
    return Examples(
        kind=PICTURE, values=mf.Rng(7).child("values").integers(0, 256, (N, 1, 8, 8)).astype(
            np.uint8),
        labels=labels.astype(np.int32), classes=("a", "b", "none"),
        captions=tuple(CAPTIONS[label] for label in labels),
        parts={"training": np.arange(N - 4), "held_out": np.arange(N - 4, N)},
        description={"name": "noise", "sha256": "0" * 64})


def embedder_of(seed=0, **shape):
    tokenizer = caption_tokenizer(CAPTIONS, 266)
    config = replace(CLIP_SHAPE, **shape).config(
        vocabulary=tokenizer.vocabulary, context=12, end=tokenizer.end_of_text, size=8, channels=1)
    return Embedder(randomised(CLIP(config), seed, std=0.6), tokenizer, PictureScale.own(1))


def saved_clip(directory, seed=0, **shape):
    embedder_of(seed, **shape).save(directory)
    return directory / "clip"


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """The data called "noise" are those above; snapshots are made in few steps."""
    monkeypatch.setattr(told, "SHOWN_STEPS", 2)
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: examples())
    monkeypatch.setattr(contrastive.media, "open", lambda name, config, say: examples())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return saved_clip(tmp_path_factory.mktemp("clip"))


def prior_in(directory, clip, config=PRIOR_TRAINING, **more):
    options = {"learning": ClipConfig(clip_model=str(clip)), "shape": PRIOR_SHAPE, "shown": False}
    return undrawn(priors.prepare(directory, CaptionedConfig(data="noise"), config,
                                  **options | more))


def decoder_in(directory, clip, config=TRAINING, **more):
    options = {"decoding": DecoderConfig(clip_model=str(clip)), "shape": UNET_SHAPE,
               "shown": False}
    return undrawn(denoising.prepare(directory, ExamplesConfig(data="noise"), config,
                                     **options | more))


def undrawn(prepared):
    """Its losses are not drawn, which takes longer than all else."""
    prepared.trainer.draw = False
    return prepared


def everything(trainer):
    log = [{k: v for k, v in line.items() if "per_second" not in k and k != "utilisation"}
           for line in trainer.metrics.read()]
    return {name: x.tobytes() for name, x in weights_of(trainer).items()}, log, trainer.best


# -- what a CLIP makes of texts and pictures -------------------------------------------------------


def test_a_clip_comes_back_from_its_folder_and_is_told_from_others(tmp_path):
    one = embedder_of()
    one.save(tmp_path)
    again, x = Embedder.beside(tmp_path), examples().take(np.arange(5))
    np.testing.assert_array_equal(again.pictures(x), one.pictures(x))
    for name, value in one.texts(CAPTIONS).items():
        np.testing.assert_array_equal(again.texts(CAPTIONS)[name], value)
    assert again.sha256 == one.sha256 == embedder_of().sha256 != embedder_of(1).sha256
    assert Embedder.beside(tmp_path / "clip") is None and again.width == 8


def test_texts_are_what_the_tower_says_of_them():
    one = embedder_of()
    told = one.texts([*CAPTIONS, ""])
    ids = np.zeros((4, 12), np.int64) + one.tokenizer.padding
    for row, caption in zip(ids, [*CAPTIONS, ""]):
        tokens = [one.tokenizer.first, *one.tokenizer.encode(caption), one.tokenizer.end_of_text]
        row[: len(tokens)] = tokens
    np.testing.assert_array_equal(told["memory_mask"], ids != one.tokenizer.padding)
    np.testing.assert_allclose(told["memory"], one.model.text(ids).numpy(), atol=1e-6)
    np.testing.assert_allclose(told["summary"], one.model.text.embed(ids).numpy(), atol=1e-6)
    said = []
    one.texts(["letter a " * 9], said.append)
    assert said == ["1 caption cut, of more than 12 tokens"]


@given(scale=st.floats(1e-3, 1e3), rows=st.integers(1, 4))
def test_a_direction_has_no_length_of_its_own(scale, rows):
    x = mf.Rng(rows).host_normal((rows, 8))
    found = directions(x)
    np.testing.assert_allclose((found * found).mean(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(directions(x * np.float32(scale)), found, rtol=1e-4, atol=1e-6)
    assert ((found * x).sum(-1) > 0).all()


def test_a_decoder_is_told_directions_and_nothing_as_zeros():
    one, x = embedder_of(), examples().take(np.arange(3))
    condition = Shown(one)
    asked = condition.asked(x)
    told = condition.told([asked[2], None, asked[0]])
    memory, vector = (told[key] for key in condition.keywords)
    assert memory.shape == (3, 1, 8) and not vector[1].any()
    np.testing.assert_array_equal(memory[:, 0], vector)
    np.testing.assert_allclose(vector[[2, 0]], directions(one.pictures(x))[[0, 2]], atol=1e-6)
    assert condition.description["clip"] == one.sha256


def test_what_is_no_clip_or_of_other_pictures_is_refused(tmp_path):
    one = embedder_of()
    with pytest.raises(ConfigError, match="of 1 channel and 8 × 8 pixels, not of 1 channel and 4"):
        one.pictures(np.zeros((2, 1, 4, 4), np.float32))
    save_model(one.model.text, tmp_path)
    with pytest.raises(ConfigError, match="expected a CLIP, got a TextTower"):
        Embedder.load(tmp_path)


# -- the prior -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [1, 3])
def test_a_resumed_prior_is_the_one_that_never_stopped(tmp_path, clip, split):
    whole = prior_in(tmp_path / "whole", clip).trainer
    whole.train()
    prior_in(tmp_path / "run", clip).trainer.train(until=split)
    trainer = prior_in(tmp_path / "run", clip, resume=True,
                       learning=ClipConfig()).trainer       # its checkpoint has the CLIP
    trainer.train()
    assert everything(trainer) == everything(whole)


def test_a_prior_learns_standardised_directions_and_what_the_texts_say(tmp_path, clip):
    trainer = prior_in(tmp_path / "run", clip, config=replace(PRIOR_TRAINING, batch=10)).trainer
    one, data = Embedder.load(clip), examples()
    found = directions(one.pictures(data.take(data.parts["training"])))
    x0, noise, times, memory, mask, summary = trainer.batches.batch(0)
    restored = trainer.model.restore(x0)                    # all ten, in another order
    near = np.abs(restored[:, None] - found[None]).max(-1)
    order = near.argmin(1)
    assert near.min(1).max() <= 1e-5 and sorted(order) == list(range(10))
    # A little model's embeddings are much alike, and what they differ by is rounded as they are.
    model = trainer.model
    rounding = 8 * np.finfo(np.float32).eps * (1 + np.abs(model.mean.numpy())
                                               / model.deviation.numpy()).max()
    np.testing.assert_allclose(x0.mean(0), 0, atol=rounding)
    np.testing.assert_allclose(x0.std(0), 1, atol=rounding)
    told, nothing = one.texts(data.captions), one.texts([""])
    for row, place in enumerate(order):
        own = {key: value[place] for key, value in told.items()}
        dropped = np.array_equal(memory[row], nothing["memory"][0])
        source = {key: value[0] for key, value in nothing.items()} if dropped else own
        for key, value in (("memory", memory), ("memory_mask", mask), ("summary", summary)):
            np.testing.assert_array_equal(value[row], source[key])
    held_out = trainer.held_out.batch(0)
    np.testing.assert_allclose(
        held_out[0], model.standardise(directions(one.pictures(
            data.take(data.parts["held_out"])))), atol=rounding)
    assert trainer.objective.flops(trainer.model, held_out) == \
        4 * trainer.model.config.flops(training=True)


def test_pieces_of_a_priors_batch_add_up(tmp_path, clip):
    trainer = prior_in(tmp_path / "run", clip).trainer
    randomised(trainer.model)
    batch = trainer.held_out.batch(0)
    whole, *pieces = (
        trainer.objective.loss(trainer.model, tuple(x[part] for x in batch), denominator=4,
                               rng=None).item()
        for part in (slice(0, 4), slice(0, 1), slice(1, 4)))
    assert sum(pieces) == pytest.approx(whole, rel=1e-5)


def test_a_priors_directory_is_a_pipeline_and_opens_as_other_libraries_have_it(tmp_path, clip):
    trainer = prior_in(tmp_path / "run", clip).trainer
    trainer.train()
    last = tmp_path / "run" / "last"
    found = PriorPipeline.load(last)
    assert found.recipe.embedder.sha256 == Embedder.load(clip).sha256
    with trainer.judged():
        own = PriorPipeline(trainer.model, trainer.companion).sample(CAPTIONS)
    np.testing.assert_array_equal(found.sample(CAPTIONS), own)
    said = [json.loads((last / name).read_text()) for name in ("config.json",
                                                               "scheduler_config.json")]
    assert [part["_class_name"] for part in said] == ["PriorTransformer", "DDIMScheduler"]
    assert said[1]["prediction_type"] == "sample" and not said[1]["clip_sample"]
    more = prior_in(tmp_path / "more", clip, initial=last, shape={})
    for name, array in weights_of(more.trainer).items():
        np.testing.assert_array_equal(array, found.network.parameters()[name].numpy())


class Knowing(Prior):
    """Predicts, whatever the noise, the standardised summary of the text."""

    def __call__(self, x, t, *, memory, memory_mask, summary, **more):
        return Tensor(self.standardise(np.asarray(summary, np.float32)))


def knowing():
    one = embedder_of()
    network = Knowing(PriorConfig(embedding=8, context=12, **PRIOR_SHAPE), mf.Rng(0))
    network.measure(mf.Rng(3).host_normal((20, 8)) * 2 + 1)
    from minifm.generation.prior import PriorRecipe
    return PriorPipeline(network, PriorRecipe(ClipConfig().noise.scheduler, one))


def test_what_a_prior_predicts_is_what_is_sampled():
    pipeline = knowing()
    summary = pipeline.recipe.embedder.texts(CAPTIONS)["summary"]
    for steps in (1, 4):
        made = pipeline.sample(CAPTIONS, PriorSampleConfig(prior_steps=steps))
        np.testing.assert_allclose(made, directions(summary), atol=2e-5)


def test_guidance_goes_beyond_the_text_away_from_nothing():
    pipeline = knowing()
    texts = pipeline.recipe.embedder.texts
    own, nothing = texts(CAPTIONS)["summary"], texts([""])["summary"]
    for scale in (0.0, 3.0):
        made = pipeline.sample(CAPTIONS, PriorSampleConfig(prior_guidance=scale, candidates=1))
        np.testing.assert_allclose(made, directions(nothing + scale * (own - nothing)), atol=1e-4)


@given(batch=st.integers(1, 5), candidates=st.integers(1, 3))
def test_of_candidates_the_nearest_to_the_text_is_taken_in_any_batch(batch, candidates):
    pipeline = PriorPipeline(randomised(Prior(PriorConfig(embedding=8, context=12, **PRIOR_SHAPE))),
                             knowing().recipe)
    pipeline.network.deviation.data = np.abs(pipeline.network.deviation.data) + 0.1
    summary = pipeline.recipe.embedder.texts(CAPTIONS)["summary"]

    def near(count):
        config = PriorSampleConfig(prior_steps=3, candidates=count)
        made = pipeline.sample(CAPTIONS, config, seed=5, batch=batch)
        np.testing.assert_allclose(made, pipeline.sample(CAPTIONS, config, seed=5), atol=1e-5)
        return (made * summary).sum(-1) / np.linalg.norm(summary, axis=-1)
    assert (near(candidates) >= near(1) - 1e-5).all()


def test_priors_that_cannot_be_are_refused(tmp_path, clip):
    with pytest.raises(ConfigError, match="clip_model: whose embeddings are to be learnt"):
        prior_in(tmp_path / "x", clip, learning=ClipConfig())
    narrow = saved_clip(tmp_path, text_width=4)
    with pytest.raises(ConfigError, match=r"texts are as wide inside \(4\) as .* \(8\)"):
        prior_in(tmp_path / "x", narrow)
    assert not (tmp_path / "x").exists()
    prior_in(tmp_path / "run", clip).trainer.train(until=1)
    (tmp_path / "other").mkdir()
    other = saved_clip(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="clip_model: .* has learnt by another CLIP"):
        prior_in(tmp_path / "run", other, resume=True)
    with pytest.raises(ConfigError, match="width: 8 in the checkpoint, 16 now"):
        prior_in(tmp_path / "run", clip, resume=True, shape=PRIOR_SHAPE | {"width": 16})
    save_model(randomised(Prior(PriorConfig(embedding=8, context=12, **PRIOR_SHAPE))), tmp_path)
    (tmp_path / "clip").rename(tmp_path / "away")
    with pytest.raises(ConfigError, match="the CLIP that the prior has learnt by is not there"):
        PriorPipeline.load(tmp_path)
    with pytest.raises(ConfigError, match="a Prior, which makes embeddings: a decoder takes it"):
        Pipeline.load(tmp_path)
    with pytest.raises(ConfigError, match="expected a prior, got a CLIP"):
        PriorPipeline.load(clip)


# -- the decoder -----------------------------------------------------------------------------------


def test_a_resumed_decoder_is_the_one_that_never_stopped(tmp_path, clip):
    whole = decoder_in(tmp_path / "whole", clip).trainer
    whole.train()
    decoder_in(tmp_path / "run", clip).trainer.train(until=1)
    trainer = decoder_in(tmp_path / "run", clip, resume=True, decoding=DecoderConfig()).trainer
    trainer.train()
    assert everything(trainer) == everything(whole)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["shown"] is None


def test_a_decoder_learns_each_picture_with_its_own_embedding(tmp_path, clip):
    trainer = decoder_in(tmp_path / "run", clip, config=replace(TRAINING, batch=200),
                         noise=NoiseConfig(drop=0.25)).trainer
    x0, _, _, memory, vector = trainer.batches.batch(0)
    dropped = ~memory.any((1, 2))
    np.testing.assert_array_equal(memory[:, 0], vector)
    assert abs(dropped.mean() - 0.25) <= 4 * np.sqrt(0.25 * 0.75 / 200)
    expected = directions(Embedder.load(clip).pictures(x0))
    np.testing.assert_allclose(memory[~dropped, 0], expected[~dropped], atol=1e-5)
    held_out = trainer.held_out.batch(0)
    assert trainer.objective.flops(trainer.model, held_out) == 4 * trainer.model.config.flops(
        8, 8, memory_length=1, training=True)


def test_a_decoders_directory_is_a_pipeline_and_opens_as_other_libraries_have_it(tmp_path, clip):
    prepared = decoder_in(tmp_path / "run", clip)
    prepared.trainer.train()
    last = tmp_path / "run" / "last"
    found = Pipeline.load(last)
    asked = [*found.condition.asked(examples().take(np.arange(2))), None]
    with prepared.trainer.judged():
        own = Pipeline(prepared.trainer.model, prepared.recipe).sample(asked)
    assert own.tobytes() == found.sample(asked).tobytes()
    said = json.loads((last / "config.json").read_text())
    assert (said["_class_name"], said["cross_attention_dim"], said["class_embed_type"],
            said["projection_class_embeddings_input_dim"]) == (
        "UNet2DConditionModel", 8, "projection", 8)
    more = decoder_in(tmp_path / "more", clip, initial=last, shape={})
    for name, array in weights_of(more.trainer).items():
        np.testing.assert_array_equal(array, found.network.parameters()[name].numpy())


def test_embeddings_change_what_is_made(tmp_path, clip):
    prepared = decoder_in(tmp_path / "run", clip)
    pipeline = Pipeline(randomised(prepared.trainer.model), prepared.recipe)
    asked = pipeline.condition.asked(examples().take(np.arange(2)))
    config = SampleConfig(steps=3)
    one, other, none = (pipeline.sample([x], config) for x in (*asked, None))
    assert np.abs(one - other).max() > 1e-3 and np.abs(one - none).max() > 1e-3
    assert np.abs(pipeline.sample(asked[:1], replace(config, guidance=3.0)) - one).max() > 1e-3
    longer = tuple(7 * x for x in asked[0])                 # of the same direction
    np.testing.assert_allclose(pipeline.sample([longer], config), one, atol=1e-4)


def test_decoders_that_cannot_be_are_refused(tmp_path, clip, monkeypatch):
    with pytest.raises(ConfigError, match="clip_model: a dit does not look at embeddings"):
        decoder_in(tmp_path / "x", clip, arch="dit", shape={})
    with pytest.raises(ConfigError, match="clip_model: either embeddings of pictures are learnt"):
        decoder_in(tmp_path / "x", clip, captions=CaptionConfig(captions=True))
    with pytest.raises(ConfigError, match="flip: the embedding of a picture is not that of"):
        decoder_in(tmp_path / "x", clip, noise=NoiseConfig(flip=True))
    assert not (tmp_path / "x").exists()
    decoder_in(tmp_path / "run", clip).trainer.train(until=1)
    (tmp_path / "other").mkdir()
    other = saved_clip(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="clip_model: .* has not learnt by"):
        decoder_in(tmp_path / "run", other, resume=True)
    denoising.prepare(tmp_path / "plain", ExamplesConfig(data="noise"), TRAINING, shape=UNET_SHAPE,
                      captions=CaptionConfig(captions=False), shown=False).trainer.train(until=1)
    with pytest.raises(ConfigError, match="clip_model: .* has not learnt by"):
        decoder_in(tmp_path / "x", clip, initial=tmp_path / "plain" / "last", shape={})


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(tmp_path_factory, clip):
    """(decoder, prior), each with random weights, as their runs would leave them."""
    place = tmp_path_factory.mktemp("stages")
    one = Embedder.load(clip)
    for name in ("decoder", "prior", "stranger"):
        (place / name).mkdir()
    noise = NoiseConfig()
    from minifm.generation.prior import PriorRecipe
    from minifm.models import UNet, UNetConfig
    recipe = recipe_of(examples(), noise, embedder=one)
    config = UNetConfig(**UNET_SHAPE | shape_for("unet", recipe), memory_width=8,
                        vector_width=8)
    save_model(randomised(UNet(config)), place / "decoder")
    recipe.save(place / "decoder")
    for name, embedder in (("prior", one), ("stranger", embedder_of(1))):
        network = randomised(Prior(PriorConfig(embedding=8, context=12, **PRIOR_SHAPE)))
        network.deviation.data = np.abs(network.deviation.data) + 0.1
        save_model(network, place / name)
        PriorRecipe(ClipConfig().noise.scheduler, embedder).save(place / name)
    return place / "decoder", place / "prior"


def sampled(decoder, tmp_path, *words):
    """What the command makes, or its message."""
    out = tmp_path / "made.npy"
    status = cli.main(["sample", str(decoder), "--out", str(out), "--steps", "2", *map(str, words)])
    assert status == 0
    return np.load(out)


def test_a_prompt_becomes_an_embedding_and_that_a_picture(stages, tmp_path, capsys):
    decoder, prior = stages
    made = sampled(decoder, tmp_path, "--prior", prior, "--prompt", "letter a", "--prompt",
                   "letter b", "--count", 4, "--seed", 3, "--prior-steps", 3)
    embeddings = PriorPipeline.load(prior).sample(
        ["letter a"] * 2 + ["letter b"] * 2, PriorSampleConfig(prior_steps=3), seed=3)
    expected = Pipeline.load(decoder).sample([tuple(e) for e in embeddings.tolist()],
                                             SampleConfig(steps=2, seed=3))
    np.testing.assert_array_equal(made, expected)
    assert np.abs(made[0] - made[2]).max() > 1e-3
    assert sampled(decoder, tmp_path, "--count", 2).shape == (2, 1, 8, 8)       # of no embedding


def test_like_one_picture_and_between_two(stages, tmp_path):
    decoder, _ = stages
    pipeline, x = Pipeline.load(decoder), examples().take(np.arange(2))
    for name, picture in zip("xy", x):
        write_array(tmp_path / f"{name}.npy", picture[None])
    like = ["--like", tmp_path / "x.npy"]
    asked = pipeline.condition.asked(x)
    made = sampled(decoder, tmp_path, *like, "--count", 3)
    expected = pipeline.sample(asked[:1] * 3, SampleConfig(steps=2))
    np.testing.assert_allclose(made, expected, atol=1e-4)
    assert np.abs(made[0] - made[1]).max() > 1e-3       # of the same embedding, out of other noise
    between = sampled(decoder, tmp_path, *like, "--like", tmp_path / "y.npy", "--count", 3)
    np.testing.assert_allclose(between[0], made[0], atol=1e-4)
    ends = pipeline.sample([asked[0], asked[0], asked[1]], SampleConfig(steps=2))
    np.testing.assert_allclose(between[2], ends[2], atol=1e-4)
    assert np.abs(between[1] - ends[1]).max() > 1e-3


def test_between_two_embeddings_is_on_the_great_circle():
    from minifm.cli.imagined import alike
    one, x = embedder_of(), examples().take(np.arange(2))
    found = np.array(alike(x, one, 5))
    np.testing.assert_allclose((found * found).mean(-1), 1, rtol=1e-5)
    steps = (found[1:] * found[:-1]).mean(-1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)      # equal angles
    np.testing.assert_allclose(found[[0, -1]], directions(one.pictures(x)), atol=1e-5)


@pytest.mark.parametrize("words, part", [
    (["--prompt", "a"], "prompt: the model makes pictures of embeddings, which a prior makes of"),
    (["--prior", "PRIOR"], "prior: it makes embeddings of --prompt, which is missing"),
    (["--prior", "STRANGER", "--prompt", "a"], "has learnt by another CLIP than the model"),
    (["--prior", "DECODER", "--prompt", "a"], "expected a prior, got a UNet"),
    (["--prior", "PRIOR", "--prompt", "a", "--like", "x"], "like: it is in place of --prior"),
    (["--like", "x", "--like", "y", "--like", "z"], "like: expected one picture, or two"),
    (["--like", "x", "--like", "y", "--count", "1"], "like: expected one picture, or two"),
    (["--like", "nowhere.png"], "nowhere.png: there is no such file"),
    (["--check"], "check: it asks for what captions say, by a prior"),
    (["--classes", "a"], "classes: "),
    (["--candidates", "3"], "candidates: it is of --prior, which is missing"),
    (["--prior", "PRIOR", "--prompt", "a", "--candidates", "0"], "candidates: expected at least")])
def test_what_does_not_go_together_is_one_line(stages, tmp_path, capsys, words, part):
    decoder, prior = stages
    names = {"PRIOR": prior, "DECODER": decoder, "STRANGER": prior.parent / "stranger"}
    words = [str(names.get(word, word)) for word in words]
    assert cli.main(["sample", str(decoder), "--out", str(tmp_path / "a.npy"), *words]) == 2
    err = capsys.readouterr().err
    assert part in err and err.count("\n") == 1


def test_other_models_know_no_embeddings(stages, tmp_path, capsys):
    prepared = denoising.prepare(tmp_path / "run", ExamplesConfig(data="noise"), TRAINING,
                                 captions=CaptionConfig(captions=False), shape=UNET_SHAPE,
                                 shown=False)
    prepared.trainer.train(until=1)
    for words in (["--like", "x"], ["--prior", str(stages[1])]):
        assert cli.main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "a.png"),
                         *words]) == 2
        assert "the model has learnt no embeddings of pictures" in capsys.readouterr().err


def test_a_folder_becomes_a_clip_a_prior_a_decoder_and_a_picture(tmp_path, capsys, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.undo()
    values = mf.Rng(4).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    lines = []
    for place, picture in enumerate(values):
        write_png(tmp_path / "data" / f"{place}.png", picture)
        lines.append({"file_name": f"{place}.png", "text": f"noise {place % 5}"})
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def trained(arch, *words):
        common = ["--steps", "2", "--batch", "4", "--held-out", "0.3", "--data",
                  tmp_path / "data"]
        assert cli.main(["pretrain", "--arch", arch, "--out", str(tmp_path / arch),
                         *map(str, common), *words]) == 0
    clip = ["--clip-model", str(tmp_path / "clip")]
    trained("clip", "--joint", "8", "--width", "8", "--heads", "2", "--text-width", "8",
            "--text-heads", "2", "--patch", "4")
    trained("prior", "--layers", "1", "--heads", "2", "--width", "8", *clip)
    trained("unet", "--widths", "8", "16", "--groups", "4", "--head-width", "8", *clip)
    out, err = capsys.readouterr()
    assert "as " + str(tmp_path / "clip") + " sees them" in err and "--prior RUN" in out
    assert cli.main(["sample", str(tmp_path / "unet"), "--prior", str(tmp_path / "prior"),
                     "--prompt", "noise 3", "--count", "1", "--steps", "2", "--out",
                     str(tmp_path / "a.png")]) == 0
    for arch in ("prior", "unet"):
        assert cli.main(["pretrain", "--resume", "--out", str(tmp_path / arch), "--force"]) == 0


def test_a_damaged_clip_is_named(stages, tmp_path):
    import shutil
    copy = tmp_path / "copy"
    shutil.copytree(stages[0], copy)
    (copy / "clip" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FormatError, match="clip"):
        Pipeline.load(copy)
    shutil.rmtree(copy / "clip")
    with pytest.raises(UserError, match="looks at an encoded text"):
        Pipeline.load(copy)
    assert decoder.there_already(None, None) is None and Texts(embedder_of()).flag == "prompt"
