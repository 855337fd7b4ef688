"""`minifm generate`: load a model from a directory or the hub, and let it write."""

import argparse
import dataclasses
import sys
from pathlib import Path

from minifm.backends.reference.packed import FORMATS
from minifm.cli.arguments import add_config, add_fields, build, settings
from minifm.errors import ConfigError, why
from minifm.generation.sampling import Sampling
from minifm.generation.unmasking import Unmasking
from minifm.nn.cache import FORMATS as CACHE_FORMATS
from minifm.nn.cache import check_format
from minifm.text.bytelevel import as_bytes

EXAMPLE = """\
example:
  minifm generate runs/demo/last "def read_json(path):" --temperature 0.7 --stop "\\n\\n\\n"
  minifm generate runs/demo/last "def f(" --draft runs/demo-2/last
  minifm generate runs/demo/last "x = " --regex "[0-9]{1,4}"
  minifm generate Qwen/Qwen2.5-0.5B-Instruct --chat "Why is the sky blue?" --system "Be brief."
  minifm generate runs/masks/last "def f(x):" --suffix "return y" --max-tokens 24 --steps 12
  echo "Once upon a time" | minifm generate openai-community/gpt2 --max-tokens 60 --seed 3
"""


def arguments(parser, argv):
    parser.add_argument("model", help="a directory with config.json and model.safetensors, or of "
                                      "an adapter, or a name on the Hugging Face hub")
    parser.add_argument("prompt", nargs="*", help="what to continue; several are written side by "
                                                  "side; none: standard input")
    parser.add_argument("--max-tokens", type=int, default=argparse.SUPPRESS, metavar="INT",
                        help="stop after so many new tokens (default: 200)")
    parser.add_argument("--stop", action="append", default=argparse.SUPPRESS, metavar="TEXT",
                        help=r"stop before this string; may be repeated; \n is a line feed")
    parser.add_argument("--seed", type=int, default=argparse.SUPPRESS, metavar="INT",
                        help="the same seed writes the same text; of several prompts each has "
                             "noise of its own, by its place (default: 0)")
    parser.add_argument("--format", choices=FORMATS, default=argparse.SUPPRESS,
                        help="how the weights are packed when they are loaded; int8 and int4 "
                             "change the text a little and are faster (default: fp32, which is "
                             "exact, or as they are stored)")
    parser.add_argument("--cache", choices=CACHE_FORMATS, default=argparse.SUPPRESS,
                        help="how keys and values are kept; bf16 halves them, which is faster late "
                             "in a long text (default: fp32, as they are computed)")
    add_config(parser)
    talk = parser.add_argument_group("conversations, with a model that comes with a chat template")
    talk.add_argument("--chat", default=argparse.SUPPRESS, metavar="TEXT",
                      help="what the user says; the model answers. Special strings in it are text")
    talk.add_argument("--system", default=argparse.SUPPRESS, metavar="TEXT",
                      help="what the model is told before all messages")
    talk.add_argument("--messages", default=argparse.SUPPRESS, metavar="FILE",
                      help="what was said before: messages ({\"role\": …, \"content\": …}), one a "
                           "line of a .jsonl file or in the list of a .json file; or an object of "
                           "`messages` and `tools`")
    add_fields(parser, Sampling, "sampling, in the order in which it acts")
    add_fields(parser, Unmasking, "a model that writes by diffusion (pretrain --diffusion)",
               skip={"sampling"})
    parser.add_argument("--suffix", default=argparse.SUPPRESS, metavar="TEXT",
                        help="with such a model: what stands behind the --max-tokens that are "
                             "written, which lead to it")
    others = parser.add_argument_group("other ways to choose tokens, one at most")
    others.add_argument("--beams", type=int, default=argparse.SUPPRESS, metavar="INT",
                        help="beam search: the likeliest whole text that keeping so many finds")
    others.add_argument("--length-penalty", type=float, default=argparse.SUPPRESS, metavar="FLOAT",
                        help="with --beams: divide log-probabilities by the length to this power "
                             "(default: 1.0)")
    others.add_argument("--contrastive", type=float, default=argparse.SUPPRESS, metavar="ALPHA",
                        help="contrastive search: of the --top-k (default: 4) likeliest tokens, "
                             "one unlike the text; ALPHA, 0 to 1, weighs that")
    others.add_argument("--draft", default=argparse.SUPPRESS, metavar="MODEL",
                        help="speculative decoding: this smaller model of the same tokenizer "
                             "proposes tokens; what is likely to be written stays the same")
    others.add_argument("--draft-tokens", type=int, default=argparse.SUPPRESS, metavar="INT",
                        help="with --draft: tokens proposed at a time (default: 4)")
    texts = parser.add_argument_group("what the text must be, one at most")
    texts.add_argument("--regex", default=argparse.SUPPRESS, metavar="PATTERN",
                       help="a match of this regular expression, as a whole")
    texts.add_argument("--json-schema", default=argparse.SUPPRESS, metavar="FILE",
                       help="JSON that is valid by the schema in this file")
    texts.add_argument("--choices", nargs="+", default=argparse.SUPPRESS, metavar="TEXT",
                       help="one of these texts")


