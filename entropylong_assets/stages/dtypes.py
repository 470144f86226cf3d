"""The type that a model computes in, as the settings name it."""

from __future__ import annotations

from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16"]
"""`auto`: bfloat16 on CUDA, float32 elsewhere."""


def resolve_dtype(dtype: str, device: str) -> str:
    """Return the name of the torch type, with `auto` resolved. device: e.g. `cuda:1`."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else "float32"
