"""Make the golden files of encoders with the `transformers` library:

    python tests/golden/make_encoders.py [NAME ...]

Needs torch and transformers (5 or later); the tests need neither, they read what this writes into
tests/golden/NAME/: a tiny model with EVERY parameter drawn from N(0, 0.2²), biases and norm gains
included, saved by that library, and `outputs.safetensors`:

    ids, types [B, T]      tokens and their kinds; rows are padded on the right, see lengths [B]
    features               [B, T, C] of the float64 model
    logits, pooled, sentence_logits     likewise, of the parts that the model has
    error.<each of those>  the largest difference between that library's float32 and float64
    targets [B, T]         -100 where none is; sentence_targets [B]
    loss, gradient.<name>  of those targets, and its gradients by the names in files; of a bare
                           encoder, Σ features² over real tokens + Σ pooled²
"""

import sys
from pathlib import Path

import torch
import transformers as library
from peer import all_in_float64, fill, gradients, save_outputs

HERE = Path(__file__).parent
LENGTHS = [11, 12, 7]
SHAPE = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = SHAPE | {"max_position_embeddings": 32}
ROBERTA = SHAPE | {"max_position_embeddings": 34, "type_vocab_size": 2, "layer_norm_eps": 1e-5,
                   "pad_token_id": 1}
# A window so small that rows of 12 tokens have some beyond it.
MODERN = {key: SHAPE[key] for key in ("vocab_size", "hidden_size", "intermediate_size",
                                      "num_attention_heads")} | {
    "num_hidden_layers": 4, "max_position_embeddings": 32, "local_attention": 6, "pad_token_id": 1,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2)}
# {directory: (the library's classes, what is set in its configuration)}
MODELS = {
    "bert": ("Bert", "ForPreTraining", BERT),
    "bert-masked": ("Bert", "ForMaskedLM", BERT | {"hidden_act": "relu"}),
    "bert-encoder": ("Bert", "Model", BERT),
    "roberta": ("Roberta", "ForMaskedLM", ROBERTA),
    "roberta-encoder": ("Roberta", "Model", ROBERTA),
    "modernbert": ("ModernBert", "ForMaskedLM", MODERN),
    "modernbert-encoder": ("ModernBert", "Model", MODERN | {"global_attn_every_n_layers": 2}),
}


def main(names):
    for name in names or MODELS:
        kind, ending, settings = MODELS[name]
        torch.manual_seed(0)
        config = getattr(library, f"{kind}Config")(**settings, attn_implementation="eager")
        make(getattr(library, kind + ending), config, HERE / name)


def make(model_class, config, directory):
    model = fill(model_class(config).eval())
    model.save_pretrained(directory)
    inputs, targets = batch(config)
    low = outputs(model, inputs)
    with all_in_float64():
        exact = model_class(config).eval().double()
        exact.load_state_dict(model.double().state_dict())
        found = outputs(exact, inputs)
        loss_of(exact, inputs, targets).backward()
        loss = loss_of(exact, inputs, targets).reshape(1)
    real = inputs["attention_mask"][..., None]
    errors = {}
    for name, value in found.items():
        difference = (low[name].double() - value).abs()
        errors[f"error.{name}"] = (difference * real if value.ndim == 3 else difference).max() \
            .reshape(1)
    kinds = {"types": inputs["token_type_ids"]} if "token_type_ids" in inputs else {}
    save_outputs({"ids": inputs["input_ids"], **kinds, "lengths": torch.tensor(LENGTHS), **targets,
                  **found, **errors, "loss": loss, **gradients(exact)}, directory)


def batch(config):
    """What the model reads, and what it is to find: of the real tokens, every third."""
    B, T = len(LENGTHS), max(LENGTHS)
    place, lengths = torch.arange(T), torch.tensor(LENGTHS)[:, None]
    mask = (place < lengths).long()
    ids = torch.where(mask == 1, torch.randint(2, config.vocab_size, (B, T)), config.pad_token_id)
    types = ((place >= lengths // 2) & (mask == 1)).long()
    wanted = (mask == 1) & ((place + torch.arange(B)[:, None]) % 3 == 0)
    targets = torch.where(wanted, torch.randint(2, config.vocab_size, (B, T)), -100)
    kinds = {"token_type_ids": types} if hasattr(config, "type_vocab_size") else {}
    return {"input_ids": ids, **kinds, "attention_mask": mask}, \
        {"targets": targets, "sentence_targets": torch.tensor([0, 1, 1])}


def outputs(model, inputs):
    """The outputs, by minifm's names, of the parts that the model has."""
    result, body = model(**inputs), getattr(model, model.base_model_prefix, model)
    found = {"features": body(**inputs).last_hidden_state}
    for ours, theirs in (("logits", "prediction_logits"), ("logits", "logits"),
                         ("sentence_logits", "seq_relationship_logits"),
                         ("pooled", "pooler_output")):
        if theirs in result:
            found[ours] = result[theirs]
    return found


def loss_of(model, inputs, targets):
    if not model.base_model_prefix or not hasattr(model, model.base_model_prefix):  # bare
        result = model(**inputs)
        real = inputs["attention_mask"][..., None]
        pooled = result.get("pooler_output", torch.zeros(()))
        return (result.last_hidden_state ** 2 * real).sum() + (pooled ** 2).sum()
    sentences = {"next_sentence_label": targets["sentence_targets"]} \
        if type(model).__name__ == "BertForPreTraining" else {}
    return model(**inputs, labels=targets["targets"], **sentences).loss


if __name__ == "__main__":
    main(sys.argv[1:])
