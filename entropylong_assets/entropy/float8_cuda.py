"""Linear layers in 8-bit floats (e4m3) on CUDA, for an approximate screen: twice bfloat16's rate.

Weights have a scale for each output, activations one for each token, so that no token's rounding
depends on its neighbours. Sums are taken in the tensor cores' fast accumulator.

Legend: T tokens, D inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def is_supported(device: torch.device) -> bool:
    """Whether the GPU multiplies 8-bit floats (compute capability 8.9 and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def fits(module: Any) -> bool:
    """Whether this is a bfloat16 Linear of sizes that the matrix product takes."""
    return (
        isinstance(module, nn.Linear)
        and module.weight.dtype == torch.bfloat16
        and all(size % 16 == 0 for size in module.weight.shape)
    )


class Float8Linear(nn.Module):
    """Several Linears over the same input as one, with their outputs side by side."""

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
        self.bias = None if biases[0] is None else torch.cat(biases)

    def forward(self, states_1TD: Tensor) -> Tensor:
        states_TD, scale_T1 = _quantised(states_1TD.flatten(0, -2))
        result_TN = torch._scaled_mm(
            states_TD,
            self.weight_ND.t(),
            scale_a=scale_T1,
            scale_b=self.scale_1N,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return result_TN.unflatten(0, states_1TD.shape[:-1])


def _quantised(rows_TD: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [T, D], and the float32 scale [T, 1] of each row."""
    rows_TD = rows_TD.float()
    scale_T1 = rows_TD.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (rows_TD / scale_T1).to(torch.float8_e4m3fn), scale_T1


class Float8GatedMLP(nn.Module):
    """act(gate)·up, then down: gate and up as one product."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up = Float8Linear([mlp.gate_proj, mlp.up_proj])
        self.down = Float8Linear([mlp.down_proj])
        self.act_fn = mlp.act_fn

    def forward(self, states_1TD: Tensor) -> Tensor:
        gate, up = self.gate_up(states_1TD).chunk(2, -1)
        result_1TD: Tensor = self.down(self.act_fn(gate) * up)
        return result_1TD


def faster_equals(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """What to exchange in a decoder layer: (parent, attribute, its 8-bit equal)."""
    exchanged: list[tuple[nn.Module, str, nn.Module]] = []
    mlp: Any = getattr(layer, "mlp", None)
    gated = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    is_gated = all(map(fits, gated)) and hasattr(mlp, "act_fn")
    if is_gated:
        exchanged.append((layer, "mlp", Float8GatedMLP(mlp)))
    for name, module in layer.named_modules():
        if fits(module) and not (is_gated and name.startswith("mlp.")):
            parent, _, attribute = name.rpartition(".")
            exchanged.append((layer.get_submodule(parent), attribute, Float8Linear([module])))
    return exchanged
