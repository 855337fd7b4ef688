"""Make the golden files of adapters of diffusion's networks with `peft` and `diffusers`:

    python tests/golden/make_diffusion_adapters.py [NAME ...]

Needs torch, diffusers and peft; the tests need none of them, they read what this writes into
tests/golden/adapter-NAME/: a LoRA adapter of the network in tests/golden/NAME/, EVERY number of it
drawn from N(0, 0.2²), saved by peft; and `outputs.safetensors`, for the inputs in NAME/:

    sample, error.sample    what the adapted network makes of them in float64, and the largest
                            difference between that library's float32 and float64

and into tests/golden/lora-NAME/ the same adapter as pipelines have it, saved by diffusers, in
`plain/` without settings in its header (its sample, read so, is `plain` in outputs.safetensors).
"""

import sys
from pathlib import Path

import diffusers as library
import peft
import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LoraBaseMixin, _pack_dict_with_prefix
from peer import all_in_float64, save_outputs
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

HERE = Path(__file__).parent
WEIGHTS = "pytorch_lora_weights.safetensors"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
# {directory of the base: (the library's class, what pipelines call it, settings of the adapter)}
ADAPTERS = {
    "unet": (library.UNet2DModel, "unet", {"target_modules": ATTENTION,
                                           "modules_to_save": ["class_embedding"]}),
    "unet-text": (library.UNet2DConditionModel, "unet", {
        "target_modules": [*ATTENTION, "proj_in", "ff.net.2", "time_emb_proj"]}),
    "dit": (library.DiTTransformer2DModel, "transformer", {
        "target_modules": [*ATTENTION, "ff.net.0.proj", "pos_embed.proj", "linear_2"]}),
}


def main(names):
    for name in names or ADAPTERS:
        torch.manual_seed(0)
        make(name, *ADAPTERS[name])


def make(name, kind, folder, settings):
    base, directory = HERE / name, HERE / f"adapter-{name}"
    config = peft.LoraConfig(r=3, lora_alpha=5, **settings)
    model = peft.get_peft_model(kind.from_pretrained(base).eval(), config).eval()
    for name_, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.2)
    for each in model.peft_config.values():     # named as one would from the project's directory
        each.base_model_name_or_path = f"tests/golden/{name}"
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    found = {}
    if "modules_to_save" not in settings:
        arrays = {key.removeprefix("base_model.model."): value
                  for key, value in get_peft_model_state_dict(model).items()}
        said = config.to_dict() | {"target_modules": sorted(config.target_modules)}
        for place, metadata in ((HERE / f"lora-{name}", said),
                                (HERE / f"lora-{name}" / "plain", None)):
            place.mkdir(exist_ok=True)
            write(folder, place, arrays, metadata)
        class Adapted(kind, PeftAdapterMixin):      # of which the library's pipelines read files
            pass
        plain = Adapted.from_pretrained(base).eval()
        plain.load_lora_adapter(str(HERE / f"lora-{name}" / "plain"), prefix=folder,
                                use_safetensors=True)
        found |= outputs(plain, base, "plain")
    save_outputs(found | outputs(model, base, "sample"), directory)


def write(folder, place, arrays, settings):
    """As StableDiffusionPipeline.save_lora_weights does, for a network of any kind."""
    LoraBaseMixin.write_lora_layers(
        state_dict=_pack_dict_with_prefix(arrays, folder), save_directory=str(place),
        is_main_process=True, weight_name=WEIGHTS, save_function=None, safe_serialization=True,
        lora_adapter_metadata=settings and {f"{folder}.{k}": v for k, v in settings.items()})


def outputs(model, base, name):
    read = load_file(base / "outputs.safetensors")
    low = run(model, read)
    wide = {key: x.double() if x.dtype == torch.float32 else x for key, x in read.items()}
    with all_in_float64():
        kind = ADAPTERS[base.name][0]
        buffers = dict(kind.from_config(kind.load_config(base)).named_buffers())
        for place, buffer in model.double().named_buffers():    # the positions of patches
            buffer.copy_(buffers[place.removeprefix("base_model.model.").replace(
                ".base_layer", "")])
        exact = run(model, wide)
    return {name: exact, f"error.{name}": (low.double() - exact).abs().max().reshape(1)}


@torch.no_grad()
def run(model, read):
    given = {theirs: read[ours] for ours, theirs in (
        ("labels", "class_labels"), ("memory", "encoder_hidden_states"),
        ("memory_mask", "encoder_attention_mask")) if ours in read}
    return model(read["x"], read["t"], **given).sample


if __name__ == "__main__":
    main(sys.argv[1:])
