"""Captions as rows of ids: framed, cut and filled up; learnt as a condition; and what is made of
prompts."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import change_json, randomised

import minifm as mf
from minifm import cli, hub
from minifm.diffusion.scheduler import Scheduler
from minifm.errors import ConfigError, FormatError, UserError
from minifm.evaluation.lettering import held_out_captions, read_back, require_letters
from minifm.generation.condition import NOTHING, condition_of, encoded, table_of
from minifm.generation.diffusion import Pipeline, Recipe, SampleConfig
from minifm.media import PICTURE, Examples, glyphs
from minifm.media.wanted import MediaConfig
from minifm.models import T5, Bert, BertConfig, Composite, T5Config, UNet, UNetConfig
from minifm.models.clip import TextTower, TextTowerConfig
from minifm.text.captions import caption_rows, caption_tokenizer, padding_of
from minifm.training import denoising, told
from minifm.training.captioned import CaptionConfig
from minifm.training.denoising import DenoisingTrainConfig, ExamplesConfig, NoiseConfig

pytestmark = pytest.mark.usefixtures("undrawn")

CAPTIONS = [f"{style} letter {letter}" for style in ("bold", "italic", "bold italic")
            for letter in "ABab"]
TOKENIZER = caption_tokenizer(CAPTIONS, 280)
SCHEDULER = Scheduler(objective="v", noise="cosine", spacing="trailing", limit=1.0)


# -- rows of ids -----------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_a_row_is_a_caption_between_its_ends_and_padding(captions):
    ids, real = caption_rows(TOKENIZER, captions)
    assert ids.shape == real.shape and real.any(0).all()        # no longer than the longest
    for row, there, caption in zip(ids, real, captions):
        n = there.sum()
        assert there[:n].all() and (row[n:] == TOKENIZER.padding).all()
        assert (row[0], row[n - 1]) == (TOKENIZER.first, TOKENIZER.end_of_text)
        assert TOKENIZER.decode(row[1 : n - 1]) == caption.encode("utf-8", "surrogatepass")


@given(length=st.integers(3, 30))
def test_rows_of_one_length_keep_their_ends(length):
    said = []
    ids, real = caption_rows(TOKENIZER, CAPTIONS, length, say=said.append)
    assert ids.shape == (len(CAPTIONS), length)
    assert ((ids == TOKENIZER.end_of_text).sum(1) == 1).all()
    whole = [len(TOKENIZER.encode(caption)) + 2 for caption in CAPTIONS]
    assert list(real.sum(1)) == [min(n, length) for n in whole]
    cut = sum(n > length for n in whole)
    assert len(said) == (cut > 0) and (not cut or said[0].startswith(f"{cut} caption"))
    shorter, _ = caption_rows(TOKENIZER, CAPTIONS, most=length)
    np.testing.assert_array_equal(shorter, ids[:, : shorter.shape[1]])


def test_case_and_special_strings_of_a_caption_stay():
    upper, lower, special = caption_rows(TOKENIZER, ["letter A", "letter a", "<pad><s>"])[0]
    assert not np.array_equal(upper, lower)
    assert (special == TOKENIZER.first).sum() == 1


def test_what_leaves_no_room_is_refused():
    with pytest.raises(ConfigError, match="2 tokens leave no room"):
        caption_rows(TOKENIZER, CAPTIONS, 2)
    with pytest.raises(ConfigError, match="vocabulary: expected an integer from 259"):
        caption_tokenizer(CAPTIONS, 258)


def test_a_vocabulary_without_padding_is_filled_up_with_ends():
    from minifm.text import Tokenizer
    plain = Tokenizer.bytes()
    assert padding_of(plain) == plain.end_of_text and padding_of(TOKENIZER) == TOKENIZER.padding


# -- what a network is told ------------------------------------------------------------------------

NETWORK = UNetConfig(inputs=1, outputs=1, size=4, widths=(8, 16), attention=(1,), layers=1,
                     head_width=8, groups=4, memory_width=8, vector_width=8)
LENGTH = 8


def tower(tokenizer=TOKENIZER, length=LENGTH):
    return TextTowerConfig(layers=1, heads=2, width=8, vocabulary=tokenizer.vocabulary,
                           context=length, end=tokenizer.end_of_text)


def bert():
    return BertConfig(layers=1, heads=2, width=8, hidden=8, context=32, dropout=0.0,
                      vocabulary=TOKENIZER.vocabulary, masked_head=False, sentence_head=False,
                      pooler=True)


def t5():
    return T5Config(layers=1, decoder_layers=1, heads=2, head_width=4, width=8, hidden=8,
                    vocabulary=TOKENIZER.vocabulary)


ENCODERS = {"tower": (TextTower, tower), "bert": (Bert, bert), "t5": (T5, t5)}


def composite(kind="tower"):
    encoder, config = ENCODERS[kind]
    return Composite(randomised(UNet(NETWORK)), randomised(encoder(config())), tokenizer=TOKENIZER)


def pipeline(kind="tower", **more):
    return Pipeline(composite(kind), Recipe(SCHEDULER, PICTURE, (1, 4, 4), **more))


def test_the_empty_caption_is_no_caption():
    condition = condition_of(composite())
    for name, array in condition.told(["", "bold"]).items():
        assert array[0].tobytes() == condition.told([None, "bold"])[name][0].tobytes()


def test_a_table_tells_each_caption_once_and_nothing_last():
    condition, asked = condition_of(composite()), [CAPTIONS[i] for i in (3, 1, 3, 0, 1)]
    table = table_of(condition, asked)
    assert table.keywords == ("ids", "real") and len(table.columns["ids"]) == 3 + 1
    told, nothing = condition.told(asked), condition.told([None])
    for column, name in zip(table.arrays(table.rows), table.keywords):
        np.testing.assert_array_equal(column, told[name])
    for column, name in zip(table.arrays(np.array([NOTHING])), table.keywords):
        np.testing.assert_array_equal(column, nothing[name])


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_read_before_is_what_the_composite_reads(kind):
    model, x = composite(kind), mf.Tensor(mf.Rng(5).normal((4, 1, 4, 4)))
    told = condition_of(model).told([*CAPTIONS[:3], None])
    found = [model(x, 3.0, **told).numpy()]
    found += [model(x, 3.0, **encoded(model, told, at_once)).numpy() for at_once in (1, 3, 9)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)
    assert not np.allclose(found[0][0], found[0][1], atol=0.01)     # each by its own caption


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_padding_that_is_masked_changes_nothing(kind):
    model, x = composite(kind), mf.Tensor(mf.Rng(5).normal((1, 1, 4, 4)))
    alone, beside = (condition_of(model).told(asked) for asked in
                     ([CAPTIONS[0]], [CAPTIONS[0], "a much longer caption than that"]))
    assert beside["ids"].shape[1] > alone["ids"].shape[1]
    found, expected = (model(x, 3.0, **{name: array[:1] for name, array in told.items()}).numpy()
                       for told in (beside, alone))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_tower_reads_rows_of_its_own_length():
    for asked in (["a"], ["a", CAPTIONS[-1] * 3]):
        assert condition_of(composite()).told(asked)["ids"].shape == (len(asked), LENGTH)


@pytest.mark.parametrize("kind", ENCODERS)
def test_samples_do_not_depend_on_the_batch_or_on_others(kind):
    made, asked = pipeline(kind), [*CAPTIONS[:4], None, ""]
    config = {"steps": 3, "guidance": 2}
    whole = made.sample(asked, SampleConfig(**config))
    for batch in (1, 4):
        np.testing.assert_allclose(made.sample(asked, SampleConfig(**config, batch=batch)), whole,
                                   atol=1e-4)
    np.testing.assert_allclose(made.sample(asked[:2], SampleConfig(**config)), whole[:2], atol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 3.0])
def test_guidance_leads_away_from_the_empty_caption(guidance):
    made, x = pipeline(), mf.Tensor(mf.Rng(5).normal((2, 1, 4, 4)))
    found = made.model(CAPTIONS[:2], SampleConfig(guidance=guidance))(x, 500.0).numpy()
    with_it, without = (made.network(x, 500.0, **made.condition.told(asked)).numpy()
                        for asked in (CAPTIONS[:2], ["", ""]))
    np.testing.assert_allclose(found, without + guidance * (with_it - without), atol=1e-5)


def test_guidance_takes_a_model_that_has_learnt_to_do_without():
    made = pipeline(classless=False)
    assert made.sample(CAPTIONS[:1], SampleConfig(steps=2)).shape == (1, 1, 4, 4)
    for asked, guidance in ((CAPTIONS[:1], 2), ([None], 1), ([""], 1)):
        with pytest.raises(ConfigError, match="never learnt to do without a caption"):
            made.sample(asked, SampleConfig(guidance=guidance))


def test_parts_that_do_not_fit_are_refused():
    network, plain = UNet(NETWORK), UNetConfig(widths=(8,), groups=4, attention=())
    with pytest.raises(ConfigError, match="the network looks at vectors of 8 numbers, the encoder "
                                          "makes no text"):
        Composite(network)
    with pytest.raises(ConfigError, match="looks at no text, the encoder makes vectors of 8"):
        Composite(UNet(plain), composite().encoder)
    small = TextTowerConfig(layers=1, heads=2, width=8, vocabulary=9, context=LENGTH)
    with pytest.raises(ConfigError, match="the encoder knows 9"):
        condition_of(Composite(network, TextTower(small), tokenizer=TOKENIZER))


# -- files -----------------------------------------------------------------------------------------


def saved(directory, made):
    directory.mkdir()
    hub.save_model(made.network, directory)
    made.recipe.save(directory)
    return directory


@pytest.mark.parametrize("kind, folder", [("tower", "CLIPTextModel"), ("bert", "BertModel"),
                                          ("t5", "T5ForConditionalGeneration")])
def test_a_saved_pipeline_makes_the_same(tmp_path, kind, folder):
    made = pipeline(kind)
    place = saved(tmp_path / "model", made)
    assert {entry.name for entry in place.iterdir()} == {
        "model_index.json", "unet", "text_encoder", "tokenizer", "scheduler", "examples.json"}
    index = json.loads((place / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["text_encoder"] == ["transformers", folder]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    found = Pipeline.load(place)
    assert found.recipe == made.recipe
    x = [p.sample(CAPTIONS[:2], SampleConfig(steps=3, guidance=2)) for p in (made, found)]
    assert x[0].tobytes() == x[1].tobytes()
    hub.save_model(found.network, place)                # and again over it
    assert hub.load_model(place).config == made.network.config


@pytest.mark.parametrize("changes, part", [
    ({"unet": ...}, "names neither unet nor transformer"),
    ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "text_encoder_2: a pipeline with such"),
    ({"transformer": ["diffusers", "DiTTransformer2DModel"]}, "transformer: a pipeline with such"),
    ({"unet": ["diffusers"]}, "unet: expected a library and a class"),
    ({"unet": [[], {}]}, "unet: expected a library and a class"),
    ({"vae": ["diffusers", "AutoencoderKL"]}, "vae"),
    ({"_class_name": 3}, "_class_name: expected the name of a class")])
def test_an_index_of_other_parts_is_one_line(tmp_path, changes, part):
    place = saved(tmp_path / "model", pipeline())
    change_json(place / "model_index.json", **changes)
    with pytest.raises(FormatError, match=part) as refused:
        Pipeline.load(place)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 9999, "\udcff"])
def test_a_damaged_index_is_named(tmp_path, text):
    place = saved(tmp_path / "model", pipeline())
    (place / "model_index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match="model_index.json"):
        Pipeline.load(place)


def test_parts_in_each_others_places_and_missing_ones_are_refused(tmp_path):
    place = saved(tmp_path / "model", pipeline())
    for name in ("unet", "text_encoder"):
        (place / name).rename(tmp_path / name)
    with pytest.raises(FormatError, match="unet"):
        Pipeline.load(place)
    (tmp_path / "unet").rename(place / "text_encoder")
    (tmp_path / "text_encoder").rename(place / "unet")
    with pytest.raises(FormatError, match="a TextTower cannot be the network"):
        Pipeline.load(place)


def test_without_a_tokenizer_there_is_no_way_to_the_text(tmp_path):
    place = saved(tmp_path / "model", pipeline())
    shutil.rmtree(place / "tokenizer")
    with pytest.raises(ConfigError, match="there is no tokenizer for here"):
        Pipeline.load(place)
    change_json(place / "model_index.json", text_encoder=...)
    with pytest.raises(ConfigError, match="there is no encoder for here"):
        Pipeline.load(place)


# -- the run ---------------------------------------------------------------------------------------

SHAPE = {"widths": (8, 16), "attention": (1,), "layers": 1, "head_width": 8, "groups": 4}
CONFIG = DenoisingTrainConfig(steps=5, batch=6, accumulate=2, warmup=1, average=0.5,
                              evaluate_every=2, evaluate_batches=2, save_every=2, seed=3)
SMALL = CaptionConfig(text_layers=1, text_width=8, text_vocabulary=270)


def examples(N=14, captions=True, classes=("x", "y")):
    rng = mf.Rng(7)
    return Examples(
        kind=PICTURE, values=rng.child("values").integers(0, 256, (N, 1, 4, 4)).astype(np.uint8),
        labels=(np.arange(N) % 2).astype(np.int32) if classes else None, classes=classes,
        captions=tuple(CAPTIONS[i % 5] if i != 3 else "" for i in range(N)) if captions else None,
        parts={"training": np.arange(N - 4), "held_out": np.arange(N - 4, N)},
        description={"name": "noise", "sha256": "0" * 64})


@pytest.fixture
def data(monkeypatch):
    """The data called "noise" are those above; snapshots are made in few steps."""
    monkeypatch.setattr(told, "SHOWN_STEPS", 2)
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: examples())


def run_in(directory, config=CONFIG, captions=SMALL, **more):
    options = {"shape": SHAPE, "shown": False} | more
    return denoising.prepare(directory, ExamplesConfig(data="noise"), config, captions=captions,
                             **options)


def everything(trainer):
    log = [{k: v for k, v in line.items() if "per_second" not in k and k != "utilisation"}
           for line in trainer.metrics.read()]
    return {name: p.numpy().tobytes() for name, p in trainer.model.parameters().items()}, log, \
        trainer.best


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """The directory of an encoder that has learnt elsewhere."""
    directory = tmp_path_factory.mktemp("encoder")
    hub.save_model(composite("bert").encoder, directory, TOKENIZER)
    return CaptionConfig(text_encoder=str(directory))


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("own", [True, False])
def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path, data, frozen, split, own):
    captions = SMALL if own else frozen
    whole = run_in(tmp_path / "whole", captions=captions).trainer
    whole.train()
    run_in(tmp_path / "run", captions=captions).trainer.train(until=split)
    trainer = run_in(tmp_path / "run", captions=captions, resume=True).trainer
    trainer.train()
    assert everything(trainer) == everything(whole)
    files = [sorted((tmp_path / run / "samples").iterdir()) for run in ("run", "whole")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    shown = json.loads((tmp_path / "run" / "run.json").read_text())["shown"]
    assert len(shown) == 16 and set(shown) <= set(examples().captions[-4:])


def test_the_encoder_learns_unless_it_was_named(tmp_path, data, frozen):
    for captions, learns in ((SMALL, True), (frozen, False)):
        trainer = run_in(tmp_path / str(learns), captions=captions).trainer
        before = {n: p.numpy().copy() for n, p in trainer.model.encoder.parameters().items()}
        trainer.train(until=5)      # the first steps only open the way: layers begin as zeros
        moved = [n for n, p in trainer.model.encoder.parameters().items()
                 if not np.array_equal(p.numpy(), before[n])]
        assert bool(moved) == learns
        assert trainer.batches.table.keywords == (
            ("ids", "real") if learns else ("memory", "memory_mask", "vector"))
        assert len(trainer.batches.batch(0)) == 3 + len(trainer.batches.table.keywords)


def test_captions_left_out_are_the_empty_one(tmp_path, data):
    prepared = run_in(tmp_path / "run", noise=NoiseConfig(drop=0.5), config=replace(
        CONFIG, batch=200, accumulate=1))
    ids = prepared.trainer.batches.batch(0)[3]
    empty = prepared.trainer.model
    empty = condition_of(empty).told([None])["ids"][0]
    dropped = (ids == empty).all(1).mean()
    already = np.mean([caption == "" for caption in examples().captions[:10]])
    expected = 0.5 + 0.5 * already
    assert abs(dropped - expected) <= 4 * np.sqrt(expected * (1 - expected) / 200)
    held_out = prepared.trainer.held_out.batch(0)[3]
    np.testing.assert_array_equal(
        held_out, condition_of(prepared.trainer.model).told(examples().captions[-4:])["ids"])


def test_a_captioned_checkpoint_is_a_pipeline(tmp_path, data):
    prepared = run_in(tmp_path / "run")
    prepared.trainer.train()
    found = Pipeline.load(tmp_path / "run" / "last")
    assert found.recipe == prepared.recipe and found.recipe.classes == ()
    with prepared.trainer.judged():
        made = Pipeline(prepared.trainer.model, prepared.recipe).sample(CAPTIONS[:2])
    assert made.tobytes() == found.sample(CAPTIONS[:2]).tobytes()
    assert denoising.prepare(tmp_path / "more", ExamplesConfig(data="noise"), CONFIG, shown=False,
                             initial=tmp_path / "run" / "last").trainer.model.config == \
        found.network.config


@pytest.mark.parametrize("changed", [{"captions": False}, {"text_width": 16},
                                     {"text_vocabulary": 265}])
def test_a_run_is_not_resumed_by_other_captions(tmp_path, data, changed):
    run_in(tmp_path / "run").trainer.train(until=1)
    captions = CaptionConfig(captions=False) if "captions" in changed else replace(SMALL, **changed)
    with pytest.raises(ConfigError, match="was made by another run"):
        run_in(tmp_path / "run", captions=captions, resume=True)


@pytest.mark.parametrize("captions, options, part", [
    (CaptionConfig(captions=True), {"arch": "dit", "shape": {}}, "captions: a dit does not read"),
    (CaptionConfig(text_length=2), {}, "2 tokens leave no room"),
    (CaptionConfig(text_width=9), {}, "heads: 2 heads do not divide the width 9"),
    (CaptionConfig(text_encoder="nowhere/at/all"), {}, "nowhere/at/all")])
def test_what_reads_no_captions_is_refused(tmp_path, data, captions, options, part):
    with pytest.raises(UserError, match=part):
        run_in(tmp_path / "run", captions=captions, **options)
    assert not (tmp_path / "run").exists()


def test_data_without_captions_have_none_to_be_learnt(tmp_path, monkeypatch):
    monkeypatch.setattr(denoising, "open_examples", lambda wanted, say: examples(captions=False))
    with pytest.raises(ConfigError, match="captions: the data have none"):
        run_in(tmp_path / "run", captions=CaptionConfig(captions=True))
    assert run_in(tmp_path / "run", captions=CaptionConfig()).recipe.classes == ("x", "y")


@pytest.mark.parametrize("settings", [{"text_encoder": "x", "text_width": 8},
                                      {"captions": False, "text_layers": 1},
                                      {"captions": False, "text_encoder": "x"}])
def test_settings_of_captions_that_contradict_are_refused(settings):
    with pytest.raises(ConfigError, match="text_"):
        CaptionConfig(**settings)


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("captions") / "model", pipeline())


def sampled(model, out, *words):
    return cli.main(["sample", str(model), "--steps", "3", "--out", str(out), *map(str, words)])


def test_prompts_become_pictures_in_equal_parts(model, tmp_path, capsys):
    words = ["--prompt", "bold letter A", "--prompt", "", "--count", 4, "--guidance", 2]
    assert sampled(model, tmp_path / "x.npy", *words) == 0
    out, err = capsys.readouterr()
    assert "4 pictures" in out and err.count("without any text") == 1
    expected = pipeline().sample(["bold letter A"] * 2 + [None] * 2,
                                 SampleConfig(steps=3, guidance=2))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    assert sampled(model, tmp_path / "y.npy", "--count", 2) == 0        # no prompt is an empty one
    assert "without any text" in capsys.readouterr().err
    assert sampled(model, tmp_path / "a.png", "--prompt", "a", "--strip", "--count", 1) == 0


@pytest.mark.parametrize("words, part", [
    (["--classes", "a"], "classes: model has learnt captions, not classes; ask by --prompt"),
    (["--prompt", "a", "--prompt", "b", "--count", "1"],
     "count: expected at least one for each of the 2 prompts, got 1"),
    (["--prompt", "a", "--prompt", "", "--count", "1"], "each of the 2 prompts"),
    (["--guidance", "4"], "guidance: it leads towards what is asked for, which is nothing"),
    (["--prompt", "a", "--check"], "check: ")])
def test_what_goes_wrong_is_one_line(model, tmp_path, capsys, words, part):
    assert sampled(model, tmp_path / "x.png", *words) == 2
    err = capsys.readouterr().err.replace(str(model), "model")
    assert part in err and err.count("\n") == 1 and not (tmp_path / "x.png").exists()


def test_real_pictures_are_read_as_their_captions_say_and_others_are_not():
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    data = glyphs.glyphs(MediaConfig(size=12, variations=2))
    captions = held_out_captions(data, 30)
    places = data.parts["held_out"]
    assert set(captions) <= {data.captions[place] for place in places}
    pictures, own = data.take(places), [data.captions[place] for place in places]
    found = read_back(pictures, own)
    assert found.both >= 0.97 and found.both <= min(found.letter, found.style)
    shifted = read_back(pictures, own[7:] + own[:7])        # each the caption of another
    assert shifted.both < 0.1
    styles = [glyphs.caption("A", glyphs.asked(text)[1], "sans", 0) for text in own]
    only = read_back(pictures, styles)                      # the style alone is right
    assert only.style == found.style and only.letter < 0.1
    with pytest.raises(ConfigError, match="glyphs, not of noise"):
        require_letters(examples(), ())


def test_glyphs_become_a_model_that_reads_prompts(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    words = ["pretrain", "--arch", "unet", "--data", "glyphs", "--size", "12", "--variations", "1",
             "--out", tmp_path / "run", "--steps", "2", "--batch", "4", "--widths", "8", "16",
             "--groups", "4", "--head-width", "8", "--evaluate-batches", "1", "--text-width", "16"]
    assert cli.main(list(map(str, words))) == 0
    out, err = capsys.readouterr()
    assert "learning the captions, not the classes" in err and "TextTower" in err
    assert "--prompt" in out
    assert sampled(tmp_path / "run", tmp_path / "a.png", "--prompt", "bold italic letter A",
                   "--guidance", "4", "--seed", "1", "--count", "1") == 0
    assert sampled(tmp_path / "run", tmp_path / "a.npy", "--check", "--count", "5") == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out for name in ("letter", "style", "both", "nearest"))
    assert sampled(tmp_path / "run", tmp_path / "b.npy", "--check", "--prompt", "a cat") == 2
    assert "caption: 'a cat' is none of a letter" in capsys.readouterr().err
    assert cli.main([*map(str, words), "--resume", "--no-captions"]) == 2
    assert "text_width: it is of --captions" in capsys.readouterr().err
