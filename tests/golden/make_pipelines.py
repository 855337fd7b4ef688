"""Make the golden files of whole pipelines, from a prompt to a picture, with `diffusers`:

    python tests/golden/make_pipelines.py

Needs torch, diffusers and transformers; the tests read what this writes into
tests/golden/stable-diffusion/: a StableDiffusionPipeline as that library saves one, of tiny models
with EVERY parameter drawn from N(0, 0.2²), and `outputs.safetensors`:

    noise                 what all begin with, [2, 3, 8, 8]
    <sampler>             the latents that it ends with, of PROMPTS, in float32
    <sampler>.pictures    what the autoencoder makes of them
    error.…               the largest difference between that library's float32 and float64

Its tokenizer lies there as published ones do, vocab.json and merges.txt alone.
"""

import copy
import json
from pathlib import Path

import diffusers
import torch
from peer import fill, save_outputs
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent / "stable-diffusion"
PROMPTS, STEPS, GUIDANCE = ["a red ball", "BLUE"], 5, 3.0
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
         "steps_offset": 1}
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
    "euler": diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
    "dpm_2m": diffusers.DPMSolverMultistepScheduler(**NOISE)}
MERGES = ["r e", "re d</w>", "b a", "l l</w>", "ba ll</w>", "b l", "u e</w>", "bl ue</w>"]


def main():
    HERE.mkdir(exist_ok=True)
    (HERE / "tokenizer").mkdir(exist_ok=True)
    write_tokenizer(HERE / "tokenizer")
    pipeline = made(CLIPTokenizer.from_pretrained(HERE / "tokenizer"))
    pipeline.save_pretrained(HERE)
    for entry in (HERE / "tokenizer").iterdir():
        entry.unlink()
    write_tokenizer(HERE / "tokenizer")
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(pipeline).to(torch.float64)
    outputs = {"noise": noise}
    for name, scheduler in SCHEDULERS.items():
        low, high = (run(pipe, copy.deepcopy(scheduler), noise.to(pipe.unet.dtype))
                     for pipe in (pipeline, exact))
        for key in low:
            outputs[name + key] = low[key]
            outputs[f"error.{name}{key}"] = \
                (low[key].double() - high[key].double()).abs().max().reshape(1)
    save_outputs(outputs, HERE)


def write_tokenizer(directory):
    """CLIP's: the 256 bytes, the same at the end of a word, merges, and two special tokens."""
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256),
                                *range(256, 324))]
    words = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in MERGES),
             "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 9, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}))


def made(tokenizer):
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=9, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(4, 8),
        layers_per_block=1, norm_num_groups=2, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    vae = diffusers.AutoencoderKL(
        sample_size=16, block_out_channels=(4, 8), norm_num_groups=2, latent_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.7)
    parts = [fill(part.eval()) for part in (vae, CLIPTextModel(text), unet)]
    return diffusers.StableDiffusionPipeline(
        vae=parts[0], text_encoder=parts[1], tokenizer=tokenizer, unet=parts[2],
        scheduler=SCHEDULERS["ddim"], safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)


def run(pipeline, scheduler, noise):
    """{"": latents, ".pictures": what is made of them}."""
    pipeline.scheduler = scheduler
    with torch.no_grad():
        latents = pipeline(PROMPTS, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
                           latents=noise, output_type="latent").images
        pictures = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return {"": latents, ".pictures": pictures}


if __name__ == "__main__":
    main()
