"""The README keeps its word: its references point where they say, its commands and code work."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import minifm as mf
from minifm import cli
from minifm.op import OPS, Op
from minifm.tensor import apply
from minifm.testing import laws
from minifm.testing.draw import Explorer
from minifm.testing.example import example

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
REFERENCES = re.findall(r"`(\w+)`\s+\(`([\w/.]+):(\d+)`\)", TEXT)


@pytest.mark.parametrize("name, file, line", REFERENCES)
def test_a_reference_is_the_line_that_defines_the_name(name, file, line):
    lines = (ROOT / file).read_text("utf-8").splitlines()
    defines = re.compile(rf"\s*(def|class) {name}\b|[A-Za-z].*[ *]{name}\(")
    places = [number for number, text in enumerate(lines, 1) if defines.match(text)]
    assert int(line) in places, f"{name} is defined in {file}, line {places}, not {line}"


def test_there_are_references_and_no_path_is_made_up():
    assert len(REFERENCES) > 15
    for path in re.findall(r"`((?:minifm|csrc|tests|bench)/[\w/.]+)[`:]", TEXT):
        assert (ROOT / path).exists(), path


def test_the_two_stories_are_short():
    for title in ("One training step", "One generated token"):
        story = TEXT.split(f"### {title}\n")[1].split("\n#")[0].strip().splitlines()
        assert len([line for line in story if line]) < 15


@pytest.mark.parametrize("line", re.findall(r"^    (minifm .*?)(?:  +#.*)?$", TEXT, re.M))
def test_commands_parse(line):
    assert cli.parse(shlex.split(line)[1:]).run


def test_the_example_of_an_op_obeys_every_law():
    code = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S)
                if "class Softplus" in block)
    names, own = {"Op": Op, "apply": apply}, OPS.get("Softplus")
    try:
        exec(code, names)
        found = names["softplus"](np.array([-200.0, 0.0, 200.0])).numpy()
        assert found == pytest.approx([0, np.log(2), 200], abs=1e-12)
        for seed in range(20):
            drawn = example(OPS["Softplus"], Explorer.random(seed))
            for law in laws.ALL:
                law(drawn)
    finally:
        OPS.pop("Softplus", None)
        if own is not None:         # a reader has followed the README
            OPS["Softplus"] = own


def test_the_example_of_a_gradient_works():
    x = mf.Tensor([[1.0, 2.0]], requires_grad=True)
    loss = (mf.gelu(x) ** 2).sum()
    loss.backward()
    h = 1e-6
    value = [(mf.gelu(np.array([[1.0 + s * h, 2.0]])).numpy() ** 2).sum() for s in (1, -1)]
    assert x.grad[0, 0] == pytest.approx((value[0] - value[1]) / (2 * h), rel=1e-5)


def test_the_breakpoint_is_the_first_line_of_attentions_forward():
    line = int(re.search(r"b minifm/ops/attention.py:(\d+)", TEXT)[1])
    code = OPS["Attention"].forward.__code__
    assert line == code.co_firstlineno + 1
