"""Writes a tiny Llama model folder as a GGUF file, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_TOP |= {"lm_head.weight": "output.weight"}


def write_tiny_gguf(model_dir: Path, out: Path) -> Path:
    """Write the Llama in `model_dir` (see make_tiny_model), weights in fp32, and return `out`."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((model_dir / "config.json").read_text())
    tokenizer = json.loads((model_dir / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    vocab = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    special = {token["id"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([vocab.get(i, f"[PAD{i}]") for i in range(config["vocab_size"])])
    writer.add_token_types([3 if i in special else 1 if i in vocab else 5 for i in range(config["vocab_size"])])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_chat_template((model_dir / "chat_template.jinja").read_text())
    for name, weight in load_file(model_dir / "model.safetensors").items():
        writer.add_tensor(_gguf_name(name), _gguf_layout(name, weight, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _gguf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_NAMES[module]}.weight"


def _gguf_layout(name: str, weight: np.ndarray, config: dict) -> np.ndarray:
    """Return the weight with interleaved rows: GGUF rotates neighbouring pairs of a head, transformers its halves."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for module, key in heads.items():
        if module in name:
            rows, columns = weight.shape
            shape = (config[key], 2, rows // config[key] // 2, columns)
            return np.ascontiguousarray(weight.reshape(shape).swapaxes(1, 2).reshape(rows, columns))
    return weight
