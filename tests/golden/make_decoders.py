"""Make the golden files of decoders with the `transformers` library:

    python tests/golden/make_decoders.py [NAME ...]

Needs torch and transformers (5 or later); the tests need neither, they read what this writes into
tests/golden/NAME/: a tiny model with EVERY parameter drawn from N(0, 0.2²), biases and norm gains
included, saved by that library, and `outputs.safetensors`:

    ids [B, T]             tokens; the last row is padded on the right, see lengths [B]
    logits, features       of the float64 model
    logits_error           the largest difference between that library's float32 and float64
    loss, gradient.<name>  mean loss over all next tokens of the unpadded rows, and its gradients,
                           by the names of the parameters in files
    greedy [G]             the continuation of row 0 without sampling
    aux_loss, aux_gradient.<name>   of a mixture of experts: how unevenly the unpadded rows' tokens
                           go to them, and its gradients of the routers
"""

import sys
from pathlib import Path

import torch
import transformers as library
from peer import all_in_float64, fill, gradients, save_outputs

HERE = Path(__file__).parent
LENGTHS = [12, 12, 7]
GPT2 = {"vocab_size": 61, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {"vocab_size": 61, "max_position_embeddings": 32, "hidden_size": 24,
         "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8,
        "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 500000.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
OPENAI = {"vocab_size": 61, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3,
          "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NEO = {"vocab_size": 61, "max_position_embeddings": 32, "hidden_size": 24, "num_layers": 3,
       "num_heads": 3, "attention_types": [[["global", "local"], 1], [["global"], 1]],
       "window_size": 5, "intermediate_size": 40}
# {directory: (the library's classes are called so, what is set in its configuration)}
MODELS = {
    "gpt2": ("GPT2", GPT2),
    "openai-gpt": ("OpenAIGPT", OPENAI),
    "gpt-neo": ("GPTNeo", NEO),
    "llama": ("Llama", LLAMA | {"rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", LLAMA | {"rope_parameters": LINEAR, "tie_word_embeddings": True}),
    "llama-yarn": ("Llama", LLAMA | {"rope_parameters": YARN}),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 5}),
    "mixtral": ("Mixtral", LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2,
                                    "sliding_window": None}),
    "qwen2": ("Qwen2", LLAMA | {"sliding_window": 5, "use_sliding_window": True,
                                "max_window_layers": 1}),
    "qwen3": ("Qwen3", LLAMA | {"tie_word_embeddings": True}),
}


def main(names):
    for name in names or MODELS:
        kind, settings = MODELS[name]
        torch.manual_seed(0)
        config = getattr(library, f"{kind}Config")(
            **settings, bos_token_id=60, eos_token_id=60, attn_implementation="eager",
            experts_implementation="eager")
        make(getattr(library, {"GPT2": "GPT2LMHeadModel", "OpenAIGPT": "OpenAIGPTLMHeadModel"}.get(
            kind, f"{kind}ForCausalLM")), config,
             HERE / name)


def make(model_class, config, directory):
    model = fill(model_class(config).eval())
    model.save_pretrained(directory)
    ids = torch.randint(0, 60, (len(LENGTHS), max(LENGTHS)))
    mask = torch.tensor([[t < n for t in range(max(LENGTHS))] for n in LENGTHS])
    low = model(ids, attention_mask=mask).logits
    greedy = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=16, do_sample=False,
                            pad_token_id=60, eos_token_id=None)[0, ids.shape[1]:]
    with all_in_float64():
        exact = model_class(config).eval().double()     # its tables of angles, too
        exact.load_state_dict(model.double().state_dict())
        found = outputs(exact, ids, mask) | {"greedy": greedy}
    real = mask[..., None]
    found["logits_error"] = ((low.double() - found["logits"]) * real).abs().max().reshape(1)
    save_outputs(found, directory)


def outputs(model, ids, mask):
    result = model(ids, attention_mask=mask, output_hidden_states=True)
    logits, targets = model(ids[:2]).logits[:, :-1], ids[:2, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    balance = {}
    if hasattr(model.config, "router_aux_loss_coef"):
        uneven = model(ids[:2], output_router_logits=True).aux_loss
        routers = {i: layer.mlp.gate.weight for i, layer in enumerate(model.model.layers)}
        found = torch.autograd.grad(uneven, list(routers.values()))
        balance = {"aux_loss": uneven.reshape(1)} | {
            f"aux_gradient.{i}": gradient for i, gradient in zip(routers, found)}
    return balance | {"ids": ids, "lengths": torch.tensor(LENGTHS), "logits": result.logits,
            "features": result.hidden_states[-1], "loss": loss.reshape(1), **gradients(model)}


if __name__ == "__main__":
    main(sys.argv[1:])
