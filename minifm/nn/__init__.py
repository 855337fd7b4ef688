"""Layers that hold parameters: module → layers → rotary, cache → attention → block → freezing →
adapter, in reading order; for images and diffusion, time → image."""

from minifm.nn.adapter import (
    AdapterConfig,
    LoRA,
    adapter_config,
    add_adapters,
    merge_adapters,
    remove_adapters,
)
from minifm.nn.attention import Attention, SelfAttention
from minifm.nn.block import Block, GatedPerceptron, Perceptron, post_norm, pre_norm
from minifm.nn.cache import Cache
from minifm.nn.freezing import freeze, freeze_layers, held, train_only, trainable
from minifm.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
from minifm.nn.module import Module, Parameter
from minifm.nn.rotary import Rotary
