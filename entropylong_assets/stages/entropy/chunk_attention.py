"""Attention of the chunks of one long sequence: a chunk attends to all tokens before it.

The keys and values of a layer are kept in one tensor for the whole sequence, in layers with a
sliding window only those of the last tokens. Grouped keys are not repeated, and on CUDA there is no
mask. There are two kernels:

- the packed attention of `attention.py`, with more keys than queries;
- cuDNN, which is faster on Hopper than torch's FlashAttention-2. Its causal attention is aligned to
  the upper left, so that it attends to the kept keys and to the chunk itself in two calls, which
  are joined by the logarithms of their sums.

Legend: H query heads, K key heads, R tokens of a chunk, T tokens so far, E head size.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import Tensor

from entropylong_assets.stages.entropy.attention import (
    Attend,
    AttentionInputs,
    attend_packed,
    cudnn_is_right_and_fast,
    flash_3,
    join_parts,
)

CUDNN_ROWS = 128
"""Minimum number of queries for cuDNN: some versions have no kernel for a single one."""


class _KeptLayer:
    """Keys and values of one layer that later chunks attend to."""

    def __init__(self, length: int, window: int) -> None:
        self._length, self._window, self._tokens = length, window, 0
        self._kept: list[Tensor] = []

    def append(self, *key_and_value: Tensor) -> list[Tensor]:
        """Return keys and values of the kept tokens and these. Each: [R, K, E] to [T, K, E]."""
        if self._window:
            if self._kept:
                pairs = zip(self._kept, key_and_value, strict=True)
                every = [torch.cat(pair) for pair in pairs]
            else:
                every = list(key_and_value)
            kept = min(self._window - 1, len(every[0]))
            self._kept = [x[len(x) - kept :].clone() for x in every]
            return every
        if not self._kept:
            self._kept = [x.new_empty((self._length, *x.shape[1:])) for x in key_and_value]
        start, self._tokens = self._tokens, self._tokens + len(key_and_value[0])
        for kept_TKE, new_RKE in zip(self._kept, key_and_value, strict=True):
            kept_TKE[start : self._tokens] = new_RKE
        return [x[: self._tokens] for x in self._kept]


class ChunkAttention:
    """Attention of the passes over the chunks of one sequence, in their order."""

    def __init__(self, length: int, with_cudnn: bool) -> None:
        """length: tokens of all chunks together. with_cudnn: for layers without a window."""
        self._length, self._with_cudnn = length, with_cudnn
        self._layers: list[_KeptLayer] = []

    def of_next_chunk(self) -> Attend:
        """Return the attention of the next pass, called once per layer."""
        layers = count()
        return lambda inputs: self._attend(next(layers), inputs)

    def _attend(self, layer: int, inputs: AttentionInputs) -> Tensor:
        if layer == len(self._layers):
            self._layers.append(_KeptLayer(self._length, inputs.window))
        keys_TKE, values_TKE = self._layers[layer].append(inputs.key_TKE, inputs.value_TKE)
        many = len(inputs.query_THE) >= CUDNN_ROWS
        if self._with_cudnn and many and not inputs.window:
            return attend_with_cudnn(inputs.query_THE, keys_TKE, values_TKE, inputs.scale)
        n_keys = len(keys_TKE)
        # Made on the device: a copy from the host would wait for the passes before.
        key_borders = torch.arange(2, dtype=torch.int32, device=keys_TKE.device) * n_keys
        return attend_packed(
            inputs._replace(
                key_TKE=keys_TKE,
                value_TKE=values_TKE,
                key_borders=key_borders,
                longest_keys=n_keys,
            )
        )


def cudnn_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether cuDNN is expected to be the fastest kernel that is right."""
    return dtype.itemsize == 2 and cudnn_is_right_and_fast(device) and flash_3() is None


def attend_with_cudnn(
    query_RHE: Tensor, key_TKE: Tensor, value_TKE: Tensor, scale: float
) -> Tensor:
    """Compute causal attention of the last R of T tokens; result [R, H, E].

    Raises RuntimeError if cuDNN has no kernel for these shapes.
    """
    kept = len(key_TKE) - len(query_RHE)
    own = _attend_in_cudnn(query_RHE, key_TKE[kept:], value_TKE[kept:], True, scale)
    if not kept:
        return own[0].contiguous()
    before = _attend_in_cudnn(query_RHE, key_TKE[:kept], value_TKE[:kept], False, scale)
    return join_parts(*zip(before, own, strict=True))


def _attend_in_cudnn(
    query_RHE: Tensor, key_TKE: Tensor, value_TKE: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the result [R, H, E] and the logarithm of the sum, float32 [H, R]."""
    result_1HRE, log_sum = cudnn_kernel()(
        *(x.contiguous().transpose(0, 1)[None] for x in (query_RHE, key_TKE, value_TKE)),
        None,
        True,
        is_causal=causal,
        scale=scale,
    )[:2]
    return result_1HRE[0].transpose(0, 1), log_sum.reshape(result_1HRE.shape[1:3])


def cudnn_kernel() -> Any:
    return torch.ops.aten._scaled_dot_product_cudnn_attention
