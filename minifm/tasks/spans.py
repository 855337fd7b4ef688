"""Entities in a text: spans of characters, and the tags of words that mark them.

Tags are IOB2: B-X is the first word of an entity of type X, I-X goes on with it, O is in none. In
IOB1, which CoNLL-2003's own files have, B-X stands only where an entity of type X follows another
one of X at once (Tjong Kim Sang and Veenstra 1999).
"""

import re
import unicodedata
from typing import NamedTuple

OUTSIDE = "O"
SCHEMES = ("iob2", "iob1")
# A run of letters, digits and underscores, or any other single character that is not white space.
WORD = re.compile(r"\w+|[^\w\s]")
WORD_CHARACTER = re.compile(r"\w")
JOINER = "\u200d"        # joins what stands around it to one sign, of an emoji or a script


class Span(NamedTuple):
    """The characters of a text from `start` to `end`, its end not included."""

    start: int
    end: int
    label: str


def words_in(text):
    """[(start, end)] of the words of a text that nobody has cut into words. A mark that combines
    with the character before it (an accent, a vowel sign) belongs to that one's word, and a word
    goes on behind a mark within it."""
    words = []
    for start, end in (match.span() for match in WORD.finditer(text)):
        if words and words[-1][1] == start and _belongs_together(text, start):
            words[-1] = words[-1][0], end
        else:
            words.append((start, end))
    return words


def _belongs_together(text, place):
    """Whether there is no boundary between words before text[place]: a mark stands there, or one
    before it between a letter and this one."""
    if combines(text[place]):
        return True
    before = place - 1
    while before >= 0 and combines(text[before]):
        before -= 1
    marked = before < place - 1
    return marked and before >= 0 and WORD_CHARACTER.match(text[before]) is not None \
        and WORD_CHARACTER.match(text[place]) is not None


def combines(character):
    """Whether a character is a mark on the one before it (Unicode's category M), or joins."""
    return unicodedata.category(character)[0] == "M" or character == JOINER


def parts(tag):
    """("B", "PER") of "B-PER", ("O", "") of "O"; None of what is no tag."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if prefix in ("B", "I") and dash and label else None


def check_tags(tags, origin):
    """Raise origin's FormatError for what is no tag, and for an entity that begins with I-."""
    before = OUTSIDE, ""
    for place, tag in enumerate(tags):
        found = parts(tag)
        if found is None:
            raise origin.error(f"tag {place}: expected O, B-… or I-…, got {tag!r}")
        if found[0] == "I" and (before[0] == OUTSIDE or before[1] != found[1]):
            behind = tags[place - 1] if place else "the beginning"
            raise origin.error(
                f"tag {place}: {tag!r} after {behind!r}: in IOB2 an entity begins with "
                f"'B-{found[1]}' (files in IOB1 are read with scheme=\"iob1\")")
        before = found


def iob2(tags, origin):
    """The IOB2 tags of a list in IOB1, in which every I- goes on or begins anew."""
    out, before = [], (OUTSIDE, "")
    for place, tag in enumerate(tags):
        found = parts(tag) if isinstance(tag, str) else None
        if found is None:
            raise origin.error(f"tag {place}: expected O, B-… or I-…, got {tag!r}")
        if found[0] == "B" and before[1] != found[1]:
            raise origin.error(f"tag {place}: {tag!r}: in IOB1 B- stands only behind an entity of "
                               "the same type; is the file in IOB2?")
        begins = found[0] == "B" or (found[0] == "I" and before[1] != found[1])
        out.append(f"B-{found[1]}" if begins else tag)
        before = found
    return out


def entities_in(tags):
    """[(first word, one after the last, type)] by tags. A model's tags need not be consistent: as
    conlleval does, an I-X behind anything else than an X begins an entity."""
    found, open_at, label = [], None, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = parts(tag)
        if open_at is not None and (prefix != "I" or kind != label):
            found.append((open_at, place, label))
            open_at = None
        if prefix != OUTSIDE and open_at is None:
            open_at, label = place, kind
    return found


def spans_of(tags, words):
    """The entities that the tags of `words` [(start, end)] mark, as Spans of characters."""
    return tuple(Span(words[first][0], words[stop - 1][1], label)
                 for first, stop, label in entities_in(tags))


def tags_of(entities, words):
    """(IOB2 tags of `words`, how many entities were widened, how many got lost).

    An entity that begins or ends within a word is widened to all of it; one of whose words an
    earlier entity has already is lost.
    """
    tags, widened, lost, first = [OUTSIDE] * len(words), 0, 0, 0
    for start, end, label in sorted(entities):
        while first < len(words) and words[first][1] <= start:
            first += 1
        stop = first
        while stop < len(words) and words[stop][0] < end:
            stop += 1
        if stop == first or any(tag != OUTSIDE for tag in tags[first:stop]):
            lost += 1
            continue
        widened += (words[first][0], words[stop - 1][1]) != (start, end)
        tags[first:stop] = [f"B-{label}"] + [f"I-{label}"] * (stop - first - 1)
    return tags, widened, lost


def tag_names(types):
    """("O", "B-X", "I-X", …) for the sorted types of entities."""
    return (OUTSIDE, *(f"{prefix}-{label}" for label in types for prefix in "BI"))
