"""The laws of diffusion, in float64: what schedules, processes, objectives, levels and samplers owe
to each other, on data whose exact denoiser is known."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from opaque import OpaqueBackend

import minifm as mf
from minifm import backends
from minifm.backends.reference import Reference
from minifm.diffusion import guidance, objectives, process, samplers, schedule
from minifm.diffusion import levels as spacing
from minifm.diffusion.learned import (
    Learned,
    bound,
    diffusion_losses,
    end_losses,
    inner_parameters,
    variance,
)
from minifm.diffusion.levels import levels
from minifm.diffusion.objectives import OBJECTIVES, Denoiser, Estimate, estimate
from minifm.diffusion.samplers import SAMPLERS, Churn
from minifm.diffusion.schedule import CLEAN, Cosine, Flow, Karras, Level, LinearBeta, Sigmoid
from minifm.errors import ConfigError, ShapeError
from minifm.rng import Rng

TABLES = {
    "linear": schedule.linear(), "scaled_linear": schedule.scaled_linear(),
    "sigmoid_betas": schedule.sigmoid_betas(), "cosine": schedule.tabulated(Cosine()),
    "sigmoid": schedule.tabulated(Sigmoid()), "short": schedule.linear(10, 0.01, 0.5),
    "zero_terminal": schedule.zero_terminal(schedule.scaled_linear()),
}
CONTINUOUS = {"LinearBeta": LinearBeta(), "Cosine": Cosine(), "Sigmoid": Sigmoid(),
              "Karras": Karras(), "Flow": Flow(), "Flow by 1000": Flow(1000.0)}
ALL = TABLES | CONTINUOUS
by_name = pytest.mark.parametrize("name", ALL)
few = settings(max_examples=12)         # of each schedule
MEAN, SPREAD = 0.7, 0.5         # of the Gaussian data


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def two_times(data, noise):
    """Levels of a schedule, s before t, both with noise; of a table at whole times."""
    if noise.steps is not None:
        i, j = sorted(data.draw(st.lists(st.integers(0, noise.steps - 1), min_size=2, max_size=2,
                                         unique=True)))
        return noise.at(i), noise.at(j)
    part = st.floats(0.02, 0.98)
    u, w = sorted(data.draw(st.lists(part, min_size=2, max_size=2, unique=True)))
    assume(w - u > 1e-3)
    span = noise.greatest - noise.least
    return noise.at(noise.least + u * span), noise.at(noise.least + w * span)


# -- schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_alpha_bar_falls_strictly_within_0_and_1(name):
    table = TABLES[name]
    assert table.alpha_bar[0] < 1 and (np.diff(table.alpha_bar) < 0).all()
    assert (table.alpha_bar[-1] == 0) == (name == "zero_terminal") and table.alpha_bar[-1] >= 0
    np.testing.assert_allclose(np.cumprod(1 - table.betas), table.alpha_bar, rtol=1e-12, atol=0)


@by_name
def test_noise_grows_with_time_and_signal_does_not(name):
    noise = ALL[name]
    t = np.arange(-1, noise.steps) if noise.steps else np.linspace(0, noise.greatest, 200)
    level = noise.at(t)
    assert (np.diff(level.ratio) > 0).all()
    assert (np.diff(level.sigma) > 0).all() and (np.diff(level.alpha) <= 0).all()
    assert (level.alpha[0], level.sigma[0]) == (1, 0)           # the first is clean data
    if not isinstance(noise, (Flow, Karras)):
        np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-15)


@by_name
@few
@given(part=st.floats(0.02, 0.95))
def test_time_of_is_the_inverse_of_at(name, part):
    """1 - ᾱ loses what ᾱ near 1 does not have: the tolerance has 1/(1 - ᾱ)."""
    noise = ALL[name]
    t = noise.least + part * (noise.greatest - noise.least)
    level = noise.at(t)
    tolerance = 1e-12 * max(1, 1 / level.sigma**2) * noise.greatest
    assert noise.time_of(level.ratio) == pytest.approx(t, abs=tolerance)
    again = noise.at_ratio(level.ratio)
    assert again.alpha == pytest.approx(level.alpha, rel=1e-12)
    assert again.sigma == pytest.approx(level.sigma, rel=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_itself_at_whole_times_and_between_them_in_between(name):
    table = TABLES[name]
    whole = table.at(np.arange(table.steps))
    np.testing.assert_array_equal(whole.alpha, np.sqrt(table.alpha_bar))
    np.testing.assert_array_equal(whole.sigma, np.sqrt(1 - table.alpha_bar))
    mixed = table.at(np.array([3, 3.5, 4]))
    assert mixed.alpha[0] == whole.alpha[3] and mixed.sigma[2] == whole.sigma[4]
    assert mixed.ratio[1] == pytest.approx(math.sqrt(mixed.ratio[0] * mixed.ratio[2]), rel=1e-12)
    assert tuple(table.at(-1)) == (-1, 1, 0) == tuple(table.clean)
    assert table.time_of(math.inf) == table.steps - 1 and table.time_of(0) == 0


def test_a_zero_terminal_table_ends_without_signal_and_begins_as_before():
    table = schedule.scaled_linear()
    rescaled = schedule.zero_terminal(table)
    assert rescaled.alpha_bar[-1] == 0
    assert rescaled.alpha_bar[0] == pytest.approx(table.alpha_bar[0], rel=1e-15)
    assert rescaled.at(table.steps - 1)[1:] == (0, 1)
    # √ᾱ stays a linear function of what it was (algorithm 1 of the paper).
    root, was = np.sqrt(rescaled.alpha_bar), np.sqrt(table.alpha_bar)
    np.testing.assert_allclose(np.diff(root) / np.diff(was), (root[0] / (was[0] - was[-1])),
                               rtol=1e-8)


def test_many_small_steps_are_the_continuous_schedule():
    """β of a step are β(t)/T; the error of that is of order 1/T."""
    errors = []
    for steps in (200, 400, 800):
        table = schedule.linear(steps, 0.1 / steps, 20 / steps)
        t = (np.arange(steps) + 1) / steps
        errors.append(np.abs(table.at(np.arange(steps)).alpha - LinearBeta().at(t).alpha).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1, atol=0.05)


def test_flow_shifted_has_its_ratio_multiplied():
    for sigma in (0.1, 0.5, 0.9):
        level = Flow().at(schedule.shifted(sigma, 3.0))
        assert level.ratio == pytest.approx(3 * sigma / (1 - sigma), rel=1e-12)
    assert schedule.shifted(1.0, 3.0) == 1 and schedule.shifted(0.0, 3.0) == 0


# -- the forward process and its posterior ---------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_single_noisings_compose_to_the_closed_form(name):
    table = TABLES[name]
    scale, variance, before = 1.0, 0.0, table.clean
    for t in range(table.steps):
        now = table.at(t)
        step = process.transition(before, now)
        scale, variance = step.scale * scale, step.scale**2 * variance + step.deviation**2
        before = now
        assert step.deviation**2 == pytest.approx(table.betas[t], rel=1e-10)
        assert scale == pytest.approx(now.alpha, rel=1e-12, abs=1e-15)
        assert variance == pytest.approx(now.sigma**2, rel=1e-11)


@by_name
@few
@given(data=st.data())
def test_the_posterior_is_bayes_rule_for_the_forward_process(name, data):
    """x_s and x_t given x₀ are jointly normal; both ways of making the pair agree."""
    s, t = two_times(data, ALL[name])
    forward, back = process.transition(s, t), process.posterior(s, t)
    near = pytest.approx
    assert forward.scale * s.alpha == near(t.alpha, rel=1e-12)
    assert forward.scale**2 * s.sigma**2 + forward.deviation**2 == near(t.sigma**2, rel=1e-12)
    assert back.data + back.state * t.alpha == near(s.alpha, rel=1e-12)
    assert back.state**2 * t.sigma**2 + back.deviation**2 == near(s.sigma**2, rel=1e-12)
    assert back.state * t.sigma**2 == near(forward.scale * s.sigma**2, rel=1e-12, abs=1e-15)


def test_noising_takes_numbers_arrays_and_tensors_and_any_shape():
    x0, noise = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    t = np.array([5, 0, 900])
    level = schedule.linear().at(t)
    wanted = np.stack([np.sqrt(a) * x + np.sqrt(1 - a) * e for a, x, e in zip(
        schedule.linear().alpha_bar[t], x0, noise)])
    np.testing.assert_allclose(process.noised(x0, noise, level).numpy(), wanted, rtol=1e-14)
    one = process.noised(x0[2:], noise[2:], schedule.linear().at(900))
    np.testing.assert_allclose(one.numpy(), wanted[2:], rtol=1e-14)
    alpha, sigma = (mf.Tensor(x, requires_grad=True) for x in level[1:])
    again = process.noised(x0, noise, Level(t, alpha, sigma))
    again.sum().backward()
    np.testing.assert_array_equal(again.numpy(), process.noised(x0, noise, level).numpy())
    np.testing.assert_allclose(sigma.grad, noise.sum((1, 2)), rtol=1e-12)
    narrow = process.noised(x0.astype(np.float32), noise.astype(np.float32), level)
    assert narrow.dtype == np.float32


# -- objectives ------------------------------------------------------------------------------------


@by_name
@few
@given(data=st.data(), given_=st.sampled_from(OBJECTIVES), wanted=st.sampled_from(OBJECTIVES))
def test_every_target_says_data_and_noise_and_converts_into_every_other(name, data, given_, wanted):
    """1e-12 times how ill the conversion is conditioned: 1/√ᾱ for ε, 1/σ for x₀."""
    level, _ = two_times(data, ALL[name])
    x0, noise = normal(2, 3), normal(2, 3, seed=1)
    x = process.noised(x0, noise, level)
    p = objectives.target(given_, x0, noise, level)
    size = 1 + level.sigma + 1 / level.sigma + 1 / level.alpha
    found = estimate(given_, p, x, level)
    np.testing.assert_allclose(found.x0.numpy(), x0, atol=1e-12 * size)
    np.testing.assert_allclose(found.noise.numpy(), noise, atol=1e-12 * size)
    there = objectives.convert(p, x, level, given_, wanted)
    np.testing.assert_allclose(there.numpy(), objectives.target(wanted, x0, noise, level).numpy(),
                               atol=1e-12 * size)
    back = objectives.convert(there, x, level, wanted, given_)
    np.testing.assert_allclose(back.numpy(), p.numpy(), atol=1e-12 * size**2)


def test_targets_are_what_the_papers_call_them():
    x0, noise, level = np.array([[2.0]]), np.array([[3.0]]), Level(0, 0.8, 0.6)
    found = [objectives.target(o, x0, noise, level).item() for o in ("epsilon", "x0", "v", "flow")]
    assert found == pytest.approx([3, 2, 0.8 * 3 - 0.6 * 2, 3 - 2], rel=1e-15)


def test_an_objective_that_says_nothing_at_a_level_is_refused():
    x = normal(2, 3)
    for objective in ("v", "flow"):
        estimate(objective, x, x, Level(0, 0.0, 1.0))
        estimate(objective, x, x, CLEAN)
    with pytest.raises(ConfigError, match="'epsilon' does not say"):
        estimate("epsilon", x, x, Level(0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="'x0' does not say"):
        estimate("x0", x, x, CLEAN)
    with pytest.raises(ConfigError, match="objective: expected one of epsilon, x0, v, flow"):
        Denoiser(lambda x, t: x, "noise")
    with pytest.raises(ConfigError, match="nothing to learn"):
        objectives.loss(lambda x, t: x, x, schedule=TABLES["zero_terminal"], objective="epsilon",
                        times=np.array([3, 999]), noise=x)


WEIGHTINGS = {"min_snr": objectives.min_snr(), "truncated_snr": objectives.truncated_snr,
              "edm": objectives.edm(), "sigmoid": objectives.sigmoid()}


@pytest.mark.parametrize("objective", ["flow", "v"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_weight_without_noise_is_the_limit(weighting, objective):
    """At Flow's time 0 there is no noise, and SNR is infinite."""
    with np.errstate(all="raise"):
        there, beside = (WEIGHTINGS[weighting](level, objectives.determinant(objective, level))
                         for level in map(Flow().at, (0.0, 1e-9)))
    np.testing.assert_allclose(there, beside, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(there, {"truncated_snr": 1, "edm": 1}.get(weighting, 0), atol=1e-12)


@by_name
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_weighting_means_the_same_whatever_is_predicted(name, weighting):
    """Networks of all objectives that make the same estimate have the same loss."""
    noise = ALL[name]
    times = np.array([0.3, 0.6]) * noise.greatest
    times = times.astype(int) if noise.steps else times
    x0 = normal(2, 5)
    guess = x0 + 0.1 * normal(2, 5, seed=2)

    def model(objective):
        def predict(x, t):
            level = noise.at(t)
            return objectives.convert(mf.Tensor(guess), x, level, "x0", objective)
        return predict
    found = [objectives.loss(model(o), x0, schedule=noise, objective=o, times=times,
                             noise=normal(2, 5, seed=1),
                             weighting=WEIGHTINGS[weighting]).item() for o in OBJECTIVES]
    np.testing.assert_allclose(found, found[0], rtol=1e-10)


def test_weightings_are_what_the_papers_state():
    level = LinearBeta().at(np.linspace(0.05, 0.95, 7))
    snr = 1 / level.ratio**2

    def weight(weighting, objective):
        return weighting(level, objectives.determinant(objective, level))
    close = np.testing.assert_allclose
    close(weight(objectives.min_snr(5), "epsilon"), np.minimum(snr, 5) / snr, rtol=1e-12)
    close(weight(objectives.min_snr(5), "v"), np.minimum(snr, 5) / (snr + 1), rtol=1e-12)
    close(weight(objectives.min_snr(5), "x0"), np.minimum(snr, 5), rtol=1e-12)
    close(weight(objectives.sigmoid(2.0), "epsilon"), 1 / (1 + np.exp(-(2 - np.log(snr)))),
          rtol=1e-12)
    close(weight(objectives.truncated_snr, "x0"), np.maximum(snr, 1), rtol=1e-12)
    close(weight(objectives.uniform, "v"), 1)
    sigma = np.array([0.01, 0.5, 20.0])
    level = Karras().at(sigma)
    close(weight(objectives.edm(0.5), "x0"), (sigma**2 + 0.25) / (0.5 * sigma) ** 2, rtol=1e-12)


@given(sigma=st.floats(0.002, 80), spread=st.floats(0.1, 2))
def test_edms_network_reads_and_gives_variance_1_with_weight_1(sigma, spread):
    clothes = objectives.Preconditioned(None, spread)
    skip, out, enter, told = clothes.coefficients(sigma)
    assert (spread**2 + sigma**2) * enter**2 == pytest.approx(1, rel=1e-12)
    # F's target (x₀ - c_skip x)/c_out
    variance = ((1 - skip) ** 2 * spread**2 + skip**2 * sigma**2) / out**2
    assert variance == pytest.approx(1, rel=1e-11)
    level = Karras().at(np.array([sigma]))
    weight = objectives.edm(spread)(level, objectives.determinant("x0", level))
    assert weight[0] * out**2 == pytest.approx(1, rel=1e-12)
    assert told == math.log(sigma) / 4


def test_edms_clothes_on_a_network():
    read = []

    def network(x, told):
        read.append((x.numpy(), told))
        return x * 0.0 + 1.0
    x, sigma = normal(2, 3), np.array([0.5, 2.0])
    found = objectives.Preconditioned(network, 0.5)(x, sigma).numpy()
    total = np.hypot(sigma, 0.5)[:, None]
    np.testing.assert_allclose(read[0][0], x / total, rtol=1e-14)
    np.testing.assert_allclose(found, (0.5 / total) ** 2 * x + sigma[:, None] * 0.5 / total,
                               rtol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_its_definition_and_its_gradient_is_right(objective):
    noise, times, x0 = Cosine(), np.array([0.2, 0.5, 0.9]), normal(3, 4)
    scale = mf.Tensor(np.array(0.3), requires_grad=True)
    e = normal(3, 4, seed=5)
    settings = {"schedule": noise, "objective": objective, "times": times, "noise": e,
                "weighting": objectives.min_snr()}
    found = objectives.loss(lambda x, t: x * scale, x0, **settings)
    found.backward()
    level = noise.at(times)
    a, s = level.alpha[:, None], level.sigma[:, None]
    x = a * x0 + s * e
    wanted = {"epsilon": e, "x0": x0, "v": a * e - s * x0, "flow": e - x0}[objective]
    d = {"epsilon": a, "x0": -s, "v": a * a + s * s, "flow": a + s}[objective]
    weight = np.minimum((a / s) ** 2, 5) * (s / d) ** 2
    assert found.item() == pytest.approx((weight * (0.3 * x - wanted) ** 2).mean(), rel=1e-12)
    assert scale.grad == pytest.approx((2 * weight * (0.3 * x - wanted) * x).mean(), rel=1e-12)


def test_learning_finds_the_exact_denoiser_of_gaussian_data():
    """ε̂ = w x + c learnt at one level: least squares' answer is the exact denoiser, within what
    4,000 draws say (six deviations)."""
    table, t, n = schedule.linear(), 300, 4000
    level = table.at(t)
    x0, e = MEAN + SPREAD * normal(n, 1), normal(n, 1, seed=1)
    w, c = (mf.Tensor(np.array(0.0), requires_grad=True) for _ in range(2))
    for _ in range(60):
        w.grad = c.grad = None
        objectives.loss(lambda x, t: x * w + c, x0, schedule=table, objective="epsilon",
                        times=np.full(n, t), noise=e).backward()
        for p in (w, c):
            p.data = p.data - 0.4 * p.grad
    total = (level.alpha * SPREAD) ** 2 + level.sigma**2
    exact = level.sigma / total
    assert w.item() == pytest.approx(exact, abs=6 / math.sqrt(n))
    assert c.item() == pytest.approx(-exact * level.alpha * MEAN, abs=6 / math.sqrt(n))


def test_times_to_learn_at():
    table = schedule.linear(50)
    t = objectives.uniform_times(table, 4000, Rng(0))
    assert t.dtype == np.int64 and set(t) == set(range(50))
    t = objectives.uniform_times(Cosine(), 100, Rng(0))
    inside = (t - Cosine().least) / (Cosine().greatest - Cosine().least)
    np.testing.assert_array_equal(np.sort(np.floor(inside * 100 + 1e-9)), np.arange(100))
    assert (np.diff(t) < 0).any()
    logs = np.log(objectives.lognormal_times(Karras(), 4000, Rng(0)))
    assert logs.mean() == pytest.approx(-1.2, abs=6 * 1.2 / math.sqrt(4000))
    t = objectives.lognormal_times(Flow(), 4000, Rng(0), 0.0, 1.0)
    assert np.log(t / (1 - t)).std() == pytest.approx(1, abs=6 / math.sqrt(8000))


# -- levels ----------------------------------------------------------------------------------------

SPACINGS = (*spacing.BY_TIME, *spacing.BY_RATIO)


def possible(noise, name):
    """Whether the schedule has levels so spaced; if not, they are refused by name."""
    if name == "leading" and noise.steps is None or name in spacing.BY_RATIO and (
            isinstance(noise, Flow) or noise is TABLES["zero_terminal"]):
        with pytest.raises(ConfigError, match="spacing: "):
            levels(noise, 5, name)
        return False
    return not (name == "linspace" and isinstance(noise, Flow))


@by_name
@pytest.mark.parametrize("how", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10])
def test_the_previous_step_is_read_from_the_list_for_every_spacing(name, how, steps):
    noise = ALL[name]
    if not possible(noise, how):
        return
    found = levels(noise, steps, how)
    assert len(found) == steps + 1 and tuple(found[-1]) == tuple(noise.clean)
    assert all(a.ratio > b.ratio for a, b in pairwise(found))
    asked, reached = [], []

    def model(x, t):
        asked.append(t)
        return x * 0.1
    samplers.ddim(Denoiser(model, "v"), normal(1, 2), found,
                  watch=lambda i, level, x, estimate: reached.append(level))
    assert asked == [level.time for level in found[:-1]] and reached == found[1:]
    if how in spacing.BY_RATIO and steps > 2:
        power = 1 / 7 if how == "karras" else None
        moved = [level.ratio**power if power else math.log(level.ratio) for level in found[:-1]]
        np.testing.assert_allclose(np.diff(moved), np.diff(moved)[0], rtol=1e-8)


def test_spacings_of_a_table_are_those_of_the_field():
    table = schedule.linear()
    assert list(spacing.times(table, 4, "trailing")) == [999, 749, 499, 249]
    assert list(spacing.times(table, 4, "leading", 1)) == [751, 501, 251, 1]
    assert list(spacing.times(table, 4, "linspace")) == [999, 666, 333, 0]
    assert list(spacing.times(table, 3, "trailing")) == [999, 666, 332]
    assert levels(table, 4, final="smallest")[-1].time == 0
    shifted = levels(Flow(1000.0), 2, shift=3.0)
    assert [level.time for level in shifted] == pytest.approx([1000, 750, 0], rel=1e-12)


@pytest.mark.parametrize("wrong, message", [
    (lambda: levels(schedule.linear(), 1001), r"steps: expected 1 … 1000, .* got 1001"),
    (lambda: levels(Flow(), 0), "steps: expected at least 1"),
    (lambda: levels(Flow(), 2.5), "steps: expected at least 1"),
    (lambda: levels(Flow(), 2, "cosine"), "spacing: expected one of trailing"),
    (lambda: levels(schedule.linear(), 2, shift=2.0), "shift: only the levels of Flow"),
    (lambda: levels(schedule.linear(), 2, offset=1), "offset: only 'leading'"),
    (lambda: levels(schedule.linear(), 2, final="end"), "final: expected one of zero, smallest"),
    (lambda: levels(schedule.linear(), 1000, "leading", offset=1), "time: Table goes from"),
    (lambda: levels(schedule.linear(), 2, "linspace", final="smallest"), "levels: noise must"),
    (lambda: spacing.checked([CLEAN]), "levels: a sampler needs at least two"),
    (lambda: schedule.Table([0.5]), "at least two"),
    (lambda: schedule.Table([0.5, 0.5]), "falls strictly"),
    (lambda: schedule.Table([1.0, 0.5]), "falls strictly"),
    (lambda: schedule.linear().at(1000), "goes from -1 to 999, got 1000"),
    (lambda: schedule.linear().at(math.nan), "goes from -1 to 999, got nan"),
    (lambda: schedule.linear().at(-0.5), "between -1 and 0"),
    (lambda: Learned(rng=Rng(0), hidden=2).at(1.5), "Learned goes from 0.0 to 1.0, got 1.5"),
    (lambda: Learned(rng=Rng(0), first=1.0, last=1.0), "last: expected more than first"),
    (lambda: Karras(least=2.0, greatest=1.0), "greatest: expected more than least"),
    (lambda: Flow(scale=0.0), "scale: expected more than 0"),
    (lambda: samplers.ddim(None, normal(1), [CLEAN, CLEAN]), "levels: noise must become less"),
    (lambda: samplers.ddim(None, normal(1), levels(Flow(), 2), eta=1.5), "eta: expected at"),
    (lambda: samplers.ddpm(None, normal(1), levels(Flow(), 2), rng=Rng(0), variance="huge"),
     "variance: expected small or large"),
    (lambda: samplers.flow_euler(None, normal(1), levels(Cosine(), 2)), "of Flow; got"),
    (lambda: samplers.heun(None, normal(1), levels(Flow(), 2)), "the first level has none"),
    (lambda: samplers.ddim(Denoiser(lambda x, t: x, "v"), normal(1), levels(Cosine(), 2), eta=0.5),
     "rng: this sampler draws noise"),
    (lambda: samplers.ddim(None, normal(1), levels(Flow(), 2), landing=[CLEAN]),
     "landing: expected a level for each of 2 steps, got 1"),
    (lambda: Churn(Karras(), -1.0), "churn: expected an amount"),
    (lambda: objectives.loss(None, normal(2), schedule=Flow(), objective="v", times=0.5,
                             noise=normal(2)),
     "times: expected one for each of 2 examples"),
])
def test_what_makes_no_sense_is_refused_in_one_line(wrong, message):
    with pytest.raises(ConfigError, match=message) as problem:
        wrong()
    assert "\n" not in str(problem.value)


# -- samplers on data whose denoiser is known ------------------------------------------------------


def gaussian(x, level):
    """The exact Estimate for data N(MEAN, SPREAD²): the conditional means of x₀ and ε at x."""
    total = (level.alpha * SPREAD) ** 2 + level.sigma**2
    away = x - level.alpha * MEAN
    return Estimate(away * (level.alpha * SPREAD**2 / total) + MEAN, away * (level.sigma / total))


def spread_at(level):
    return math.hypot(level.alpha * SPREAD, level.sigma)


class Nothing(Rng):
    """An Rng for samplers that are to add no noise."""

    def child(self, *names):
        raise AssertionError("noise was drawn")


DRAWS = {"ddpm", "dpm_2m_sde"}


def run(sampler, denoiser, x, found, **options):
    if sampler in DRAWS:
        options.setdefault("rng", Rng(3))
    return SAMPLERS[sampler](denoiser, x, found, **options).numpy()


def allowed(sampler, found):
    """Whether the sampler takes these levels."""
    if sampler == "flow_euler":
        return abs(found[0].alpha + found[0].sigma - 1) < 1e-6 > abs(
            found[-2].alpha + found[-2].sigma - 1)
    return found[0].alpha > 0 or sampler not in ("euler", "heun")


@by_name
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_point_mass_data_are_found_in_any_number_of_steps(name, sampler, steps):
    """The exact ε of data that are one point leads to that point, by every sampler; rectified flow
    gets there in one Euler step."""
    point, noise = normal(1, 3), ALL[name]
    found = levels(noise, steps)
    if not allowed(sampler, found):
        return
    def exact(x, level):
        return Estimate(x * 0.0 + point, (x - level.alpha * point) / level.sigma)
    x = found[0].alpha * point + found[0].sigma * normal(4, 3, seed=1)
    y = run(sampler, exact, x, found)
    # x/α, which euler and heun go along, is 1/α larger than the data
    size = max(1, found[0].ratio) if sampler in ("euler", "heun") else 1
    np.testing.assert_allclose(y, np.broadcast_to(point, y.shape), atol=1e-12 * size)
    if sampler == "ddpm":       # whose last step adds no noise, of whatever variance the others
        y = run(sampler, exact, x, found, variance="large")
        np.testing.assert_allclose(y, np.broadcast_to(point, y.shape), atol=1e-12)


SMOOTH = {      # from much to little noise, in n equal steps of a smooth function of the level
    "variance preserved": lambda n: [LinearBeta().at(t) for t in np.linspace(0.9, 0.05, n + 1)],
    "karras": lambda n: [Karras().at(t) for t in spacing.karras(0.1, 5.0, n + 1)],
    "flow": lambda n: [Flow().at(t) for t in np.linspace(0.95, 0.05, n + 1)],
}
ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "dpm_2m": 2, "flow_euler": 1}


