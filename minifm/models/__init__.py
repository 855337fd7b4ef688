"""Models, one a file; `MODELS` is the table in which a checkpoint's `model_type` finds its class."""

from minifm.models.gpt import GPT, GPTConfig

MODELS = {GPT.model_type: GPT}
