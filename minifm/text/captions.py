"""Captions as rows of token ids of one length: what the encoder of a text-to-image model reads.

    tokenizer = caption_tokenizer(["a red ball", "a blue box"], 512)
    ids, real = caption_rows(tokenizer, ["a ball", ""])         # int64 and bool [2, T]

A caption stands between what the tokenizer's file puts around a text (CLIP's <|startoftext|> and
<|endoftext|>, BERT's [CLS] and [SEP]), and padding fills up its row behind. The empty caption, a
row of nothing but these, stands for none.
"""

import numpy as np

from minifm.errors import ConfigError, plural
from minifm.text.rows import padded
from minifm.text.tokenizer import Tokenizer
from minifm.text.tokenizer_json import FIRST, PADDING


def caption_tokenizer(captions, vocabulary):
    """A byte-level Tokenizer of at most `vocabulary` ids, whose merges are learnt from the captions
    (strings), with tokens that begin, end and fill up a row. Case stays: an A is no a. Raises
    ConfigError for a vocabulary below 259, the bytes and these tokens."""
    return Tokenizer.train(captions, vocabulary, specials=(FIRST, PADDING))


def caption_rows(tokenizer, captions, length=None, *, most=None, say=None):
    """(ids int64 [B, T], real bool [B, T]: False where there is padding) of B captions.

    length  T, whatever the captions; default: that of the longest of them
    most    the most tokens that T may be then
    say     is called with a line of text where captions were too long, and cut before their end

    Raises ConfigError for a `length` that what stands around a caption fills.
    """
    before, behind = tokenizer.around
    limit = length if length is not None else most
    texts = tokenizer.encode_all(captions)
    if limit is not None:
        room = limit - len(before) - len(behind)
        if room < 1:
            raise ConfigError(f"captions: {plural(limit, 'token')} leave no room for a text "
                              f"between the {len(before) + len(behind)} that stand around it")
        cut = sum(len(text) > room for text in texts)
        if cut and say is not None:
            say(f"{plural(cut, 'caption')} cut, of more than {plural(limit, 'token')}")
        texts = [text[:room] for text in texts]
    rows = [[*before, *text, *behind] for text in texts]
    ids = padded(rows, padding_of(tokenizer))
    real = padded([np.ones(len(row), bool) for row in rows]).astype(bool)
    missing = 0 if length is None else length - ids.shape[1]
    fill = ((0, 0), (0, missing))
    return np.pad(ids, fill, constant_values=padding_of(tokenizer)), np.pad(real, fill)


def padding_of(tokenizer):
    """The id that fills up a row: the padding; where a file has none, or the same token for both as
    CLIP's, the end of the text; where it has neither, the first of all."""
    for token in (tokenizer.padding, tokenizer.end_of_text):
        if token is not None:
            return token
    return 0