ALSO = {"max_tokens": int, "stop": tuple[str, ...], "seed": int, "format": str, "cache": str,
        "beams": int, "length_penalty": float, "contrastive": float, "draft": str,
        "draft_tokens": int, "chat": str, "system": str, "messages": str, "regex": str,
        "json_schema": str, "choices": tuple[str, ...], "suffix": str}


def run(args):
    from minifm.generation import generate
    from minifm.hub import end_tokens, resolve, tokenizer_of
    from minifm.models.causal import CausalModel
    from minifm.models.seq2seq import Seq2SeqModel
    from minifm.text import ChatTemplate, Tokenizer
    said = settings(args, Sampling, Unmasking, also=ALSO)
    check_format(said.get("cache"))
    refuse_foreign(said)
    constraint, strategy = constraint_of(said), strategy_of(said)
    asked = conversation_of(said, args.prompt)
    directory = resolve(args.model)
    tokenizer = Tokenizer.load(tokenizer_of(directory))
    chat = asked and ChatTemplate.load(tokenizer_of(directory)).encode(tokenizer, *asked)[0]
    model = loaded(directory, said)
    if model.absorbing:
        strategy = unmasking_of(said, strategy)
    else:
        refuse_unmasking(said, model)
    if "draft" in said:
        strategy = with_draft(said, model, tokenizer, strategy)
    prompts = words(args.prompt) if asked is None else [chat]
    if asked and not isinstance(model, CausalModel):
        raise ConfigError("chat: expected a model that goes on with its prompt, got a "
                          f"{type(model).__name__}")
    goes_on = not isinstance(model, Seq2SeqModel)       # which reads the prompts, and answers
    stop = [s.replace("\\n", "\n") for s in said.get("stop", ())]
    shown = prompts if goes_on and asked is None else [b""] * len(prompts)
    show_piece = shower(shown[0]) if len(prompts) == 1 else None
    done = generate(model, tokenizer, prompts, strategy=strategy, stop=stop,
                    max_tokens=said.get("max_tokens", 200), seed=said.get("seed", 0),
                    cache=said.get("cache"), constraint=constraint, on_text=show_piece,
                    ends=end_tokens(directory), suffix=said.get("suffix", ""))
    tell(shown, done, model, constraint, said.get("suffix", ""))
    if "draft" in said and strategy.proposed:
        print(f"minifm: {strategy.accepted} of {strategy.proposed} proposed tokens were accepted "
              f"({strategy.accepted / strategy.proposed:.0%})", file=sys.stderr)


# -- what the flags stand for ----------------------------------------------------------------------


def refuse_foreign(said):
    """Raise ConfigError for settings that have no meaning beside each other."""
    sampling = {field.name for field in dataclasses.fields(Sampling)}
    ways = {"beams": {"length_penalty"}, "contrastive": {"top_k"},
            "draft": sampling | {"draft_tokens"}}
    for kinds in (ways, ("regex", "json_schema", "choices")):
        both = [kind for kind in kinds if kind in said]
        if len(both) > 1:
            raise ConfigError(f"{both[0]} and {both[1]}: expected one of them at most")
    way = next((way for way in ways if way in said), None)
    for name in said:
        if name in set().union(*ways.values()) and name not in ways.get(way, sampling):
            needed = next((w for w, names in ways.items() if name in names - sampling), None)
            why = f"needs {needed}" if needed else f"has no meaning with {way}"
            raise ConfigError(f"{name}: {why}; leave it out")


def strategy_of(said):
    """How tokens are chosen; for a draft, how its proposals are checked."""
    from minifm.generation import Beams, Contrastive
    if "beams" in said:
        return build(Beams, said)
    if "contrastive" in said:
        return build(Contrastive, said, alpha=said["contrastive"])
    return build(Sampling, said)


def unmasking_of(said, strategy):
    """How a model that writes by diffusion does; raises ConfigError for other ways."""
    if not isinstance(strategy, Sampling) or "draft" in said:
        way = next(way for way in ("beams", "contrastive", "draft") if way in said)
        raise ConfigError(f"{way}: has no meaning for a model that writes by diffusion; leave it "
                          "out")
    return build(Unmasking, said, sampling=strategy)


