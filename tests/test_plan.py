"""Plans against what was published: parameters, operations, memory and device-hours of real runs.

A published figure is printed to a few digits: a tolerance is half of its last one, unless said.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minifm import cli
from minifm.cli.plan import number
from minifm.models import ARCHITECTURES, GPTConfig, LlamaConfig
from minifm.scaling import memory as room
from minifm.scaling.devices import DEVICES
from minifm.scaling.memory import Layout, block_bytes, memory, state_bytes
from minifm.scaling.plan import PlanConfig, divisions, plan, preset

GPT3 = preset("gpt3-175b")


@pytest.fixture
def minifm(capsys):
    """minifm(*words) runs a command here and gives (status, standard output, standard error)."""
    def run(*words):
        capsys.readouterr()
        return (cli.main([str(word) for word in words]), *capsys.readouterr())
    return run


# -- parameters and operations -------------------------------------------------------------------


@pytest.mark.parametrize("name, published, last_digit", [
    # Brown et al. 2020, table D.1, in millions. It rounds by its own rules (gpt3-small as 125).
    ("gpt3-small", 125e6, 1e6), ("gpt3-medium", 356e6, 1e6), ("gpt3-large", 760e6, 1e6),
    ("gpt3-xl", 1320e6, 10e6), ("gpt3-2.7b", 2650e6, 10e6), ("gpt3-6.7b", 6660e6, 10e6),
    ("gpt3-13b", 12850e6, 10e6), ("gpt3-175b", 174600e6, 100e6),
    # Touvron et al. 2023a, table 2; of 65.29 it makes 65.2.
    ("llama-7b", 6.7e9, 0.1e9), ("llama-13b", 13.0e9, 0.1e9), ("llama-33b", 32.5e9, 0.1e9),
    ("llama-65b", 65.2e9, 0.2e9),
    # The names of the later models say whole billions.
    ("llama2-13b", 13e9, 1e9), ("llama2-70b", 69e9, 1e9), ("llama3-8b", 8e9, 1e9),
    ("llama3-70b", 70.6e9, 0.1e9), ("llama3-405b", 405e9, 2e9), ("mixtral-8x7b", 46.7e9, 0.1e9),
])
def test_presets_have_the_published_parameters(name, published, last_digit):
    assert abs(preset(name).parameters - published) <= last_digit / 2


@pytest.mark.parametrize("name, flops", [
    ("gpt3-small", 2.25e20), ("gpt3-medium", 6.41e20), ("gpt3-large", 1.37e21),
    ("gpt3-xl", 2.38e21), ("gpt3-2.7b", 4.77e21), ("gpt3-6.7b", 1.20e22), ("gpt3-13b", 2.31e22),
    ("gpt3-175b", 3.14e23),
])
def test_operations_are_those_of_gpt3s_table(name, flops):
    """Table D.1: 300 billion tokens by 6 N D; three digits, one of them lost in rounding N."""
    found = plan(name, 300e9, "v100", PlanConfig()).figures
    assert found["by the rule"].value == pytest.approx(flops, rel=5e-3)


def test_exact_operations_differ_from_the_rule_by_what_the_rule_leaves_out():
    """Attention to the length; and what is looked up or added, and multiplies nothing: the table
    of positions, 9 h offsets and 4 h of norms in a block, the last norm."""
    found, c, tokens = plan("gpt3-175b", 300e9, "h100", PlanConfig()).figures, GPT3, 300e9
    attention = 3.5 * 2 * c.layers * 2048 * c.width
    idle = 6 * c.width * (2048 + 13 * c.layers + 2)
    exact = found["by the rule"].value + tokens * (attention - idle)
    assert found["FLOPs"].value == pytest.approx(exact, rel=1e-12)


def test_operations_are_llama3s():
    """Grattafiori et al. 2024: 405B on 15.6 T tokens took 3.8 × 10^25 FLOPs."""
    found = plan("llama3-405b", 15.6e12, "h100", PlanConfig(zero=3)).figures
    assert found["by the rule"].value == pytest.approx(3.8e25, rel=0.05 / 3.8)


@pytest.mark.parametrize("millions, width, heads, layers", [
    (44, 512, 8, 8), (57, 576, 9, 9), (74, 640, 10, 10), (90, 640, 10, 13), (117, 768, 12, 12),
    (163, 768, 12, 18), (251, 1024, 16, 16), (306, 1024, 16, 20), (425, 1280, 10, 18),
    (552, 1280, 10, 24), (16183, 5120, 40, 47)])
def test_a_gpts_parameters_are_chinchillas_but_for_its_positions(millions, width, heads, layers):
    """Hoffmann et al. 2022, table A9: relative positions are a matrix more in each block, where a
    GPT has one table. That is why those models are no presets here."""
    c = GPTConfig(vocabulary=32000, context=2048, layers=layers, heads=heads, width=width)
    theirs = c.parameters - c.context * width + layers * width**2
    assert theirs / 1e6 == pytest.approx(millions, abs=0.6, rel=1e-3)


@pytest.mark.parametrize("layers, width, heads, billions", [
    (24, 2304, 24, 1.7), (36, 4096, 32, 7.5), (60, 10240, 80, 76.1), (128, 25600, 160, 1008.0)])
def test_parameters_are_megatrons(layers, width, heads, billions):
    """Narayanan et al. 2021, equation 2 and table 1; it leaves out the last norm."""
    c = GPTConfig(vocabulary=51200, context=2048, layers=layers, heads=heads, width=width)
    theirs = 12 * layers * width**2 * (1 + 13 / (12 * width) + (51200 + 2048)
                                       / (12 * layers * width))
    assert c.parameters == pytest.approx(theirs + 2 * width, rel=1e-12)
    assert abs(c.parameters - billions * 1e9) <= 0.05e9


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data, by_stage", [
    # Rajbhandari et al. 2020, table 1: GB of 7.5, 128 and 1,000 billion parameters, stages 1 to 3.
    (1, ((120, 120, 120), (2048, 2048, 2048), (16000, 16000, 16000))),
    (4, ((52.5, 41.3, 30), (896, 704, 512), (7000, 5500, 4000))),
    (16, ((35.6, 21.6, 7.5), (608, 368, 128), (4750, 2875, 1000))),
    (64, ((31.4, 16.6, 1.88), (536, 284, 32), (4187, 2218, 250))),
    (256, ((30.4, 15.4, 0.47), (518, 263, 8), (4046, 2054, 62.5))),
    (1024, ((30.1, 15.1, 0.12), (513, 257, 2), (4011, 2013, 15.6))),
])
def test_states_take_what_zeros_table_says(data, by_stage):
    """Its figures are cut or rounded to a unit of their last digit."""
    for parameters, stages in zip((7.5e9, 128e9, 1000e9), by_stage):
        for zero, published in enumerate(stages, 1):
            unit = 1 if published > 100 else 0.1 if published > 8 else 0.01
            found = sum(state_bytes(parameters, data, zero)) / 1e9
            assert abs(found - published) <= unit, (parameters, zero)


def test_without_zero_every_copy_holds_all():
    assert [sum(state_bytes(7.5e9, data, 0)) / 1e9 for data in (1, 64)] == [120, 120]


@given(t=st.sampled_from([1, 2, 4, 8]), h=st.sampled_from([1024, 4096, 12288]),
       s=st.sampled_from([512, 2048, 8192]))
def test_a_block_keeps_what_korthikanti_says(t, h, s):
    """Table 2 of that paper, in bytes for a token: the six ways, with dropout as it has."""
    a = h // 128
    c = GPTConfig(context=8192, layers=2, heads=a, width=h, dropout=0.1)

    def kept(recompute, sequence_parallel, t=t):
        return block_bytes(c, s, t, recompute, sequence_parallel)
    assert kept("none", False, 1) == pytest.approx(h * (34 + 5 * a * s / h))
    assert kept("none", False) == pytest.approx(h * (10 + 24 / t + 5 * a * s / (h * t)))
    assert kept("none", True) == pytest.approx(h / t * (34 + 5 * a * s / h))
    assert kept("selective", False) == pytest.approx(h * (10 + 24 / t))
    assert kept("selective", True) == pytest.approx(h * 34 / t)
    assert kept("full", False) == 2 * h


def test_selective_recomputation_saves_what_korthikanti_says():
    """Section 5: of GPT-3's and MT-NLG's activations 70 % and 65 % are attention matrices."""
    for layers, heads, width, percent in ((96, 96, 12288, 70), (105, 128, 20480, 65)):
        c = GPTConfig(context=2048, layers=layers, heads=heads, width=width, dropout=0.1)
        saved = 1 - block_bytes(c, 2048) / block_bytes(c, 2048, recompute="none")
        assert abs(100 * saved - percent) <= 0.5


def test_a_llamas_block_keeps_what_its_parts_read():
    """By hand: 2 C + 2 C norms, 2 C + 2 C products, q, k, v, their output, three of the gate."""
    c = LlamaConfig(layers=2, heads=8, key_heads=2, width=64, hidden=96)
    assert block_bytes(c, 32) == 8 * 64 + 2 * (64 + 16 + 16 + 64) + 3 * 2 * 96
    assert block_bytes(c, 32, recompute="none") - block_bytes(c, 32) == 2 * 8 * 32
    experts = replace(c, experts=8, experts_chosen=2)
    assert block_bytes(experts, 32) - block_bytes(c, 32) == 3 * 2 * 96 + 2 * 4 * 64


@given(t=st.sampled_from([1, 2, 4]), p=st.sampled_from([1, 2, 3, 4, 6]), tied=st.booleans(),
       zero=st.integers(0, 3), data=st.integers(1, 64))
def test_the_parts_of_a_divided_model_hold_the_whole(t, p, tied, zero, data):
    """No stage holds less than its share, and without a pipeline the devices hold it exactly."""
    c = LlamaConfig(vocabulary=1000, layers=12, heads=8, key_heads=4, width=64, tied=tied)
    stage = room.stage_parameters(c, p)
    assert stage * p >= c.parameters and room.stage_parameters(c, 1) == c.parameters
    found = memory(c, Layout(data, t, p, zero), length=128)
    one = memory(c, Layout(1, t, p, 0), length=128)
    assert found.activations == one.activations
    assert found.total <= one.total
    assert one.weights == 2 * stage / t and one.optimizer == 12 * stage / t


def test_a_pipeline_keeps_the_activations_of_all_layers_on_its_first_stage():
    """One-forward-one-backward: as many micro-batches as stages are under way there."""
    c = GPTConfig(context=512, layers=8, heads=4, width=256, vocabulary=500)
    per_token = 8 * block_bytes(c, 512)
    sizes = {"length": 512, "micro_batch": 3}
    assert room.activation_bytes(c, Layout(1, 1, 4), **sizes) == 3 * 512 * per_token
    whole = room.activation_bytes(c, Layout(1, 1, 1), **sizes)
    assert whole == 3 * 512 * (per_token + 4 * 256 + 4 * 500)       # and the head's
    again = room.activation_bytes(c, Layout(1, 1, 4), recompute="full", **sizes)
    assert again == 3 * 512 * (8 * 2 * 256 + block_bytes(c, 512, recompute="none"))


# -- time ----------------------------------------------------------------------------------------


def device_hours(name, tokens, utilisation, **more):
    config = PlanConfig(utilisation=utilisation, zero=3, **more)
    return plan(name, tokens, "a100", config).figures["device-hours"].value


def test_time_is_llamas():
    """Touvron et al. 2023a, section 2.4: 65B reads 380 tokens a second on each A100, and 1.4 T
    tokens take 2,048 of them about 21 days; table 15: 1,022,362 GPU-hours. 380 is ± 5."""
    found = plan("llama-65b", 1.4e12, "a100", PlanConfig(count=2048, zero=3))
    each = found.figures["FLOPs a token"].value
    utilisation = 380 * each / DEVICES["a100"].peak
    assert device_hours("llama-65b", 1.4e12, utilisation) == pytest.approx(1_022_362, rel=5 / 380)
    days = plan("llama-65b", 1.4e12, "a100", PlanConfig(count=2048, utilisation=utilisation,
                                                        zero=3)).figures["time"].value / 86400
    assert round(days) == 21


@pytest.mark.parametrize("name, tokens, published", [
    ("llama-7b", 1.0e12, 82_432), ("llama-13b", 1.0e12, 135_168), ("llama-33b", 1.4e12, 530_432),
    ("llama2-7b", 2.0e12, 184_320), ("llama2-13b", 2.0e12, 368_640),
    ("llama2-70b", 2.0e12, 1_720_320)])
def test_published_gpu_hours_lie_in_the_range_that_the_help_names(name, tokens, published):
    """Table 15 and Touvron et al. 2023b, table 2: at 0.3 to 0.55 of an A100's peak."""
    assert device_hours(name, tokens, 0.55) <= published <= device_hours(name, tokens, 0.3)


