"""How good a language model is: the log-likelihood of texts (score), perplexity and bits per byte
(perplexity), their bound for one that writes by diffusion (bound), tasks that stand in the prompt
(prompting, by asking), and the tasks of EleutherAI's lm-evaluation-harness (harness).

And how good examples are that a model has made: recognised, and no copies (made); as many kinds of
them, and as like real ones, as there are (distribution)."""

from minifm.evaluation.bound import BoundConfig, Bounded, likelihood_bound
from minifm.evaluation.harness import harness_model
from minifm.evaluation.perplexity import Measured, WindowConfig, perplexity, sliding_requests
from minifm.evaluation.prompting import PromptConfig, prompt_study, prompt_task
from minifm.evaluation.score import Hidden, Request, Score, score, score_hidden, score_targets
