"""Questions whose answer stands in a text: a model points to its first and its last token
(Rajpurkar et al. 2016; Devlin et al. 2019, section 4.2).

A row holds the question and a window of the context. A model says two numbers for each token, how
well an answer would begin and end there. Where the window holds no answer, both targets are the
row's first token; its two numbers together are also the score of "there is no answer".
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minifm.errors import ConfigError
from minifm.tasks.batches import LabelledRows, overlapping, owners, room_in
from minifm.tasks.examples import Example, need, need_all, need_text
from minifm.tasks.scores import answer_scores
from minifm.text.offsets import Encoded, Frame


class Answer(NamedTuple):
    """A text, and the character of the context at which it begins."""

    text: str
    start: int


@dataclass(frozen=True)
class Question(Example):
    """A question, a context, and all spans of it that answer; none: it has no answer there.

    In files: {"question", "context", "answers": [{"text", "start"}]}, or SQuAD's own nesting
    ("answer_start", "is_impossible"), or the lists {"text": […], "answer_start": […]}.
    """

    question: str
    context: str
    answers: tuple

    def __post_init__(self):
        need_text(self.question, "question", self.origin)
        need_text(self.context, "context", self.origin)
        object.__setattr__(self, "answers", tuple(Answer(*answer) for answer in self.answers))
        for text, start in self.answers:
            need_text(text, "answer", self.origin)
            if start >= 0 and self.context.startswith(text, start):
                continue
            found = self.context.find(text)
            where = f"it stands at {found}" if found >= 0 else "the context does not have it"
            raise self.origin.error(f"answer {text!r:.60}: expected it at character {start} of "
                                    f"the context; {where}")

    @property
    def content(self):
        return f"{self.question}\n{self.context}"

    @classmethod
    def parse(cls, record, **common):
        origin = common["origin"]
        question, context = (need(record, name, str, origin) for name in ("question", "context"))
        answers = record.get("answers")
        if isinstance(answers, dict):
            texts, starts = (need(answers, name, list, origin) for name in ("text", "answer_start"))
            if len(texts) != len(starts):
                raise origin.error(f"answers: {len(texts)} texts, but {len(starts)} places")
            answers = [{"text": text, "start": start} for text, start in zip(texts, starts)]
        elif "answers" not in record and record.get("is_impossible") is True:
            answers = []
        else:
            answers = need(record, "answers", list, origin)
        found = tuple(_answer(answer, origin)
                      for answer in need_all(answers, "answers", dict, origin))
        return cls(question, context, found, **common)

    @classmethod
    def scores(cls, examples, predictions):
        """Means over answers; a prediction is a str."""
        return answer_scores([[text for text, _ in example.answers] for example in examples],
                             predictions)

    def record(self):
        return {"question": self.question, "context": self.context,
                "answers": [answer._asdict() for answer in self.answers]}


def _answer(record, origin):
    name = "start" if "start" in record or "answer_start" not in record else "answer_start"
    return Answer(need(record, "text", str, origin), need(record, name, int, origin))


class QuestionRows(LabelledRows):
    """A row for each window of each example's context, behind the question; the target is (first
    token, last token) of the first answer that lies within the window, else (0, 0).

    overlap   tokens that neighbouring windows share (default: half of a window)
    longest   tokens that an answer may have
    facts: windows, and those with an answer; answers whose tokens hold more than they ("widened");
    questions that were cut, to half the length ("questions cut"). `typed`: the rows have types,
    for a model that tells question and context apart.
    """

    def __init__(self, examples, tokenizer, *, length, overlap=None, longest=30, typed=False):
        if longest < 1:
            raise ConfigError(f"longest: expected at least 1, got {longest}")
        self.examples, self.longest = list(examples), longest
        frame = Frame.of(tokenizer)
        facts = {"windows": 0, "with an answer": 0, "widened": 0, "questions cut": 0}
        questions = tokenizer.encode_all([e.question for e in self.examples])
        self.contexts = Encoded.all(tokenizer, [e.context for e in self.examples])
        self._places, framed, targets = [], [], []
        for number, (example, asked, context) in enumerate(
                zip(self.examples, questions, self.contexts)):
            kept = asked[: max(length // 2, 1)]
            facts["questions cut"] += len(kept) < len(asked)
            facts["widened"] += sum(not context.fits(start, start + len(text))
                                    for text, start in example.answers)
            before = len(frame.before) + len(kept) + len(frame.between)
            room = room_in(length, before + len(frame.behind), "the question and its frame")
            spans = overlapping(len(context.ids), room, room // 2 if overlap is None else overlap)
            owner = owners(spans, len(context.ids))
            for window, (start, stop) in enumerate(spans):
                self._places.append((number, start, before, owner[start:stop] == window))
                framed.append(frame.around(kept, context.ids[start:stop]))
                targets.append(_target(example, context, start, stop, before))
                facts["with an answer"] += targets[-1] != (0, 0)
        facts["windows"] = len(framed)
        ids, types = zip(*framed) if framed else ((), ())
        super().__init__(ids, targets, length=length, padding=frame.padding, facts=facts,
                         types=types if typed else None)

    def predictions(self, outputs, *, may_be_none=False):
        """For each example the answer, a str, that the rows' outputs, [T, 2] each, say.

        An answer counts in the windows in which any of its tokens has most context (so that one
        that lies in some window as a whole always counts in such a one), and its score is the sum
        of its two numbers. `may_be_none`: "" unless it scores above the first token of a row, at
        its least over the windows.
        """
        best = [(-np.inf, 0, 0)] * len(self.examples)
        nothing = [np.inf] * len(self.examples)
        for (number, start, first, mine), output in zip(self._places, outputs, strict=True):
            output = np.asarray(output, np.float64)
            nothing[number] = min(nothing[number], output[0].sum())
            score, begin, end = best_span(output[first : first + len(mine)], mine, self.longest)
            best[number] = max(best[number], (score, -(start + begin), -(start + end)))
        return ["" if may_be_none and none >= score else self._text(number, -begin, -end)
                for number, ((score, begin, end), none) in enumerate(zip(best, nothing))]

    def _text(self, number, begin, end):
        start, stop = self.contexts[number].characters(begin, end + 1)
        return self.examples[number].context[start:stop]


def _target(example, context, start, stop, before):
    """(first token, last token) in the row of the first answer within the window, else (0, 0)."""
    for text, place in example.answers:
        first, last = context.tokens(place, place + len(text))
        if start <= first and last <= stop:
            return before + first - start, before + last - 1 - start
    return 0, 0


def best_span(scores, allowed, longest):
    """(score, first, last) of the best span of at most `longest` tokens: scores [T, 2] of
    beginning and ending at each token; one must hold a token that is `allowed` bool [T]. Of equal
    ones the first and shortest. The score is -inf where there is none."""
    T, found = len(scores), (-np.inf, 0, 0)
    before = np.append(0, np.cumsum(allowed))           # allowed ones before each token
    for extra in range(min(longest, T)):
        may = before[extra + 1 :] > before[: T - extra]
        sums = np.where(may, scores[: T - extra, 0] + scores[extra:, 1], -np.inf)
        first = int(np.argmax(sums))
        if (sums[first], -first) > (found[0], -found[1]):
            found = float(sums[first]), first, first + extra
    return found
