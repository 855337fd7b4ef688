"""Conversations as transformers writes and encodes them, for tests/test_chat.py.

    python tests/golden/make_chat.py

The templates (chat/*.jinja) are in the styles that published models have, and were written for
these tests. The tokenizer is a byte-level BPE of a few merges with the special tokens of all.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent / "chat"
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
            "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>", "[INST]", "[/INST]",
            "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
STRIPPED = ["<|system|>", "<|user|>", "<|assistant|>"]      # white space behind them is theirs
ORDINARY = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

SYSTEM = {"role": "system", "content": "  You answer in verse. "}
ASK = {"role": "user", "content": "What's the weather in Zürich? 'tis \"cold\" \\ no?\n"}
ANSWER = {"role": "assistant", "content": " It rains,\n\tit pours. 漢字 🙂 "}
AGAIN = {"role": "user", "content": "And <b>tomorrow</b> & after?"}
THOUGHT = {"role": "assistant", "content": "<think>\nrain\n</think>\n\nRain."}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "id": "call_123456", "function": {
        "name": "weather", "arguments": {"city": "Zürich", "days": 2, "exact": True,
                                         "scale": 1.5, "also": ["<x>", None]}}}]}
RESULT = {"role": "tool", "content": "{\"rain\": 0.9}", "tool_call_id": "call_123456"}
TOOL = {"type": "function", "function": {
    "name": "weather", "description": "The weather's forecast, <soon>.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"},
                                                    "days": {"type": "integer", "minimum": 1}},
                   "required": ["city"]}}}
PARTS = [
    {"role": "user", "name": "ADA", "content": [
        {"type": "text", "text": "  look:\r\n\there "}, {"type": "image"},
        {"type": "text", "text": "and\tthere  "}], "tags": [" b", "a ", "it's", "a "]},
    {"role": "wise guy", "content": "hm", "data": {
        "is_b": "x'y\n", "an_a": [1, 2.5, None, True, ["é", "\x00\u200b"]], "both": "'\""}}]

CONVERSATIONS = {
    "one": {"messages": [ASK]},
    "system": {"messages": [SYSTEM, ASK]},
    "turns": {"messages": [SYSTEM, ASK, ANSWER, AGAIN]},
    "answered": {"messages": [ASK, ANSWER, AGAIN, THOUGHT], "add_generation_prompt": False},
    "tools": {"messages": [SYSTEM, ASK, CALL, RESULT, THOUGHT, AGAIN], "tools": [TOOL, TOOL]},
    "results": {"messages": [ASK, CALL, RESULT, RESULT], "tools": [TOOL]},
    "variables": {"messages": [ASK], "enable_thinking": False, "date_string": "1 May 2025"},
    "parts": {"messages": PARTS},
}
# What each template is for; with the others it would fail, or say what these say.
TEMPLATES = {
    "chatml": ["one", "system", "turns", "answered", "tools", "results", "variables"],
    "headers": ["one", "system", "turns", "answered", "tools", "results", "variables"],
    "instructions": ["one", "system", "turns", "answered"],
    "roles": ["one", "system", "turns", "answered"],
    "plain": ["one", "turns", "parts"],
}


def tokenizer():
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    text = json.dumps(CONVERSATIONS, ensure_ascii=False) * 3
    library.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, show_progress=False, special_tokens=[]))
    library.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    library.add_special_tokens([AddedToken(s, special=True, normalized=False, rstrip=True)
                                for s in STRIPPED])
    library.add_tokens([AddedToken(s, normalized=False) for s in ORDINARY])
    return PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")


def main():
    library, golden = tokenizer(), []
    for name, conversations in TEMPLATES.items():
        library.chat_template = (HERE / f"{name}.jinja").read_text("utf-8")
        for conversation in conversations:
            asked = {"add_generation_prompt": True} | CONVERSATIONS[conversation]
            asked["conversation"] = asked.pop("messages")
            encoded = library.apply_chat_template(**asked, return_assistant_tokens_mask=True)
            golden.append({
                "template": name, "conversation": conversation,
                "text": library.apply_chat_template(**asked, tokenize=False),
                "ids": encoded["input_ids"], "said": encoded["assistant_masks"]})
    (HERE / "tokenizer.json").write_text(library.backend_tokenizer.to_str() + "\n", "utf-8")
    (HERE / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>"}, indent=2) + "\n", "utf-8")
    (HERE / "conversations.json").write_text(
        json.dumps(CONVERSATIONS, ensure_ascii=False, indent=1) + "\n", "utf-8")
    (HERE / "golden.json").write_text(
        "[\n" + ",\n".join(json.dumps(g, ensure_ascii=False) for g in golden) + "\n]\n", "utf-8")


if __name__ == "__main__":
    main()
