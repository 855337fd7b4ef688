"""Models, one a file. In the table `MODELS` a checkpoint's `model_type` finds its class."""

from minifm.models.gpt import GPT, GPTConfig

MODELS = {GPT.model_type: GPT}
