"""Learning which text belongs to which picture: repeated captions, the limit of the scale, figures
counted by hand, resumed runs, and what does not fit.

Pictures are noise, so that what is tested is that the same numbers come out.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelling import randomised, weights_of

import minifm as mf
from minifm.errors import ConfigError, FormatError
from minifm.evaluation import contrastive as figures
from minifm.hub import load_model, save_model
from minifm.hub.pictures import FILE, PUBLISHED, PictureScale
from minifm.media import PICTURE, SOUND, Examples
from minifm.media.drawing import write_png
from minifm.models import CLIP, CLIPShape
from minifm.tensor import Tensor
from minifm.text import Tokenizer
from minifm.text.captions import caption_rows, caption_tokenizer
from minifm.training import contrastive, memory
from minifm.training.contrastive import (
    CaptionsConfig,
    Contrastive,
    ContrastiveTrainConfig,
    HeldOutPairs,
    Pairs,
    TrainingPairs,
)

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = dict(joint=6, width=8, layers=1, heads=2, patch=4, text_width=8, text_layers=1,
             text_heads=2)
CONFIG = ContrastiveTrainConfig(steps=5, batch=5, warmup=1, evaluate_every=2, save_every=2, seed=3)
PROMPTS = ("a {} letter", "letter {}")


def examples(N=16, kind=PICTURE, captions=True, shape=(1, 8, 8)):
    rng = mf.Rng(7)
    labels = (np.arange(N) % 3).astype(np.int32)
    return Examples(
        kind=kind, values=rng.child("values").integers(0, 256, (N, *shape)).astype(np.uint8),
        labels=labels, classes=("a", "b", "c"),
        captions=tuple(f"letter {'abc'[label]}" for label in labels) if captions else None,
        parts={"training": np.arange(N - 6), "held_out": np.arange(N - 6, N)},
        description={"name": "noise", "sha256": "0" * 64})


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """The data called "noise" are those above."""
    monkeypatch.setattr(contrastive.media, "open", lambda data, config, say: examples())


def tiny(rng=mf.Rng(0), **tokens):
    known = dict(vocabulary=20, context=6, end=19, size=8, channels=1) | tokens
    return CLIP(CLIPShape(**SHAPE).config(**known), rng)


def ids_of(numbers):
    """A text of one token for each of the numbers, between its ends."""
    return np.stack([np.full(len(numbers), 18), numbers, np.full(len(numbers), 19)], 1)


def pictures(n, name="pictures"):
    return mf.Rng(1).child(name).host_normal((n, 1, 8, 8))


# -- the loss ------------------------------------------------------------------------------------


@given(numbers=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_no_picture_of_the_same_caption_is_a_wrong_answer(backend, numbers):
    """The loss as it is written down, with sums over those that are no repetitions."""
    model, ids, seen = randomised(tiny()), ids_of(np.array(numbers)), Tensor(pictures(len(numbers)))
    table = model(ids, seen).numpy().astype(np.float64)         # [pictures, texts]
    expected = 0.0
    for i, own in enumerate(numbers):
        others = [j for j, number in enumerate(numbers) if j == i or number != own]
        expected += np.logaddexp.reduce(table[i, others]) - table[i, i]
        expected += np.logaddexp.reduce(table[others, i]) - table[i, i]
    expected /= 2 * len(numbers)
    scale = np.finfo(np.float32).eps * max(1, np.abs(table).max())
    assert abs(model.loss(ids, seen).item() - expected) <= 20 * scale


def test_captions_that_are_all_the_same_teach_nothing(backend):
    model = randomised(tiny())
    loss = model.loss(ids_of(np.zeros(4, int)), Tensor(pictures(4)))
    loss.backward()
    assert loss.item() == 0
    for name, parameter in model.parameters().items():
        assert np.isfinite(parameter.grad).all() and np.abs(parameter.grad).max() == 0, name


def test_a_repeated_pair_changes_the_loss_of_none(backend):
    """Of each of three pairs a copy: the wrong answers are twice as many, and each counts."""
    model = randomised(tiny())
    ids, seen = ids_of(np.arange(3)), pictures(3)
    twice = model(np.tile(ids, (2, 1)), Tensor(np.tile(seen, (2, 1, 1, 1)))).numpy()
    table = twice[:3, :3].astype(np.float64)
    found = model.loss(np.tile(ids, (2, 1)), Tensor(np.tile(seen, (2, 1, 1, 1)))).item()
    wrong = table + math.log(2)
    np.fill_diagonal(wrong, table.diagonal())
    expected = np.mean([np.logaddexp.reduce(wrong, axis) - table.diagonal() for axis in (0, 1)])
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_scale_never_exceeds_a_hundred(backend):
    model = tiny()
    for start in (5.0, 2.0):
        model.scale.data = mf.backend().from_numpy(np.full((), start, np.float32))
        version = model.scale.version
        Contrastive().constrain(model)
        assert model.scale.version == version + 1
        assert model.scale.item() == pytest.approx(min(start, math.log(100)), rel=1e-6)


def test_training_keeps_the_scale_within_its_limit(tmp_path):
    trainer = run_in(tmp_path / "run", replace(CONFIG, learning_rate=1.0, steps=4)).trainer
    seen, constrain = [], trainer.objective.constrain

    def watched(model):
        constrain(model)
        seen.append(model.scale.item())
    trainer.objective.constrain = watched
    trainer.train()
    assert len(seen) == 4 and max(seen) <= math.log(100) * (1 + 1e-6)


def test_pieces_are_refused_and_so_is_the_advice_to_cut(tmp_path):
    with pytest.raises(ConfigError, match="accumulate: each text is told from all others"):
        replace(CONFIG, accumulate=2)
    need = memory.estimate(tiny(), Contrastive(), (ids_of(np.arange(4)), pictures(4)), CONFIG)
    tight = need.new - need.row
    with pytest.raises(ConfigError, match="batch: at most 4, or recompute"):
        memory.require(need, CONFIG, tight)


def test_recomputation_gives_the_same_bits(tmp_path):
    found = []
    for recompute in (False, True):
        trainer = run_in(tmp_path / str(recompute), replace(CONFIG, recompute=recompute)).trainer
        trainer.train(until=2)
        found.append(weights_of(trainer))
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_flops_are_those_of_the_ops():
    model, batch = tiny(), (ids_of(np.arange(4)), pictures(4))
    with mf.FlopCounter() as counter:
        Contrastive().loss(model, batch, denominator=4, rng=None).backward()
    # Half of causal attention is not computed, nor the gradients of pictures.
    text = 3.5 * SHAPE["text_layers"] * 2 * 3 * 3 * SHAPE["text_width"] * 4
    assert Contrastive().flops(model, batch) - text == pytest.approx(counter.total, rel=0.02)


# -- batches ---------------------------------------------------------------------------------------


def pairs():
    data = examples()
    tokenizer = caption_tokenizer(data.captions, 270)
    return Pairs(data, tokenizer, PictureScale.own(1), length=9, say=None)


def test_a_batch_is_a_function_of_the_step_and_rounds_have_all_pairs():
    data = examples()
    first, second = (TrainingPairs(pairs(), data.parts["training"], batch=4, rng=mf.Rng(2))
                     for _ in range(2))
    found = [first.batch(step) for step in range(5)]
    for step in reversed(range(5)):
        for x, y in zip(found[step], second.batch(step), strict=True):
            assert x.tobytes() == y.tobytes()
    seen = np.concatenate([batch[1] for batch in found])
    rounds = [sorted(x.tobytes() for x in part) for part in (seen[:10], seen[10:])]
    assert rounds[0] == rounds[1] == sorted(x.tobytes() for x in data.take(np.arange(10)))
    assert seen[:10].tobytes() != seen[10:].tobytes()


def test_captions_stay_with_their_pictures():
    data = examples()
    made = TrainingPairs(pairs(), data.parts["training"], batch=6, rng=mf.Rng(2))
    ids, seen = made.batch(3)
    for row, picture in zip(ids, seen):
        place = next(i for i in range(10) if np.array_equal(data.take([i])[0], picture))
        np.testing.assert_array_equal(row, made.pairs.ids[place])


def test_held_out_batches_are_all_alike_large():
    made = HeldOutPairs(pairs(), np.arange(10, 16), batch=4, rng=mf.Rng(2))
    assert made.count == 1 and len(made.batch(0)[0]) == 4
    assert HeldOutPairs(pairs(), np.arange(10, 16), batch=40, rng=mf.Rng(2)).rows == 6
    assert list(made.places) != list(range(10, 16)) and set(made.places) == set(range(10, 16))
    with pytest.raises(ConfigError, match="held_out: expected two pairs at least"):
        HeldOutPairs(pairs(), np.arange(1), batch=4, rng=mf.Rng(2))


# -- figures ---------------------------------------------------------------------------------------


class Tower:
    """Rows that are vectors already; ids say which."""

    def __init__(self, vectors=None):
        self.vectors = vectors

    def embed(self, rows):
        return Tensor(rows if self.vectors is None else self.vectors[rows[:, 1]])


class Vectors:
    def __init__(self, vectors):
        self.text, self.image = Tower(vectors.astype(np.float32)), Tower()


def test_retrieval_counts_all_pictures_of_a_caption_as_right():
    model = Vectors(np.eye(4))
    ids = ids_of(np.array([0, 1, 1, 2]))
    seen = np.eye(4)[[0, 1, 1, 3]].astype(np.float32)       # the last is nearest to no caption
    seen[3] = [0.9, 0, 0.1, 0]
    assert figures.retrieval(model, [(ids, seen)]) == {"text_of_picture": 0.75,
                                                      "picture_of_text": 1.0}
    assert figures.retrieval(model, [(ids[:3], seen[:3]), (ids[3:], seen[:1])]) == {
        "text_of_picture": 1.0, "picture_of_text": 1.0}     # alone, there is nothing else


def test_a_class_is_the_mean_of_its_prompts(backend):
    data = examples()
    tokenizer = caption_tokenizer([*data.captions, *PROMPTS], 280)
    model = randomised(tiny(vocabulary=tokenizer.vocabulary, end=tokenizer.end_of_text, context=20))
    vectors = figures.class_vectors(model, tokenizer, data.classes, PROMPTS)
    each = figures.embedded(model.text, caption_rows(tokenizer, ["a b letter", "letter b"])[0])
    expected = each.astype(np.float64).mean(0)
    np.testing.assert_allclose(vectors[1], expected / np.linalg.norm(expected), atol=1e-5)
    seen = pictures(5)
    near = figures.embedded(model.image, seen) @ vectors.T
    np.testing.assert_array_equal(
        figures.classified(model, tokenizer, seen, data.classes, PROMPTS), near.argmax(1))


@given(rows=st.integers(1, 9))
def test_rows_are_embedded_alike_in_any_pieces(rows):
    model, seen = randomised(tiny()), pictures(9)
    at_once, figures.AT_ONCE = figures.AT_ONCE, rows
    try:
        found = figures.embedded(model.image, seen)
    finally:
        figures.AT_ONCE = at_once
    np.testing.assert_allclose(found, figures.embedded(model.image, seen), atol=1e-6)
    np.testing.assert_allclose((found * found).sum(1), 1, rtol=1e-5)


# -- pictures on the scale of a model --------------------------------------------------------------


def test_pictures_are_scaled_as_the_file_says(tmp_path):
    seen = mf.Rng(0).host_uniform((2, 3, 4, 4)).astype(np.float32) * 2 - 1
    scale = PictureScale.load(tmp_path, 3)
    assert scale == PictureScale(*PUBLISHED)            # as other libraries take for granted
    expected = ((seen + 1) / 2 - np.array(PUBLISHED[0])[:, None, None]) \
        / np.array(PUBLISHED[1])[:, None, None]
    np.testing.assert_allclose(scale(seen), expected, atol=1e-5)
    np.testing.assert_array_equal(PictureScale.own(3)(seen), seen)
    PictureScale((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).save(tmp_path, 8)
    assert PictureScale.load(tmp_path, 3).mean == (0.1, 0.2, 0.3)
    assert PictureScale.load(tmp_path / "none", 1) == PictureScale.own(1)
    with pytest.raises(ConfigError, match="pictures of 1 channels"):
        scale(seen[:, :1])


@pytest.mark.parametrize("change, message", [
    ({"image_mean": [0.5]}, "image_mean: expected 3 numbers"), ({"image_std": "x"}, "image_std"),
    ({"image_std": [0.5, 0, 0.5]}, "image_std: expected more than 0"),
    ({"do_normalize": False}, "do_normalize: expected true")])
def test_a_damaged_scale_is_refused(tmp_path, change, message):
    PictureScale.own(3).save(tmp_path, 8)
    said = json.loads((tmp_path / FILE).read_text()) | change
    (tmp_path / FILE).write_text(json.dumps(said))
    with pytest.raises(FormatError, match=message):
        PictureScale.load(tmp_path, 3)


# -- the run ---------------------------------------------------------------------------------------


def run_in(directory, config=CONFIG, wanted=None, **more):
    options = {"shape": SHAPE, "shown": False} | more
    prepared = contrastive.prepare(
        directory, wanted or CaptionsConfig(data="noise", vocabulary=270, prompts=PROMPTS), config,
        **options)
    prepared.trainer.draw = False           # which takes longer than all else
    return prepared


def everything(trainer):
    log = [{k: v for k, v in line.items() if "per_second" not in k and k != "utilisation"}
           for line in trainer.metrics.read()]
    return {name: x.tobytes() for name, x in weights_of(trainer).items()}, log, trainer.best


@pytest.mark.parametrize("split", [1, 3])
def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path, split):
    whole = run_in(tmp_path / "whole").trainer
    whole.train()
    run_in(tmp_path / "run").trainer.train(until=split)
    trainer = run_in(tmp_path / "run", resume=True).trainer
    trainer.train()
    assert everything(trainer) == everything(whole)
    scores = [line["scores"] for line in trainer.metrics.read() if "scores" in line]
    assert [*scores[0]] == ["zero_shot", "text_of_picture", "picture_of_text"]
    assert all(0 <= score <= 1 for line in scores for score in line.values())


def test_a_checkpoint_has_the_model_its_tokenizer_and_its_scale(tmp_path):
    trainer = run_in(tmp_path / "run").trainer
    trainer.train(until=2)
    last = tmp_path / "run" / "last"
    model, tokenizer = load_model(last), Tokenizer.load(last)
    for name, array in weights_of(trainer).items():
        np.testing.assert_array_equal(model.parameters()[name].numpy(), array)
    assert model.config.text.end == tokenizer.end_of_text
    assert model.config.text.vocabulary == tokenizer.vocabulary
    assert model.config.text.context == len(tokenizer.encode("letter a")) + 2   # and its two ends
    assert PictureScale.load(last, 1) == PictureScale.own(1)
    ids, _ = caption_rows(tokenizer, ["letter a", "letter b"], most=model.config.text.context)
    assert figures.embedded(model.text, ids).shape == (2, SHAPE["joint"])


def test_a_model_to_start_from_brings_its_tokenizer_and_scale(tmp_path):
    run_in(tmp_path / "run").trainer.train(until=1)
    last = tmp_path / "run" / "last"
    said = json.loads((last / FILE).read_text()) | {"image_mean": [0.25], "image_std": [2.0]}
    (last / FILE).write_text(json.dumps(said))
    trainer = run_in(tmp_path / "more", initial=last, shape={}).trainer
    assert trainer.tokenizer.sha256 == Tokenizer.load(last).sha256
    seen = trainer.batches.batch(0)[1]
    assert seen.max() < 0.5                 # ((1 + 1) / 2 - 0.25) / 2 at most
    trainer.train(until=1)
    assert PictureScale.load(tmp_path / "more" / "last", 1) == PictureScale((0.25,), (2.0,))
    with pytest.raises(ConfigError, match="joint: the model to start from has its own"):
        run_in(tmp_path / "x", initial=last, shape={"joint": 4})
    with pytest.raises(ConfigError, match="width: 8 in the checkpoint, 16 now"):
        run_in(tmp_path / "run", resume=True, shape=SHAPE | {"width": 16})


@pytest.mark.parametrize("data, more, part", [
    (examples(kind=SOUND, shape=(1, 8)), {}, "data: noise is of sounds, and a CLIP looks at"),
    (examples(captions=False), {}, "data: noise has no captions"),
    (examples(N=7), {}, "data: noise has fewer than two examples"),
    (replace(examples(), labels=None), {}, "prompts: noise has no classes"),
    (examples(), {"wanted": CaptionsConfig(prompts=("letter",))}, "prompts: expected {} where"),
    (examples(shape=(1, 6, 6)), {}, "patch: 4 does not divide the size 6"),
    (examples(), {"shape": SHAPE | {"text_heads": 3}}, "heads: 3 heads do not divide")])
def test_what_cannot_be_learnt_is_refused_before_anything_is_written(tmp_path, monkeypatch, data,
                                                                     more, part):
    monkeypatch.setattr(contrastive.media, "open", lambda name, config, say: data)
    with pytest.raises(ConfigError, match=part):
        run_in(tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_pictures_of_another_size_than_the_models_are_refused(tmp_path, monkeypatch):
    run_in(tmp_path / "run").trainer.train(until=1)
    monkeypatch.setattr(contrastive.media, "open",
                        lambda name, config, say: examples(shape=(3, 8, 8)))
    with pytest.raises(ConfigError, match="data: pictures of 3 channels and 8 pixels a side"):
        run_in(tmp_path / "x", initial=tmp_path / "run" / "last", shape={})
    (tmp_path / "tower").mkdir()
    save_model(tiny().text, tmp_path / "tower")
    with pytest.raises(ConfigError, match="expected a CLIP, got a TextTower"):
        run_in(tmp_path / "x", initial=tmp_path / "tower", shape={})


# -- the command line ------------------------------------------------------------------------------


def test_a_folder_of_captioned_pictures_becomes_a_model(tmp_path, capsys, monkeypatch):
    pytest.importorskip("PIL")
    from minifm import cli
    monkeypatch.undo()
    values = mf.Rng(4).integers(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    lines = []
    for place, picture in enumerate(values):
        write_png(tmp_path / "data" / f"{place}.png", picture)
        lines.append({"file_name": f"{place}.png", "text": f"noise {place % 5}",
                      "label": str(place % 5)})
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["pretrain", "--arch", "clip", "--data", str(tmp_path / "data"), "--out",
             str(tmp_path / "run"), "--steps", "2", "--batch", "4", "--width", "8", "--heads", "2",
             "--text-width", "8", "--text-heads", "2", "--patch", "4", "--held-out", "0.3",
             "--prompts", "noise {}"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "nats a pair" in out and "zero shot" in out
    assert " of the texts find their picture among those of at most 4 pairs" in out
    assert f"--clip-model {tmp_path / 'run' / 'last'}" in out
    assert "with 5 different captions" in err
    assert cli.main(["pretrain", "--resume", "--out", str(tmp_path / "run"), "--force"]) == 0
    assert cli.main([*words[:-2], "--accumulate", "2"]) == 2
    assert "accumulate: each text" in capsys.readouterr().err


@pytest.mark.parametrize("words, part", [
    (["--predict", "v"], "clip has no such setting"), (["--data", "digits"], "has no captions"),
    (["--classes", "3"], "--classes"), (["--text-heads", "3"], "heads")])
def test_wrong_flags_are_one_line(tmp_path, capsys, monkeypatch, words, part):
    from minifm import cli
    monkeypatch.undo()
    pytest.importorskip("sklearn")
    if "--data" not in words:
        words = ["--data", "nowhere", *words] if part != "heads" else \
            ["--data", "glyphs", "--variations", "1", *words]
    assert cli.main(["pretrain", "--arch", "clip", "--out", str(tmp_path / "run"), *words]) == 2
    err = capsys.readouterr().err
    assert part in err.splitlines()[-1]
