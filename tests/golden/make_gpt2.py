"""Make the golden files of GPT-2 with the `transformers` library: python tests/golden/make_gpt2.py

Needs torch and transformers (any recent version); the tests need neither, they read what this
writes into tests/golden/gpt2/: a tiny model with EVERY parameter drawn from N(0, 0.2²), biases and
norm gains included, saved by that library, and `outputs.safetensors`:

    ids [B, T]             tokens; the last row is padded on the right, see lengths [B]
    logits, features       of the float64 model
    logits_error           the largest difference between that library's float32 and float64
    loss, gradient.<name>  mean loss over all next tokens of the unpadded rows, and its gradients
    greedy [G]             the continuation of row 0 without sampling
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent / "gpt2"
LENGTHS = [12, 12, 7]


def main():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=3,
                        bos_token_id=60, eos_token_id=60, attn_implementation="eager",
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    model.save_pretrained(HERE)
    ids = torch.randint(0, 60, (len(LENGTHS), max(LENGTHS)))
    mask = torch.tensor([[t < n for t in range(max(LENGTHS))] for n in LENGTHS])
    low = model(ids, attention_mask=mask).logits
    model = model.double()
    found = outputs(model, ids, mask)
    real = mask[..., None]
    found["logits_error"] = ((low.double() - found["logits"]) * real).abs().max().reshape(1)
    save_file({name: value.detach().contiguous() for name, value in found.items()},
              HERE / "outputs.safetensors", metadata={"format": "pt"})


def outputs(model, ids, mask):
    result = model(ids, attention_mask=mask, output_hidden_states=True)
    # Not the library's own loss, which it computes in float32 even for a float64 model.
    logits, targets = model(ids[:2]).logits[:, :-1], ids[:2, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    greedy = model.generate(ids[:1], attention_mask=mask[:1], max_new_tokens=16, do_sample=False,
                            pad_token_id=60, eos_token_id=None)
    gradients = {f"gradient.{name}": p.grad for name, p in model.named_parameters()}
    return {"ids": ids, "lengths": torch.tensor(LENGTHS), "logits": result.logits,
            "features": result.hidden_states[-1], "loss": loss.reshape(1),
            "greedy": greedy[0, ids.shape[1]:], **gradients}


if __name__ == "__main__":
    main()