@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize("sampler", ORDERS)
def test_deterministic_samplers_converge_in_their_order(path, sampler):
    """To the exact solution for Gaussian data, along which (x - α·mean) / deviation is constant."""
    if sampler == "flow_euler" and path != "flow":
        return
    x, errors = np.array([[1.3], [-0.4]]), []
    for n in (64, 128, 256):
        found = SMOOTH[path](n)
        t, s = found[0], found[-1]
        exact = s.alpha * MEAN + (x - t.alpha * MEAN) * spread_at(s) / spread_at(t)
        errors.append(np.abs(run(sampler, gaussian, x, found) - exact).max())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, ORDERS[sampler], atol=0.15)
    assert abs(orders[1] - ORDERS[sampler]) <= abs(orders[0] - ORDERS[sampler])


class OneHot:
    """Noise that is 1 in row 2 + i at step i, and 0 elsewhere: what a sampler does to it shows the
    weight of every draw in the result, and so its distribution without any sampling error."""

    def __init__(self, step=None):
        self.step = step

    def child(self, name, step):
        return OneHot(step)

    def host_normal(self, shape, dtype):
        drawn = np.zeros(shape, dtype)
        drawn[2 + self.step] = 1
        return drawn


def moments(sampler, found, **options):
    """(response to x, mean, variance) of a sampler's result for Gaussian data, exactly: with the
    exact denoiser, which is linear, the result is linear in x and in each draw."""
    x = np.zeros((len(found) + 1, 1))
    x[1] = 1
    y = SAMPLERS[sampler](gaussian, x, found, rng=OneHot(), **options).numpy()[:, 0]
    response, drawn = y[1] - y[0], y[2:] - y[0]
    return response, y[0] + response * found[0].alpha * MEAN, \
        (response * spread_at(found[0])) ** 2 + (drawn**2).sum()


