"""Text: documents in (corpus), token ids (tokenizer), stored (shards), in batches (packing), some
of them masked (masking)."""

from minifm.text.corpus import Corpus
from minifm.text.packing import HeldOutBatches, TrainingBatches
from minifm.text.tokenizer import StreamDecoder, Tokenizer
