"""Attention of segments: a segment sees its own tokens up to itself, and kept keys before them.

Every layer of a pass computes one softmax over all parts that a segment sees. On CUDA, flash
kernels compute each part with the logarithm of its sum, and the parts are joined by these. The keys
of a part stay where they are, shared by all segments that see them. In layers with a sliding
window, in float32, and on a CPU, queries are computed in blocks with a mask.

Legend: H query heads, K key heads, T tokens of a pass, S segments, E head size, n queries and m
keys of a block, G ranges.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from entropylong_assets.stages.entropy.attention import (
    AttentionInputs,
    flash_fits,
    join_parts,
    line_of,
)
from entropylong_assets.stages.entropy.kept_keys import KeptKeys, Range

BLOCK = 128
"""Queries per block: so many rows make a matrix product efficient."""

LARGEST_DIFFERENCE = 0.05
"""Largest difference of two attentions over normal values that rounding to bfloat16 explains."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """Kept keys that segments see. ranges_S: which of them. firsts_S: position of the first."""

    kept: KeptKeys
    ranges_S: Sequence[Range]
    firsts_S: Sequence[int]


class _Block(NamedTuple):
    queries: slice
    own: slice
    kept: list[slice]
    """Keys of each part."""
    mask: Tensor
    """bool [n, m] over the keys of the parts and then the own ones."""


class SplicedAttention:
    """Attention of one pass over segments, each after the same kinds of parts."""

    def __init__(self, borders_S: Sequence[int], positions_S: Sequence[int], parts: list[Part]):
        """borders_S: start of each segment in the pass, and the end of the last.

        positions_S: position of the first token of each segment. The positions of a segment's
        tokens and of all keys that it sees count from the beginning of the same root.
        """
        self._borders, self._positions, self._parts = list(borders_S), list(positions_S), parts
        self._layer = 0
        self._blocks: dict[int, list[_Block]] = {}
        self._ranges: list[_Ranges] = []

    def __call__(self, inputs: AttentionInputs) -> Tensor:
        kept = [part.kept.layers[self._layer] for part in self._parts]
        self._layer += 1
        query_THE, key_TKE = inputs[:2]
        if (
            inputs.window == 0
            and flash_fits(query_THE)
            and ranges_work(*_kind_of(query_THE, key_TKE))
        ):
            return self.attend_by_ranges(inputs, kept)
        return self.attend_in_blocks(inputs, kept)

    def attend_by_ranges(
        self, inputs: AttentionInputs, kept: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Join the flash kernel's results for every part. kept: keys and values of each part."""
        query_THE, key_TKE, value_TKE, borders, longest, scale = inputs[:6]
        if not self._ranges:
            self._ranges = [_ranges(part, self._borders, query_THE.device) for part in self._parts]
        results = [
            attend_ranges(query_THE, keys, values, ranges, causal=False, scale=scale)
            for ranges, (keys, values) in zip(self._ranges, kept, strict=True)
            if ranges.longest_keys
        ]
        own = _Ranges(borders, borders, borders.diff(), longest, longest)
        results.append(attend_ranges(query_THE, key_TKE, value_TKE, own, causal=True, scale=scale))
        return join_parts(*zip(*results, strict=True))

    def attend_in_blocks(
        self, inputs: AttentionInputs, kept: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Attend block by block, with a mask. kept: keys and values of each part."""
        query_THE, key_TKE, value_TKE, _, _, scale, window = inputs[:7]
        keys_values = [*kept, (key_TKE, value_TKE)]
        if window not in self._blocks:
            self._blocks[window] = list(self._plan_blocks(window, query_THE.device))
        result_THE = torch.empty_like(query_THE, memory_format=torch.contiguous_format)
        heads, key_heads = query_THE.shape[1], keys_values[-1][0].shape[1]
        groups = heads // key_heads
        for block in self._blocks[window]:
            places = [*block.kept, block.own]
            key_1KmE, value_1KmE = (
                torch.cat(
                    [both[x][at] for both, at in zip(keys_values, places, strict=True)]
                ).transpose(0, 1)[None]
                for x in (0, 1)
            )
            query_nHE = query_THE[block.queries]
            # Heads that share keys become further rows, so that keys are not repeated.
            folded = query_nHE.unflatten(1, (key_heads, groups)).permute(1, 2, 0, 3).flatten(1, 2)
            attended = torch.nn.functional.scaled_dot_product_attention(
                folded[None],
                key_1KmE,
                value_1KmE,
                attn_mask=block.mask.repeat(groups, 1),
                scale=scale,
            )[0]
            unfolded = attended.unflatten(1, (groups, -1)).permute(2, 0, 1, 3)
            result_THE[block.queries] = unfolded.flatten(1, 2)
        return result_THE

    def _plan_blocks(self, window: int, device: torch.device) -> Any:
        """Yield blocks of queries with the keys that any of them sees."""
        for number, (start, end) in enumerate(pairwise(self._borders)):
            for first in range(start, end, BLOCK):
                last = min(end, first + BLOCK)
                position = self._positions[number] - start
                query_n = torch.arange(first, last, device=device) + position
                oldest = position + first - window + 1 if window else None
                kept, positions = [], []
                for part in self._parts:
                    (at, count), begin = part.ranges_S[number], part.firsts_S[number]
                    skipped = 0 if oldest is None else min(count, max(0, oldest - begin))
                    kept.append(slice(at + skipped, at + count))
                    positions.append(torch.arange(begin + skipped, begin + count, device=device))
                skipped = 0 if oldest is None else max(0, oldest - self._positions[number])
                own = slice(min(start + skipped, first), last)
                positions.append(torch.arange(own.start, own.stop, device=device) + position)
                distance = query_n[:, None] - torch.cat(positions)
                mask = distance >= 0
                if window:
                    mask &= distance < window
                yield _Block(slice(first, last), own, kept, mask)


class _Ranges(NamedTuple):
    """Queries of neighbouring segments, and the keys that all of them see."""

    borders: Tensor
    """Of the queries, int32 [G + 1]."""
    starts: Tensor
    """First key of each range, int32 [G + 1]; the last is not used."""
    counts: Tensor
    """Keys of each range, int32 [G]."""
    longest_queries: int
    longest_keys: int


def _ranges(part: Part, borders: Sequence[int], device: torch.device) -> _Ranges:
    """Join neighbouring segments that see the same keys: the kernel has blocks of 128 queries."""
    numbers = range(len(part.ranges_S))
    groups = [list(g) for _, g in groupby(numbers, key=lambda number: part.ranges_S[number])]
    ranges = [part.ranges_S[group[0]] for group in groups]
    ends = [0, *(borders[group[-1] + 1] for group in groups)]

    def tensor(values: Sequence[int]) -> Tensor:
        on_host = torch.tensor(values, dtype=torch.int32, pin_memory=device.type == "cuda")
        return on_host.to(device, non_blocking=True)

    return _Ranges(
        tensor(ends),
        tensor([*(r.start for r in ranges), 0]),
        tensor([r.tokens for r in ranges]),
        max(b - a for a, b in pairwise(ends)),
        max((r.tokens for r in ranges), default=0),
    )


def attend_ranges(
    query_THE: Tensor,
    key_mKE: Tensor,
    value_mKE: Tensor,
    ranges: _Ranges,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend to a range of keys each. Return the result [T, H, E] and ln of the sum [H, T].

    The sum of an empty range is 0, its logarithm -inf. Ranges may overlap: the kernel reads where
    they begin from `cum_seq_k`, and their lengths from `seqused_k`.
    """
    result_THE, log_sum_HT = flash_kernel()(
        query_THE,
        key_mKE,
        value_mKE,
        ranges.borders,
        ranges.starts,
        ranges.longest_queries,
        ranges.longest_keys,
        0.0,
        causal,
        False,
        scale=scale,
        seqused_k=ranges.counts,
    )[:2]
    # The kernel returns +inf for a range without keys.
    return result_THE, log_sum_HT.masked_fill(log_sum_HT == torch.inf, -torch.inf)


def flash_kernel() -> Any:
    return torch.ops.aten._flash_attention_forward


class _Kind(NamedTuple):
    """What decides which kernel is run."""

    heads: int
    key_heads: int
    size: int
    dtype: torch.dtype
    device: torch.device


def _kind_of(query_THE: Tensor, key_TKE: Tensor) -> _Kind:
    _, heads, size = query_THE.shape
    return _Kind(heads, key_TKE.shape[1], size, query_THE.dtype, query_THE.device)


@lru_cache(maxsize=8)
def ranges_work(
    heads: int, key_heads: int, size: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Return whether the flash kernel gives the attention of ranges, compared in blocks.

    It is no public function of torch. If a version of it fails or computes otherwise, a line in the
    log says so, and queries are computed in blocks.
    """
    draw = torch.Generator().manual_seed(0)

    def drawn(tokens: int, of: int) -> Tensor:
        return torch.randn(tokens, of, size, generator=draw).to(device, dtype)

    # Segments after 40 and 9 kept tokens, and one after none.
    borders, kept = [0, 70, 75, 77], KeptKeys([60])
    ranges = [Range(3, 40), Range(51, 9), Range(0, 0)]
    query_THE, key_TKE, value_TKE = (drawn(77, of) for of in (heads, key_heads, key_heads))
    kept.layers.append((drawn(60, key_heads), drawn(60, key_heads)))
    part = Part(kept, ranges, [-r.tokens for r in ranges])
    borders_S = torch.tensor(borders, dtype=torch.int32, device=device)
    inputs = AttentionInputs(query_THE, key_TKE, value_TKE, borders_S, 128, size**-0.5, 0)
    attention = SplicedAttention(borders, [0, 0, 0], [part])
    try:
        by_ranges = attention.attend_by_ranges(inputs, kept.layers)
        in_blocks = attention.attend_in_blocks(inputs, kept.layers)
        off = (by_ranges.float() - in_blocks.float()).abs().max().item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch may raise any error
        log.warning("kept keys are attended to in blocks, slower: %s", line_of(error))
        return False
    if not off < LARGEST_DIFFERENCE:
        log.warning("kept keys are attended to in blocks, slower: the kernel differs by %.2g", off)
        return False
    return True
