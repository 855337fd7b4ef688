"""Free text: a text and the text that answers it, whatever the answer is: a number, a name, a line.

Nothing is chosen among and nothing points anywhere; the answer is right if it is the same.
"""

from dataclasses import dataclass

from minifm.tasks.examples import Example, need, need_text
from minifm.tasks.scores import text_scores

NAMES = {"input": ("input", "question"), "output": ("output", "answer")}


@dataclass(frozen=True)
class Answered(Example):
    """A text and its answer. In files: {"input", "output"}, either of which may be called by its
    other name, "question" and "answer"; an answer may be an integer, which is taken as its
    digits."""

    input: str
    output: str

    def __post_init__(self):
        need_text(self.input, "input", self.origin)
        need_text(self.output, "output", self.origin)

    @property
    def content(self):
        return self.input

    @classmethod
    def parse(cls, record, **common):
        origin = common["origin"]
        asked, said = (_name_of(field, record, origin) for field in NAMES)
        kind = int if isinstance(record.get(said), int) else str
        return cls(need(record, asked, str, origin), str(need(record, said, kind, origin)),
                   **common)

    @classmethod
    def scores(cls, examples, predictions):
        """How many answers are the same; a prediction is a str."""
        return text_scores([example.output for example in examples], predictions)

    def record(self):
        return {"input": self.input, "output": self.output}


def _name_of(field, record, origin):
    """By which of its names a record has the field."""
    there = [name for name in NAMES[field] if name in record]
    if len(there) > 1:
        raise origin.error(f"{there[0]!r} and {there[1]!r} are names of the same; expected one")
    return there[0] if there else field
