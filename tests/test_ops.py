"""Every op of the table against every law: a new op is tested without a line here."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifm import backends
from minifm.op import OPS
from minifm.testing import laws, strategies

EVERY_OP = [pytest.param(op, id=name) for name, op in list(OPS.items())]


@pytest.mark.parametrize("law", laws.ALL, ids=lambda law: law.__name__)
@pytest.mark.parametrize("op", EVERY_OP)
@given(data=st.data())
def test_law(op, law, data):
    law(data.draw(strategies.examples(op)))
