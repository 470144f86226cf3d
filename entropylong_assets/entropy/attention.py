"""Attention over sequences laid end to end: no token sees another sequence's tokens.

Registered with transformers under `PACKED`, so that any model which takes its attention from
there runs packed with its own weights and code. The borders come in as transformers' own
`cu_seq_lens_q`. No mask is ever built on CUDA: the flash kernel takes the borders themselves.

Legend: H query heads, K key heads, T tokens of the pack, S sequences, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

PACKED = "entropylong_packed"


def packed_attention(
    module: Any,  # noqa: ARG001
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each of the sequences; result [1, T, H, E].

    cu_seq_lens_q: int32 [S + 1], from 0 to T. sliding_window: tokens that a token sees, itself
    included. Raises NotImplementedError on what it would otherwise get wrong.
    """
    if others.get("softcap") is not None or others.get("s_aux") is not None:
        raise NotImplementedError("attention soft-capping and sinks are not packed")
    if attention_mask is not None or cu_seq_lens_q is None or max_length_q is None:
        raise NotImplementedError("packed attention takes borders, not masks")
    arguments = (query_1HTE, key_1KTE, value_1KTE, cu_seq_lens_q, max_length_q)
    if _has_flash(query_1HTE):
        return _flash(*arguments, scaling, sliding_window), None
    return _one_by_one(*arguments[:4], scaling, sliding_window), None


def _has_flash(query_1HTE: Tensor) -> bool:
    size = query_1HTE.shape[-1]
    return query_1HTE.is_cuda and query_1HTE.element_size() == 2 and size <= 256 and size % 8 == 0


def _flash(
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    borders: Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    import torch

    result_THE = torch.ops.aten._flash_attention_forward(
        query_1HTE[0].transpose(0, 1),
        key_1KTE[0].transpose(0, 1),
        value_1KTE[0].transpose(0, 1),
        borders,
        borders,
        longest,
        longest,
        0.0,
        True,
        False,
        scale=scaling,
        window_size_left=-1 if window is None else window - 1,
        window_size_right=-1 if window is None else 0,
    )[0]
    return result_THE[None]


def _one_by_one(
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    borders: Tensor,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """The same by one call a sequence: on the CPU, and in float32 on CUDA."""
    import torch

    result_1THE = torch.empty_like(query_1HTE.transpose(1, 2))
    groups = query_1HTE.shape[1] // key_1KTE.shape[1]
    edges = borders.tolist()
    for start, end in pairwise(edges):
        length = end - start
        width = window or length
        banded = length > width
        result_1THE[:, start:end] = torch.nn.functional.scaled_dot_product_attention(
            query_1HTE[:, :, start:end],
            _repeat(key_1KTE[:, :, start:end], groups),
            _repeat(value_1KTE[:, :, start:end], groups),
            attn_mask=_band(length, width, str(query_1HTE.device)) if banded else None,
            is_causal=not banded,
            scale=scaling,
        ).transpose(1, 2)
    return result_1THE


def _repeat(heads_1KTE: Tensor, groups: int) -> Tensor:
    return heads_1KTE if groups == 1 else heads_1KTE.repeat_interleave(groups, dim=1)


@lru_cache(maxsize=4)
def _band(length: int, window: int, device: str) -> Tensor:
    """bool [length, length]: which key each query sees under a sliding window."""
    import torch

    with torch.inference_mode(False):
        at = torch.arange(length, device=device)
        behind = at[:, None] - at
        return (behind >= 0) & (behind < window)


@contextmanager
def packed(hf_model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's attention is the packed one; afterwards it is as it was."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    config = hf_model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = PACKED
    try:
        yield
    finally:
        config._attn_implementation = before