STOCHASTIC = {      # (sampler, options, order in the variance)
    "ddpm": ("ddpm", lambda noise: {}, 1),
    "ddpm, large": ("ddpm", lambda noise: {"variance": "large"}, 1),
    "ddim, η = 0.5": ("ddim", lambda noise: {"eta": 0.5}, 1),
    "euler, churned": ("euler", lambda noise: {"churn": Churn(noise, 4.0)}, 1),
    "heun, churned": ("heun", lambda noise: {"churn": Churn(noise, 4.0)}, 2),
    "dpm_2m_sde": ("dpm_2m_sde", lambda noise: {}, 2),
}


@pytest.mark.parametrize("path, noise", [("variance preserved", LinearBeta()),
                                         ("karras", Karras())])
@pytest.mark.parametrize("case", STOCHASTIC)
def test_stochastic_samplers_reach_the_moments_of_gaussian_data_in_their_order(path, noise, case):
    sampler, options, order = STOCHASTIC[case]
    errors = []
    for n in (64, 128, 256):
        found = SMOOTH[path](n)
        response, mean, variance = moments(sampler, found, **options(noise))
        s, t = found[-1], found[0]
        assert mean == pytest.approx(s.alpha * MEAN, abs=1e-12)
        errors.append(abs(variance - spread_at(s) ** 2))
        if sampler in DRAWS:    # E[x_s | x_t] is exact: cov(x_s, x_t)/var(x_t)
            shared = process.transition(s, t).scale * spread_at(s) ** 2
            assert response == pytest.approx(shared / spread_at(t) ** 2, rel=1e-12)
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, order, atol=0.2)


