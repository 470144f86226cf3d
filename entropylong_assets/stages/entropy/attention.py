"""Attention over concatenated sequences: no token attends to another sequence.

Registered with transformers under `PACKED`, so that any model that uses transformers' attention
interface runs packed, with its own weights and code. The borders of the sequences are passed as
transformers' own `cu_seq_lens_q`. On CUDA no mask is built: the flash kernels take the borders.
They are FlashAttention-3 if it is installed and the GPU is Hopper, else torch's FlashAttention-2.

Legend: H query heads, K key heads, T tokens of the pack, S sequences, E head size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "entropylong_packed"

FLASH_3 = ("flash_attn_interface", "fa3_fwd_interface")
"""Modules of FlashAttention-3: the official build, and the forward-only wheel `fa3-fwd`."""


class AttentionInputs(NamedTuple):
    """What the attention of one layer over a pack is computed from."""

    query_THE: Tensor
    key_TKE: Tensor
    value_TKE: Tensor
    borders: Tensor
    """Start of each sequence, and the end of the last: int32 [S + 1]."""
    longest: int
    """Upper bound of the lengths (tokens)."""
    scale: float
    window: int
    """Tokens that a token attends to, itself included; 0: all before it."""


Attend = Callable[[AttentionInputs], Tensor]
"""Attention of one layer; result [T, H, E]."""


class _OfThread(threading.local):
    attend: Attend | None = None


_of_thread = _OfThread()


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Let packed passes in this thread compute attention with `attend`, called once per layer.

    Compiled layers need no second compilation for it: to the compiler attention is opaque.
    """
    _of_thread.attend = attend
    try:
        yield
    finally:
        _of_thread.attend = None


@contextmanager
def implementation(hf_model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model use the attention that transformers has registered under this name."""
    config = hf_model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def packed(hf_model: PreTrainedModel) -> Iterator[None]:
    """Let the model use packed attention; afterwards it is as before."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    with implementation(hf_model, PACKED):
        yield


def packed_attention(
    module: Any,  # noqa: ARG001
    query_1HTE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each sequence; result [1, T, H, E].

    options: cu_seq_lens_q, int32 [S + 1], from 0 to T; max_length_q. sliding_window: tokens that a
    token attends to, itself included. Raises NotImplementedError for options that it would ignore.
    """
    if options.get("softcap") is not None or options.get("s_aux") is not None:
        raise NotImplementedError("packed attention does not support soft-capping and sinks")
    borders, longest = options.get("cu_seq_lens_q"), options.get("max_length_q")
    if attention_mask is not None or borders is None or longest is None:
        raise NotImplementedError("packed attention needs borders of sequences instead of a mask")
    scale = query_1HTE.shape[-1] ** -0.5 if scaling is None else scaling
    result_THE = _attend(
        *(heads_first[0].transpose(0, 1) for heads_first in (query_1HTE, key_1KTE, value_1KTE)),
        borders,
        longest,
        scale,
        sliding_window or 0,
    )
    return result_THE[None], None


# A custom operator, so that the compiler treats it as opaque and the borders as data.
@torch.library.custom_op("entropylong::attend", mutates_args=())
def _attend(
    query_THE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    borders: Tensor,
    longest: int,
    scale: float,
    window: int,
) -> Tensor:
    attend = _of_thread.attend or attend_packed
    return attend(AttentionInputs(query_THE, key_TKE, value_TKE, borders, longest, scale, window))


@_attend.register_fake
def _(query_THE: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query_THE, memory_format=torch.contiguous_format)


def flash_fits(query_THE: Tensor) -> bool:
    """Return whether the flash kernels support these queries."""
    size = query_THE.shape[-1]
    return query_THE.is_cuda and query_THE.element_size() == 2 and size <= 256 and size % 8 == 0


def attend_packed(inputs: AttentionInputs) -> Tensor:
    """Compute causal attention within each sequence; result [T, H, E]."""
    query_THE, key_TKE, value_TKE, borders, longest, scale, window = inputs
    if not flash_fits(query_THE):
        return attend_one_by_one(query_THE, key_TKE, value_TKE, borders, scale, window)
    third = flash_3() if window == 0 else None
    if third is not None:
        result = third(
            query_THE,
            key_TKE,
            value_TKE,
            borders,
            borders,
            longest,
            longest,
            softmax_scale=scale,
            causal=True,
        )
        return result[0] if isinstance(result, tuple) else result
    return torch.ops.aten._flash_attention_forward(
        query_THE,
        key_TKE,
        value_TKE,
        borders,
        borders,
        longest,
        longest,
        0.0,
        True,
        False,
        scale=scale,
        window_size_left=window - 1 if window else -1,
        window_size_right=0 if window else -1,
    )[0]


@lru_cache(maxsize=1)
def flash_3() -> Callable[..., Any] | None:
    """Return FlashAttention-3's function for packed sequences, or None if it is not available."""
    if torch.cuda.get_device_capability() != (9, 0):
        return None
    for name in FLASH_3:
        try:
            return import_module(name).flash_attn_varlen_func
        except (ImportError, OSError, AttributeError):
            continue
    return None


def attend_one_by_one(
    query_THE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    borders: Tensor,
    scale: float,
    window: int,
) -> Tensor:
    """Compute attention one sequence at a time: on the CPU, and in float32 on CUDA."""
    result_THE = torch.empty_like(query_THE, memory_format=torch.contiguous_format)
    groups = query_THE.shape[1] // key_TKE.shape[1]
    for start, end in pairwise(borders.tolist()):
        length, width = end - start, window or end - start
        query_HTE, key_HTE, value_HTE = (
            x[start:end].transpose(0, 1).repeat_interleave(repeats, dim=0)
            for x, repeats in ((query_THE, 1), (key_TKE, groups), (value_TKE, groups))
        )
        result_THE[start:end] = torch.nn.functional.scaled_dot_product_attention(
            query_HTE[None],
            key_HTE[None],
            value_HTE[None],
            attn_mask=_band(length, width, str(query_THE.device)) if length > width else None,
            is_causal=length <= width,
            scale=scale,
        )[0].transpose(0, 1)
    return result_THE


@lru_cache(maxsize=4)
def _band(length: int, window: int, device: str) -> Tensor:
    """Return bool [length, length]: the keys that each query attends to in a sliding window."""
    with torch.inference_mode(False):
        position = torch.arange(length, device=device)
        distance = position[:, None] - position
        return (distance >= 0) & (distance < window)
