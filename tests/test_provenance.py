"""Texts that know whose they are: what a method returns is what str's returns, and each of its
characters is still the caller's or the template's.

The oracle is the text itself: the caller's characters come from one alphabet and the template's
from another, so a character says where it is from. Both are closed under changes of case.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm.text.provenance import (
    ANSWERS,
    CALLER,
    METHODS,
    SAID,
    Traced,
    Untraceable,
    concat,
    from_caller,
    literal,
    origins_of,
    plain,
    said,
    to_json,
)

THEIRS, OURS = "abABÉ \n'\"\\\x01ßé", "xyXY\t\r\x02-"


def traced(text):
    """A text of both, each character marked by its alphabet."""
    return Traced(text, bytes(CALLER if c in THEIRS else 0 for c in text))


def right(found, expected):
    """Whether `found` is `expected`, a str, a list or tuple of such, with the right origins."""
    if not isinstance(expected, str):
        return type(found) is type(expected) and len(found) == len(expected) \
            and all(map(right, found, expected))
    return plain(found) == expected and origins_of(found) == traced(expected).origins


mixed = st.text(THEIRS.replace("ß", "") + OURS, max_size=12)
short = st.text(THEIRS.replace("ß", "") + OURS, min_size=1, max_size=2)
places = st.none() | st.integers(-14, 14)


@given(text=mixed, start=places, stop=places, step=st.none() | st.sampled_from([1, 2, -1, -3]))
def test_slices_characters_and_iteration(text, start, stop, step):
    key = slice(start, stop, step)
    assert right(traced(text)[key], text[key])
    assert right(list(traced(text)), list(text)) and right(list(reversed(traced(text))),
                                                           list(reversed(text)))
    for place in range(-len(text), len(text)):
        assert right(traced(text)[place], text[place])


@given(text=mixed, chars=st.none() | short, part=mixed)
def test_stripping_and_affixes(text, chars, part):
    for name in ("strip", "lstrip", "rstrip"):
        assert right(getattr(traced(text), name)(chars), getattr(text, name)(chars))
    for affix in (part, text[:2], text[-2:]):
        for name in ("removeprefix", "removesuffix"):
            assert right(getattr(traced(text), name)(affix), getattr(text, name)(affix))


@given(text=mixed, sep=st.none() | short, most=st.integers(-1, 3), keep=st.booleans())
def test_cutting(text, sep, most, keep):
    for name in ("split", "rsplit"):
        assert right(getattr(traced(text), name)(sep, most), getattr(text, name)(sep, most))
    assert right(traced(text).splitlines(keep), text.splitlines(keep))
    if sep:
        for name in ("partition", "rpartition"):
            assert right(getattr(traced(text), name)(sep), getattr(text, name)(sep))


@given(text=st.text("ab", max_size=12), sep=st.sampled_from(["a", "ba", "aa"]),
       most=st.integers(-1, 3))
def test_equal_pieces_are_told_from_each_other(text, sep, most):
    """Here each character has an origin of its own: its place."""
    for name in ("split", "rsplit"):
        place = 0
        for piece in getattr(Traced(text, bytes(range(len(text)))), name)(sep, most):
            assert piece.origins == bytes(range(place, place + len(piece)))
            place += len(piece) + len(sep)


@given(pieces=st.lists(mixed, max_size=4), between=mixed, times=st.integers(-1, 3))
def test_joining(pieces, between, times):
    marked = [traced(piece) for piece in pieces]
    assert right(traced(between).join(marked), between.join(pieces))
    assert right(Traced.of("-x").join(marked), "-x".join(pieces))
    assert right(concat(marked), "".join(pieces))
    for piece in pieces:
        assert right(traced(between) + traced(piece), between + piece)
        assert right("xy" + traced(piece) + "-", "xy" + piece + "-")
        assert right(traced(piece) * times, piece * times)
        assert right(times * traced(piece), times * piece)


@given(text=mixed, old=st.text(THEIRS + OURS, max_size=2), new=mixed, count=st.integers(-1, 14))
def test_replacing(text, old, new, count):
    assert right(traced(text).replace(old, traced(new), count), text.replace(old, new, count))


@given(text=mixed, width=st.integers(0, 20))
def test_case_and_filling(text, width):
    for name in ("upper", "lower", "capitalize", "title", "swapcase", "casefold"):
        assert right(getattr(traced(text), name)(), getattr(text, name)())
    for name in ("ljust", "rjust"):
        for fill in "-a":
            assert right(getattr(traced(text), name)(width, traced(fill)),
                         getattr(text, name)(width, fill))
    for name, arguments in (("center", (width,)), ("zfill", (width,)), ("expandtabs", (2,))):
        alone = from_caller(text)
        found = getattr(alone, name)(*arguments)
        assert plain(found) == getattr(text, name)(*arguments)
        assert not text or set(found.origins) == {CALLER}


def test_a_character_that_becomes_two_is_told_only_in_a_text_of_one_origin():
    assert right(traced("ßa").upper(), "SSA") is False      # S is of neither alphabet; but
    assert from_caller("ßa").upper().origins == bytes([CALLER] * 3)
    for change in (lambda text: text.upper(), lambda text: text.center(9),
                   lambda text: text.zfill(9)):
        with pytest.raises(Untraceable, match="both the caller's and the template's"):
            change(traced("ßx"))
    with pytest.raises(Untraceable):
        from_caller("a").center(9, "x")


def test_every_method_that_returns_text_is_here_or_is_not_offered():
    """A method that is inherited would return a str that knows nothing."""
    for name in METHODS - ANSWERS:
        assert getattr(Traced, name) is not getattr(str, name), name
    for name in ANSWERS:
        argument = () if name.startswith("is") else ("a",)
        assert isinstance(getattr("aba", name)(*argument), (bool, int)), name


# -- what was said, and containers as text ---------------------------------------------------------


def test_what_is_said_adds_to_where_it_came_from():
    text = said("x" + from_caller("a"))
    assert plain(text) == "xa" and text.origins == bytes([SAID, SAID | CALLER])
    assert list(("y" + text).runs()) == [(0, 1, 0), (1, 2, SAID), (2, 3, SAID | CALLER)]


def test_str_of_a_text_is_that_text_and_equality_is_that_of_str():
    text = from_caller("user")
    assert str(text) is text and f"{text}" == "user" and type(plain(text)) is str
    assert text == "user" and {"user": 1}[text] == 1 and "se" in text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | mixed,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.tuples(inner, inner)
    | st.dictionaries(mixed, inner, max_size=3), max_leaves=8)


def marked(value):
    """The value with all of its strings the caller's."""
    if isinstance(value, str):
        return from_caller(value)
    if isinstance(value, dict):
        return {marked(key): marked(item) for key, item in value.items()}
    return type(value)(map(marked, value)) if isinstance(value, (list, tuple)) else value


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from strings(list(pair))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)


