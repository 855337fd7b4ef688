"""Summaries, and whatever else is a text made of a text.

A decoder goes on where the text ends: a row is text, separator, summary, end-of-text, and only the
summary and the end are learnt: what learns to end is a model that stops (Radford et al. 2019 asked
for summaries by "TL;DR:"). An encoder-decoder reads the text and writes the summary.
"""

from dataclasses import dataclass

import numpy as np

from minifm.ops.loss import IGNORE
from minifm.tasks.batches import LabelledRows, room_in
from minifm.tasks.examples import Example, need, need_text
from minifm.tasks.scores import summary_scores
from minifm.text import end_of_text_of
from minifm.text.offsets import Frame

SEPARATOR = "\nTL;DR:"
FOR_THE_END = "by which a model learns where a summary ends"
PART = 4            # a summary has a row's length / PART tokens at most, and so many are kept free


def most_of_summary(length):
    """The tokens that a summary may have, without its end, in rows of `length`. It is the same for
    every text, so that where a text is cut tells nothing of its summary."""
    return max(length // PART, 1)


@dataclass(frozen=True)
class Summary(Example):
    """A text and its summary. In files: {"text", "summary"}."""

    text: str
    summary: str

    def __post_init__(self):
        need_text(self.text, "text", self.origin)
        need_text(self.summary, "summary", self.origin)

    @property
    def content(self):
        return self.text

    @classmethod
    def parse(cls, record, **common):
        return cls(*(need(record, name, str, common["origin"]) for name in ("text", "summary")),
                   **common)

    @classmethod
    def scores(cls, examples, predictions):
        """Means of ROUGE; a prediction is a str."""
        return summary_scores([example.summary for example in examples], predictions)

    def record(self):
        return {"text": self.text, "summary": self.summary}


class SummaryRows(LabelledRows):
    """A row for each example: `ids` and, as `targets`, the next ones, -100 up to the summary. The
    batches are (ids, targets), for a causal model.

    prompts   [row]: the ids after which the summary begins, to generate from
    longest   the most tokens that a summary may have, its end among them
    facts: texts cut to make room ("truncated", "tokens cut"), and summaries that were longer than
    a quarter of a row ("summaries cut").
    """

    by_token, masked = True, False

    def __init__(self, examples, tokenizer, *, length, separator=SEPARATOR):
        end = end_of_text_of(tokenizer, FOR_THE_END)
        self.examples, self.prompts = list(examples), []
        frame, between = Frame.of(tokenizer), tokenizer.encode(separator, behind=True)
        facts, ids, targets = {"truncated": 0, "tokens cut": 0, "summaries cut": 0}, [], []
        texts = tokenizer.encode_all([e.text for e in self.examples])
        summaries = tokenizer.encode_all([" " + e.summary.strip() for e in self.examples],
                                         behind=True)
        most = most_of_summary(length)
        room = room_in(length, len(frame.before) + len(between) + most,
                       "the summary and the separator")
        for text, summary in zip(texts, summaries):
            said, kept = summary[:most], text[:room]
            facts["summaries cut"] += len(said) < len(summary)
            facts["truncated"] += len(kept) < len(text)
            facts["tokens cut"] += len(text) - len(kept)
            prompt = np.concatenate([frame.before, kept, between]).astype(np.int64)
            ending = [end] if len(said) == len(summary) else []
            whole = np.concatenate([prompt, said, ending]).astype(np.int64)
            self.prompts.append(prompt)
            ids.append(whole[:-1])
            targets.append(np.where(np.arange(1, len(whole)) < len(prompt), IGNORE, whole[1:]))
        self.longest = most + 1
        super().__init__(ids, targets, length=length, padding=frame.padding, facts=facts)


class PairRows(LabelledRows):
    """A row for each example, for an encoder-decoder: its text and an end as the source, its
    summary and an end as the target. The batches are (source [B, S], targets [B, T], source_mask
    [B, S]).

    prompts   [row]: the sources, to write from
    longest   the most tokens that a target may have, its end among them
    facts: texts cut to `length` ("truncated", "tokens cut"), and summaries that were longer than a
    quarter of it ("summaries cut").
    """

    by_token = True

    def __init__(self, examples, tokenizer, *, length):
        end, padding = end_of_text_of(tokenizer, FOR_THE_END), tokenizer.padding
        self.examples = list(examples)
        room, most = room_in(length, 1, "its end"), most_of_summary(length)
        texts = tokenizer.encode_all([e.text for e in self.examples])
        summaries = tokenizer.encode_all([e.summary.strip() for e in self.examples])
        facts = {"truncated": sum(len(ids) > room for ids in texts),
                 "tokens cut": sum(max(len(ids) - room, 0) for ids in texts),
                 "summaries cut": sum(len(ids) > most for ids in summaries)}
        self.prompts = [np.append(ids[:room], end).astype(np.int64) for ids in texts]
        # A summary that is cut has no end: it would teach to end in the middle.
        targets = [np.append(ids, end) if len(ids) <= most else ids[:most] for ids in summaries]
        self.longest = most + 1
        super().__init__(self.prompts, targets, length=length,
                         padding=end if padding is None else padding, facts=facts)