@by_name
def test_samplers_end_at_the_moments_of_the_data_themselves(name):
    """To clean data, by 150 steps (10 where there are no more): order 1 leaves some percent."""
    noise = ALL[name]
    steps = min(noise.steps or 150, 150)
    found = levels(noise, steps, "karras" if isinstance(noise, Karras) else "trailing")
    tolerance = 0.06 if steps > 10 else 0.3
    for sampler, options in (("ddpm", {}), ("ddim", {"eta": 0.0}), ("ddim", {"eta": 0.7}),
                             ("dpm_2m_sde", {})):
        _, mean, variance = moments(sampler, found, **options)
        assert mean == pytest.approx(MEAN, abs=1e-9)
        assert math.sqrt(variance) == pytest.approx(SPREAD, rel=tolerance)


# -- samplers and each other -----------------------------------------------------------------------


def network(x, t):
    """A prediction that is no linear function of x, and depends on the time."""
    return mf.tanh(x * 1.7 + math.sin(float(t))) * 0.8 + 0.1


@by_name
@pytest.mark.parametrize("objective", ["v", "flow"])
@pytest.mark.parametrize("correct", [None, objectives.clipped(0.5)])
def test_ddim_with_eta_1_is_ddpm(name, objective, correct):
    found = levels(ALL[name], 6)
    denoiser = Denoiser(network, objective, correct=correct)
    x = found[0].sigma * normal(3, 2)
    results = [sampler(denoiser, x, found, rng=Rng(2), **options).numpy() for sampler, options in (
        (samplers.ddim, {"eta": 1.0}), (samplers.ddpm, {}))]
    np.testing.assert_allclose(*results, rtol=1e-12, atol=1e-12 * max(1, found[0].sigma))


