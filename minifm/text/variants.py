"""The same vocabulary, told to read a text in another way: `tokenizer.json` with a part changed.

The library has one switch for special strings, and none for a text that goes on behind another.
Both matter here: what a user writes must stay text, also where the model of a vocabulary has the
special strings among its own (SentencePiece's does: "</s>" is the likeliest piece for "</s>"); and
a vocabulary that puts a space before a text must not put one before the second half of it.
"""

import re

from minifm.text.spelling import steps_of

# What cuts a text into words, so that each of them, not the text, has its space in front.
_INTO_WORDS = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer")


def inert(described, names):
    """With a cut behind the first character of each special string, one of `names`, that the model
    could make of text: no piece spans the cut."""
    model, endings = described["model"], {}
    if model["type"] == "BPE":
        names = set(names) & {"".join(pair) for pair in model["merges"]}
    for name in sorted(names):
        if len(name) > 1:
            endings.setdefault(name[0], []).append(re.escape(name[1:]))
    if not endings:
        return described
    pattern = "|".join(f"{re.escape(first)}(?={'|'.join(rest)})"
                       for first, rest in sorted(endings.items()))
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "MergedWithPrevious",
           "invert": False}
    steps = [*steps_of(described.get("pre_tokenizer"), "pretokenizers"), cut]
    return described | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def behind(described):
    """Without what the vocabulary puts before a text. (Where it puts that before each word, it
    belongs to the word, and stays.)"""
    normalizers = [step for step in steps_of(described.get("normalizer"), "normalizers")
                   if step["type"] != "Prepend"]
    steps = steps_of(described.get("pre_tokenizer"), "pretokenizers")
    cut = [step["type"] in _INTO_WORDS for step in steps]
    steps = [_bare(step) if not any(cut[:place]) else step for place, step in enumerate(steps)]
    return described | {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if steps else None}


def begins_once(described):
    """Whether the space before a text stands there alone, not also behind each special token."""
    return any(step.get("prepend_scheme") == "first"
               for step in steps_of(described.get("pre_tokenizer"), "pretokenizers"))


def _bare(step):
    """A step of the pre-tokenizer that puts nothing before a text."""
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never"}
    return step | {"add_prefix_space": False} if step["type"] == "ByteLevel" else step
