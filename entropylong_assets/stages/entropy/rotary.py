"""Rotary embeddings that depend on the length of the whole sequence.

`longrope` (Phi-3, PhiMoE) has two sets of factors and uses the long one if the sequence is longer
than `original_max_position_embeddings`; `dynamic` changes its base with the length beyond
`max_position_embeddings`. Transformers takes the highest position of a pass as its length, writes
the choice into a buffer that all passes share, and `dynamic` also depends on earlier passes.

Here each sequence gets the factors of its own whole length, as if it were alone in the first pass
of a newly loaded model. That holds for concatenated sequences, for passes that end before the
sequence does, and for passes in several threads.

Legend: T tokens of a pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

FIXED_TYPES = frozenset({"default", "linear", "llama3", "proportional", "yarn"})
"""Types of rotary embeddings that depend on each token's own position only."""


class PassLengths(NamedTuple):
    """Lengths of the sequences of one pass (tokens)."""

    computed: Sequence[int]
    """Tokens of each sequence in the pass."""
    whole: Sequence[int]
    """Tokens of each sequence as requested: at least as many."""


class _OfThread(threading.local):
    lengths: PassLengths | None = None


_of_thread = _OfThread()


@contextmanager
def lengths_of_pass(lengths: PassLengths) -> Iterator[None]:
    """Let the rotary embeddings of passes in this thread know the lengths of their sequences."""
    _of_thread.lengths = lengths
    try:
        yield
    finally:
        _of_thread.lengths = None


class RotaryBySequence(nn.Module):
    """Replaces a rotary embedding that depends on the length of the sequence.

    A lock protects the buffers of the model's own module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._lock = threading.Lock()

    @torch.compiler.disable
    def forward(self, states: Tensor, position_ids: Tensor, *args: Any, **options: Any) -> Any:
        """position_ids: [..., T], from 0 in each sequence. Tensors of the result: [..., T, E]."""
        lengths = _of_thread.lengths
        assert lengths is not None, "call it within `lengths_of_pass`"
        borders = accumulate(lengths.computed, initial=0)
        parts = []
        for (start, end), whole in zip(pairwise(borders), lengths.whole, strict=True):
            own = position_ids[..., start:end]
            last = own.new_full((*own.shape[:-1], 1), whole - 1)
            with self._lock:
                forget(self.module)
                result = self.module(states, torch.cat([own, last], -1), *args, **options)
            parts.append(_each(lambda table: table[..., :-1, :], result))
        return _joined(parts)


def _each(change: Any, result: Any) -> Any:
    return change(result) if isinstance(result, Tensor) else type(result)(map(change, result))


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts), dim=-2)
    return type(parts[0])(torch.cat(tables, dim=-2) for tables in zip(*parts, strict=True))


def depends_on_length(module: nn.Module) -> bool:
    """Return whether this is a rotary embedding of a type that may depend on the length."""
    kinds = getattr(module, "rope_type", None)
    types = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any(isinstance(kind, str) and kind not in FIXED_TYPES for kind in types)


def forget(module: nn.Module) -> None:
    """Undo what earlier passes changed in a rotary embedding of transformers."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        if name.endswith("original_inv_freq"):
            prefix = name.removesuffix("original_inv_freq")
            cached = f"{prefix}max_seq_len_cached"
            if hasattr(module, cached) and hasattr(module, "original_max_seq_len"):
                setattr(module, cached, module.original_max_seq_len)
                with torch.inference_mode(False):  # others may use the model outside it
                    module.register_buffer(f"{prefix}inv_freq", buffer.clone(), persistent=False)


_found: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()


def forget_earlier_passes(hf_model: nn.Module) -> None:
    """Undo what earlier passes changed in the rotary embeddings of the model."""
    if hf_model not in _found:
        _found[hf_model] = [m for m in hf_model.modules() if depends_on_length(m)]
    for module in _found[hf_model]:
        forget(module)
