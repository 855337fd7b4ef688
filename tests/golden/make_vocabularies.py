"""Token ids by transformers from the files that older models have in place of a tokenizer.json, for
tests/test_vocabularies.py.

    PYTHONPATH=tests python tests/golden/make_vocabularies.py

BERT's vocab.txt with each of its settings; CLIP's and RoBERTa's vocab.json and merges.txt. The
vocabularies are made by tests/vocabularies.py.
"""

import json
import tempfile
from pathlib import Path

from transformers import BertTokenizer, CLIPTokenizer, RobertaTokenizer
from vocabularies import BERT_SETTINGS, MERGES, bert_files, clip_files, roberta_files

TEXTS = ["The cat's  mother, naïve Zoë!", "漢字 and cats", "[SEP] <|endoftext|> </s>",
         " A cat\n\tsat", "unaffable hats", "theatre" * 30,
         "e\u0301te\u0301 \u00a0 o\u200bn\u0000e", ""]


def encoded(kind, write, settings):
    """What a tokenizer reads from the files that `write` makes: ids of each text, with what stands
    around it, and of a pair; and the text of the first."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), settings)
        tokenizer = kind.from_pretrained(directory, split_special_tokens=True)
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        plain = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
        pair = tokenizer("a cat", "the hat")["input_ids"]
        return {"settings": settings, "ids": ids, "pair": pair,
                "decoded": tokenizer.decode(plain, clean_up_tokenization_spaces=False)}


found = {"texts": TEXTS, "merges": MERGES,
         "bert": [encoded(BertTokenizer, bert_files, settings) for settings in BERT_SETTINGS],
         "clip": [encoded(CLIPTokenizer, clip_files, {})],
         "roberta": [encoded(RobertaTokenizer, roberta_files, {})]}
file = Path(__file__).parent / "vocabularies.json"
file.write_text(json.dumps(found, separators=(",", ":")) + "\n", "utf-8")
