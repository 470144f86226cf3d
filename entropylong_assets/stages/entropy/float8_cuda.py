"""Linear layers in 8-bit floats (e4m3) on CUDA, for an approximate screen: twice bfloat16's speed.

Weights have a scale per output, activations a scale per token, so that the rounding of a token does
not depend on its neighbours. Sums use the tensor cores' fast accumulator.

Legend: T tokens, D inputs, N outputs.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from transformers.activations import SiLUActivation

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def fits(module: Any) -> bool:
    """Return whether this is a bfloat16 Linear of a size that the matrix product supports."""
    return (
        isinstance(module, nn.Linear)
        and module.weight.dtype == torch.bfloat16
        and all(size % 16 == 0 for size in module.weight.shape)
    )


class Float8Linear(nn.Module):
    """Several Linears over the same input as one, with concatenated outputs."""

    weight_ND: Tensor
    scale_1N: Tensor

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        with torch.no_grad():
            parts = [_quantised(linear.weight) for linear in linears]
        self.register_buffer("weight_ND", torch.cat([weight for weight, _ in parts]))
        self.register_buffer("scale_1N", torch.cat([scale for _, scale in parts]).T.contiguous())
        biases = [linear.bias for linear in linears]
        assert len({bias is None for bias in biases}) == 1
        self.bias = None if biases[0] is None else torch.cat([bias.data for bias in biases])

    def forward(self, states_1TD: Tensor) -> Tensor:
        states_TD, scale_T1 = _quantised(states_1TD.flatten(0, -2))
        return self.of_quantised(states_TD, scale_T1).unflatten(0, states_1TD.shape[:-1])

    def of_quantised(self, states_TD: Tensor, scale_T1: Tensor) -> Tensor:
        """Return bfloat16 [T, N] for inputs in e4m3 with a scale per token."""
        result_TN: Tensor = torch._scaled_mm(
            states_TD,
            self.weight_ND.t(),
            scale_a=scale_T1,
            scale_b=self.scale_1N,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return result_TN


def _quantised(rows_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Return e4m3 [T, D], and the float32 scale [T, 1] of each row."""
    rows_TD = rows_TD.float()
    scale_T1 = rows_TD.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (rows_TD / scale_T1).to(torch.float8_e4m3fn), scale_T1


@triton.jit
def _gate_rows(both, result, scales, width, LARGEST: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, WIDTH)
    inside = at < width
    gate = tl.load(both + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(both + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    inner = value * gate / (1 + tl.exp2(-1.4426950408889634 * gate))
    scale = tl.maximum(tl.max(tl.abs(inner), 0), 1e-12) / LARGEST
    tl.store(result + row * width + at, (inner / scale).to(tl.float8e4nv), mask=inside)
    tl.store(scales + row, scale)


# One kernel reads the input once; compiled reduction and rounding would read it twice.
@torch.library.custom_op("entropylong::gate_rows", mutates_args=())
def gate_rows(both_T2I: Tensor) -> tuple[Tensor, Tensor]:
    """Return silu(gate)·value of each row in e4m3 [T, I], and its float32 scale [T, 1]."""
    tokens, width = both_T2I.shape[0], both_T2I.shape[1] // 2
    result_TI = both_T2I.new_empty(tokens, width, dtype=torch.float8_e4m3fn)
    scale_T1 = both_T2I.new_empty(tokens, 1, dtype=torch.float32)
    _gate_rows[(tokens,)](
        both_T2I,
        result_TI,
        scale_T1,
        width,
        LARGEST=LARGEST,
        WIDTH=triton.next_power_of_2(width),
        num_warps=16 if width > 4096 else 4,
    )
    return result_TI, scale_T1


@gate_rows.register_fake
def _(both_T2I: Tensor) -> tuple[Tensor, Tensor]:
    tokens, width = both_T2I.shape[0], both_T2I.shape[1] // 2
    return (
        both_T2I.new_empty(tokens, width, dtype=torch.float8_e4m3fn),
        both_T2I.new_empty(tokens, 1, dtype=torch.float32),
    )


class Float8GatedMLP(nn.Module):
    """act(gate)·up, then down; gate and up are one matrix product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up = Float8Linear([mlp.gate_proj, mlp.up_proj])
        self.down = Float8Linear([mlp.down_proj])
        self.act_fn = mlp.act_fn
        self.is_silu = isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)

    def forward(self, states_1TD: Tensor) -> Tensor:
        both_1T2I = self.gate_up(states_1TD)
        if self.is_silu:
            inner_TI, scale_T1 = gate_rows(both_1T2I.flatten(0, -2))
            return self.down.of_quantised(inner_TI, scale_T1).unflatten(0, states_1TD.shape[:-1])
        gate, up = both_1T2I.chunk(2, -1)
        result_1TD: Tensor = self.down(self.act_fn(gate) * up)
        return result_1TD


def replacements(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return the 8-bit replacements of a decoder layer: (parent, attribute, replacement)."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    mlp: Any = getattr(layer, "mlp", None)
    gated = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    is_gated = all(map(fits, gated)) and hasattr(mlp, "act_fn")
    if is_gated:
        replaced.append((layer, "mlp", Float8GatedMLP(mlp)))
    for name, module in layer.named_modules():
        if fits(module) and not (is_gated and name.startswith("mlp.")):
            parent, _, attribute = name.rpartition(".")
            replaced.append((layer.get_submodule(parent), attribute, Float8Linear([module])))
    return replaced
