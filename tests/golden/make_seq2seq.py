"""Make the golden files of encoder-decoders with the `transformers` library:

    python tests/golden/make_seq2seq.py [NAME ...]

Needs torch and transformers (5 or later); the tests need neither, they read what this writes into
tests/golden/NAME/: a tiny model with EVERY parameter drawn from N(0, 0.2²), norm gains and the
offsets of logits included, saved by that library, and `outputs.safetensors`:

    source [B, S]           the last row is padded on the right, see lengths [B]
    ids, targets [B, T]     what the decoder reads, and what it is to write (-100: not counted)
    memory, logits          of the float64 model; error.<each>: the largest difference between that
                            library's float32 and float64
    loss, gradient.<name>   mean loss over the targets that count, and its gradients, by the names
                            of the parameters in files
    greedy [G]              the target of the last row without sampling
    buckets.both, buckets.before    (T5) of the offsets -300 … 300, of 32 buckets up to 128
"""

import contextlib
import sys
from pathlib import Path

import torch
import transformers as library
from peer import all_in_float64, fill, gradients, save_outputs
from transformers.models.t5.modeling_t5 import T5Attention

HERE = Path(__file__).parent
LENGTHS, TOKENS, PADDING = [11, 11, 6], 9, 60
MARIAN = {"vocab_size": 61, "max_position_embeddings": 32, "d_model": 24, "encoder_layers": 2,
          "decoder_layers": 3, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
          "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "activation_function": "relu",
          "scale_embedding": True, "dropout": 0.0, "decoder_start_token_id": 59,
          "pad_token_id": PADDING, "eos_token_id": 0, "forced_eos_token_id": None}
T5 = {"vocab_size": 61, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2,
      "num_decoder_layers": 3, "num_heads": 3, "relative_attention_num_buckets": 8,
      "relative_attention_max_distance": 10, "dropout_rate": 0.0, "pad_token_id": PADDING,
      "decoder_start_token_id": PADDING}
# {directory: (the library's classes are called so, what is set in its configuration, the seed: one
# of which the greedy target is not a single token over and over)}
MODELS = {
    "marian": ("Marian", "MTModel", MARIAN | {"decoder_layers": 1}, 48),
    "marian-swish": ("Marian", "MTModel", MARIAN | {"activation_function": "swish",
                                                    "scale_embedding": False}, 0),
    "t5": ("T5", "ForConditionalGeneration", T5, 42),
    "t5-v1.1": ("T5", "ForConditionalGeneration", T5 | {
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, 31),
}


def main(names):
    for name in names or MODELS:
        kind, ending, settings, seed = MODELS[name]
        torch.manual_seed(seed)
        config = getattr(library, f"{kind}Config")(**settings, attn_implementation="eager")
        untied = settings.get("tie_word_embeddings") is False
        make(getattr(library, kind + ending), config, untied, HERE / name)


def make(model_class, config, untied, directory):
    model = fill(new_model(model_class, config, untied))
    fix_sines(model)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(0, 0.2)
    model.save_pretrained(directory)
    source = torch.randint(1, 59, (len(LENGTHS), max(LENGTHS)))
    mask = torch.tensor([[s < n for s in range(max(LENGTHS))] for n in LENGTHS])
    source[~mask] = PADDING
    ids, targets = torch.randint(1, 59, (2, len(LENGTHS), TOKENS)).unbind()
    targets[1, 5:] = -100
    low = outputs(model, source, mask, ids)
    # Its cache has as many layers as the encoder: it is left out.
    greedy = model.generate(source[2:], attention_mask=mask[2:], max_new_tokens=16, num_beams=1,
                            do_sample=False, use_cache=False, eos_token_id=None)[0, 1:]
    with all_in_float64(), sines_in_float64():
        exact = new_model(model_class, config, untied).double()
        exact.load_state_dict(model.double().state_dict())
        fix_sines(exact)
        found = outputs(exact, source, mask, ids)
        loss = loss_and_gradients(exact, source, mask, ids, targets)
    errors = {f"error.{name}": ((low[name].double() - found[name]) * real).abs().max().reshape(1)
              for name, real in (("memory", mask[..., None]), ("logits", 1))}
    save_outputs(found | errors | loss | buckets(model) | {
        "source": source, "lengths": torch.tensor(LENGTHS), "ids": ids, "targets": targets,
        "greedy": greedy}, directory)


def new_model(model_class, config, untied):
    """The library ties every T5's head when it makes one; a file's own head it keeps apart."""
    model = model_class(config).eval()
    if untied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def fix_sines(model):
    """The tables of positions count as parameters there."""
    with torch.no_grad():
        for part in model.modules():
            if hasattr(part, "create_weight"):
                part.weight.copy_(part.create_weight())


@contextlib.contextmanager
def sines_in_float64():
    before, torch.FloatTensor = torch.FloatTensor, torch.DoubleTensor
    try:
        yield
    finally:
        torch.FloatTensor = before


def outputs(model, source, mask, ids):
    with torch.no_grad():
        result = model(input_ids=source, attention_mask=mask, decoder_input_ids=ids,
                       use_cache=False)
    return {"memory": result.encoder_last_hidden_state, "logits": result.logits}


def loss_and_gradients(model, source, mask, ids, targets):
    offsets = getattr(model, "final_logits_bias", None)
    if offsets is not None:                 # a buffer there, which has no gradient
        offsets.requires_grad_()
    logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=ids,
                   use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    found = {"loss": loss.reshape(1)}
    if offsets is not None:
        found["gradient.final_logits_bias"] = offsets.grad
        model.final_logits_bias = offsets.detach()
    return gradients(model) | found


def buckets(model):
    if not isinstance(model, library.T5ForConditionalGeneration):
        return {}
    offsets = torch.arange(-300, 301)
    return {f"buckets.{name}": T5Attention._relative_position_bucket(offsets, both, 32, 128)
            for name, both in (("both", True), ("before", False))}


if __name__ == "__main__":
    main(sys.argv[1:])
