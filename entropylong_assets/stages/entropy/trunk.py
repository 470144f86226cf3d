"""The decoder's layers, from tokens laid end to end to hidden states, at the hardware's speed.

The model's own modules do the work. For the time of a packed pass some of them are exchanged for
faster equals, and put back afterwards, so that whoever else holds the model sees it unchanged:
- attention: `attention.packed`;
- the layer: compiled (CUDA), once for all layers of a kind;
- the gated MLP: matrix product, activation and gate in one kernel (CUDA, bfloat16);
- the last layer's MLP: on scored rows only, because nothing after it mixes tokens;
- for an approximate screen only: all linear layers in 8-bit floats (`float8_cuda.py`).

Legend: T tokens of a pack, R rows that are scored, D hidden size.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from entropylong_assets.stages.entropy import attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Exchange = tuple[nn.Module, str, nn.Module]
"""(parent, attribute, its faster equal)."""


class Trunk:
    """Runs the decoder of one model."""

    def __init__(
        self, hf_model: PreTrainedModel, compile_layers: bool, float8: bool = False
    ) -> None:
        """float8: approximate, all linear layers of the layers in 8-bit floats."""
        self._hf_model = hf_model
        self._decoder = hf_model.get_decoder()
        self._layers: list[Any] = list(getattr(self._decoder, "layers", ()))
        kinds = {type(layer) for layer in self._layers} if compile_layers else set()
        self.is_compiled = compile_layers
        self._compiled = {kind: torch.compile(_own(kind.forward), dynamic=True) for kind in kinds}
        self._last_rows: OnRows | None = None
        self._exchanges = self._faster_equals(float8)

    def hidden(self, ids_1T: Tensor) -> Tensor:
        """[T, D] of one sequence, by the unchanged model."""
        states_1TD: Tensor = self._decoder(input_ids=ids_1T, use_cache=False).last_hidden_state
        return states_1TD[0]

    def hidden_packed(
        self, ids_1T: Tensor, positions_1T: Tensor, borders_S: Tensor, longest: int, rows_R: Tensor
    ) -> Tensor:
        """[R, D] at `rows_R` of sequences laid end to end; only inside `ready`.

        positions_1T: each token's place in its own sequence. borders_S: int32 [S + 1]. longest:
        tokens of the longest sequence, or more.
        """
        if self._last_rows is not None:
            self._last_rows.rows = rows_R
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
    def ready(self) -> Iterator[None]:
        """Inside, the model is exchanged for its faster self."""
        with attention.packed(self._hf_model), self._exchanged():
            yield

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        before = [(parent, name, getattr(parent, name)) for parent, name, _ in self._exchanges]
        for parent, name, faster in self._exchanges:
            setattr(parent, name, faster)
        for layer in self._layers:
            if type(layer) in self._compiled:
                layer.forward = self._compiled[type(layer)].__get__(layer)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)
            for parent, name, own in before:
                setattr(parent, name, own)

    def _faster_equals(self, float8: bool) -> list[Exchange]:
        exchanges: list[Exchange] = []
        for layer in self._layers:
            if float8:
                from entropylong_assets.stages.entropy import float8_cuda

                exchanges += float8_cuda.faster_equals(layer)
            else:
                fused = _fused_mlp(getattr(layer, "mlp", None))
                exchanges += [(layer, "mlp", fused)] if fused is not None else []
        if self._layers and isinstance(getattr(self._layers[-1], "mlp", None), nn.Module):
            last = self._layers[-1]
            kind = OnRows if self.is_compiled else OnRowsOfThread
            of_last = [x for parent, name, x in exchanges if parent is last and name == "mlp"]
            self._last_rows = kind(*of_last or [last.mlp])
            exchanges = [x for x in exchanges if x[0] is not last or x[1] != "mlp"]
            exchanges.append((last, "mlp", self._last_rows))
        return exchanges


def _own(function: Any) -> Any:
    """The same function with code of its own.

    The compiler keeps what it compiled with a function's code, eight variants at most, and runs
    uncompiled beyond. Engines of several models, dtypes or precisions in one process must not
    share that place.
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
    """A module that maps each token by itself, run on some rows; the others come out as zeros."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.rows: Tensor | None = None

    def forward(self, states_1TD: Tensor) -> Tensor:
        assert self.rows is not None
        result_1RD = self.module(states_1TD[:, self.rows])
        return torch.zeros_like(states_1TD).index_copy(1, self.rows, result_1RD)


class OnRowsOfThread(OnRows):
    """The same for passes that run in several threads at once, each with its own rows."""

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
    """A fused equal of a gated MLP, or nothing where there is none for it."""
    gate = getattr(mlp, "gate_proj", None)
    if not isinstance(gate, nn.Linear) or not gate.weight.is_cuda:
        return None
    try:
        from entropylong_assets.stages.entropy import gated_cuda
    except ImportError:  # no Triton
        return None
    return gated_cuda.GatedMLP(mlp) if gated_cuda.fits(mlp) else None