def is_inside(found, values, written):
    """Whether just what `written` makes of the strings is the caller's, in order."""
    theirs = "".join(c for c, origin in zip(plain(found), origins_of(found)) if origin & CALLER)
    return theirs == "".join(map(written, values))


@given(value=VALUES, ascii=st.booleans(), indent=st.sampled_from([None, 0, 2, "\t"]),
       separators=st.sampled_from([None, (",", ":"), (" ; ", " = ")]))
def test_json_is_that_of_the_standard_library(value, ascii, indent, separators):
    options = {"ensure_ascii": ascii, "indent": indent, "separators": separators}
    found = to_json(marked(value), **options)
    assert plain(found) == json.dumps(value, **options)
    assert is_inside(found, strings(value), lambda s: json.dumps(s, ensure_ascii=ascii)[1:-1])


@given(value=st.dictionaries(mixed, VALUES, max_size=4))
def test_json_with_sorted_keys(value):
    assert plain(to_json(marked(value), True, sort_keys=True)) == json.dumps(value, sort_keys=True)


@given(value=VALUES)
def test_a_container_as_text_is_its_repr(value):
    found = literal(marked(value))
    assert plain(found) == repr(value)
    assert is_inside(found, strings(value), lambda s: repr(s)[1:-1])


def test_keys_that_are_no_strings_and_values_that_are_no_json():
    keys = {2: 2, None: 3, True: 4, 1.5: []}
    assert to_json(keys) == json.dumps(keys)
    with pytest.raises(TypeError, match="not JSON serializable"):
        to_json([object()])
    with pytest.raises(Untraceable, match="a set as text"):
        literal([{1}])
