"""Captions as rows of ids: framed, cut and filled up; learnt as a condition; and what is made of
prompts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifm.errors import ConfigError
from minifm.text.captions import caption_rows, caption_tokenizer, padding_of

CAPTIONS = [f"{style} letter {letter}" for style in ("bold", "italic", "bold italic")
            for letter in "ABab"]
TOKENIZER = caption_tokenizer(CAPTIONS, 280)


# -- rows of ids -----------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_a_row_is_a_caption_between_its_ends_and_padding(captions):
    ids, real = caption_rows(TOKENIZER, captions)
    assert ids.shape == real.shape and real.any(0).all()        # no longer than the longest
    for row, there, caption in zip(ids, real, captions):
        n = there.sum()
        assert there[:n].all() and (row[n:] == TOKENIZER.padding).all()
        assert (row[0], row[n - 1]) == (TOKENIZER.first, TOKENIZER.end_of_text)
        assert TOKENIZER.decode(row[1 : n - 1]) == caption.encode("utf-8", "surrogatepass")


@given(length=st.integers(3, 30))
def test_rows_of_one_length_keep_their_ends(length):
    said = []
    ids, real = caption_rows(TOKENIZER, CAPTIONS, length, say=said.append)
    assert ids.shape == (len(CAPTIONS), length)
    assert ((ids == TOKENIZER.end_of_text).sum(1) == 1).all()
    whole = [len(TOKENIZER.encode(caption)) + 2 for caption in CAPTIONS]
    assert list(real.sum(1)) == [min(n, length) for n in whole]
    cut = sum(n > length for n in whole)
    assert len(said) == (cut > 0) and (not cut or said[0].startswith(f"{cut} caption"))
    shorter, _ = caption_rows(TOKENIZER, CAPTIONS, most=length)
    np.testing.assert_array_equal(shorter, ids[:, : shorter.shape[1]])


def test_case_and_special_strings_of_a_caption_stay():
    upper, lower, special = caption_rows(TOKENIZER, ["letter A", "letter a", "<pad><s>"])[0]
    assert not np.array_equal(upper, lower)
    assert (special == TOKENIZER.first).sum() == 1


def test_what_leaves_no_room_is_refused():
    with pytest.raises(ConfigError, match="2 tokens leave no room"):
        caption_rows(TOKENIZER, CAPTIONS, 2)
    with pytest.raises(ConfigError, match="vocabulary: expected an integer from 259"):
        caption_tokenizer(CAPTIONS, 258)


def test_a_vocabulary_without_padding_is_filled_up_with_ends():
    from minifm.text import Tokenizer
    plain = Tokenizer.bytes()
    assert padding_of(plain) == plain.end_of_text and padding_of(TOKENIZER) == TOKENIZER.padding
