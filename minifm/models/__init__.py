"""Models, one a file. In the table `MODELS` a checkpoint's `model_type` finds its class."""

from minifm.models.gpt import GPT, GPTConfig
from minifm.models.packing import pack_model, packed_format

__all__ = ["GPT", "GPTConfig", "MODELS", "pack_model", "packed_format"]

MODELS = {GPT.model_type: GPT}
