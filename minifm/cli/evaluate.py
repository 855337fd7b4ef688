"""`minifm evaluate`: perplexity and bits per byte of a model on text, or how well a fine-tuned one
does its task on labelled examples."""

import json

from minifm.backends.reference.packed import FORMATS
from minifm.cli.arguments import add_fields, build, part_of
from minifm.errors import ConfigError, plural
from minifm.evaluation.bound import BoundConfig, Bounded
from minifm.evaluation.perplexity import WindowConfig

EXAMPLE = """\
example:
  minifm evaluate runs/demo/last --data book.txt
  minifm evaluate openai-community/gpt2 --data notes/ --pattern '*.md' --stride 256 --json
  minifm evaluate runs/reviews --task classify --data more.jsonl
"""


def arguments(parser, argv):
    from minifm.training.labelled import TASKS
    parser.add_argument("model", help="a directory with config.json and model.safetensors, or a "
                                      "name on the Hugging Face hub")
    parser.add_argument("--data", nargs="+", required=True, metavar="SOURCE",
                        help="text that the model was not trained on: files, directories, globs, "
                             "- for standard input; .jsonl: the `text` of each line. With --task, "
                             "files of labelled examples, as finetune reads them")
    parser.add_argument("--task", choices=TASKS,
                        help="the data are labelled examples of this task")
    parser.add_argument("--scheme", choices=("iob2", "iob1"),
                        help="with --task ner, how CoNLL files mark where an entity begins "
                             "(default: iob2)")
    parser.add_argument("--pattern", metavar="GLOB",
                        help="which files of a directory are read (default: all but hidden ones)")
    parser.add_argument("--separator", metavar="TEXT",
                        help="a string that ends a document within a plain file")
    parser.add_argument("--format", choices=FORMATS,
                        help="pack the weights so (default: as they are stored, and those under "
                             "an adapter as they were packed while it learnt)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    add_fields(parser, WindowConfig, "windows")
    add_fields(parser, BoundConfig, "a model that writes by diffusion, whose figures are bounds")


def run(args):
    from minifm.evaluation import likelihood_bound, perplexity
    from minifm.hub import load_model, require_causal
    from minifm.text import Corpus
    config = build(WindowConfig, vars(args))
    if args.scheme and args.task != "ner":
        raise ConfigError("scheme: only for --task ner; leave it out")
    if args.task:
        return run_labelled(args, config)
    corpus = Corpus(args.data, pattern=args.pattern, separator=args.separator)
    tokenizer, model = loaded(args, load_model)
    texts, drawn = (document.text for document in corpus), part_of(BoundConfig, vars(args))
    if model.absorbing:
        found = likelihood_bound(model, tokenizer, texts, config, BoundConfig(**drawn))
    elif drawn:
        raise ConfigError(f"{next(iter(drawn))}: needs a model that writes by diffusion, whose "
                          "figures are left to chance")
    else:
        found = perplexity(require_causal(model, args.model), tokenizer, texts, config)
    if args.json:
        print(json.dumps(described(found, args.model, corpus.description), indent=2,
                         ensure_ascii=False))
    else:
        print("\n".join(table(found, corpus.description)))


def run_labelled(args, config):
    """How well the model does its task on labelled examples."""
    from minifm.hub import load_model
    from minifm.tasks import describe, read
    from minifm.training.config import row_length
    from minifm.training.labelled import TASKS
    for name, value in (("pattern", args.pattern), ("separator", args.separator),
                        ("stride", config.stride),
                        ("tokens", config.tokens)):
        if value is not None:
            raise ConfigError(f"{name}: is for text without labels; leave it out with --task")
    task = TASKS[args.task]
    examples = [found for file in args.data
                for found in read(file, task.example, scheme=args.scheme or "iob2")]
    tokenizer, model = loaded(args, load_model)
    task.require(model)
    rows = task.rows(model, examples, tokenizer, row_length(config.context, model.config))
    scores = task.scores(examples, task.answers(model, rows, tokenizer, config.batch))
    if args.json:
        print(json.dumps({"model": args.model, "task": args.task, "data": args.data,
                          "examples": len(examples), "scores": scores.figures}, indent=2,
                         ensure_ascii=False))
        return
    facts = ", ".join(f"{what}: {count:,}" for what, count in rows.facts.items() if count)
    print(f"{describe(examples)}\n{len(rows):,} rows{f'; {facts}' if facts else ''}\n")
    print(scores.table())


def loaded(args, load):
    """(the tokenizer, the model that `load` reads, its weights packed as the user said)."""
    from minifm.hub import resolve, tokenizer_of
    from minifm.models import pack_model, packed_format
    from minifm.text import Tokenizer
    directory = resolve(args.model)
    tokenizer, model = Tokenizer.load(tokenizer_of(directory)), load(directory)
    if args.format and args.format != packed_format(model):
        pack_model(model, args.format)
    return tokenizer, model


def described(found, model, data):
    """What the JSON says."""
    bounds = {"bound": True, "draws": found.draws, "nats_spread": found.spread,
              "bits_per_byte_spread": found.bits_per_byte_spread} \
        if isinstance(found, Bounded) else {}
    return {"model": model, "data": data, "documents": found.documents, "tokens": found.tokens,
            "bytes": found.bytes, "context": found.context, "stride": found.stride,
            "changed": found.changed, "nats": found.nats, "loss": found.loss,
            "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte} | bounds


def table(found, data):
    """The lines of the table."""
    of_bound = [f"bound           the figures are what they are at most; of bits per byte, the "
                f"standard error is {found.bits_per_byte_spread:.4f}"] \
        if isinstance(found, Bounded) else []
    lost = [] if not found.changed else [
        f"changed         {plural(found.changed, 'document')}: the vocabulary leaves some of the "
        "text out (case, white space, unknown characters), and the bits do not count it"]
    return [f"text            {data}: {found.documents:,} documents, {found.tokens:,} tokens, "
            f"{found.bytes / 1e6:.2f} MB",
            f"window          {found.context:,} tokens, going on by {found.stride:,}",
            f"perplexity      {found.perplexity:.4f} ({found.loss:.4f} nats a token)",
            f"bits per byte   {found.bits_per_byte:.4f}", *of_bound, *lost]
