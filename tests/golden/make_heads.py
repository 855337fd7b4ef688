"""Make the golden files of heads for other tasks with the `transformers` library:

    python tests/golden/make_heads.py [NAME ...]

Needs torch and transformers (5 or later); the tests need neither, they read what this writes into
tests/golden/heads/NAME/: a tiny model with EVERY parameter drawn from N(0, 0.2²), biases and norm
gains included, saved by that library, and `outputs.safetensors`:

    ids [B, T]             tokens; rows are padded on the right, see lengths [B]
    types [B, T]           of encoders only, their kinds
    logits                 of the float64 model, [B, L] or [B, T, L]
    error                  the largest difference, at real tokens, between float32 and float64 of
                           the logits or of the features below them: a few numbers may all be near
                           by luck
    targets                [B] or [B, L] of sequences, [B, T] of tokens, [B, 2] of questions
    loss, gradient.<name>  of those targets, and its gradients by the names in files; of questions,
                           the mean over the rows, each of them without its padding
"""

import sys
from pathlib import Path

import torch
import transformers as library
from peer import all_in_float64, fill, gradients, save_outputs

HERE = Path(__file__).parent / "heads"
LENGTHS = [9, 10, 6]
V = 31
SHAPE = {"vocab_size": V, "hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 2, "pad_token_id": 1}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = SHAPE | NO_DROPOUT | {"max_position_embeddings": 16}
ROBERTA = SHAPE | NO_DROPOUT | {"max_position_embeddings": 18, "type_vocab_size": 2}
GPT2 = {"vocab_size": V, "n_positions": 16, "n_embd": 12, "n_layer": 2, "n_head": 2,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "pad_token_id": 1}
LLAMA = SHAPE | {"max_position_embeddings": 16, "num_key_value_heads": 1}
MODERN = {**{key: SHAPE[key] for key in SHAPE if key != "num_hidden_layers"},
          "num_hidden_layers": 3, "global_attn_every_n_layers": 2, "local_attention": 4,
          "max_position_embeddings": 16,
          **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2)}
NEO = {"vocab_size": V, "max_position_embeddings": 16, "hidden_size": 12, "num_layers": 2,
       "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4,
       "pad_token_id": 1}
KINDS = {"bert": ("Bert", BERT), "roberta": ("Roberta", ROBERTA), "gpt2": ("GPT2", GPT2),
         "modernbert": ("ModernBert", MODERN),
         "modernbertmean": ("ModernBert", MODERN | {"classifier_pooling": "mean"}),
         "gpt1": ("OpenAIGPT", GPT2), "gptneo": ("GPTNeo", NEO),
         "llama": ("Llama", LLAMA), "mistral": ("Mistral", LLAMA | {"sliding_window": 4}),
         "qwen2": ("Qwen2", LLAMA), "qwen3": ("Qwen3", LLAMA | {"head_dim": 6})}
NAMED = {"id2label": {0: "bad", 1: "so-so", 2: "good"},
         "label2id": {"bad": 0, "so-so": 1, "good": 2}}
TASKS = {
    "sequence": ("ForSequenceClassification", NAMED),
    "labels": ("ForSequenceClassification", NAMED | {"problem_type": "multi_label_classification"}),
    "number": ("ForSequenceClassification", {"num_labels": 1}),
    "token": ("ForTokenClassification", NAMED | {"classifier_dropout": 0.3}),
    "question": ("ForQuestionAnswering", {}),
}
NAMES = [f"{kind}-{task}" for kind in ("bert", "roberta", "modernbert", "gpt2", "llama")
         for task in ("sequence", "token", "question")]
NAMES += ["bert-labels", "bert-number", "mistral-question", "qwen2-sequence", "qwen3-token",
          "modernbertmean-sequence",
          "gpt1-sequence", "gptneo-sequence", "gptneo-token", "gptneo-question"]


def main(names):
    for name in names or NAMES:
        (kind, settings), (ending, more) = (
            table[key] for table, key in zip((KINDS, TASKS), name.split("-")))
        torch.manual_seed(0)
        config = getattr(library, f"{kind}Config")(**settings, **more, attn_implementation="eager")
        make(getattr(library, kind + ending), config, HERE / name)


def make(model_class, config, directory):
    model = fill(model_class(config).eval())
    model.save_pretrained(directory)
    inputs = batch(config)
    targets = wanted(directory.name.split("-")[1], inputs["attention_mask"], config)
    low = outputs(model, inputs)
    with all_in_float64():
        exact = model_class(config).eval().double()     # its tables of angles, too
        exact.load_state_dict(model.double().state_dict())
        high = outputs(exact, inputs)
        loss = loss_of(exact, inputs, targets)
        loss.backward()
    real = inputs["attention_mask"][..., None]
    error = max(((a.double() - b) * (real if a.ndim == 3 else 1)).abs().max()
                for a, b in zip(low, high))
    types = {"types": inputs["token_type_ids"]} if "token_type_ids" in inputs else {}
    save_outputs({"ids": inputs["input_ids"], **types, "lengths": torch.tensor(LENGTHS),
                  "targets": targets, "logits": high[0], "error": error.reshape(1),
                  "loss": loss.reshape(1), **gradients(exact)}, directory)


def batch(config):
    place, lengths = torch.arange(max(LENGTHS)), torch.tensor(LENGTHS)[:, None]
    mask = (place < lengths).long()
    ids = torch.randint(2, V, mask.shape)
    inputs = {"input_ids": torch.where(mask == 1, ids, config.pad_token_id),
              "attention_mask": mask}
    if config.model_type in ("bert", "roberta"):
        inputs["token_type_ids"] = ((place >= lengths // 2) & (mask == 1)).long()
    return inputs


def wanted(task, mask, config):
    B, T = mask.shape
    if task == "labels":
        return torch.randint(0, 2, (B, config.num_labels))
    if task == "number":
        return torch.randn(B, dtype=torch.float64)
    if task == "question":
        return torch.tensor([[2, 4], [0, 9], [5, 5]])
    if task == "token":
        counts = (mask == 1) & (torch.arange(B * T).reshape(B, T) % 4 > 0)
        return torch.where(counts, torch.randint(0, config.num_labels, (B, T)), -100)
    return torch.randint(0, config.num_labels, (B,))


def outputs(model, inputs):
    """Logits and features."""
    result = model(**inputs, output_hidden_states=True)
    logits = torch.stack([result.start_logits, result.end_logits], -1) \
        if "start_logits" in result else result.logits
    return logits, result.hidden_states[-1]


def loss_of(model, inputs, targets):
    if not type(model).__name__.endswith("QuestionAnswering"):
        many = model.config.problem_type == "multi_label_classification"
        return model(**inputs, labels=targets.double() if many else targets).loss
    rows = [{name: value[b : b + 1, :length] for name, value in inputs.items()}
            for b, length in enumerate(LENGTHS)]
    return sum(model(**row, start_positions=targets[b : b + 1, 0],
                     end_positions=targets[b : b + 1, 1]).loss
               for b, row in enumerate(rows)) / len(rows)


if __name__ == "__main__":
    main(sys.argv[1:])
