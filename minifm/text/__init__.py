"""Text: documents in (corpus), token ids (tokenizer; how others' vocabularies spell: spelling, what
lies in older directories: older_files), stored (shards), in batches (packing), and what is made of
those to learn from: rows, masked tokens (masking), any number of them (noising), spans left out
(spans).
Conversations by chat templates (chat)."""

from minifm.text.chat import ChatTemplate
from minifm.text.corpus import Corpus
from minifm.text.packing import HeldOutBatches, TrainingBatches
from minifm.text.tokenizer import StreamDecoder, Tokenizer, end_of_text_of