@pytest.mark.parametrize("shape, tokens, count, teraflops, days", [
    (dict(layers=96, heads=96, width=12288), 300e9, 1024, 140, 34),
    (dict(layers=128, heads=160, width=25600), 450e9, 3072, 163, 84)])
def test_time_is_megatrons(shape, tokens, count, teraflops, days):
    """Narayanan et al. 2021, section 5.1: of what a device computes a quarter is recomputation,
    which is no part of the model's operations. That they take 8 N D, without attention, and round
    the days makes 2 %."""
    c = GPTConfig(vocabulary=51200, context=2048, **shape)
    seconds = 6 * c.parameters * tokens / (count * teraflops * 1e12 * 6 / 8)
    assert seconds / 86400 == pytest.approx(days, rel=0.02)
    exact = c.flops_per_token(2048, training=True) * tokens / (count * teraflops * 1e12 * 6 / 8)
    assert 1 <= exact / seconds < 1.03


# -- layouts -------------------------------------------------------------------------------------


def test_divisions_come_least_first_and_among_equals_within_a_server():
    found = divisions(GPT3, PlanConfig(), DEVICES["h100"])
    assert found[0] == (1, 1) and found.index((4, 3)) < found.index((8, 2))
    assert found.index((8, 1)) < found.index((4, 2)) < found.index((1, 8)) < found.index((3, 3))


