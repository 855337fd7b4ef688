"""The ecosystem's directory layout, in and out: what is saved here opens in other libraries, and
the directories they publish open here.

Read `arrays.py` first (one file of named arrays), then `matching.py` (which of them is which of a
model's), `locate.py` (from what a user types to a directory), `adapters.py` (an adapter's
directory), `base.py` (which weights it has learnt over) and `directory.py` (a model's);
`schedulers.py` is of diffusion.
"""

from minifm.hub.adapters import (
    base_of,
    has_tokenizer,
    is_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
    tokenizer_of,
)
from minifm.hub.arrays import load_arrays, save_arrays
from minifm.hub.base import learnt_format
from minifm.hub.directory import (
    described_by,
    end_tokens,
    load_causal,
    load_model,
    pack_as_learnt,
    require_causal,
    save_model,
)
from minifm.hub.locate import resolve
from minifm.hub.schedulers import load_scheduler, save_scheduler

__all__ = ["base_of", "described_by", "end_tokens", "has_tokenizer", "is_adapter", "learnt_format",
           "load_adapter", "load_arrays", "load_causal", "load_model", "load_scheduler",
           "pack_as_learnt", "read_adapter", "require_causal", "resolve", "save_adapter",
           "save_arrays", "save_model", "save_scheduler", "tokenizer_of"]
