"""The gated MLP on CUDA: act(x·Gᵀ) · (x·Uᵀ) in one kernel, then the model's own down projection.

Rows of G and U are interleaved in memory, so that a program has gate and value of a column in
neighbouring registers: the intermediate result, twice the MLP's width per token, is never written
to memory. The model's two weights become views of the interleaved one, so they take no additional
memory and keep their values.

Legend: T tokens, D hidden size, I width of the MLP.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.tools.tensor_descriptor import TensorDescriptor

ROWS, COLUMNS, DEPTH, GROUP = 128, 256, 64, 8

ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1}


@triton.jit
def _gated(
    states_TD,
    weight_2ID,
    result_TI,
    ACTIVATION: tl.constexpr,
    GROUP: tl.constexpr,
):
    # The arrays are descriptors, which know the shapes of arrays and tiles.
    log2e: tl.constexpr = 1.4426950408889634
    ROWS: tl.constexpr = states_TD.block_shape[0]
    DEPTH: tl.constexpr = states_TD.block_shape[1]
    COLUMNS: tl.constexpr = weight_2ID.block_shape[0]
    D = states_TD.shape[1]
    tiles_t = tl.cdiv(states_TD.shape[0], ROWS)
    tiles_i = tl.cdiv(weight_2ID.shape[0], COLUMNS)
    in_group = GROUP * tiles_i
    for tile in tl.range(tl.program_id(0), tiles_t * tiles_i, tl.num_programs(0), flatten=True):
        group = tile // in_group
        height = tl.minimum(tiles_t - group * GROUP, GROUP)
        at_t = group * GROUP + (tile % in_group) % height
        at_i = (tile % in_group) // height
        z = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for d in range(tl.cdiv(D, DEPTH)):
            a = states_TD.load([at_t * ROWS, d * DEPTH])
            b = weight_2ID.load([at_i * COLUMNS, d * DEPTH])
            z = tl.dot(a, b.T, z)
        gate, value = tl.split(tl.reshape(z, (ROWS, COLUMNS // 2, 2)))
        if ACTIVATION == 0:
            gate = gate / (1 + tl.exp2(-log2e * gate))
        else:
            # 0.5 x (1 + tanh y) = x·sigmoid(2y), y = sqrt(2/π)·(x + 0.044715 x³)
            y = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
            gate = gate / (1 + tl.exp2(-log2e * y))
        result_TI.store([at_t * ROWS, at_i * (COLUMNS // 2)], (gate * value).to(tl.bfloat16))


@torch.library.custom_op("entropylong::gated", mutates_args=())
def gated(states_TD: Tensor, weight_2ID: Tensor, activation: int) -> Tensor:
    """Return act(gate)·value, bfloat16 [T, I]; weight_2ID: rows of gate and value alternate."""
    tokens, width = len(states_TD), len(weight_2ID)
    result_TI = torch.empty(tokens, width // 2, device=states_TD.device, dtype=states_TD.dtype)
    tiles = triton.cdiv(tokens, ROWS) * triton.cdiv(width, COLUMNS)
    programs = torch.cuda.get_device_properties(states_TD.device).multi_processor_count
    _gated[(min(tiles, programs),)](
        TensorDescriptor.from_tensor(states_TD, [ROWS, DEPTH]),
        TensorDescriptor.from_tensor(weight_2ID, [COLUMNS, DEPTH]),
        TensorDescriptor.from_tensor(result_TI, [ROWS, COLUMNS // 2]),
        ACTIVATION=activation,
        GROUP=GROUP,
        num_warps=8,
        num_stages=3,
    )
    return result_TI


@gated.register_fake
def _(states_TD: Tensor, weight_2ID: Tensor, activation: int) -> Tensor:  # noqa: ARG001
    return states_TD.new_empty(states_TD.shape[0], weight_2ID.shape[0] // 2)


def fits(mlp: Any) -> bool:
    """Return whether this is a bfloat16 gated MLP without bias, on a Hopper GPU or later."""
    parts: list[Any] = [getattr(mlp, n, None) for n in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(p, nn.Linear) and p.bias is None for p in parts):
        return False
    weight = parts[0].weight
    return (
        weight.dtype == torch.bfloat16
        and weight.is_cuda
        and torch.cuda.get_device_capability(weight.device) >= (9, 0)
        and weight.shape == parts[1].weight.shape
        and weight.shape[1] % 8 == 0
        and weight.shape[0] % 8 == 0
        and _activation(mlp) is not None
    )


def _activation(mlp: Any) -> int | None:
    config = getattr(mlp, "config", None)
    name = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    return ACTIVATIONS.get(str(name))


class GatedMLP(nn.Module):
    """Replacement for `mlp` that shares its weights."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        gate, up = mlp.gate_proj.weight, mlp.up_proj.weight
        with torch.no_grad():
            both_2ID = torch.empty(
                2 * len(gate), gate.shape[1], device=gate.device, dtype=gate.dtype
            )
            both_2ID[0::2], both_2ID[1::2] = gate, up
            gate.data, up.data = both_2ID[0::2], both_2ID[1::2]
        self.weight_2ID = nn.Parameter(both_2ID, requires_grad=False)
        self.down_proj = mlp.down_proj
        activation = _activation(mlp)
        assert activation is not None
        self.activation = activation

    def forward(self, states_1TD: Tensor) -> Tensor:
        inner_TI = gated(states_1TD.flatten(0, 1), self.weight_2ID, self.activation)
        result_1TD: Tensor = self.down_proj(inner_TI[None])
        return result_1TD
