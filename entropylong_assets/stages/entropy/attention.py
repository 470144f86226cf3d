"""Attention over concatenated sequences: no token attends to another sequence.

Registered with transformers under `PACKED`, so that any model that uses transformers' attention
interface runs packed, with its own weights and code. The borders of the sequences are passed as
transformers' own `cu_seq_lens_q`. On CUDA no mask is built: the flash kernels take the borders.
They are FlashAttention-3 if it is installed and the GPU is Hopper, else torch's FlashAttention-2.

The queries of a sequence may be its last tokens only, with keys of all of it: causal attention is
then aligned to the lower right, as the flash kernels do for different numbers of queries and keys.

Legend: H query heads, K key heads, T tokens of the pack, S sequences, E head size.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
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

log = logging.getLogger(__name__)

FLASH_3 = ("flash_attn_interface", "fa3_fwd_interface")
"""Modules of FlashAttention-3: the official build, and the forward-only wheel `fa3-fwd`."""


def line_of(error: Exception) -> str:
    """Return class and message of an error of torch or a model, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


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
    key_borders: Tensor | None = None
    """Borders of the keys, int32 [S + 1]; None: those of the queries. The queries of a sequence
    are the last of its tokens."""
    longest_keys: int = 0
    """Upper bound of the numbers of keys, if `key_borders` is given."""


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
    query_THE, key_TKE, value_TKE, borders, longest, scale, window, key_borders, keys = inputs
    if not flash_fits(query_THE):
        return attend_one_by_one(query_THE, key_TKE, value_TKE, borders, scale, window, key_borders)
    if key_borders is None:
        key_borders, keys = borders, longest
    third = flash_3() if window == 0 else None
    if third is not None:
        result = third(
            query_THE,
            key_TKE,
            value_TKE,
            borders,
            key_borders,
            longest,
            keys,
            softmax_scale=scale,
            causal=True,
        )
        return result[0] if isinstance(result, tuple) else result
    return torch.ops.aten._flash_attention_forward(
        query_THE,
        key_TKE,
        value_TKE,
        borders,
        key_borders,
        longest,
        keys,
        0.0,
        True,
        False,
        scale=scale,
        window_size_left=window - 1 if window else -1,
        window_size_right=0 if window else -1,
    )[0]


def cudnn_is_right_and_fast(device: torch.device) -> bool:
    """Return whether cuDNN's attention is right, and faster than torch's flash kernel.

    That is on Hopper only: huggingface/transformers#48163 measured it to be slower on Ampere and
    Blackwell, and pytorch/pytorch#193893 reports wrong results for grouped keys on Blackwell.
    """
    return (
        device.type == "cuda"
        and torch.backends.cudnn.is_available()
        and torch.cuda.get_device_capability(device)[0] == 9
    )


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


QUERIES_PER_BLOCK = 512
"""Rows of a mask: bounds its memory, and the masked pairs that are computed for nothing."""


def attend_one_by_one(
    query_THE: Tensor,
    key_TKE: Tensor,
    value_TKE: Tensor,
    borders: Tensor,
    scale: float,
    window: int,
    key_borders: Tensor | None = None,
) -> Tensor:
    """Compute attention one sequence at a time: on the CPU, and in float32 on CUDA."""
    result_THE = torch.empty_like(query_THE, memory_format=torch.contiguous_format)
    groups = query_THE.shape[1] // key_TKE.shape[1]
    key_ends = borders if key_borders is None else key_borders
    for (start, end), (first_key, end_key) in zip(
        pairwise(borders.tolist()), pairwise(key_ends.tolist()), strict=True
    ):
        length, keys = end - start, end_key - first_key
        heads_first = (
            query_THE[start:end],
            *(x[first_key:end_key].repeat_interleave(groups, dim=1) for x in (key_TKE, value_TKE)),
        )
        query_1HTE, key_1HTE, value_1HTE = (x.transpose(0, 1)[None] for x in heads_first)
        if length == keys and length <= (window or length):
            attended_1HTE = torch.nn.functional.scaled_dot_product_attention(
                query_1HTE, key_1HTE, value_1HTE, is_causal=True, scale=scale
            )
        else:
            attended_1HTE = _attend_masked(query_1HTE, key_1HTE, value_1HTE, scale, window)
        result_THE[start:end] = attended_1HTE[0].transpose(0, 1)
    return result_THE


def _attend_masked(
    query_1HTE: Tensor, key_1HTE: Tensor, value_1HTE: Tensor, scale: float, window: int
) -> Tensor:
    """Attend block by block of queries, which are the last of the keys' tokens."""
    length, keys = query_1HTE.shape[2], key_1HTE.shape[2]
    parts = []
    for first in range(0, length, QUERIES_PER_BLOCK):
        last = min(first + QUERIES_PER_BLOCK, length)
        end = last + keys - length
        begin = max(0, end - (last - first) - window + 1) if window else 0
        attended = torch.nn.functional.scaled_dot_product_attention(
            query_1HTE[:, :, first:last],
            key_1HTE[:, :, begin:end],
            value_1HTE[:, :, begin:end],
            attn_mask=_band(last - first, end - begin, window, str(query_1HTE.device)),
            scale=scale,
        )
        parts.append(attended)
    return torch.cat(parts, dim=2)


@lru_cache(maxsize=4)
def _band(queries: int, keys: int, window: int, device: str) -> Tensor:
    """Return bool [queries, keys]: the keys that each of the last `queries` tokens attends to."""
    with torch.inference_mode(False):
        position = torch.arange(keys, device=device)
        distance = position[keys - queries :, None] - position
        band = distance >= 0
        return band & (distance < window) if window else band


def join_parts(results: Sequence[Tensor], log_sums: Sequence[Tensor]) -> Tensor:
    """Join attention over disjoint keys. results: [T, H, E]. log_sums: float32 [H, T]."""
    join = _compiled_join() if results[0].is_cuda else _join
    joined_THE: Tensor = join(list(results), list(log_sums))
    return joined_THE.contiguous()


@lru_cache(maxsize=1)
def _compiled_join() -> Any:
    """Return `_join` in one kernel, or as it is if the compiler fails."""
    compiled = torch.compile(_join, dynamic=True)
    try:
        result_THE, log_sum_HT = torch.ones(5, 2, 8, device="cuda"), torch.ones(2, 5, device="cuda")
        compiled([result_THE, result_THE], [log_sum_HT, log_sum_HT])
    except Exception as error:  # the compiler may raise any error
        log.warning(
            "parts of an attention are joined by an uncompiled function: %s", line_of(error)
        )
        return _join
    return compiled


def _join(results: list[Tensor], log_sums: list[Tensor]) -> Tensor:
    top_HT = log_sums[0]
    for log_sum_HT in log_sums[1:]:
        top_HT = torch.maximum(top_HT, log_sum_HT)
    weights = [(log_sum_HT - top_HT).exp() for log_sum_HT in log_sums]
    total_HT = sum(weights[1:], weights[0])
    joined_THE = torch.zeros_like(results[0], dtype=torch.float32)
    for weight_HT, result_THE in zip(weights, results, strict=True):
        joined_THE = joined_THE + (weight_HT / total_HT).T[..., None] * result_THE.float()
    return joined_THE.to(results[0].dtype)
