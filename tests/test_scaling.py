"""Scaling: the fit finds a law that is known, the grid keeps its promises, a killed study goes on
bitwise, and budgets are spent where the law is lowest."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minifm as mf
from minifm import cli
from minifm.cli.scaling import told
from minifm.errors import ConfigError, FormatError
from minifm.scaling import law as laws
from minifm.scaling.grid import REPEATS, WIDTHS, StudyConfig, grid, learning_rate, shape
from minifm.scaling.isoflop import curves, power_law
from minifm.scaling.law import Law, best, bootstrap, fit, percentile_interval
from minifm.scaling.spend import SIZES, Costs, Findings
from minifm.scaling.study import begin, seconds_of, take_up
from minifm.training.pretrain import TextConfig
from minifm.training.signals import Interrupted
from minifm.training.trainer import Trainer

CHINCHILLA = Law(1.6934, 406.4, 0.3392, 410.7, 0.2849)
SMALL = Law(1.2, 30.0, 0.28, 60.0, 0.33)        # as small models on little text follow it
N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(2e4, 2e6, 6), np.geomspace(1e5, 1e7, 5)))
TOY = StudyConfig(minutes=0.12, budgets=3, sizes=3, vocabulary=257, length=16, batch=4,
                  least_steps=3, evaluate_batches=2)
NAMES = ("E", "A", "alpha", "B", "beta")


def noise(size, scale, seed):
    return np.exp(scale * mf.Rng(seed).normal((size,), np.float64))


def known_step(model):
    """Seconds of a step on a machine of 30 GFLOP/s that takes 2 ms besides."""
    return model.flops_per_token(16, training=True) * 64 / 30e9 + 0.002


# -- the law -------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(E=st.floats(0.5, 3), alpha=st.floats(0.15, 0.6), beta=st.floats(0.15, 0.6),
       of_n=st.floats(0.1, 2), of_d=st.floats(0.1, 2))
def test_the_fit_finds_a_law_that_is_followed_exactly(E, alpha, beta, of_n, of_d):
    """Each part is as large, at the middle of the runs, as losses of language models have it."""
    true = Law(E, of_n * 2e5**alpha, alpha, of_d * 1e6**beta, beta)
    found = fit(N, D, true(N, D))
    np.testing.assert_allclose(found(N, D), true(N, D), rtol=1e-5)
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.03), name


@pytest.mark.parametrize("true", [CHINCHILLA, SMALL])
def test_the_law_lies_in_its_intervals(true):
    """Of eight studies' 90 % intervals for E, alpha, beta and a, few miss: at most 9 of 32, since
    30 runs that stand for all make them somewhat narrow, and the four of a study miss together."""
    hits = []
    for seed in range(8):
        loss = true(N, D) * noise(len(N), 5e-3, seed)
        drawn = bootstrap(N, D, loss, rng=mf.Rng(seed), samples=30)
        for name in ("E", "alpha", "beta", "exponent"):
            low, high = percentile_interval([getattr(law, name) for law in drawn])
            hits.append(low <= getattr(true, name) <= high)
    assert sum(hits) >= 23 and len(hits) == 32


def test_the_fit_is_at_the_bottom_of_its_loss():
    """No step in any direction, of any of five sizes, goes down from there."""
    loss = SMALL(N, D) * noise(len(N), 1e-2, 3)
    data = laws._Data.of(N, D, loss)
    theta = data.of_law(fit(N, D, loss))
    ones = np.ones((1, len(N)))

    def cost(theta):
        return laws._huber(laws._errors(data, theta[None])[0], ones)[0]
    lowest = cost(theta)
    for i in range(60):
        step = mf.Rng(i).normal((5,), np.float64) * 10.0 ** -(1 + i % 5)
        assert cost(theta + step) >= lowest * (1 - 1e-7)


def test_slopes_are_those_of_the_errors():
    data = laws._Data.of(N, D, SMALL(N, D))
    theta = data.of_law(SMALL)[None] + 0.1
    slopes = laws._errors(data, theta)[1][0]
    for i in range(5):
        step = np.eye(5)[i] * 1e-6
        there = laws._errors(data, theta + step)[0] - laws._errors(data, theta - step)[0]
        np.testing.assert_allclose(slopes[i], there[0] / 2e-6, atol=1e-8)


def test_one_wild_run_hardly_moves_the_fit():
    """What the Huber loss is for: least squares would follow it."""
    loss = SMALL(N, D)
    loss[7] *= 1.3
    assert fit(N, D, loss).alpha == pytest.approx(SMALL.alpha, rel=1e-2)


def test_the_same_stream_draws_the_same_bootstrap():
    loss = SMALL(N, D) * noise(len(N), 5e-3, 0)
    one, two, other = (bootstrap(N, D, loss, rng=mf.Rng(seed), samples=5) for seed in (1, 1, 2))
    assert one == two != other


@pytest.mark.parametrize("loss", [
    np.full(30, 2.0), 2 + np.arange(30) % 7, 1 / SMALL(N, D), 1e3 * SMALL(N, D),
    4 - 0.1 * np.log(D) ** 2 / 10])
def test_losses_that_follow_no_law_give_a_law_of_numbers_all_the_same(loss):
    """Alike, at random, the wrong way round: what nothing is known of stays within bounds."""
    for law in [fit(N, D, loss), *bootstrap(N, D, loss, rng=mf.Rng(0), samples=10)]:
        assert all(math.isfinite(getattr(law, name)) for name in NAMES)
        assert 1e-4 < law.alpha < 3.01 and 1e-4 < law.beta < 3.01 and 0 < law.exponent < 1


@pytest.mark.parametrize("keep, message", [
    (slice(0, 7), "at least 8 finished cells"), (N < 5e4, "5 with 1 sizes"),
    (D < 2e5, "got 6 with 6 sizes and 1 amounts of tokens"),
    ((N < 2e5) & (D < 5e5) | (N < 3e4), "with 3 sizes and 5 amounts")])
def test_too_few_cells_for_a_fit_are_refused(keep, message):
    if "3 sizes" in message:            # enough: nothing is refused
        fit(N[keep], D[keep], SMALL(N[keep], D[keep]))
        return
    with pytest.raises(ConfigError, match=message):
        fit(N[keep], D[keep], SMALL(N[keep], D[keep]))


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_a_loss_that_is_none_is_refused(loss):
    with pytest.raises(ConfigError, match="losses above 0"):
        fit(N, D, np.where(np.arange(len(N)) == 3, loss, 2.0))


# -- budgets -------------------------------------------------------------------------------------


def test_the_published_law_makes_its_published_choice():
    """Hoffmann et al. 2022, section 3.3 and figure 4: for Gopher's 5.76 × 10^23 FLOPs the law
    says 40 billion parameters, and N ∝ C^0.46. (The law with the digits of the paper's source, as
    Besiroglu et al. 2024 report them; those of its text, two of each exponent, give 32.)"""
    parameters, tokens = CHINCHILLA.optimum(5.76e23)
    assert round(parameters / 1e9) == 40 and round(CHINCHILLA.exponent, 2) == 0.46
    assert 6 * parameters * tokens == pytest.approx(5.76e23)


def test_the_search_finds_what_the_equation_says():
    """Sizes are looked for in steps of 0.5 %, and so found to half of that."""
    costs = Costs(6.0, 0.0, 1e-9)
    for flops in (1e12, 1e18, 5.76e23):
        expected = CHINCHILLA.optimum(flops)
        step = SIZES[1] / SIZES[0] - 1
        assert best(CHINCHILLA, costs.tokens_for_flops(flops), SIZES) == pytest.approx(
            expected, rel=step)
    # Seconds in proportion to the size are operations by another name.
    assert best(CHINCHILLA, costs.tokens_for_seconds(1e3), SIZES) == pytest.approx(best(
        CHINCHILLA, costs.tokens_for_flops(6e12), SIZES), rel=1e-12)


def results(law, cells, scale=0.0, fixed=1e-7, each=2e-12):
    wild = noise(len(cells), scale, 5)
    return [cell._asdict() | {"cell": cell.name, "step": cell.steps,
                              "loss": float(law(cell.parameters, cell.tokens) * wild[i]),
                              "seconds": cell.tokens * (fixed + each * cell.parameters)}
            for i, cell in enumerate(cells)]


def test_findings_spend_operations_and_seconds():
    rows = results(SMALL, grid(TOY, 10**9, known_step).cells)
    found = Findings.of(rows, mf.Rng(0), samples=20)
    assert found.costs.fixed == pytest.approx(1e-7) and found.costs.each == pytest.approx(2e-12)
    assert found.costs.per == pytest.approx(np.exp(np.mean([
        math.log(row["flops"] / row["parameters"] / row["tokens"]) for row in rows])))
    choice = found.choose(flops=1e15)
    assert (choice.parameters, choice.tokens) == pytest.approx(
        SMALL.optimum(1e15, found.costs.per), rel=0.02)
    assert choice.flops == pytest.approx(1e15) and choice.loss == pytest.approx(
        SMALL(choice.parameters, choice.tokens), rel=1e-3)
    assert choice.beyond == pytest.approx(1e15 / max(row["flops"] for row in rows))
    timed = found.choose(seconds=3600)
    assert timed.seconds == pytest.approx(3600)
    for factor in (0.8, 1.25):              # every other size is worse in that time
        size = timed.parameters * factor
        assert SMALL(size, 3600 / (1e-7 + 2e-12 * size)) > SMALL(timed.parameters, timed.tokens)
    with pytest.raises(ConfigError, match="budget: expected a number above 0"):
        found.choose(flops=-1)


# -- IsoFLOP curves ------------------------------------------------------------------------------


def test_a_parabola_is_found_with_its_lowest_point():
    sizes = np.array([1e4, 2e4, 5e4, 1e5])
    rows = [{"budget": C, "parameters": n, "loss": 2 + 0.1 * math.log(n / (C * 1e-6)) ** 2}
            for C in (3e10, 5e10) for n in sizes]
    found = curves(rows)
    assert [curve.best for curve in found] == pytest.approx([3e4, 5e4])
    assert np.polyval(found[0].parabola, np.log(3e4)) == pytest.approx(2)
    assert power_law(found) == pytest.approx((1e-6, 1.0))


def test_a_lowest_point_that_was_not_measured_is_not_made_up():
    def one(losses):
        return curves([{"budget": 1.0, "parameters": n, "loss": loss}
                       for n, loss in zip((1e4, 1e5, 1e6), losses)])[0]
    assert one((3, 2, 2.5)).best and one((3, 2, 2.5)).parabola is not None
    assert one((3, 3.5, 3)).best is None                    # a hill
    assert one((3, 2, 1.01)).best is None                   # it goes on down, far beyond
    assert one((3, 2)).parabola is None
    assert power_law([one((3, 2, 2.5))]) is None


def test_the_curves_of_a_law_have_its_exponent():
    """A parabola is no law: over a range of e^±1.2 about the lowest point, a few per cent."""
    rows = [{"budget": C, "parameters": n, "loss": float(SMALL(n, C / (6 * n)))}
            for C in (1e11, 1e12, 1e13)
            for n in SMALL.optimum(C)[0] * np.exp(np.linspace(-1.2, 1.2, 5))]
    found = curves(rows)
    assert power_law(found)[1] == pytest.approx(SMALL.exponent, rel=0.02)
    for curve in found:
        assert curve.best == pytest.approx(SMALL.optimum(curve.budget)[0], rel=0.1)


# -- the grid ------------------------------------------------------------------------------------


@given(minutes=st.floats(0.02, 500), budgets=st.integers(1, 6), spread=st.floats(1.3, 8),
       sizes=st.integers(3, 7), text=st.sampled_from([10**5, 10**7]))
def test_a_grid_keeps_its_time_and_its_rules(minutes, budgets, spread, sizes, text):
    config = StudyConfig(minutes=minutes, budgets=budgets, spread=spread, sizes=sizes, length=16,
                         batch=4)
    try:
        found = grid(config, text, known_step)
    except ConfigError as error:
        assert "minutes: " in str(error) and "A fit needs 8" in str(error)
        assert minutes < 2 or budgets * sizes < 8 or text < 10**6
        return
    assert len(found.cells) >= 8
    assert found.seconds <= 60 * minutes
    assert len(found.cells) + sum(found.left_out.values()) == budgets * sizes
    assert len({cell.name for cell in found.cells}) == len(found.cells)
    for cell in found.cells:
        model = shape(cell.width, config)
        assert cell.steps >= config.least_steps and cell.tokens <= REPEATS * text
        assert cell.parameters == model.parameters and cell.tokens == cell.steps * 64
        assert cell.flops == cell.tokens * model.flops_per_token(16, training=True)
        assert cell.flops == pytest.approx(cell.budget, rel=0.5 / cell.steps + 1e-9)
        assert cell.learning_rate * cell.width == pytest.approx(config.learning_rate * 64)


def test_more_time_is_used():
    times = [grid(StudyConfig(minutes=minutes), 10**9, known_step).seconds / 60
             for minutes in (1, 10, 100)]
    for used, minutes in zip(times, (1, 10, 100)):
        assert 0.7 * minutes < used <= minutes


def test_only_sizes_that_are_needed_are_timed():
    asked = []

    def ask(model):
        asked.append(model.width)
        return known_step(model)
    grid(TOY, 10**9, ask)
    assert len(set(asked)) == len(asked) < len(WIDTHS)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_is_a_model(width):
    model = shape(width, StudyConfig())
    assert model.layers == max(2, (width + 16) // 32) and model.heads == max(2, width // 32)
    assert learning_rate(width, StudyConfig()) > 0


def test_too_little_time_is_refused():
    with pytest.raises(ConfigError, match="minutes: 0.001 give 0 cells here.* A fit needs 8"):
        grid(StudyConfig(minutes=0.001), 10**9, known_step)
    with pytest.raises(ConfigError, match="minutes: 10 give 6 cells here"):
        grid(StudyConfig(minutes=10, budgets=2, sizes=3), 10**9, known_step)


def test_cells_that_tell_nothing_are_called_a_guess():
    rows = results(SMALL, grid(TOY, 10**9, known_step).cells)
    assert "a guess" not in "\n".join(told(Findings.of(rows, mf.Rng(0), samples=20), [1e12], []))
    for row in rows:
        row["loss"] = 3 + row["steps"] % 2
    assert "do not tell" in "\n".join(told(Findings.of(rows, mf.Rng(0), samples=20), [1e12], []))


# -- a study -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Some 90 kB of text."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("".join(f"Line {i} of a text that is all about lines.\n\n"
                            for i in range(2000)))
    return path


def begun(directory, book):
    return begin(directory, TextConfig(data=(str(book),), tokenizer="bytes"), TOY,
                 seconds_of_a_step=lambda model: 0.3 * known_step(model) + 0.02)


def timeless(study):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in study.rows()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, book):
    """A study that was never interrupted."""
    study = begun(tmp_path_factory.mktemp("whole") / "study", book)
    study.run()
    return study


def test_a_study_trains_every_cell(whole):
    rows = whole.rows()
    assert [row["cell"] for row in rows] == [cell.name for cell in whole.cells]
    assert len(rows) >= 8 and not whole.remaining()
    for row, cell in zip(rows, whole.cells):
        assert row["tokens"] == cell.tokens and row["parameters"] == cell.parameters
        assert 0 < row["loss"] < math.log(257) + 0.5 and row["seconds"] > 0
        left = whole.directory / "cells" / cell.name
        assert [entry.name for entry in left.iterdir()] == ["metrics.jsonl"]
    assert take_up(whole.directory).cells == whole.cells


class Stop(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("cells, steps", [(0, 0), (0, 1), (1, 2), (6, 0)])
def test_a_killed_study_goes_on_bitwise(whole, tmp_path, book, monkeypatch, cells, steps):
    """Killed in any cell at any step, with and without a checkpoint there."""
    study, update, seen = begun(tmp_path / "study", book), Trainer._update, []

    def dying(self):
        if len(study.rows()) == cells and self.step == steps:
            seen.append(self.step)
            raise Stop
        return update(self)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("minifm.scaling.study.BETWEEN_SAVES", 1e-9)       # after every step
        patch.setattr(Trainer, "_update", dying)
        study.run()
    again = take_up(tmp_path / "study")
    assert len(again.remaining()) == len(whole.cells) - cells
    left = again.directory / "cells" / again.remaining()[0].name / f"step-{steps:08d}"
    assert seen == [steps] and left.exists() == (steps > 0)
    again.run()
    assert timeless(again) == timeless(whole)


def test_a_line_that_a_kill_cut_short_is_trained_again(whole, tmp_path, book):
    study = begun(tmp_path / "study", book)
    lines = whole.results.path.read_text().splitlines(keepends=True)
    study.results.path.write_text("".join(lines[:-1]) + lines[-1][:40])
    assert len(study.remaining()) == 1
    study.run()
    assert timeless(study) == timeless(whole)


def test_a_result_that_is_damaged_is_refused(tmp_path, book):
    study = begun(tmp_path / "study", book)
    study.results.append({"step": 3, "cell": "x", "loss": None})
    with pytest.raises(FormatError, match="results.jsonl: budget: expected a number"):
        study.rows()


def test_a_text_that_has_changed_is_refused(tmp_path, book):
    text = tmp_path / "text.txt"
    text.write_bytes(book.read_bytes())
    study = begun(tmp_path / "study", text)
    text.write_bytes(book.read_bytes() + b"\n\none more\n")
    with pytest.raises(ConfigError, match="the text is not that of the study any more"):
        take_up(study.directory)


@pytest.mark.parametrize("change", [
    lambda stored: stored.pop("cells"), lambda stored: stored.update(format=9),
    lambda stored: stored["cells"][0].pop("width"), lambda stored: stored.update(text=3)])
def test_a_damaged_study_is_refused(tmp_path, book, change):
    file = begun(tmp_path / "study", book).directory / "study.json"
    stored = json.loads(file.read_text())
    change(stored)
    file.write_text(json.dumps(stored))
    with pytest.raises(FormatError, match="no study can be read"):
        take_up(file.parent)


def test_seconds_are_those_of_the_steps():
    lines = [{"tokens": 100, "tokens_per_second": 10.0}, {"held_out_loss": 1.0},
             {"tokens": 400, "tokens_per_second": 100.0}]
    assert seconds_of(lines) == 13


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def minifm(capsys):
    """minifm(*words) runs a command here and gives (status, standard output, standard error)."""
    def run(*words):
        capsys.readouterr()
        return (cli.main([str(word) for word in words]), *capsys.readouterr())
    return run


def test_a_finished_study_is_told_and_drawn(minifm, whole):
    (whole.directory / "scaling.png").unlink(missing_ok=True)
    status, out, err = minifm("scaling", "--resume", "--out", whole.directory, "--for-flops",
                              "1e12", "2T", "--for-seconds", "60")
    assert status == 0 and not err, err
    for part in ("alpha", "N, D) = E + A / N^alpha", "1e+12 FLOPs", "2e+12 FLOPs", "60 seconds",
                 "for the 0 cells that remain", "scaling.png"):
        assert part in out, part
    header = (whole.directory / "scaling.png").read_bytes()[:8]
    assert header == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_there_is_no_picture(minifm, whole, monkeypatch):
    (whole.directory / "scaling.png").unlink(missing_ok=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, _ = minifm("scaling", "--resume", "--out", whole.directory)
    assert status == 0 and "no picture: matplotlib is not installed" in out
    assert not (whole.directory / "scaling.png").exists()


def test_an_interrupted_study_says_how_to_go_on(minifm, tmp_path, book, monkeypatch):
    study = begun(tmp_path / "study", book)

    def interrupted(self):
        raise Interrupted(2, 3, "here")
    monkeypatch.setattr(Trainer, "train", interrupted)
    status, _, err = minifm("scaling", "--resume", "--out", study.directory)
    assert status == 130 and f"scaling --resume --out {study.directory}" in err


def test_a_study_from_the_command_line(tmp_path, book):
    """The whole way in a process of its own, timed by the machine: that it is well, not how fast.
    """
    words = [sys.executable, "-m", "minifm", "scaling", "--out", tmp_path / "study", "--data", book,
             "--tokenizer", "bytes", "--minutes", "0.06", "--budgets", "3", "--sizes", "3",
             "--length", "16", "--batch", "2", "--least-steps", "2", "--evaluate-batches", "1"]
    done = subprocess.run([str(word) for word in words], text=True, capture_output=True,
                          timeout=120, check=False)
    if "A fit needs 8" in done.stderr:
        assert done.returncode == 2         # a machine that is slow or busy: said, not hidden
        return
    assert done.returncode == 0, done.stderr
    assert "predicted: " in done.stdout and "beyond the study" in done.stdout


@pytest.mark.parametrize("words, message", [
    (("--resume",), "there is no study to go on with"),
    (("--minutes", "0"), "minutes: expected more than 0"),
    (("--sizes", "2"), "sizes: expected at least 3"),
    (("--spread", "1"), "spread: expected more than 1"),
    (("--for-flops", "lots"), "for-flops: expected a number such as"),
    (("--for-seconds", "0"), "for-seconds: expected numbers above 0, got 0"),
    (("--data", "no-such-file.txt"), "no-such-file.txt: no such file"),
    (("--out", ""), "out: expected a directory"),
])
def test_mistakes_are_one_line(minifm, tmp_path, words, message):
    status, out, err = minifm("scaling", "--out", tmp_path / "study", *words)
    lines = [line for line in err.splitlines() if not line.endswith(" …")]
    assert status == 2 and out == "" and len(lines) == 1 and message in lines[0], err


def test_a_study_in_the_way_or_settings_of_another_are_refused(minifm, whole):
    status, _, err = minifm("scaling", "--out", whole.directory)
    assert status == 2 and "already holds a study" in err
    status, _, err = minifm("scaling", "--resume", "--out", whole.directory, "--sizes", "4",
                            "--data", "x")
    assert status == 2 and "data, sizes: a study that is resumed has its own" in err
