"""The decoder's layers: from concatenated token sequences to hidden states.

The model's own modules are used. During a pass some of them are replaced and restored afterwards,
so that other users of the model see it unchanged. In all passes:
- rotary embeddings that depend on the length of the sequence: `rotary.RotaryBySequence`.

In packed passes also, for speed:
- attention: `attention.packed`;
- the layer: compiled (CUDA), once for all layers of a kind;
- the gated MLP: matrix product, activation and gate in one kernel (CUDA, bfloat16);
- the last layer's MLP: computed for scored rows only, because nothing after it mixes tokens;
- for an approximate screen only: all linear layers in 8-bit floats (`float8_cuda.py`).

Legend: T tokens of a pack, R scored rows, D hidden size.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from entropylong_assets.stages.entropy import attention, rotary
from entropylong_assets.stages.entropy.network import decoder_of, layers_of
from entropylong_assets.stages.entropy.rotary import PassLengths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Replacement = tuple[nn.Module, str, nn.Module]
"""(parent, attribute, module to use instead)."""


class Trunk:
    """Runs the decoder of one model."""

    def __init__(
        self, hf_model: PreTrainedModel, compile_layers: bool, float8: bool = False
    ) -> None:
        """float8: compute all linear layers of the trunk in 8-bit floats, which is approximate."""
        self._hf_model = hf_model
        self._decoder = decoder_of(hf_model)
        self._layers = layers_of(hf_model)
        kinds = {type(layer) for layer in self._layers} if compile_layers else set()
        self.is_compiled = compile_layers
        self._compiled = {
            kind: torch.compile(_copy_of(kind.forward), dynamic=True) for kind in kinds
        }
        self._last_rows: OnRows | None = None
        self._rotary = [
            (parent, name, rotary.RotaryBySequence(module))
            for parent in hf_model.modules()
            for name, module in parent.named_children()
            if rotary.depends_on_length(module)
        ]
        self._replacements = self._make_replacements(float8)

    @property
    def replaced_modules(self) -> set[nn.Module]:
        """The model's own modules that no pass shares with another."""
        return {embedding.module for _, _, embedding in self._rotary}

    def hidden(self, ids_1T: Tensor, lengths: PassLengths) -> Tensor:
        """Return [T, D] of one sequence, computed with the model's own attention.

        Call it within `ready_single` only.
        """
        with rotary.lengths_of_pass(lengths):
            states_1TD: Tensor = self._decoder(input_ids=ids_1T, use_cache=False).last_hidden_state
        return states_1TD[0]

    def hidden_packed(
        self,
        ids_1T: Tensor,
        positions_1T: Tensor,
        borders_S: Tensor,
        lengths: PassLengths,
        rows_R: Tensor,
    ) -> Tensor:
        """Return [R, D] at `rows_R` of concatenated sequences. Call it within `ready_packed` only.

        positions_1T: position of each token in its own sequence. borders_S: int32 [S + 1].
        """
        if self._last_rows is not None:
            # The compiler makes further variants of a layer for sizes of 1; rows may repeat.
            self._last_rows.rows = rows_R.repeat(2) if len(rows_R) == 1 else rows_R
        # Rounded up, so that layers are not compiled again for every pack.
        longest = 1 << (max(lengths.computed) - 1).bit_length()
        with rotary.lengths_of_pass(lengths):
            states_1TD: Tensor = self._decoder(
                input_ids=ids_1T,
                position_ids=positions_1T,
                use_cache=False,
                cu_seq_lens_q=borders_S,
                cu_seq_lens_k=borders_S,
                max_length_q=longest,
                max_length_k=longest,
            ).last_hidden_state
        return states_1TD[0, rows_R]

    @contextmanager
    def ready_single(self) -> Iterator[None]:
        """Let the model run one sequence per pass, which may end before the sequence does."""
        with _replaced(self._rotary):
            yield

    @contextmanager
    def ready_packed(self) -> Iterator[None]:
        """Let the model run packed, with its faster modules."""
        with (
            attention.packed(self._hf_model),
            _replaced([*self._rotary, *self._replacements]),
            self._compiled_layers(),
        ):
            yield

    @contextmanager
    def _compiled_layers(self) -> Iterator[None]:
        for layer in self._layers:
            if type(layer) in self._compiled:
                layer.forward = self._compiled[type(layer)].__get__(layer)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)

    def _make_replacements(self, float8: bool) -> list[Replacement]:
        replacements: list[Replacement] = []
        for layer in self._layers:
            if float8:
                from entropylong_assets.stages.entropy import float8_cuda

                replacements += float8_cuda.replacements(layer)
            else:
                fused = _fused_mlp(getattr(layer, "mlp", None))
                replacements += [(layer, "mlp", fused)] if fused is not None else []
        if self._layers and isinstance(getattr(self._layers[-1], "mlp", None), nn.Module):
            last = self._layers[-1]
            kind = OnRows if self.is_compiled else OnRowsOfThread
            of_last = [x for parent, name, x in replacements if parent is last and name == "mlp"]
            self._last_rows = kind(*of_last or [last.mlp])
            replacements = [x for x in replacements if x[0] is not last or x[1] != "mlp"]
            replacements.append((last, "mlp", self._last_rows))
        return replacements


@contextmanager
def _replaced(replacements: Sequence[Replacement]) -> Iterator[None]:
    before = [(parent, name, getattr(parent, name)) for parent, name, _ in replacements]
    for parent, name, module in replacements:
        setattr(parent, name, module)
    try:
        yield
    finally:
        for parent, name, own in before:
            setattr(parent, name, own)


def _copy_of(function: Any) -> Any:
    """Return the same function with its own copy of the code.

    The compiler caches at most eight variants per code object, and runs further ones uncompiled.
    Engines of several models, dtypes or precisions in one process must not share that cache.
    """
    own = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own


class OnRows(nn.Module):
    """Applies a token-wise module to some rows; the others are zeros."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.rows: Tensor | None = None

    def forward(self, states_1TD: Tensor) -> Tensor:
        assert self.rows is not None
        result_1RD = self.module(states_1TD[:, self.rows])
        return torch.zeros_like(states_1TD).index_copy(1, self.rows, result_1RD)


class OnRowsOfThread(OnRows):
    """The same for passes in several threads at once, each with its own rows."""

    def __init__(self, module: nn.Module) -> None:
        self._of_thread = threading.local()
        super().__init__(module)

    @property
    def rows(self) -> Tensor | None:
        return getattr(self._of_thread, "rows", None)

    @rows.setter
    def rows(self, rows_R: Tensor | None) -> None:
        self._of_thread.rows = rows_R


def _fused_mlp(mlp: Any) -> nn.Module | None:
    """Return the fused replacement of a gated MLP, or None if there is none."""
    gate = getattr(mlp, "gate_proj", None)
    if not isinstance(gate, nn.Linear) or not gate.weight.is_cuda:
        return None
    try:
        from entropylong_assets.stages.entropy import gated_cuda
    except ImportError:  # no Triton
        return None
    return gated_cuda.GatedMLP(mlp) if gated_cuda.fits(mlp) else None
