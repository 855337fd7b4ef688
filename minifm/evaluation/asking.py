"""How a model is asked for an answer that a prompt leaves out, by what the model has learnt to do:

    Continuing   goes on with the prompt                    GPT, Llama
    Answering    reads the prompt, writes the answer        T5, the Transformer
    Guessing     fills in what is hidden in the prompt      BERT, RoBERTa, ModernBERT

Each says what prompts are made of (tasks/prompts.py), how likely an answer is in them, and, if it
can, writes one of its own. All else of a study (prompting.py) is the same for the three.
"""

from minifm.errors import ConfigError
from minifm.evaluation.score import Hidden, Request, score, score_hidden, score_targets
from minifm.generation import Sampling, generate
from minifm.models.causal import CausalModel
from minifm.models.encoder import Encoder
from minifm.models.seq2seq import Seq2SeqModel
from minifm.tasks.prompts import ClozePrompter, Prompter, SourcePrompter


class Continuing:
    """A CausalModel, which goes on with a prompt."""

    prompter = Prompter
    writes = True
    cloze = False       # whether it sees what stands behind the answer, too

    def __init__(self, model, tokenizer, *, together=False, batch=8):
        """`together`: see score_hidden. Raises ConfigError for what the model cannot do."""
        self.model, self.tokenizer = model, tokenizer
        self.together, self.batch = together, batch
        self._check()

    def _check(self):
        if self.together:
            raise ConfigError(f"together: a {type(self.model).__name__} guesses no hidden tokens; "
                              "leave it out")

    def scores(self, prompts):
        """[a Score for each row] of all the Prompts, one after the other."""
        requests = [Request(row, prompt.start) for prompt in prompts for row in prompt.rows]
        return score(self.model, requests, batch=self.batch)

    def written(self, prompts, max_tokens, stop):
        """[the text] that it writes greedily behind each Prompt."""
        texts = []
        for first in range(0, len(prompts), self.batch):
            part = [prompt.ids for prompt in prompts[first : first + self.batch]]
            done = generate(self.model, self.tokenizer, part, strategy=Sampling(temperature=0),
                            max_tokens=max_tokens, stop=stop)
            texts += [completion.text for completion in done]
        return texts


class Answering(Continuing):
    """A Seq2SeqModel, which reads a prompt, the source, and writes the answer, the target."""

    prompter = SourcePrompter

    def scores(self, prompts):
        pairs = [(prompt.ids, prompt.rows) for prompt in prompts]
        found = score_targets(self.model, pairs, batch=self.batch)
        return [score for scores in found for score in scores]


class Guessing(Continuing):
    """An Encoder with its masked head, which fills in what is hidden in a prompt."""

    prompter = ClozePrompter
    writes, cloze = False, True

    def _check(self):
        if not self.model.config.masked_head:
            raise ConfigError("masked_head: this model has none, by which it would guess what is "
                              "hidden")
        if self.tokenizer.mask is None:
            raise ConfigError("tokenizer: has no token that hides others; name one as `mask_token` "
                              "in its tokenizer_config.json")

    def scores(self, prompts):
        hidden = [Hidden(row, prompt.start, len(row) - prompt.behind)
                  for prompt in prompts for row in prompt.rows]
        return score_hidden(self.model, hidden, mask=self.tokenizer.mask, together=self.together,
                            batch=self.batch)


KINDS = {CausalModel: Continuing, Seq2SeqModel: Answering, Encoder: Guessing}


def asking(model, tokenizer, **options):
    """The way to ask `model`; options as of Continuing. Raises ConfigError for a model that cannot
    be asked."""
    for kind, way in KINDS.items():
        if isinstance(model, kind):
            return way(model, tokenizer, **options)
    raise ConfigError(f"expected a model that goes on with a text, answers one or guesses what is "
                      f"hidden in it, got a {type(model).__name__}")
