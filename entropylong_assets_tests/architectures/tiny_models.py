"""Tiny random models of any causal class of transformers, made from the defaults of its config.

Fields of a config get small values by their names. `OVERRIDES` contains all other values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from entropylong_assets.stages.entropy.model import ScoringModel

LAYERS = 4
VOCABULARY = 300
POSITIONS = 256
WINDOW = 24
"""Sliding windows, chunks of attention and blocks (tokens). Sequences of the tests are longer."""

HIDDEN, HEADS, HEAD_SIZE, ROTARY = 64, 4, 16, 8

SIZES: tuple[tuple[str, int], ...] = (
    (r"(decoder_|unpadded_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r".*(hidden_size|d_model|n_embd|emb_dim|embedding_dim|embedding_size|embed_proj_dim)", HIDDEN),
    (r"(dim|embed_dim|lru_width|hidden_size_global|ple_embed_dim|mamba_d_ssm)", HIDDEN),
    (r".*(intermediate_size|intermediate_size_mlp|ffn_dim|ffn_hidden_size|dff|dim_ff|d_ff)", 96),
    (r"(d_inner|mlp_dim|feed_forward_size|n_inner|centroid_intermediate_top_k)", 96),
    (r".*(attention_heads|n_heads?|num_heads|num_value_heads|mamba_heads)", HEADS),
    (r".*(key_value_heads|kv_heads|kv_n_heads|num_key_heads)", 2),
    (r"(num_hidden_layers|n_layers?|num_layers|(num_)?(de|en)coder_layers|num_blocks)", LAYERS),
    (r"num_layers_per_stack", 2),
    (r".*(qk_nope_head_dim|qk_rope_head_dim|rotary_dim)", ROTARY),
    (r".*(head_dim|headdim|d_head|head_size|dim_head|qk_head_dim|kv_channels)", HEAD_SIZE),
    (r"(kv|q|o)_lora_rank", 16),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok(en)?|moe_topk|moe_top_k|moe_k)", 2),
    (r"(n_group|topk_group|num_expert_group|n_groups|mamba_n_groups|mamba_ngroups|o_groups)", 1),
    (r"(mamba_d_state|state_size|ssm_state_size)", 8),
    (r"(mamba_dt_rank|time_step_rank)", 4),
    (r"(max_position_embeddings|n_positions|max_seq_len|n_ctx|context_length)", POSITIONS),
    (r"(max_target_positions|model_max_length)", POSITIONS),
    (r".*window(_size|_len)?|attention_chunk_size|local_attention|index_topk|floor_scale", WINDOW),
    (r"(mamba_)?chunk_size|local_attn_chunk_length|lsh_attn_chunk_length", 16),
    (r"block_size|index_block_size", 8),
    (r"first_k_dense_replace|num_dense_layers|num_kv_shared_layers|max_window_layers", 2),
)
"""Patterns of whole names, and the number that fields of such a name get; the first one counts."""

_PER_LAYER = re.compile(
    r".*(types|_type|layers|pattern)|intermediate_size|layer_rope_theta|.*_per_layer"
)
_TOKEN = re.compile(r".*_(id|index)")

_MLA: Mapping[str, Any] = {"num_key_value_heads": HEADS}
_EXPERTS: Mapping[str, Any] = {"num_experts_per_tok": 2}
_HEAD: Mapping[str, Any] = {"head_dim": HEAD_SIZE}
_MAMBA2: Mapping[str, Any] = {"mamba_d_head": 2 * HIDDEN // HEADS}
_GEMMA4: Mapping[str, Any] = {"global_head_dim": 2 * HEAD_SIZE}
_DOTS3: Mapping[str, Any] = {
    "num_key_value_heads": HEADS,
    "layer_types": ["indexed_attention", "sliding_attention"] * 2,
    "rope_parameters": None,
    "sliding_window_size": WINDOW,
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": HEADS,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 16,
}
_QWEN4: Mapping[str, Any] = {
    "indexer_n_heads": HEADS,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD_SIZE,
    "indexer_budget": WINDOW,
    "indexer_compress_ratio": 4,
}

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "axk2": _MLA,
    "bamba": {**_MAMBA2, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5},
    "cohere2_moe": {"logit_scale": 0.5},
    "cohere_compass_text": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "deepseek_v2": _EXPERTS,
    "deepseek_v32": _MLA,
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, **_EXPERTS},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "dots3_note_text": _DOTS3,
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gemma4_assistant": {
        "text_config": {
            **_GEMMA4,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": LAYERS,
        }
    },
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_assistant": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "glm_moe_dsa": _MLA,
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "inkling_text": {"logits_mup_width_multiplier": 2.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"head_dim": 2 * HIDDEN // HEADS},
    "minicpm3": {"dim_model_base": HIDDEN},
    "ministral": _HEAD,
    "nemotron": {**_HEAD, "num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32]},
    "xlnet": {"d_head": HEAD_SIZE},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 2 * HIDDEN, "attention_head_dim": 2 * HIDDEN // HEADS},
    "zamba2": {
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 2 * HIDDEN // HEADS,
        "mamba_headdim": 2 * HIDDEN // HEADS,
        "mamba_ngroups": 2,
        "num_key_value_heads": HEADS,
        "num_query_groups": HEADS,
        "hybrid_layer_ids": [1, 3],
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields of single model types whose sizes must fit together, or have no usable default."""