def refuse_unmasking(said, model):
    """Raise ConfigError for settings of writing by diffusion, for a model that does not."""
    for name in (*(field.name for field in dataclasses.fields(Unmasking)), "suffix"):
        if name in said:
            raise ConfigError(f"{name}: needs a model that writes by diffusion (pretrain "
                              f"--diffusion), got a {type(model).__name__} that does not")


def with_draft(said, model, tokenizer, sampling):
    """The strategy with the model that proposes; raises ConfigError for other tokens."""
    from minifm.generation import Speculative
    from minifm.hub import resolve, tokenizer_of
    from minifm.models.causal import CausalModel
    from minifm.text import Tokenizer
    if not isinstance(model, CausalModel):
        raise ConfigError(f"draft: expected a model that goes on with its prompt, got a "
                          f"{type(model).__name__}")
    directory = resolve(said["draft"])
    if Tokenizer.load(tokenizer_of(directory)).sha256 != tokenizer.sha256:
        raise ConfigError(f"draft: {said['draft']} has another tokenizer than the model")
    return Speculative(loaded(directory, said), said.get("draft_tokens", 4), sampling)


def constraint_of(said):
    """What the text must be, compiled, or None. Raises ConfigError for what cannot be."""
    from minifm.generation import Choices, JsonSchema, Regex
    constraint = None
    if "regex" in said:
        constraint = Regex(said["regex"])
    elif "choices" in said:
        constraint = Choices(said["choices"])
    elif "json_schema" in said:
        try:
            constraint = JsonSchema(Path(said["json_schema"]).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"json_schema: {said['json_schema']}: cannot be read: "
                              f"{why(error)}") from error
    if constraint is not None:
        constraint.automaton()
    return constraint


def words(prompts):
    """The words of the command line, or else standard input, byte for byte, even where they are
    not UTF-8."""
    return [as_bytes(prompt) for prompt in prompts] \
        or [sys.stdin.buffer.read().removesuffix(b"\n")]


def conversation_of(said, prompts):
    """(messages, tools or None) that the model is to answer, or None where it goes on with a
    text. Raises ConfigError."""
    from minifm.text.chat import read_messages
    if not said.keys() & {"chat", "system", "messages"}:
        return None
    if prompts:
        raise ConfigError(f"chat: expected no prompt beside a conversation, got {prompts[0]!r:.40}")
    if "chat" not in said and "messages" not in said:
        raise ConfigError("system: needs chat, or messages, to which the model answers")
    messages, tools = read_messages(said["messages"]) if "messages" in said else ([], None)
    if "system" in said:
        messages = [{"role": "system", "content": said["system"]}, *messages]
    if "chat" in said:
        messages = [*messages, {"role": "user", "content": said["chat"]}]
    return messages, tools


def loaded(directory, said):
    """A model that writes, its weights packed as the user said."""
    from minifm.hub import load_model
    from minifm.models import pack_model, packed_format
    from minifm.models.causal import CausalModel
    from minifm.models.seq2seq import Seq2SeqModel
    model = load_model(directory)
    if not (isinstance(model, (CausalModel, Seq2SeqModel)) or model.absorbing):
        raise ConfigError(f"{directory}: expected a model that writes, got a "
                          f"{type(model).__name__}")
    format = said.get("format", packed_format(model) or "fp32")
    if format != packed_format(model):      # fp32: the same numbers, laid out to be read in order
        pack_model(model, format)
    return model


# -- what is shown ---------------------------------------------------------------------------------


def shower(prompt):
    """on_text for one prompt, which is shown before the first piece: nothing is in the way then."""
    waiting = [prompt.decode("utf-8", "replace")]

    def show_piece(row, piece):
        show(waiting.pop() + piece if waiting else piece)

    return show_piece


def tell(prompts, done, model, constraint, suffix):
    """What is left to say when all is written."""
    for number, (prompt, completion) in enumerate(zip(prompts, done), 1):
        if len(prompts) > 1:
            show(f"--- {number} of {len(prompts)} ({completion.reason})\n"
                 f"{prompt.decode('utf-8', 'replace')}{completion.text}{suffix}\n")
            continue
        show(f"{suffix}\n")
        if completion.reason == "context":
            print(f"minifm: the model's context of {model.config.context} tokens is full",
                  file=sys.stderr)
        if constraint is not None and completion.reason != "end":
            print("minifm: the text is not whole: there was no room for what it must be; raise "
                  "max_tokens, or shorten the prompt", file=sys.stderr)


def show(text):
    """Print at once, whatever the terminal's encoding cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()
