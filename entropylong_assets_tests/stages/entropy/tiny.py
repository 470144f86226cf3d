"""Tiny random models of both kinds, sharp enough that their entropies differ by position."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.entropy.scoring import ScoringRequest

VOCAB = 211


def llama(**over: Any) -> ScoringModel:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return _model(LlamaForCausalLM, LlamaConfig(vocab_size=VOCAB, **shape, **heads, **over))


def gemma3(**over: Any) -> ScoringModel:
    """Every second layer slides over 8 tokens; final logits are capped at 12."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 512}
    kinds = {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "final_logit_softcapping": 12.0,
        "query_pre_attn_scalar": 16,
    }
    return _model(
        Gemma3ForCausalLM, Gemma3TextConfig(vocab_size=VOCAB, **shape, **heads, **kinds, **over)
    )


def _model(kind: Any, config: Any) -> ScoringModel:
    import torch

    torch.manual_seed(7)
    hf_model = kind(config).eval()
    with torch.no_grad():
        for name, parameter in hf_model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.25 if parameter.dim() > 1 else 0.1)
    tokenizer: Any = SimpleNamespace(bos_ids=(1,), separator_ids=(2,))
    return ScoringModel(hf_model, tokenizer, "tiny", max_forward_tokens=512)


def requests(count: int, seed: int, longest: int = 90) -> list[ScoringRequest]:
    """Random sequences that begin with BOS, each with some positions to score."""
    draw = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        length = int(draw.integers(2, longest))
        tokens = np.concatenate([[1], draw.integers(3, VOCAB, length - 1)])
        scored = draw.choice(np.arange(1, length), int(draw.integers(1, length)), replace=False)
        result.append(ScoringRequest(tokens, np.sort(scored)))
    return result
