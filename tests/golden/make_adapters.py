"""Make the golden files of adapters with the `peft` library:

    python tests/golden/make_adapters.py [NAME ...]

Needs torch, transformers (5 or later) and peft; the tests need none of them, they read what this
writes into tests/golden/adapter-NAME/: a LoRA adapter of the model in tests/golden/NAME/, EVERY
number of it drawn from N(0, 0.2²), saved by that library, and `outputs.safetensors`:

    ids [B, T]              what the model reads; T5 reads a source [B, S], too
    logits                  of the float64 model; error.logits: the largest difference between that
                            library's float32 and float64
    gradient.<name>         of Σ logits · direction, by the names of the adapter's file, in float64
    direction               [B, T, V], float32
    error.gradients         how far that library's float32 gradients are from these: the root of the
                            mean, over the tensors, of |difference|² / |gradient|²
"""

import sys
from pathlib import Path

import peft
import torch
import transformers as library
from peer import all_in_float64, save_outputs

HERE = Path(__file__).parent
# {directory of the base: (the library's class, what is set in the adapter's configuration)}
ADAPTERS = {
    "gpt2": ("GPT2LMHeadModel", {"task_type": "CAUSAL_LM", "fan_in_fan_out": True,
                                 "target_modules": ["c_attn", "mlp.c_proj"]}),
    "llama": ("LlamaForCausalLM", {"task_type": "CAUSAL_LM", "target_modules": "all-linear",
                                   "use_rslora": True}),
    "bert": ("BertForPreTraining", {"target_modules": ["query", "value", "dense"],
                                    "modules_to_save": ["seq_relationship"]}),
    "t5": ("T5ForConditionalGeneration", {"task_type": "SEQ_2_SEQ_LM",
                                          "target_modules": ["q", "v", "wo"]}),
}


def main(names):
    for name in names or ADAPTERS:
        model_class, settings = ADAPTERS[name]
        torch.manual_seed(0)
        make(getattr(library, model_class), peft.LoraConfig(r=3, lora_alpha=5, **settings),
             HERE / name, HERE / f"adapter-{name}")


def make(model_class, config, base, directory):
    model = adapted(model_class.from_pretrained(base, attn_implementation="eager"), config)
    for parameter in trained(model).values():
        torch.nn.init.normal_(parameter, 0, 0.2)
    # The base is named as one would from the directory of the project.
    for each in model.peft_config.values():
        each.base_model_name_or_path = f"tests/golden/{base.name}"
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    read = {"input_ids": torch.randint(0, 58, (2, 9))}
    if hasattr(model.config, "num_decoder_layers"):
        read["decoder_input_ids"] = torch.randint(0, 58, (2, 6))
    direction = torch.randn(*read[list(read)[-1]].shape, model.config.vocab_size)
    low, low_gradients = outputs(model, read, direction)
    with all_in_float64():
        exact = adapted(model_class(model.config), config).double()     # its angles, too
        exact.load_state_dict(model.double().state_dict())
        logits, gradients = outputs(exact, read, direction.double())
    shares = [((low_gradients[name].double() - g).norm() / g.norm()) ** 2
              for name, g in gradients.items()]
    errors = {"error.logits": (low.double() - logits).abs().max().reshape(1),
              "error.gradients": torch.stack(shares).mean().sqrt().reshape(1)}
    ids = {"source" if name == "input_ids" and len(read) > 1 else "ids": x
           for name, x in read.items()}
    save_outputs(ids | errors | {"logits": logits, "direction": direction.float()} | {
        f"gradient.{name}": g for name, g in gradients.items()}, directory)


def adapted(model, config):
    return peft.get_peft_model(model.eval(), config).eval()


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def outputs(model, read, direction):
    """(the logits, {name in the adapter's file: gradient})."""
    model.zero_grad()
    result = model(**read)
    logits = result["prediction_logits" if "prediction_logits" in result else "logits"]
    total = (logits * direction).sum()
    if "seq_relationship_logits" in result:
        total = total + (result["seq_relationship_logits"] * direction[:, 0, :2]).sum()
    total.backward()
    names = {name: name.replace(".default", "").replace(".modules_to_save", "")
             for name in trained(model)}
    return logits, {names[name]: p.grad.clone() for name, p in trained(model).items()}


if __name__ == "__main__":
    main(sys.argv[1:])
