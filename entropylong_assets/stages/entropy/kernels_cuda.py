"""The fused LM head for CUDA: matrix product and entropy in one kernel, with logits in registers.

Legend: N positions, V vocabulary, D hidden size, P tiles of the vocabulary; z logits.

A persistent grid iterates over tiles of [N, V], in groups whose rows and columns fit into the L2
cache together. Per tile and row it writes three numbers:
    m = max z,  s = Σ 2^(z-m),  u = Σ 2^(z-m)·(z-m)        z in units of ln 2
A second kernel combines the P triples of each position. All sums are float32; products of bfloat16
are exact in float32. Memory: 12·N·P bytes, in slices of N that keep it under 64 MiB.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

if TYPE_CHECKING:
    from torch import Tensor

    from entropylong_assets.stages.entropy.kernels import Head

PARTIAL_BYTES = 64 << 20
JOINED_ROWS = tl.constexpr(16)
JOINED_DEPTH = tl.constexpr(128)


class Tiling(NamedTuple):
    """Shape of the tile of one program."""

    rows: int = 128
    columns: int = 256
    depth: int = 64
    group: int = 8
    warps: int = 8
    stages: int = 4
    per_sm: int = 1
    flatten: bool = True


@triton.jit
def _tiles(
    hidden_ND,
    weight_VD,
    bias_V,
    cap,
    partial_3PN,
    stride,
    GROUP: tl.constexpr,
    FLATTEN: tl.constexpr,
):
    # hidden_ND, weight_VD: descriptors, which know the shapes of arrays and tiles.
    log2e: tl.constexpr = 1.4426950408889634
    ROWS: tl.constexpr = hidden_ND.block_shape[0]
    DEPTH: tl.constexpr = hidden_ND.block_shape[1]
    COLUMNS: tl.constexpr = weight_VD.block_shape[0]
    N = hidden_ND.shape[0]
    D = hidden_ND.shape[1]
    V = weight_VD.shape[0]
    tiles_n = tl.cdiv(N, ROWS)
    tiles_v = tl.cdiv(V, COLUMNS)
    in_group = GROUP * tiles_v
    for tile in tl.range(tl.program_id(0), tiles_n * tiles_v, tl.num_programs(0), flatten=FLATTEN):
        group = tile // in_group
        height = tl.minimum(tiles_n - group * GROUP, GROUP)
        at_n = group * GROUP + (tile % in_group) % height
        at_v = (tile % in_group) // height
        z = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for d in range(tl.cdiv(D, DEPTH)):
            a = hidden_ND.load([at_n * ROWS, d * DEPTH])
            b = weight_VD.load([at_v * COLUMNS, d * DEPTH])
            z = tl.dot(a, b.T, z)
        columns = at_v * COLUMNS + tl.arange(0, COLUMNS)
        if bias_V is not None:
            z += tl.load(bias_V + columns, mask=columns < V, other=0.0).to(tl.float32)[None, :]
        if cap is not None:
            # c·tanh(z / c), by exp2
            z = cap - 2 * cap / (1 + tl.exp2(z * (2 * log2e / cap)))
        z = z * log2e
        if V % COLUMNS != 0:
            z = tl.where(columns[None, :] < V, z, -1e30)
        m = tl.max(z, 1)
        z = z - m[:, None]
        p = tl.exp2(z)
        s = tl.sum(p, 1)
        u = tl.sum(p * z, 1)
        rows = at_n * ROWS + tl.arange(0, ROWS)
        out = partial_3PN + at_v * stride + rows
        tl.store(out, m, mask=rows < N)
        tl.store(out + tiles_v * stride, s, mask=rows < N)
        tl.store(out + 2 * tiles_v * stride, u, mask=rows < N)


@triton.jit
def _join(
    hidden_ND,
    weight_VD,
    bias_V,
    cap,
    targets_N,
    partial_3PN,
    result_2N,
    sizes,
):
    # sizes: N, D, P, and the strides of `partial_3PN` and `result_2N` between their rows.
    log2e: tl.constexpr = 1.4426950408889634
    ROWS: tl.constexpr = JOINED_ROWS
    DEPTH: tl.constexpr = JOINED_DEPTH
    N = sizes[0]
    D = sizes[1]
    P = sizes[2]
    stride = sizes[3]
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < N
    target = tl.load(targets_N + rows, mask=inside, other=0)
    dots = tl.zeros((ROWS, DEPTH), dtype=tl.float32)
    for d in range(0, D, DEPTH):
        at = d + tl.arange(0, DEPTH)
        both = inside[:, None] & (at < D)[None, :]
        a = tl.load(hidden_ND + rows.to(tl.int64)[:, None] * D + at[None, :], mask=both, other=0.0)
        b = tl.load(weight_VD + target[:, None] * D + at[None, :], mask=both, other=0.0)
        dots += a.to(tl.float32) * b.to(tl.float32)
    z = tl.sum(dots, 1)
    if bias_V is not None:
        z += tl.load(bias_V + target, mask=inside, other=0.0).to(tl.float32)
    if cap is not None:
        z = cap - 2 * cap / (1 + tl.exp2(z * (2 * log2e / cap)))
    z = z * log2e

    m = tl.full((ROWS,), -1e30, dtype=tl.float32)
    s = tl.zeros((ROWS,), dtype=tl.float32)
    u = tl.zeros((ROWS,), dtype=tl.float32)
    for p in range(P):
        at_p = partial_3PN + p * stride + rows
        m_p = tl.load(at_p, mask=inside, other=-1e30)
        s_p = tl.load(at_p + P * stride, mask=inside, other=1.0)
        u_p = tl.load(at_p + 2 * P * stride, mask=inside, other=0.0)
        top = tl.maximum(m, m_p)
        old, new = tl.exp2(m - top), tl.exp2(m_p - top)
        u = old * (u + s * (m - top)) + new * (u_p + s_p * (m_p - top))
        s = old * s + new * s_p
        m = top
    log_s = tl.log2(s)
    tl.store(result_2N + rows, (log_s - u / s) / log2e, mask=inside)
    tl.store(result_2N + sizes[4] + rows, (log_s + m - z) / log2e, mask=inside)


def fits(hidden_ND: Tensor, head: Head) -> bool:
    """Return whether these are bfloat16 of a supported width, on a Hopper GPU or later."""
    both = (hidden_ND, head.weight_VD)
    return all(
        x.dtype == torch.bfloat16 and x.shape[1] % 8 == 0 for x in both
    ) and torch.cuda.get_device_capability(hidden_ND.device) >= (9, 0)


def entropy_and_surprisal(
    hidden_ND: Tensor, targets_N: Tensor, head: Head, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor]:
    """Return H and -ln p(target), float32 [N], nats. hidden_ND, head's weight: bfloat16."""
    tiling = tiling or Tiling()
    hidden_ND = hidden_ND.contiguous()
    weight_VD = head.weight_VD.contiguous()
    n, v = len(hidden_ND), len(weight_VD)
    tiles_v = triton.cdiv(v, tiling.columns)
    result_2N = torch.empty(2, n, device=hidden_ND.device, dtype=torch.float32)
    # Whole tiles of rows, as many as the memory for partial results allows.
    step = max(1, PARTIAL_BYTES // (12 * tiles_v) // tiling.rows) * tiling.rows
    partial_3PN = torch.empty(
        3, tiles_v, min(step, n), device=hidden_ND.device, dtype=torch.float32
    )
    programs = (
        tiling.per_sm * torch.cuda.get_device_properties(hidden_ND.device).multi_processor_count
    )
    weight = TensorDescriptor.from_tensor(weight_VD, [tiling.columns, tiling.depth])
    cap = None if head.softcap is None else float(head.softcap)
    for start in range(0, n, step):
        part = slice(start, min(n, start + step))
        hidden = hidden_ND[part]
        rows, depth = hidden.shape
        tiles = triton.cdiv(rows, tiling.rows) * tiles_v
        _tiles[(min(programs, tiles),)](
            TensorDescriptor.from_tensor(hidden, [tiling.rows, tiling.depth]),
            weight,
            head.bias_V,
            cap,
            partial_3PN,
            partial_3PN.shape[2],
            GROUP=tiling.group,
            FLATTEN=tiling.flatten,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
        _join[(triton.cdiv(rows, JOINED_ROWS.value),)](
            hidden,
            weight_VD,
            head.bias_V,
            cap,
            targets_N[part],
            partial_3PN,
            result_2N[:, part],
            (rows, depth, tiles_v, partial_3PN.shape[2], n),
            num_warps=4,
        )
    return result_2N[0], result_2N[1]