@by_name
@few
@given(data=st.data())
def test_ddim_with_eta_1_has_the_posteriors_mean_and_variance(name, data):
    s, t = two_times(data, ALL[name])
    x, x0 = normal(3, 2), normal(3, 2, seed=1)
    def denoiser(x, level):
        return estimate("x0", x0, x, level)
    x[2] = x[0]
    x0[2] = x0[0]
    y = samplers.ddim(denoiser, x, [t, s], rng=OneHot(), eta=1.0).numpy()   # row 2 has noise 1
    exact = process.posterior(s, t)
    np.testing.assert_allclose(y[:2], (exact.data * x0 + exact.state * x)[:2], rtol=1e-11,
                               atol=1e-12 * (1 + t.sigma))
    np.testing.assert_allclose(y[2] - y[0], exact.deviation, rtol=1e-11, atol=1e-12 * (1 + t.sigma))


@by_name
def test_three_deterministic_samplers_make_the_same_steps(name):
    found = levels(ALL[name], 5)
    denoiser, x = Denoiser(network, "v"), found[0].sigma * normal(2, 3)
    wanted = samplers.ddim(denoiser, x, found, rng=Nothing(0)).numpy()
    for sampler in ("euler", "flow_euler"):
        if allowed(sampler, found):
            scale = max(1, found[0].ratio) if sampler == "euler" else 1
            np.testing.assert_allclose(run(sampler, denoiser, x, found), wanted, atol=1e-12 * scale)


@by_name
def test_a_first_step_of_second_order_is_one_of_first_order(name):
    found = levels(ALL[name], 4)[:2]
    denoiser, x = Denoiser(network, "v"), found[0].sigma * normal(2, 3)
    size = 1e-12 * max(1, found[0].sigma)
    np.testing.assert_allclose(run("dpm_2m", denoiser, x, found), run("ddim", denoiser, x, found),
                               atol=size)
    np.testing.assert_allclose(run("dpm_2m_sde", denoiser, x, found),
                               run("ddpm", denoiser, x, found), atol=size)


def test_dpm_2m_extrapolates_the_data_in_a_line_in_log_snr():
    """An x̂₀ that is a straight line in log(σ/α): the second step knows its value halfway."""
    found = [LinearBeta().at(t) for t in (0.9, 0.6, 0.35)]
    def line(x, level):
        return estimate("x0", x * 0.0 + 2 * math.log(level.ratio) + 1, x, level)
    x = np.zeros((1, 1))
    first = run("dpm_2m", line, x, found[:2])
    t, s = found[1:]
    halfway = math.log(t.ratio) + math.log(s.ratio) + 1
    wanted = s.sigma / t.sigma * first + s.alpha * (1 - s.ratio / t.ratio) * halfway
    np.testing.assert_allclose(run("dpm_2m", line, x, found), wanted, rtol=1e-12)
    plain = run("dpm_2m", line, x, found, first_order_end=True)
    x0 = 2 * math.log(t.ratio) + 1
    np.testing.assert_allclose(
        plain, s.sigma / t.sigma * first + s.alpha * (1 - s.ratio / t.ratio) * x0, rtol=1e-12)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_2m", "dpm_2m_sde"])