_SWITCH = 64
_FACTORS = [1.0 + 0.1 * i for i in range(HEAD_SIZE // 2)]
_LONGROPE: Mapping[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": _FACTORS,
    "long_factor": [4 * factor for factor in _FACTORS],
    "original_max_position_embeddings": _SWITCH,
}
_SWITCHES: Mapping[str, Any] = {"original_max_position_embeddings": _SWITCH}
_MSCALE: Mapping[str, Any] = {"short_mscale": 1.1, "long_mscale": 1.6}
_DYNAMIC: Mapping[str, Any] = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
_DECODER: Mapping[str, Any] = {"is_decoder": True}
_HALF_FACTORS: Mapping[str, Any] = {
    "short_factor": _FACTORS[: ROTARY // 2],
    "long_factor": [4 * factor for factor in _FACTORS[: ROTARY // 2]],
}
_YARN: Mapping[str, Any] = {**_DYNAMIC, "rope_type": "yarn"} | {
    "original_max_position_embeddings": _SWITCH
}

ENCODERS = (
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)
"""Types whose default config attends in both directions, unless `is_decoder` is true."""

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "phi3: longrope": ("phi3", {"rope_parameters": _LONGROPE, **_SWITCHES}),
    "phimoe: longrope": ("phimoe", {"rope_parameters": {**_LONGROPE, **_MSCALE}, **_SWITCHES}),
    "llama: dynamic": (
        "llama",
        {"rope_parameters": _DYNAMIC, "max_position_embeddings": _SWITCH},
    ),
    "gemma3_text: dynamic": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": _DYNAMIC,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "max_position_embeddings": _SWITCH,
        },
    ),
    "minicpm3: longrope": ("minicpm3", {"rope_parameters": {**_LONGROPE, **_HALF_FACTORS}}),
    "llama: longrope": ("llama", {"rope_parameters": _LONGROPE}),
    "llama: yarn": ("llama", {"rope_parameters": _YARN}),
    "llama: linear": ("llama", {"rope_parameters": {**_DYNAMIC, "rope_type": "linear"}}),
    "falcon: alibi": ("falcon", {"alibi": True}),
    "mpt: learned positions": ("mpt", {"attn_config": {"alibi": False}}),
    "qwen2: sliding window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "gemma3: bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}),
    "reformer: local": ("reformer", {"attn_layers": ["local", "local"]}),
    "xlm: causal": ("xlm", {"causal": True}),
    "big_bird: decoder, full attention": (
        "big_bird",
        {"is_decoder": True, "attention_type": "original_full"},
    ),
    **{f"{name}: decoder": (name, _DECODER) for name in ENCODERS},
}
"""Configs other than the default of their type, by name: (model type, fields)."""


STARTS: Mapping[str, Mapping[str, Any]] = {
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 30,
        }
    }
}
"""Fields without which a config has no valid default."""


def tiny_config(model_type: str, **over: Any) -> Any:
    """Make the small config of a model type. over: fields that differ from it."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    values = _small_values(kind(**STARTS.get(model_type, {})).to_dict())
    return kind(**_merged(_merged(values, OVERRIDES.get(model_type, {})), over))


def tiny_hf_model(config: Any, seed: int = 0) -> Any:
    """Make a model with random weights, sharp enough that entropies differ by position."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    hf_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in hf_model.parameters():
            if (
                parameter.dim() > 1 and 0.005 < parameter.std() < 0.05
            ):  # drawn from the usual normal
                parameter.normal_(0, 0.15)
    return hf_model


def tiny_model(config: Any) -> ScoringModel:
    tokenizer: Any = SimpleNamespace(bos_ids=(1,), separator_ids=(2,))
    return ScoringModel(tiny_hf_model(config), tokenizer, "tiny", max_forward_tokens=POSITIONS)


def _small_values(values: Mapping[str, Any]) -> dict[str, Any]:
    derived = {"id2label", "label2id", "model_type", "transformers_version", "architectures"}
    derived |= {"dtype", "_name_or_path", "per_layer_config"}
    small = {k: _small(k, v) for k, v in values.items() if k not in derived}
    if "qk_rope_head_dim" in small and "head_dim" in small:
        small["head_dim"] = ROTARY  # the rotary part is the head, here
    return small


def _small(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return _small_values(value)
    if isinstance(value, list) and len(value) > LAYERS and _PER_LAYER.fullmatch(name):
        kinds = [json.loads(kind) for kind in dict.fromkeys(map(json.dumps, value))]
        return [_small(name, kinds[i % len(kinds)]) for i in range(LAYERS)]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return size
    return min(value, VOCABULARY - 10) if _TOKEN.fullmatch(name) else value


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with those of `over`, also within sub-configs."""
    both = dict(values)
    for name, value in over.items():
        inner = both.get(name)
        deep = isinstance(value, Mapping) and isinstance(inner, Mapping)
        both[name] = _merged(inner, value) if deep else value
    return both
