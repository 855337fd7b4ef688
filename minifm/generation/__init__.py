"""Writing with a language model: `generate` for text, `tokens` for ids; a strategy says how each
token is chosen, a constraint what the text may be. Making pictures and the like with a diffusion
model stands by itself, in diffusion.py."""

from minifm.generation.beams import Beams
from minifm.generation.constraints import Choices, JsonSchema, Regex
from minifm.generation.contrastive import Contrastive
from minifm.generation.generate import Completion, generate, tokens
from minifm.generation.sampling import Sampling
from minifm.generation.speculative import Speculative
from minifm.generation.unmasking import Unmasking
