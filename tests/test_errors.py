"""How messages count, and name what there is much of."""

import pytest

from minifm.errors import LISTED, listed, plural


@pytest.mark.parametrize("count, said", [(0, "0 layers"), (1, "1 layer"), (2000, "2,000 layers")])
def test_things_are_counted_as_people_do(count, said):
    assert plural(count, "layer") == said


def test_few_are_all_named():
    for count in range(LISTED + 1):
        assert listed(range(count)) == ", ".join(map(str, range(count)))


@pytest.mark.parametrize("more", [1, 2500])
def test_of_many_the_first_are_named_and_the_others_counted(more):
    parts = listed((f"w.{i}" for i in range(LISTED + more)), "; ").split("; ")
    assert parts == [*(f"w.{i}" for i in range(LISTED)), f"and {more:,} more"]
