"""A model for EleutherAI's lm-evaluation-harness, which brings the tasks:

    import lm_eval
    model = harness_model(load_causal(directory), Tokenizer.load(directory))
    lm_eval.simple_evaluate(model=model, tasks=["hellaswag"])

It asks three things of a model, and `Adapter` answers them as the harness's own models do: text
that spans context and continuation is encoded as one, and what is too long loses its beginning.
The harness is imported when it is used: `pip install minifm[eval]`.
"""

from minifm.errors import ConfigError, UserError
from minifm.evaluation.perplexity import sliding_requests
from minifm.evaluation.score import Request, score
from minifm.generation import Sampling, generate
from minifm.text.offsets import before_text

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Adapter:
    """The answers to the harness's requests, each of which has `args`, a tuple.

    batch        requests computed at a time; changes no answer
    max_tokens   of a completion, where a task says nothing
    """

    def __init__(self, model, tokenizer, *, batch=8, max_tokens=256):
        """Raises ConfigError for a tokenizer without a token that begins a text or ends one."""
        self.before = before_text(tokenizer, "that a text without a context would follow")
        self.model, self.tokenizer = model, tokenizer
        self.batch, self.max_tokens = batch, max_tokens

    def loglikelihood(self, requests, disable_tqdm=False):
        """[(log-likelihood of the continuation in nats, whether it is what greedy decoding
        writes)] for args (context, continuation)."""
        scores = score(self.model, [self.request(*r.args) for r in requests], batch=self.batch)
        return [(s.log_likelihood, s.greedy) for s in scores]

    def request(self, context, continuation):
        """The Request for `continuation` after `context`, encoded together."""
        spaces = len(context) - len(context.rstrip())
        if spaces:              # as the harness does: a space belongs to the word behind it
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before = self.tokenizer.encode(context).tolist()
        ids = self.tokenizer.encode(context + continuation).tolist()
        scored = len(ids) - len(before)
        if not before:
            ids = [self.before, *ids]
        most = self.model.config.context
        if scored < 1:
            raise ConfigError(f"evaluation: nothing of {continuation!r:.60} is left to score: the "
                              f"tokens of {context[-20:]!r} with it are no more than without")
        if scored > most:
            raise ConfigError(f"evaluation: a continuation of {scored} tokens does not fit the "
                              f"model's context of {most}")
        ids = ids[-(most + 1) :]
        return Request(ids, len(ids) - scored)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """[log-likelihood in nats] of whole texts, args (text,), in windows side by side."""
        context, parts, owners = self.model.config.context, [], []
        for number, request in enumerate(requests):
            ids = self.tokenizer.encode(request.args[0]).tolist()
            mine = list(sliding_requests(ids, context, context, self.before))
            parts += mine
            owners += [number] * len(mine)
        totals = [0.0] * len(requests)
        for owner, found in zip(owners, score(self.model, parts, batch=self.batch)):
            totals[owner] += found.log_likelihood
        return totals

    def generate_until(self, requests, disable_tqdm=False):
        """[completion] for args (context, {"until": strings to stop before, "max_gen_toks": …,
        "do_sample": …, "temperature": …})."""
        found, alike = [None] * len(requests), {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in alike.values():
            options = self.options(requests[numbers[0]].args[1])
            for first in range(0, len(numbers), self.batch):
                part = numbers[first : first + self.batch]
                prompts = [self.prompt(requests[n].args[0], options["max_tokens"]) for n in part]
                for number, done in zip(part, generate(self.model, self.tokenizer, prompts,
                                                       **options)):
                    found[number] = done.text
        return found

    def options(self, said):
        """The options of `generate` for what a task says; raises ConfigError for what is none."""
        said = dict(said)
        until, most = said.pop("until", []), said.pop("max_gen_toks", self.max_tokens)
        sample = said.pop("do_sample", said.get("temperature", 0) > 0)
        chosen = {name: said.pop(name) for name in SAMPLING if name in said}
        if said:
            raise ConfigError(f"generate_until: {', '.join(map(repr, said))} is not supported; "
                              f"expected until, max_gen_toks, do_sample, {', '.join(SAMPLING)}")
        strategy = Sampling(**chosen) if sample else Sampling(temperature=0)
        until = [until] if isinstance(until, str) else until or []
        return {"stop": [text for text in until if text],       # some tasks say "", and mean none
                "max_tokens": most, "strategy": strategy}

    def prompt(self, context, max_tokens):
        """The ids of a context, without its beginning where it leaves no room for max_tokens."""
        room = self.model.config.context - max_tokens
        if room < 1:
            raise ConfigError(f"max_gen_toks: {max_tokens} tokens leave nothing of the model's "
                              f"context of {self.model.config.context} for the prompt")
        return self.tokenizer.encode(context)[-room:] if context else \
            [self.before]


def harness_model(model, tokenizer, **options):
    """An Adapter that is also the harness's `lm_eval.api.model.LM`; options as of Adapter.

    Raises UserError where the harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise UserError("the evaluation harness cannot be imported; install it by pip install "
                        f"minifm[eval] ({error})") from error

    class HarnessModel(Adapter, LM):
        """What simple_evaluate takes as its model."""

        def __init__(self):
            LM.__init__(self)
            Adapter.__init__(self, model, tokenizer, **options)

    return HarnessModel()
