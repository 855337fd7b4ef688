"""llama.cpp's side of decoding, run by an interpreter that has llama-cpp-python and gguf.

A request names the `shape` of a GPT-2, the `position`, the number of `tokens` and, as `mode`, the
format of the weights: F32, BF16, Q8_0 or Q4_0. The model is made of random numbers, written to a
temporary directory as a GGUF file and quantised by llama.cpp itself.
"""

import ctypes
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from service import serve

threads, folder = 0, None
files = {}


def start(count):
    global threads, folder
    threads, folder = count, tempfile.TemporaryDirectory()
    llama_cpp.llama_backend_init()
    return f"llama.cpp (llama-cpp-python {llama_cpp.__version__}), {threads} threads", prepare


def prepare(request):
    return token(request["shape"], request["position"], request["tokens"], request["mode"])


def token(shape, position, tokens, mode):
    """The logits after `tokens` more tokens, with `position` in the cache."""
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = shape[3]
    options.n_threads = options.n_threads_batch = threads
    model = llama_cpp.llama_model_load_from_file(
        str(stored(tuple(shape), mode)).encode(), llama_cpp.llama_model_default_params())
    context = model and llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("llama.cpp does not load the model")
    memory = llama_cpp.llama_get_memory(context)
    ids = np.random.default_rng(1).integers(0, shape[4], shape[3])

    def follow(some):
        given = (llama_cpp.llama_token * len(some))(*map(int, some))
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(given, len(some))):
            raise RuntimeError("llama.cpp does not decode")
        llama_cpp.llama_get_logits_ith(context, -1)

    try:
        if position:
            follow(ids[:position])
        while True:
            follow(ids[position : position + tokens])
            yield
            llama_cpp.llama_memory_seq_rm(memory, 0, position, -1)
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def stored(shape, mode):
    """The path of the model's file in that format."""
    if (shape, mode) not in files:
        path = Path(folder.name) / f"{'-'.join(map(str, shape))}-{mode}.gguf"
        if mode == "F32":
            write(path, *shape)
        else:
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mode}")
            options.nthread, options.pure = threads, True
            if llama_cpp.llama_model_quantize(str(stored(shape, "F32")).encode(),
                                              str(path).encode(), ctypes.byref(options)):
                raise RuntimeError(f"llama.cpp does not write {mode}")
        files[shape, mode] = path
    return files[shape, mode]


def write(path, L, C, H, T, V):
    """A GPT-2 of random numbers as a GGUF file."""
    random = np.random.default_rng(0)
    file = gguf.GGUFWriter(path, "gpt2")
    file.add_context_length(T)
    file.add_embedding_length(C)
    file.add_feed_forward_length(4 * C)
    file.add_block_count(L)
    file.add_head_count(H)
    file.add_layer_norm_eps(1e-5)
    file.add_vocab_size(V)
    file.add_tokenizer_model("none")

    def tensor(name, *shape):
        file.add_tensor(name, 0.02 * random.standard_normal(shape, np.float32))

    def layer(name, columns, rows):
        tensor(f"{name}.weight", rows, columns)
        tensor(f"{name}.bias", rows)

    def norm(name):
        tensor(f"{name}.weight", C)
        tensor(f"{name}.bias", C)

    tensor("token_embd.weight", V, C)
    tensor("position_embd.weight", T, C)
    norm("output_norm")
    for i in range(L):
        norm(f"blk.{i}.attn_norm")
        layer(f"blk.{i}.attn_qkv", C, 3 * C)
        layer(f"blk.{i}.attn_output", C, C)
        norm(f"blk.{i}.ffn_norm")
        layer(f"blk.{i}.ffn_up", C, 4 * C)
        layer(f"blk.{i}.ffn_down", 4 * C, C)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    serve(start)
