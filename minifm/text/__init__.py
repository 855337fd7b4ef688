"""Text: documents in (corpus), token ids (tokenizer), stored (shards), in batches (packing)."""

from minifm.text.tokenizer import StreamDecoder, Tokenizer
