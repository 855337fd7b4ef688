"""`minifm evaluate`: perplexity and bits per byte of a model on text."""

import json

from minifm.backends.reference.packed import FORMATS
from minifm.cli.arguments import add_fields, build
from minifm.evaluation.perplexity import WindowConfig

EXAMPLE = """\
example:
  minifm evaluate runs/demo/last --data book.txt
  minifm evaluate openai-community/gpt2 --data notes/ --pattern '*.md' --stride 256 --json
"""


def arguments(parser, argv):
    parser.add_argument("model", help="a directory with config.json and model.safetensors, or a "
                                      "name on the Hugging Face hub")
    parser.add_argument("--data", nargs="+", required=True, metavar="SOURCE",
                        help="text that the model was not trained on: files, directories, globs, "
                             "- for standard input; .jsonl: the `text` of each line")
    parser.add_argument("--pattern", metavar="GLOB",
                        help="which files of a directory are read (default: all but hidden ones)")
    parser.add_argument("--separator", metavar="TEXT",
                        help="a string that ends a document within a plain file")
    parser.add_argument("--format", choices=FORMATS,
                        help="pack the weights so (default: as they are stored)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    add_fields(parser, WindowConfig, "windows")


def run(args):
    from minifm.evaluation.perplexity import perplexity
    from minifm.hub import load_causal, resolve, tokenizer_of
    from minifm.models import pack_model, packed_format
    from minifm.text import Corpus, Tokenizer
    config = build(WindowConfig, vars(args))
    corpus = Corpus(args.data, pattern=args.pattern, separator=args.separator)
    directory = resolve(args.model)
    tokenizer, model = Tokenizer.load(tokenizer_of(directory)), load_causal(directory)
    if args.format and args.format != packed_format(model):
        pack_model(model, args.format)
    found = perplexity(model, tokenizer, (document.text for document in corpus), config)
    if args.json:
        print(json.dumps(described(found, args.model, corpus.description), indent=2,
                         ensure_ascii=False))
    else:
        print("\n".join(table(found, corpus.description)))


def described(found, model, data):
    """What the JSON says."""
    return {"model": model, "data": data, "documents": found.documents, "tokens": found.tokens,
            "bytes": found.bytes, "context": found.context, "stride": found.stride,
            "nats": found.nats, "loss": found.loss, "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte}


def table(found, data):
    """The lines of the table."""
    return [f"text            {data}: {found.documents:,} documents, {found.tokens:,} tokens, "
            f"{found.bytes / 1e6:.2f} MB",
            f"window          {found.context:,} tokens, going on by {found.stride:,}",
            f"perplexity      {found.perplexity:.4f} ({found.loss:.4f} nats a token)",
            f"bits per byte   {found.bits_per_byte:.4f}"]
