"""Make the golden files of the networks of diffusion with the `diffusers` library:

    python tests/golden/make_diffusion.py [NAME ...]

Needs torch and diffusers; the tests need neither, they read what this writes into
tests/golden/NAME/: a tiny model with EVERY parameter drawn from N(0, 0.2²), biases and norm gains
included, saved by that library, and `outputs.safetensors`:

    x, t, labels, memory, vector, …     what the model reads
    <output>               what it makes of them in float64
    error.<output>         the largest difference between that library's float32 and float64
    gradient.<name>        the gradient of Σ w_i y_i over all outputs, by the names in files, as two
                           numbers: Σ g_i cos i and Σ g_i sin i, flattened; w_i = cos i, likewise
"""

import sys
from pathlib import Path

import diffusers as library
import torch
from peer import all_in_float64, fill, save_outputs

HERE = Path(__file__).parent
UNET = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (4, 8),
        "layers_per_block": 1, "norm_num_groups": 2}
DIT = {"sample_size": 4, "patch_size": 2, "in_channels": 2, "out_channels": 3, "num_layers": 2,
       "num_attention_heads": 2, "attention_head_dim": 4, "num_embeds_ada_norm": 5}
AUTOENCODER = {
    "sample_size": 8, "block_out_channels": (4, 8), "norm_num_groups": 2, "latent_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
# {directory: (the library's class, what is set in its configuration)}
MODELS = {
    "unet": ("UNet2DModel", UNET | {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
        "num_class_embeds": 5, "out_channels": 3}),
    "unet-ddpm": ("UNet2DModel", UNET | {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "layers_per_block": 2,
        "block_out_channels": (4, 6), "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
        "downsample_padding": 0}),
    "unet-text": ("UNet2DConditionModel", UNET | {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 2,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 6}),
    "unet-text-linear": ("UNet2DConditionModel", UNET | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": (1, 4),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 5,
        "use_linear_projection": True, "transformer_layers_per_block": 2, "num_class_embeds": 5}),
    "unet-text-vector": ("UNet2DConditionModel", UNET | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 3,
        "class_embed_type": "projection", "projection_class_embeddings_input_dim": 5}),
    "dit": ("DiTTransformer2DModel", DIT),
    "dit-transformer": ("Transformer2DModel", DIT | {
        "patch_size": 1, "sample_size": 3, "norm_type": "ada_norm_zero", "norm_eps": 1e-3,
        "activation_fn": "gelu-approximate", "attention_bias": True,
        "norm_elementwise_affine": False}),
    "autoencoder": ("AutoencoderKL", AUTOENCODER),
    "autoencoder-plain": ("AutoencoderKL", AUTOENCODER | {
        "in_channels": 1, "out_channels": 1, "block_out_channels": (4, 6), "layers_per_block": 2,
        "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305,
        "shift_factor": 0.0609}),
    "prior": ("PriorTransformer", {
        "num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2, "embedding_dim": 6,
        "num_embeddings": 5}),
}


def main(names):
    for name in names or MODELS:
        kind, settings = MODELS[name]
        torch.manual_seed(0)
        make(getattr(library, kind), settings, HERE / name)


def make(model_class, settings, directory):
    model = fill(model_class(**settings).eval())
    model.save_pretrained(directory)
    inputs = inputs_of(model)
    low = outputs_of(model, inputs)
    with all_in_float64():
        exact = model_class(**settings).eval().double()
        exact.load_state_dict(model.double().state_dict())
        widened = {name: value.double() if value.is_floating_point() else value
                   for name, value in inputs.items()}
        found = outputs_of(exact, widened)
        sum((wave(value, torch.cos) * value).sum() for value in found.values()).backward()
    errors = {f"error.{name}": (low[name].double() - value).abs().max().reshape(1)
              for name, value in found.items()}
    save_outputs({**inputs, **found, **errors, **gradients(exact)}, directory)


def inputs_of(model):
    c, B = model.config, 2
    if "added_emb_type" in c:
        return {"x": torch.randn(B, 6), "t": torch.tensor([3, 871]), "summary": torch.randn(B, 6),
                "memory": torch.randn(B, 5, 6),
                "memory_mask": torch.arange(5) < torch.tensor([[5], [3]])}
    side = c.sample_size
    inputs = {"x": torch.randn(B, c.in_channels, side, side)}
    if "latent_channels" in c:
        return inputs | {"z": torch.randn(B, c.latent_channels, side // 2, side // 2)}
    inputs["t"] = torch.tensor([3, 871])
    if c.get("num_class_embeds") or c.get("num_embeds_ada_norm"):
        inputs["labels"] = torch.tensor([1, 4])
    if c.get("cross_attention_dim"):
        inputs["memory"] = torch.randn(B, 7, c.cross_attention_dim)
        inputs["memory_mask"] = torch.arange(7) < torch.tensor([[7], [4]])
    if c.get("class_embed_type") == "projection":
        inputs["vector"] = torch.randn(B, c.projection_class_embeddings_input_dim)
    return inputs


def outputs_of(model, inputs):
    if "z" in inputs:
        told = model.encode(inputs["x"]).latent_dist
        return {"mean": told.mean, "log_variance": told.logvar,
                "y": model.decode(inputs["z"]).sample}
    if "summary" in inputs:
        return {"y": model(inputs["x"], inputs["t"], inputs["summary"], inputs["memory"],
                           inputs["memory_mask"]).predicted_image_embedding}
    options = {"class_labels": inputs.get("labels", inputs.get("vector"))}
    if "memory" in inputs:
        options |= {"encoder_hidden_states": inputs["memory"],
                    "encoder_attention_mask": inputs["memory_mask"]}
    return {"y": model(inputs["x"], timestep=inputs["t"], **options).sample}


def gradients(model):
    """{gradient.<name>: two sums}; what did not take part has none."""
    return {f"gradient.{name}": torch.stack([(p.grad * wave(p.grad, f)).sum()
                                             for f in (torch.cos, torch.sin)])
            for name, p in model.named_parameters() if p.grad is not None}


def wave(like, function):
    return function(torch.arange(like.numel(), dtype=torch.float64)).reshape(like.shape)


if __name__ == "__main__":
    main(sys.argv[1:])
