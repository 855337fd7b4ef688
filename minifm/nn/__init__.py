"""Layers that hold parameters: module → layers → cache, attention → block, in reading order."""

from minifm.nn.attention import SelfAttention
from minifm.nn.block import Block, Perceptron
from minifm.nn.cache import Cache
from minifm.nn.layers import Embedding, LayerNorm, Linear
from minifm.nn.module import Module, Parameter