def test_sampling_starts_where_no_signal_is_left(sampler):
    """α = 0: v says what the data are, ε does not, and that is said."""
    found = levels(TABLES["zero_terminal"], 6)
    assert found[0].alpha == 0
    x = normal(2, 3)
    assert np.isfinite(run(sampler, Denoiser(network, "v"), x, found)).all()
    with pytest.raises(ConfigError, match="'epsilon' does not say"):
        run(sampler, Denoiser(network, "epsilon"), x, found)


def test_where_a_step_lands_can_be_said():
    table = schedule.linear()
    found = levels(table, 3)
    landing = [table.at(600), table.at(300), table.clean]
    reached, asked = [], []
    def denoiser(x, level):
        asked.append(level)
        return Denoiser(network, "v")(x, level)
    samplers.ddim(denoiser, normal(1, 2), found, landing=landing,
                  watch=lambda i, level, x, estimate: reached.append(level))
    assert reached == landing and asked == found[:-1]


def test_churn_raises_levels_within_its_bounds_by_its_amount():
    churn = Churn(Karras(), 4.0, least=0.5, most=10.0)
    assert churn.level(Karras().at(2.0), 40).sigma == pytest.approx(2.2, rel=1e-15)
    assert churn.level(Karras().at(2.0), 2).sigma == pytest.approx(2 * math.sqrt(2), rel=1e-15)
    for outside in (0.4, 11.0):
        assert churn.level(Karras().at(outside), 40).sigma == outside
    found = levels(LinearBeta(), 4)
    x = normal(2, 3)
    np.testing.assert_array_equal(
        run("heun", gaussian, x, found, rng=Nothing(0), churn=Churn(LinearBeta(), 0.0)),
        run("heun", gaussian, x, found))


def test_corrections_of_the_data():
    x0 = mf.Tensor(np.array([[-3.0, 0.5, 1.0, 2.0], [0.1, -0.2, 0.3, 0.0]]))
    np.testing.assert_array_equal(objectives.clipped(1.5)(x0).numpy()[0], [-1.5, 0.5, 1.0, 1.5])
    found = objectives.thresholded(1.0, 10.0)(x0).numpy()       # the largest value is the limit
    np.testing.assert_allclose(found, [[-1, 1 / 6, 1 / 3, 2 / 3], [0.1, -0.2, 0.3, 0]], rtol=1e-12)
    np.testing.assert_allclose(objectives.thresholded(1.0, 2.0)(x0).numpy()[0],
                               [-1, 0.25, 0.5, 1], rtol=1e-12)
    level, x = Cosine().at(0.5), normal(2, 4)
    whole = Denoiser(network, "v", correct=objectives.clipped(0.3))(x, level)
    np.testing.assert_allclose(process.noised(whole.x0, whole.noise, level).numpy(), x, rtol=1e-12)
    kept = Denoiser(network, "v", correct=objectives.clipped(0.3), keep_noise=True)(x, level)
    plain = Denoiser(network, "v")(x, level)
    np.testing.assert_array_equal(kept.noise.numpy(), plain.noise.numpy())
    np.testing.assert_array_equal(kept.x0.numpy(), whole.x0.numpy())


# -- one seed, one result --------------------------------------------------------------------------


STEADY = [(name, {"eta": 0.5} if name == "ddim" else
           {"churn": Churn(schedule.linear(), 3.0)} if name in ("euler", "heun") else {})
          for name in SAMPLERS if name != "flow_euler"]


@pytest.mark.parametrize("sampler, options", STEADY)
def test_one_seed_is_one_result_on_every_backend_and_in_every_batch(sampler, options):
    """Bitwise, in float32: all arithmetic here rounds once, and noise is drawn on the host."""
    found = levels(schedule.linear(), 5)

    def sample(rows, dtype=np.float32):
        x = samplers.starting_noise(found, (rows, 3, 5), Rng(1), dtype)
        denoiser = Denoiser(lambda x, t: mf.maximum(x * 0.7, 0.1 * float(t) / 1000), "v")
        drawing = {} if sampler == "dpm_2m" else {"rng": Rng(1)}
        return SAMPLERS[sampler](denoiser, x, found, **drawing, **options).numpy()
    wanted = None
    for name in backends.NAMES:
        if backends.why_not(name) is None:
            with mf.use(name):
                y = sample(4)
            assert y.dtype == np.float32
            wanted = y if wanted is None else wanted
            np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(sample(2), wanted[:2])
    with mf.use(OpaqueBackend()):
        np.testing.assert_array_equal(sample(4), wanted)
    np.testing.assert_allclose(sample(4, np.float64), wanted, atol=1e-4)


# -- guidance --------------------------------------------------------------------------------------


def conditioned(x, t, label=0.0):
    """A prediction that depends on a condition."""
    return mf.tanh(x + label) * 0.7 + 0.1 * label


def test_classifier_free_guidance_goes_as_far_as_it_says():
    x = normal(3, 4)
    with_it, without = conditioned(x, 0, 1.0).numpy(), conditioned(x, 0, 0.0).numpy()

    def at(scale, rescale=0.0):
        return guidance.classifier_free(conditioned, scale, condition={"label": 1.0},
                                        without={"label": 0.0}, rescale=rescale)(mf.Tensor(x), 0)
    np.testing.assert_array_equal(at(1).numpy(), with_it)
    np.testing.assert_array_equal(at(0).numpy(), without)
    np.testing.assert_allclose(at(4.0).numpy(), without + 4 * (with_it - without), rtol=1e-14)
    np.testing.assert_allclose(at(4.0, 1.0).numpy().std(1), with_it.std(1), rtol=1e-12)
    half = (at(4.0).numpy() + at(4.0, 1.0).numpy()) / 2
    np.testing.assert_allclose(at(4.0, 0.5).numpy(), half, rtol=1e-12)


@pytest.mark.parametrize("given_", OBJECTIVES)
def test_classifier_free_guidance_is_the_same_for_every_objective(given_):
    """Predictions at one x are linear in each other: it does not matter which are extrapolated."""
    level, x = Cosine().at(0.4), mf.Tensor(normal(2, 3))

    def model(x, t, label):
        return objectives.convert(conditioned(x, t, label), x, level, "v", given_)
    settings_ = {"condition": {"label": 1.0}, "without": {"label": 0.0}}
    found = estimate(given_, guidance.classifier_free(model, 3.0, **settings_)(x, 0), x, level)
    wanted = estimate("v", guidance.classifier_free(conditioned, 3.0, **settings_)(x, 0), x, level)
    np.testing.assert_allclose(found.x0.numpy(), wanted.x0.numpy(), rtol=1e-11)


