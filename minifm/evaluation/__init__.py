"""How good a language model is: the log-likelihood of texts (score), perplexity and bits per byte
(perplexity), and the tasks of EleutherAI's lm-evaluation-harness (harness)."""

from minifm.evaluation.harness import harness_model
from minifm.evaluation.perplexity import Measured, WindowConfig, perplexity, sliding_requests
from minifm.evaluation.score import Request, Score, score