@given(count=st.integers(1, 12).map(lambda n: 2**n), zero=st.integers(0, 3),
       name=st.sampled_from(["gpt3-13b", "gpt3-175b", "llama-33b", "llama3-70b", "mixtral-8x7b"]),
       device=st.sampled_from(["a100-40gb", "a100", "h200"]))
def test_the_layout_divides_evenly_and_no_lesser_one_fits(count, zero, name, device):
    found = plan(name, 1e12, device, PlanConfig(count=count, zero=zero, length=2048))
    layout, model = found.layout, found.model
    assert layout.count == count
    layout.check(model)
    for t in (1, 2, 4, 8):
        for p in (p for p in range(1, model.layers + 1) if model.layers % p == 0):
            if model.heads % t or model.key_heads % t or count % (t * p):
                continue
            fits = memory(model, Layout(count // (t * p), t, p, zero), length=2048).total \
                <= found.limit
            lesser = t * p < layout.tensor * layout.pipeline
            assert not (fits and (lesser or not found.fits)), (t, p)


@given(zero=st.integers(0, 3), name=st.sampled_from(["gpt3-6.7b", "llama-13b", "llama3-70b"]),
       device=st.sampled_from(["v100", "a100-40gb", "h100"]))
def test_the_smallest_layout_fits_and_one_copy_less_does_not(zero, name, device):
    found = plan(name, 1e12, device, PlanConfig(zero=zero, length=2048))
    smallest = found.smallest
    assume(smallest is not None)
    assert found.layout == smallest and found.fits
    if smallest.data > 1:
        fewer = replace(smallest, data=smallest.data - 1)
        assert memory(found.model, fewer, length=2048).total > found.limit
    at_once = [Layout(d, t, p, zero) for d in range(1, 9) for t in (1, 2, 4, 8)
               for p in (1, 2, 4, 8) if found.model.layers % p == 0]
    for layout in at_once:
        if layout.count < smallest.count and found.model.heads % layout.tensor == 0 \
                and found.model.key_heads % layout.tensor == 0:
            assert memory(found.model, layout, length=2048).total > found.limit, layout


def test_seven_and_a_half_billion_fit_the_32_gb_of_one_device_by_zero():
    """Rajbhandari et al. 2020, figure 1: with 64 copies, stage 1 takes 31.4 GB, stage 0 120."""
    config = PlanConfig(headroom=0, recompute="full", length=1, tensor=1, pipeline=1, count=64)
    fits = [plan("llama-7b", 1e9, "v100", replace(config, zero=zero)).fits for zero in range(3)]
    assert fits == [False, True, True]


def test_what_the_user_says_of_the_layout_holds():
    found = plan("gpt3-175b", 3e11, "h100", PlanConfig(count=960, tensor=4, pipeline=12))
    assert found.layout == Layout(20, 4, 12)
    assert plan("gpt3-175b", 3e11, "h100", PlanConfig(data=3)).smallest.data == 3


def test_the_batch_gives_steps_and_idle_time():
    config = PlanConfig(count=1024, tensor=8, pipeline=8, batch=1536)
    found = plan("gpt3-175b", 300e9, "a100", config).figures
    assert found["steps"].value == 300e9 / (1536 * 2048)
    assert found["micro-batches"].value == 96 and found["pipeline idle"].value == 7 / 96
    assert "steps" not in plan("gpt3-175b", 300e9, "a100", replace(config, batch=None)).figures


# -- the command ---------------------------------------------------------------------------------

GPT3_COMMAND = ("plan", "--arch", "gpt3-175b", "--tokens", "300e9", "--device", "h100")


def test_the_command_shows_formulae_with_their_numbers(minifm):
    status, out, err = minifm(*GPT3_COMMAND, "--count", 1024)
    assert status == 0 and not err
    for part in ("174,604,259,328", "6 N D = 6 × 1.746e+11 × 3e+11  [Kaplan et al. 2020]",
                 "2 Ψ = 2 × ", "12 Ψ / data = ", "FLOPs / (devices × peak × utilisation) = ",
                 "(1,024 × 9.89e+14 × 0.4)", "fits: ", "fewest devices that hold it: 48 ",
                 "ZeRO 3"):
        assert part in out, part
    assert "cost" not in out
    assert "device-hours × price = " in minifm(*GPT3_COMMAND, "--price", 2)[1]


def test_json_says_the_same_as_the_plan(minifm):
    status, out, _ = minifm(*GPT3_COMMAND, "--count", 1024, "--price", 2, "--json")
    found, expected = json.loads(out), plan("gpt3-175b", 3e11, "h100",
                                            PlanConfig(count=1024, price=2))
    assert status == 0 and found["fits"] is expected.fits
    assert found["figures"]["cost"]["value"] == 2 * found["figures"]["device-hours"]["value"]
    assert found["memory"]["total"] == expected.memory.total
    assert found["by_zero"]["1"] == found["memory"]


@pytest.mark.parametrize("name", [name for arch in ("gpt", "llama")
                                  for name in ARCHITECTURES[arch].presets])
def test_every_decoder_has_a_plan(minifm, name):
    status, out, _ = minifm("plan", "--arch", name, "--tokens", "1e9", "--device", "b200")
    assert status == 0 and "fewest devices" in out or "no number of devices" in out


@pytest.mark.parametrize("text, value", [("300e9", 3e11), ("300B", 3e11), ("1.4T", 1.4e12),
                                         ("20m", 2e7), ("12,000", 12000), ("5k", 5000)])
def test_numbers_as_people_write_them(text, value):
    assert number("tokens", text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("words, parts", [
    (("--device", "h1000"), ("device: expected one of", "'h1000'", "did you mean h100?")),
    (("--arch", "gpt3-175"), ("arch: expected one of", "did you mean gpt3-175b?")),
    (("--arch", "bert-base"), ("arch: expected one of tiny, mini, gpt2", "'bert-base'")),
    (("--arch", "chinchilla-70b"), ("arch: expected one of", "'chinchilla-70b'")),
    (("--tokens", "many"), ("tokens: expected a number", "'many'")),
    (("--tokens", "B"), ("tokens: expected a number", "'B'")),
    (("--tokens=-3e9",), ("tokens: expected a number above 0",)),
    (("--tokens", "nan"), ("tokens: expected a number above 0",)),
    (("--tensor", "5"), ("tensor: 5 devices cannot share heads 96 evenly",)),
    (("--pipeline", "5"), ("pipeline: 5 stages cannot share layers 96 evenly",)),
    (("--arch", "llama3-70b", "--tensor", "16"), ("tensor: 16", "key_heads 8")),
    (("--count", "1000", "--tensor", "3"), ("count: 1,000 devices", "tensor 3")),
    (("--count", "64", "--data", "3", "--tensor", "8"), ("count: 64 devices", "data 3, tensor 8")),
    (("--count", "0"), ("count: expected at least 1, got 0",)),
    (("--zero", "4"), ("zero: expected at least 0 and at most 3, got 4",)),
    (("--recompute", "some"), ("recompute: expected one of none, selective, full",)),
    (("--utilisation", "1.5"), ("utilisation: expected more than 0 and at most 1",)),
    (("--length", "4096"), ("length: expected at most the model's context of 2,048",)),
    (("--count", "64", "--tensor", "8", "--pipeline", "8", "--data", "1", "--batch", "3",
      "--micro-batch", "2"), ("batch: 3 sequences are no multiple of 1 copies × 2",)),
])
def test_mistakes_are_one_line(minifm, words, parts):
    status, out, err = minifm(*GPT3_COMMAND, *words)
    assert status == 2 and out == "" and err.count("\n") == 1, err
    for part in parts:
        assert part in err, err