def test_classifier_guidance_samples_the_data_that_the_classifier_wants():
    """Gaussian data, and a classifier whose log-probability is that of an observation of x₀: guided
    by its exact gradient at each level, the data become the exact posterior, in its moments."""
    y, spread = 2.0, 0.4
    precision = 1 / SPREAD**2 + 1 / spread**2
    wanted_mean = (MEAN / SPREAD**2 + y / spread**2) / precision
    noise = LinearBeta()

    def log_probability(x, t):          # of y given x_t: N(E[x₀ | x_t], Var[x₀ | x_t] + spread²)
        level = noise.at(t)
        total = (level.alpha * SPREAD) ** 2 + level.sigma**2
        expected = (x - level.alpha * MEAN) * (level.alpha * SPREAD**2 / total) + MEAN
        variance = (SPREAD * level.sigma) ** 2 / total + spread**2
        return mf.sum((expected - y) * (expected - y), 1) * (-0.5 / variance)
    denoiser = guidance.ClassifierGuided(gaussian, log_probability)
    x = np.zeros((102, 1))
    x[1] = 1
    found = levels(noise, 100)
    z = samplers.dpm_2m_sde(denoiser, x, found, rng=OneHot()).numpy()[:, 0]
    response, drawn = z[1] - z[0], z[2:] - z[0]
    mean = z[0] + response * found[0].alpha * MEAN
    assert mean == pytest.approx(wanted_mean, rel=0.01)
    assert math.sqrt(response**2 + (drawn**2).sum()) == pytest.approx(precision**-0.5, rel=0.05)


def test_classifier_guidance_leaves_a_frozen_classifier_alone():
    weight = mf.Tensor(np.ones((3, 1)))
    guided = guidance.ClassifierGuided(gaussian, lambda x, t: mf.matmul(x, weight), 2.0)
    level, x = Cosine().at(0.5), mf.Tensor(normal(2, 3))
    plain, moved = gaussian(x, level), guided(x, level)
    np.testing.assert_allclose(moved.noise.numpy(), plain.noise.numpy() - 2 * level.sigma)
    np.testing.assert_allclose(process.noised(moved.x0, moved.noise, level).numpy(), x.numpy())
    assert weight.grad is None and x.grad is None and not x.requires_grad


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "heun", "dpm_2m", "dpm_2m_sde"])
def test_a_known_part_is_kept_by_every_sampler(sampler):
    known, mask = normal(2, 4), np.array([1.0, 0.0, 0.0, 1.0])
    denoiser = guidance.KnownPart(Denoiser(network, "v"), known, mask)
    found = levels(LinearBeta(), 5)
    y = run(sampler, denoiser, normal(2, 4, seed=1), found)
    np.testing.assert_allclose(y[:, [0, 3]], known[:, [0, 3]], atol=1e-12 * found[0].ratio)
    assert np.abs(y[:, 1:3] - known[:, 1:3]).max() > 0.01
    with pytest.raises(ConfigError, match="mask: expected 1 where"):
        run(sampler, guidance.KnownPart(gaussian, known, mask / 2), normal(2, 4), found)


def test_repaint_keeps_the_known_and_fills_the_rest_to_fit():
    """Pairs of Gaussian numbers that are all but equal: the one that is known tells the other. With
    the exact denoiser of such pairs, repeats make it so."""
    noise, covariance = LinearBeta(), np.array([[1, 0.99], [0.99, 1]])

    def exact(x, level):
        total = level.alpha**2 * covariance + level.sigma**2 * np.eye(2)
        x0 = mf.matmul(x, np.linalg.solve(total, level.alpha * covariance))
        return estimate("x0", x0, x, level)
    rows = 400
    known = np.stack([np.linspace(-2, 2, rows), np.zeros(rows)], 1)
    mask = np.array([[1, 0]])
    y = guidance.repaint(exact, normal(rows, 2, seed=3), levels(noise, 40), known, mask,
                         rng=Rng(0), repeats=5).numpy()
    np.testing.assert_array_equal(y[:, 0], known[:, 0])
    # The other is N(0.99 known, 1 - 0.99²), whose mean distance is √(2/π) 0.141 = 0.113; 40 steps
    # leave some more. Repeats without noise in between would leave less, 0.085.
    assert 0.1 < np.abs(y[:, 1] - 0.99 * known[:, 0]).mean() < 0.16


def test_image_to_image_starts_where_its_strength_says():
    found, x0 = levels(schedule.linear(), 10), normal(2, 3)
    x, rest = guidance.image_to_image(x0, found, 0.3, Rng(1))
    assert rest == found[7:]
    noise = Rng(1).child("start").host_normal((2, 3), np.float64)
    np.testing.assert_array_equal(x.numpy(), process.noised(x0, noise, found[7]).numpy())
    assert guidance.image_to_image(x0, found, 1, Rng(1))[1] == found
    for strength in (0.0, 0.05, 1.1, math.nan):
        with pytest.raises(ConfigError, match="strength: expected a part of 10 steps"):
            guidance.image_to_image(x0, found, strength, Rng(1))


@pytest.mark.parametrize("name", ["linear", "cosine", "LinearBeta", "Karras"])
def test_ddim_inverted_and_sampled_again_is_the_data(name):
    """Exactly, once the fixed point is found; and with one iteration, the better the more steps."""
    noise, x0 = ALL[name], MEAN + SPREAD * normal(3, 2)
    denoiser = Denoiser(lambda x, t: gaussian(x, noise.at(t)).noise, "epsilon")

    def again(steps, iterations):
        found = levels(noise, steps, "exponential")
        x = guidance.invert(denoiser, x0, found, iterations=iterations)
        return np.abs(samplers.ddim(denoiser, x, found).numpy() - x0).max()
    assert again(8, 150) < 1e-9
    assert again(60, 1) < 0.7 * again(20, 1)


def test_slerp_stays_on_the_shell():
    x, y = normal(3, 50), normal(3, 50, seed=1)
    y *= np.linalg.norm(x, axis=1, keepdims=True) / np.linalg.norm(y, axis=1, keepdims=True)
    for part in (0.0, 0.25, 0.5, 1.0):
        z = guidance.slerp(x, y, part).numpy()
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.linalg.norm(x, axis=1), rtol=1e-12)
    np.testing.assert_allclose(guidance.slerp(x, y, 0.0).numpy(), x, atol=1e-14)
    np.testing.assert_allclose(guidance.slerp(x, y, 1.0).numpy(), y, atol=1e-14)
    np.testing.assert_allclose(guidance.slerp(x, x, 0.3).numpy(), x, rtol=1e-12)
    with pytest.raises(ShapeError, match="slerp: shapes"):
        guidance.slerp(x, y[:2], 0.5)


# -- a schedule that is learned --------------------------------------------------------------------


def learned(seed=0, hidden=8, **ends):
    """A learned schedule in float64, away from its beginning."""
    found = Learned(rng=Rng(seed), hidden=hidden, **ends)
    for i, p in enumerate(found.parameters().values()):
        p.data = p.data.astype(np.float64)
        if p is not found.first and p is not found.last:
            p.data = p.data + 0.7 * Rng(seed).child("away", i).host_normal(p.shape, np.float64)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_learned_schedule_is_a_schedule(seed):
    noise = learned(seed, first=-6.0, last=4.0)
    t = np.linspace(0, 1, 101)
    gamma, slope = noise.gamma(t)
    assert gamma.numpy()[0] == pytest.approx(-6, abs=1e-12)
    assert gamma.numpy()[-1] == pytest.approx(4, abs=1e-12)
    assert (np.diff(gamma.numpy()) > 0).all()
    near = (noise.gamma(t[1:-1] + 1e-6)[0].numpy() - noise.gamma(t[1:-1] - 1e-6)[0].numpy()) / 2e-6
    np.testing.assert_allclose(slope.numpy()[1:-1], near, rtol=1e-6)
    level = noise.at(t)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(noise.time_of(level.ratio), t, atol=1e-10)
    as_tensors = noise.level(t)
    np.testing.assert_allclose(as_tensors.sigma.numpy(), level.sigma, rtol=1e-12)
    y = samplers.ddim(gaussian, normal(1, 2), levels(noise, 200)).numpy()
    assert np.isfinite(y).all()


