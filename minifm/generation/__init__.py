"""Sampling tokens from a language model: `generate` for text, `tokens` for ids."""

from minifm.generation.generate import Completion, generate, tokens
from minifm.generation.sampling import Sampling
