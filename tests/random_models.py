"""Random checkpoints of width 64 for the architectures that the tests convert, written as a Hugging Face directory is.

Weights are drawn by mlx-lm's own modules, so that names and shapes are what the architecture really has. There is no tokenizer:
conversions of these models sample their calibration text from the model.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

_QWEN35 = {
    "model_type": "qwen3_5",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "rms_norm_eps": 1e-6,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "shared_expert_intermediate_size": 64,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
_PLAIN = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}


def _qwen(model_type: str, **text: Any) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": {**_QWEN35, **text}, "tie_word_embeddings": text["tie_word_embeddings"]}


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_5-tied": _qwen("qwen3_5", tie_word_embeddings=True),
    "qwen3_5-untied": _qwen("qwen3_5", tie_word_embeddings=False),
    "qwen3_5-moe": _qwen("qwen3_5_moe", tie_word_embeddings=False, **_MOE),
    "llama": {"model_type": "llama", **_PLAIN, "tie_word_embeddings": False},
    "gemma3": {
        "model_type": "gemma3_text",
        **_PLAIN,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 32,
        "rope_global_base_freq": 10000.0,
        "rope_local_base_freq": 10000.0,
    },
    "phi3": {
        "model_type": "phi3",
        **{k: v for k, v in _PLAIN.items() if k != "head_dim"},
        "tie_word_embeddings": False,
        "original_max_position_embeddings": 512,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **{k: v for k, v in _PLAIN.items() if k != "head_dim"},
        "num_key_value_heads": 2,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "rope_scaling": None,
        "attention_bias": False,
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "topk_method": "noaux_tc",
    },
}
CONFIGS["gemma3-tied"] = {**CONFIGS["gemma3"], "tie_word_embeddings": True}


def write(path: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """Write one of `CONFIGS` with random bfloat16 weights into `path`."""
    config = {**json.loads(json.dumps(CONFIGS[name])), **changes, "bos_token_id": 1, "eos_token_id": 2}
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    weights = {n: v.astype(mx.bfloat16) if v.dtype == mx.float32 else v for n, v in tree_flatten(model.parameters())}
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)  # Gemma 3 has a head until a checkpoint without one is loaded
    mx.eval(weights)
    path.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config))
    return path