def test_the_bound_depends_on_a_learned_schedules_ends_alone():
    """By quadrature, with the exact expectation of ‖ε - ε̂‖²: α²s² / (α²s² + σ²)."""
    found = []
    t = (np.arange(20_000) + 0.5) / 20_000
    for seed in range(3):
        gamma, slope = (x.numpy() for x in learned(seed, first=-6.0, last=4.0).gamma(t))
        found.append((0.5 * slope * SPREAD**2 / (SPREAD**2 + np.exp(gamma))).mean())
    exact = 0.5 * np.diff([-np.log1p(SPREAD**2 * math.exp(-g)) for g in (-6.0, 4.0)])[0]
    np.testing.assert_allclose(found, exact, rtol=1e-6)


def test_the_bound_is_the_entropy_of_gaussian_data():
    """With the exact denoiser and wide ends, up to what 20,000 draws say (six deviations)."""
    noise = learned(first=-12.0, last=10.0)
    n = 20_000
    x0, e = SPREAD * normal(n, 1), normal(n, 1, seed=1)

    def model(x, t):
        level = noise.level(t)
        total = level.alpha * level.alpha * SPREAD**2 + level.sigma * level.sigma
        return x * mf.reshape(level.sigma / total, (-1, 1))
    times = objectives.uniform_times(noise, n, Rng(1))
    between = diffusion_losses(model, x0, noise, times, e).numpy()
    exact = 0.5 * math.log(2 * math.pi * math.e * SPREAD**2)
    found = bound(model, x0, noise, times, e).item()
    assert found == pytest.approx(exact, abs=6 * between.std() / math.sqrt(n) + 0.01)


def test_the_ends_of_the_bound_are_their_formulas():
    noise, x0 = learned(first=-3.0, last=2.0), normal(4, 5)
    alpha2, variance2 = 1 / (1 + math.exp(2.0)), 1 / (1 + math.exp(-2.0))
    divergence = 0.5 * (alpha2 * x0**2 + variance2 - 1 - math.log(variance2)).sum(1)
    hidden = 5 * 0.5 * math.log(2 * math.pi * math.e * math.exp(-3.0))
    np.testing.assert_allclose(end_losses(x0, noise).numpy(), divergence + hidden, rtol=1e-12)


def test_gradients_reach_every_part_of_a_learned_schedule():
    noise, x0, times = learned(first=-6.0, last=4.0), normal(5, 3), np.linspace(0.1, 0.9, 5)
    e = normal(5, 3, seed=1)

    def value():
        return bound(network_of_many_times, x0, noise, times, e) + variance(
            diffusion_losses(network_of_many_times, x0, noise, times, e))
    value().backward()
    for name, p in noise.parameters().items():
        direction = Rng(4).child(name).host_normal(p.shape, np.float64)
        slope = float((p.grad * direction).sum())
        was, ends = p.data, []
        for side in (1e-5, -1e-5):
            p.data = was + side * direction
            ends.append(value().item())
        p.data = was
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-6), name
        assert slope != 0


def network_of_many_times(x, t):
    return mf.tanh(x * 0.8) * np.cos(t).reshape(-1, 1).astype(x.dtype)


def test_learning_the_inside_of_a_schedule_makes_the_bound_vary_less_and_stay():
    """With the exact denoiser, by gradient descent on the mean square."""
    noise = learned(1, first=-8.0, last=6.0)
    t = (np.arange(100) + 0.5) / 100

    def losses():           # the expectation over data and noise; what varies is the time
        gamma, slope = noise.gamma(t)
        return slope * 0.5 * SPREAD**2 / (mf.exp(gamma) + SPREAD**2)
    before = losses().numpy()
    inner = inner_parameters(noise)
    for _ in range(150):
        noise.zero_grad()
        variance(losses()).backward()
        for p in inner.values():
            p.data = p.data - 0.02 * p.grad
    after = losses().numpy()
    assert after.std() < 0.7 * before.std()
    assert after.mean() == pytest.approx(before.mean(), rel=1e-2)
    assert noise.first.item() == -8 and noise.last.item() == 6


class Deaf(Reference):
    """A backend that draws nothing."""

    def normal(self, key, shape, dtype):
        raise AssertionError("noise was drawn by the backend that computes")


def test_noise_is_drawn_on_the_host_whatever_computes():
    wanted = Rng(1).host_normal((3, 2))
    with mf.use(Deaf()):
        np.testing.assert_array_equal(Rng(1).host_normal((3, 2)), wanted)


# -- arrays somewhere else -------------------------------------------------------------------------


def test_nothing_but_verbs_touches_arrays():
    """On a backend whose arrays show shape and dtype alone, to the reference's bits."""
    def everything():
        x0, e = (Rng(i).host_normal((4, 3), np.float32) for i in range(2))
        noise, times = schedule.linear(), np.array([5, 100, 500, 900])
        found = levels(noise, 4)
        denoiser = Denoiser(network, "v", correct=objectives.thresholded(0.9, 2.0))
        scale = mf.Tensor(np.float32(0.7), requires_grad=True)
        value = objectives.loss(lambda x, t: x * scale, x0, schedule=noise, objective="v",
                                times=times, noise=e, weighting=objectives.min_snr())
        value.backward()
        guided = guidance.ClassifierGuided(denoiser, lambda x, t: mf.sum(x * x, 1), 0.1)
        x, rest = guidance.image_to_image(x0, found, 0.8, Rng(2))
        model = guidance.classifier_free(conditioned, 3.0, condition={"label": 1.0},
                                         without={}, rescale=0.7)
        vdm = Learned(rng=Rng(3), hidden=4)
        bound(network_of_many_times, x0, vdm, np.linspace(0.1, 0.9, 4), e).backward()
        clothes = Denoiser(objectives.Preconditioned(lambda x, t: x * 0.3), "x0")
        results = [
            value, mf.Tensor(scale.grad), mf.Tensor(vdm.heights.grad),
            samplers.ddim(guided, x, rest), guidance.invert(denoiser, x0, found),
            samplers.dpm_2m(Denoiser(model, "v"), x0, found),
            samplers.heun(clothes, x0, levels(Karras(), 3, "karras")),
            guidance.repaint(denoiser, x, found, x0, np.array([1, 0, 0]), rng=Rng(4), repeats=2),
            guidance.slerp(x0, e, 0.3), samplers.flow_euler(denoiser, x, levels(Flow(), 3))]
        return [np.array(y.numpy()) for y in results]
    with mf.use("numpy"):
        wanted = everything()
    with mf.use(OpaqueBackend()):
        for found, exact in zip(everything(), wanted):
            np.testing.assert_array_equal(found, exact)
