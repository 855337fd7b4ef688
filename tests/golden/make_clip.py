"""Make the golden files of CLIP with the `transformers` library:

    python tests/golden/make_clip.py [NAME ...]

Needs torch and transformers (5 or later); the tests need neither, they read what this writes into
tests/golden/NAME/: a tiny model with EVERY parameter drawn from N(0, 0.2²), biases and norm gains
included, saved by that library, and `outputs.safetensors`:

    ids [B, T]             texts, which the token `end` ends; what stands behind it is padding
    images [B, C, S, S]
    features, pooled, embedded, logits      of the float64 model, those that it has
    error.<each of those>  the largest difference between that library's float32 and float64
    loss, gradient.<name>  contrastive, of the whole model; of a tower, Σ pooled²
"""

import sys
from pathlib import Path

import torch
import transformers as library
from peer import all_in_float64, fill, gradients, save_outputs

HERE = Path(__file__).parent
TEXT = {"vocab_size": 41, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 12, "projection_dim": 10,
        "eos_token_id": 40, "bos_token_id": 39, "pad_token_id": 1}
IMAGE = {"hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 3,
         "num_attention_heads": 4, "image_size": 12, "patch_size": 4, "num_channels": 3,
         "projection_dim": 10}
MODELS = {
    "clip": ("CLIPModel", {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 10}),
    "clip-text": ("CLIPTextModel", TEXT | {"eos_token_id": 2, "hidden_act": "gelu"}),
    "clip-text-joint": ("CLIPTextModelWithProjection", TEXT),
    "clip-image-joint": ("CLIPVisionModelWithProjection", IMAGE),
}


def main(names):
    for name in names or MODELS:
        kind, settings = MODELS[name]
        torch.manual_seed(0)
        model_class = getattr(library, kind)
        config = model_class.config_class(**settings, attn_implementation="eager")
        make(model_class, config, HERE / name)


def make(model_class, config, directory):
    model = fill(model_class(config).eval())
    model.save_pretrained(directory)
    ids = torch.randint(3, 39, (3, 9))
    for row, end in enumerate((5, 8, 3)):
        ids[row, end:] = 40
    images = torch.randn(3, 3, 12, 12)
    low, _ = outputs(model, ids, images)
    with all_in_float64():
        exact = model_class(config).eval().double()
        exact.load_state_dict(model.double().state_dict())
        high, loss = outputs(exact, ids, images.double())
        loss.backward()
    errors = {f"error.{name}": (low[name].double() - value).abs().max().reshape(1)
              for name, value in high.items()}
    save_outputs({"ids": ids, "images": images, **high, **errors, "loss": loss.reshape(1),
                  **gradients(exact)}, directory)


def outputs(model, ids, images):
    """({name: value}, loss)."""
    kind = type(model).__name__
    if kind == "CLIPModel":
        result = model(input_ids=ids, pixel_values=images, return_loss=True)
        return {"logits": result.logits_per_image}, result.loss
    result = model(images) if "Vision" in kind else model(ids)
    found = {"features": result.last_hidden_state}
    for ours, theirs in (("pooled", "pooler_output"), ("embedded", "text_embeds"),
                         ("embedded", "image_embeds")):
        if theirs in result:
            found[ours] = result[theirs]
    return found, (found.get("embedded", found.get("pooled")) ** 2).sum()


if __name__ == "__main__":
    main(sys.argv[1:])
