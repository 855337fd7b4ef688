"""Classification: one label for a text, or for a pair of texts.

A model reads the text and says K numbers, one for each class; the largest is its answer.
"""

from dataclasses import dataclass

import numpy as np

from minifm.tasks.batches import LabelledRows, room_in
from minifm.tasks.examples import Example, check_labels, need, need_text
from minifm.tasks.scores import class_scores
from minifm.text.offsets import Frame


@dataclass(frozen=True)
class Classified(Example):
    """A text, or two, and their class. In files: {"text", "label"} and, if there is one,
    "text_pair"; a label may be an integer, which is then called by its digits."""

    text: str
    label: str
    text_pair: str | None = None

    def __post_init__(self):
        need_text(self.text, "text", self.origin)
        need_text(self.label, "label", self.origin)
        if self.label != self.label.strip():
            raise self.origin.error(f"label {self.label!r:.60}: expected none with white space at "
                                    "its ends, which would be another one to the eye alone")
        if self.text_pair is not None:
            need_text(self.text_pair, "text_pair", self.origin)

    @property
    def content(self):
        return self.text if self.text_pair is None else f"{self.text}\n{self.text_pair}"

    @property
    def labels(self):
        return [self.label]

    @classmethod
    def parse(cls, record, **common):
        origin = common["origin"]
        text = need(record, "text", str, origin)
        kind = int if isinstance(record.get("label"), int) else str
        label = str(need(record, "label", kind, origin))
        pair = record.get("text_pair")
        return cls(text, label, None if pair is None else need(record, "text_pair", str, origin),
                   **common)

    @classmethod
    def scores(cls, examples, predictions):
        """ClassScores of labels."""
        return class_scores([example.label for example in examples], predictions)

    def record(self):
        pair = {} if self.text_pair is None else {"text_pair": self.text_pair}
        return {"text": self.text, "label": self.label} | pair


class ClassifiedRows(LabelledRows):
    """A row for each example: its text, cut to `length` tokens; the target is the label's number.

    Of a pair the longer text loses tokens first. facts: how many examples were cut ("truncated"),
    and how many tokens they lost ("tokens cut"). `typed`: the rows have types, for a model that
    tells the texts of a pair apart.
    """

    def __init__(self, examples, tokenizer, labels, *, length, typed=False):
        check_labels(examples, labels)
        self.labels, frame = tuple(labels), Frame.of(tokenizer)
        number = {label: i for i, label in enumerate(self.labels)}
        texts = tokenizer.encode_all([e.text for e in examples])
        pairs = iter(tokenizer.encode_all([e.text_pair for e in examples if e.text_pair]))
        facts, framed = {"truncated": 0, "tokens cut": 0}, []
        for example, text in zip(examples, texts):
            pair = next(pairs) if example.text_pair else None
            framed.append(_framed(text, pair, frame, length, facts))
        ids, types = zip(*framed) if framed else ((), ())
        super().__init__(ids, [number[e.label] for e in examples], length=length,
                         padding=frame.padding, facts=facts, types=types if typed else None)

    def predictions(self, outputs):
        """The label that each row's K numbers, [K], say."""
        return [self.labels[int(np.argmax(output))] for output in outputs]


def _framed(text, pair, frame, length, facts):
    """(ids, types) of one row; what is cut is counted in `facts`."""
    taken = len(frame.before) + len(frame.behind)
    if pair is None:
        room = room_in(length, taken, "what stands around it")
        kept = [text[:room]]
    else:
        taken += len(frame.between)
        room = 1 + room_in(length, taken + 1, "what stands around it and the other text")
        first, second = sizes_in(room, len(text), len(pair))
        kept = [text[:first], pair[:second]]
    lost = len(text) + (0 if pair is None else len(pair)) - sum(map(len, kept))
    facts["truncated"] += lost > 0
    facts["tokens cut"] += lost
    return frame.around(*kept)


def sizes_in(room, first, second):
    """How many tokens of two texts to keep, so that they fit: the longer one loses first."""
    if first + second <= room:
        return first, second
    half = room // 2
    if second <= half:
        return room - second, second
    return (first, room - first) if first <= half else (room - half, half)
