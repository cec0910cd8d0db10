"""GGUF files of a tiny decoder, written as llama.cpp's converter does."""

import gguf
import numpy as np

from fedjax_fm import models

VOCABULARY = [
    "<|end|>",
    "<|user|>",
    *(chr(c) for c in range(33, 127)),
    "Ġ",
    "Ċ",
    "th",
    "the",
    "Ġthe",
]
MERGES = ["t h", "th e", "Ġ the"]
CONFIG = models.LlamaConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)


def permute(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """llama.cpp's own order, as its converter writes it."""
    halves = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def tensors_of(model: models.LlamaForCausalLM) -> dict[str, np.ndarray]:
    """Our model's weights under GGUF's names, q and k permuted."""
    config, layers = model.config, model.model.layers
    found = {
        "token_embd.weight": model.model.embed_tokens.embedding[...],
        "output_norm.weight": model.model.norm.scale[...],
    }
    for i in range(config.num_hidden_layers):
        attention, mlp = layers.self_attn, layers.mlp
        matrices = {
            "attn_q": attention.q_proj,
            "attn_k": attention.k_proj,
            "attn_v": attention.v_proj,
            "attn_output": attention.o_proj,
            "ffn_gate": mlp.gate_proj,
            "ffn_up": mlp.up_proj,
            "ffn_down": mlp.down_proj,
        }
        found |= {
            f"blk.{i}.{name}.weight": linear.kernel[i].T
            for name, linear in matrices.items()
        }
        found[f"blk.{i}.attn_norm.weight"] = layers.input_layernorm.scale[i]
        found[f"blk.{i}.ffn_norm.weight"] = layers.post_attention_layernorm.scale[i]
    arrays = {
        name: np.ascontiguousarray(np.asarray(array, np.float32))
        for name, array in found.items()
    }
    for i in range(config.num_hidden_layers):
        for name, heads in (
            ("attn_q", config.num_attention_heads),
            ("attn_k", config.num_key_value_heads),
        ):
            arrays[f"blk.{i}.{name}.weight"] = permute(
                arrays[f"blk.{i}.{name}.weight"], heads
            )
    return arrays


def write(
    path,
    tensors,
    *,
    architecture="llama",
    quantisation="F32",
    fields=None,
    without=(),
    template="{{ 1 }}",
):
    """A GGUF file; `quantisation` is of the matrices, norms stay F32; `fields` are more
    {name: (adder, value)}.
    """
    writer = gguf.GGUFWriter(path, architecture)
    values = {
        "add_block_count": CONFIG.num_hidden_layers,
        "add_context_length": CONFIG.max_position_embeddings,
        "add_embedding_length": CONFIG.hidden_size,
        "add_feed_forward_length": CONFIG.intermediate_size,
        "add_head_count": CONFIG.num_attention_heads,
        "add_head_count_kv": CONFIG.num_key_value_heads,
        "add_layer_norm_rms_eps": CONFIG.rms_norm_eps,
        "add_rope_freq_base": CONFIG.rope_theta,
        "add_tokenizer_model": "gpt2",
        "add_tokenizer_pre": "smollm",
        "add_token_list": VOCABULARY,
        "add_token_types": [3, 4] + [1] * (len(VOCABULARY) - 2),
        "add_token_merges": MERGES,
        "add_eos_token_id": 0,
    }
    for adder, value in values.items():
        if adder not in without:
            getattr(writer, adder)(value)
    if template:
        writer.add_chat_template(template)
    for name, (adder, value) in (fields or {}).items():
        getattr(writer, adder)(name, value)
    kind = gguf.GGMLQuantizationType[quantisation]
    for name, array in tensors.items():
        if array.dtype != np.float32 or array.ndim == 1 or quantisation == "F32":
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
