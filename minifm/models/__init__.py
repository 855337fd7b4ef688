"""Models, one a file: causal (what decoders share), then gpt, llama; bert, an encoder; seq2seq
(what encoder-decoders share), then transformer, t5.

In the table `MODELS` a checkpoint's `model_type` finds its class; in `ARCHITECTURES` the name on
the command line finds all that is needed to make a new one.
"""

from typing import NamedTuple

from minifm.models import gpt, llama
from minifm.models.bert import LAYOUTS as BERT_LAYOUTS
from minifm.models.bert import Bert, BertConfig
from minifm.models.gpt import GPT, GPTConfig
from minifm.models.llama import LAYOUTS, Llama, LlamaConfig
from minifm.models.packing import pack_model, packed_format
from minifm.models.t5 import T5, T5Config
from minifm.models.transformer import Transformer, TransformerConfig

__all__ = ["ARCHITECTURES", "Bert", "BertConfig", "GPT", "GPTConfig", "Llama", "LlamaConfig",
           "MODELS", "T5", "T5Config", "Transformer", "TransformerConfig", "architecture_of",
           "pack_model", "packed_format"]

MODELS = {GPT.model_type: GPT} | dict.fromkeys(LAYOUTS, Llama) \
    | dict.fromkeys(BERT_LAYOUTS, Bert) \
    | {model.model_type: model for model in (Transformer, T5)}


class Architecture(NamedTuple):
    """What `--arch` stands for: a model's class, that of its configuration, the shapes that are
    known by name, {name: {setting: value}}, and the one that is taken unless another is named."""

    model: type
    config: type
    presets: dict
    default: str


ARCHITECTURES = {"gpt": Architecture(GPT, GPTConfig, gpt.PRESETS, "mini"),
                 "llama": Architecture(Llama, LlamaConfig, llama.PRESETS, "llama-mini")}


def architecture_of(model):
    """The name in ARCHITECTURES that `model` is of."""
    return next(name for name, kind in ARCHITECTURES.items() if kind.model is type(model))
