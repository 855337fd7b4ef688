"""Layers that hold parameters: module → layers → rotary, cache → attention → block, in reading
order."""

from minifm.nn.attention import Attention, SelfAttention
from minifm.nn.block import Block, GatedPerceptron, Perceptron, post_norm, pre_norm
from minifm.nn.cache import Cache
from minifm.nn.layers import Embedding, LayerNorm, Linear, RMSNorm
from minifm.nn.module import Module, Parameter
from minifm.nn.rotary import Rotary
