"""Named entities: spans of a text that have a type, such as names of persons.

A model says K numbers for each token, one for each tag. The first token of a word carries the
word's tag, the others none (-100), as in BERT (Devlin et al. 2019, section 5.3). A text that is
longer than the model's context is cut into windows that overlap, and each token is learnt and
judged once: in the window where it has most context.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minifm.ops.loss import IGNORE
from minifm.tasks.batches import LabelledRows, overlapping, owners, room_in
from minifm.tasks.examples import Example, check_labels, need, need_all, need_text
from minifm.tasks.scores import entity_scores
from minifm.tasks.spans import (
    OUTSIDE,
    Span,
    check_tags,
    parts,
    spans_of,
    tag_names,
    tags_of,
    words_in,
)
from minifm.text.offsets import Encoded, Frame


@dataclass(frozen=True)
class Tagged(Example):
    """A text and the entities in it, which do not overlap, in order.

    In files: {"text", "entities": [{"start", "end", "label"}, …]}, places in characters; or
    {"tokens", "tags"}, tags in IOB2 (spans.py). Tokens become a text with spaces between them.

    words   [(start, end)], if the file has cut the text into words; else words_in(text)
    """

    text: str
    entities: tuple
    words: tuple | None = None

    def __post_init__(self):
        need_text(self.text, "text", self.origin)
        object.__setattr__(self, "entities", tuple(sorted(Span(*span) for span in self.entities)))
        before = None
        for span in self.entities:
            self._check(span)
            if before is not None and span.start < before.end:
                raise self.origin.error(f"{self._named(span)} overlaps {self._named(before)}")
            before = span

    def _check(self, span):
        if not 0 <= span.start < span.end <= len(self.text):
            raise self.origin.error(f"{span.label} from {span.start} to {span.end}: expected a "
                                    f"span within the text's {len(self.text)} characters")
        inside = self.text[span.start : span.end]
        if inside != inside.strip():
            raise self.origin.error(f"{self._named(span)} is misaligned: white space at its edge")

    def _named(self, span):
        inside = self.text[span.start : span.end]
        return f"{span.label} {inside!r:.40} from {span.start} to {span.end}"

    @property
    def content(self):
        return self.text

    @property
    def labels(self):
        return [span.label for span in self.entities]

    @cached_property
    def word_spans(self):
        """[(start, end)] of its words."""
        return words_in(self.text) if self.words is None else list(self.words)

    @classmethod
    def parse(cls, record, **common):
        origin = common["origin"]
        if "tokens" in record or "tags" in record:
            tokens = need_all(need(record, "tokens", list, origin), "tokens", str, origin)
            return cls.of_words(tokens, need(record, "tags", list, origin), **common)
        text = need(record, "text", str, origin)
        found = need_all(need(record, "entities", list, origin), "entities", dict, origin)
        return cls(text, tuple(_span(entity, text, origin) for entity in found), **common)

    @classmethod
    def of_words(cls, tokens, tags, **common):
        """From words and their IOB2 tags."""
        origin = common.get("origin", cls.origin)
        if not tokens:
            raise origin.error("'tokens' is empty")
        if len(tokens) != len(tags):
            raise origin.error(f"expected a tag for each of {len(tokens)} tokens, got {len(tags)}")
        for place, token in enumerate(tokens):
            need_text(token, f"tokens[{place}]", origin)
        check_tags(need_all(tags, "tags", str, origin), origin)
        words, start = [], 0
        for token in tokens:
            words.append((start, start + len(token)))
            start += len(token) + 1
        return cls(" ".join(tokens), spans_of(tags, words), tuple(words), **common)

    @classmethod
    def scores(cls, examples, predictions):
        """Counts of entities; a prediction is a sequence of Spans."""
        return entity_scores([example.entities for example in examples], predictions)

    def record(self):
        if self.words is not None:
            return {"tokens": [self.text[start:end] for start, end in self.words],
                    "tags": tags_of(self.entities, self.words)[0]}
        return {"text": self.text, "entities": [span._asdict() for span in self.entities]}


def _span(entity, text, origin):
    """The Span of an entity of a file; its "text", if it has one, must stand there."""
    start, end = (need(entity, name, int, origin) for name in ("start", "end"))
    label = need(entity, "label", str, origin)
    need_text(label, "label", origin)
    said = entity.get("text")
    if said is not None and said != text[max(start, 0) : end]:
        at = text.find(said) if isinstance(said, str) else -1
        where = f"it stands at {at}" if at >= 0 else "it is not in the text"
        raise origin.error(f"{label} from {start} to {end}: expected {said!r:.40}, found "
                           f"{text[max(start, 0):end]!r:.40}; {where}")
    return Span(start, end, label)


class TaggedRows(LabelledRows):
    """A row for each window of each example; the targets are numbers of tags, -100 beside what is
    not a word's first token.

    facts: windows; entities whose words are more than they ("widened"), or which share a word with
    an earlier one ("lost"); words that begin within a token of the word before ("merged").
    """

    by_token = True

    def __init__(self, examples, tokenizer, types, *, length, overlap=0):
        check_labels(examples, types)
        self.examples, self.tags = list(examples), tag_names(types)
        self.frame = frame = Frame.of(tokenizer)
        room = room_in(length, len(frame.before) + len(frame.behind), "what stands around it")
        facts = {"windows": 0, "widened": 0, "lost": 0, "merged": 0}
        self._texts = Encoded.all(tokenizer, [example.text for example in self.examples])
        self._carriers, self._places, ids, targets = [], [], [], []
        for number, (example, encoded) in enumerate(zip(self.examples, self._texts)):
            carriers, wanted = self._aligned(example, encoded, facts)
            self._carriers.append(carriers)
            spans = overlapping(len(encoded.ids), room, overlap)
            owner = owners(spans, len(encoded.ids))
            for window, (start, stop) in enumerate(spans):
                mine = owner[start:stop] == window
                self._places.append((number, start, mine))
                ids.append(np.concatenate([frame.before, encoded.ids[start:stop], frame.behind]))
                targets.append(np.concatenate([
                    np.full(len(frame.before), IGNORE), np.where(mine, wanted[start:stop], IGNORE),
                    np.full(len(frame.behind), IGNORE)]))
        facts["windows"] = len(ids)
        super().__init__(ids, targets, length=length, padding=frame.padding, facts=facts)

    def _aligned(self, example, encoded, facts):
        """(the token that carries each word's tag, the tag's number or -100 for each token)."""
        words = example.word_spans
        tags, widened, lost = tags_of(example.entities, words)
        carriers = np.array([encoded.tokens(start, end)[0] for start, end in words], np.int64)
        wanted, number = np.full(len(encoded.ids), IGNORE), self.tags.index
        for token, tag in zip(carriers[::-1].tolist(), tags[::-1]):
            wanted[token] = number(tag)         # the first word of a token has the last say
        facts["widened"] += widened
        facts["lost"] += lost
        facts["merged"] += len(words) - len(set(carriers.tolist()))
        return carriers, wanted

    def predictions(self, outputs):
        """For each example the Spans that the rows' outputs, [T, K] each, say."""
        chosen = [np.zeros(len(encoded.ids), np.int64) for encoded in self._texts]
        for (number, start, mine), output in zip(self._places, outputs, strict=True):
            said = np.argmax(output[len(self.frame.before) :][: len(mine)], axis=-1)
            chosen[number][start : start + len(mine)][mine] = said[mine]
        return [self._spans(example, carriers, tags) for example, carriers, tags
                in zip(self.examples, self._carriers, chosen)]

    def _spans(self, example, carriers, chosen):
        """A word that begins within another's token goes on with what that one is."""
        tags, before = [], -1
        for token in carriers.tolist():
            tag = self.tags[int(chosen[token])]
            goes_on = token == before and tag != OUTSIDE
            tags.append(f"I-{parts(tag)[1]}" if goes_on else tag)
            before = token
        return spans_of(tags, example.word_spans)
