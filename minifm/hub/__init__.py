"""The ecosystem's directory layout, in and out: what is saved here opens in other libraries, and
the directories they publish open here.

Read `arrays.py` first (one file of named arrays), then `directory.py` (a model's directory), then
`locate.py` (from what a user types to a directory).
"""

from minifm.hub.arrays import load_arrays, save_arrays
from minifm.hub.directory import load_causal, load_model, save_model
from minifm.hub.locate import resolve

__all__ = ["load_arrays", "load_causal", "load_model", "resolve", "save_arrays", "save_model"]
