"""Parts and state of a loaded network of transformers, of any class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
"""Fields of configs that hold the maximum length of a sequence, by preference."""


def decoder_of(hf_model: PreTrainedModel) -> nn.Module:
    """Return the part that makes hidden states from tokens: the model without its LM head."""
    decoder: nn.Module = hf_model.get_decoder()
    # The rule of transformers is a guess by names: it may return the model itself, or its LM head.
    if decoder is hf_model or decoder is hf_model.get_output_embeddings():
        return getattr(hf_model, "model", hf_model.base_model)
    return decoder


def field_of(config: Any, *names: str) -> int:
    """Return the first of these fields of a config that holds a number above 0, or 0 if none does.

    Some configs have a value per layer, and raise their own error if a single value is read.
    """
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception:  # noqa: S112
            continue
        if isinstance(value, int) and value > 0:
            return value
    return 0


def layers_of(hf_model: PreTrainedModel) -> list[Any]:
    """Return the layers of the decoder, or nothing if they are not in a list named `layers`."""
    return list(getattr(decoder_of(hf_model), "layers", ()))


def longest_sequence(hf_model: PreTrainedModel, max_forward_tokens: int) -> int:
    """Return the maximum length of a sequence (tokens).

    That is the least of `max_forward_tokens`, the length that the config names, if it names one,
    and the rows of a table of learned positions. Some models reserve rows of it (RoBERTa).
    """
    from torch import nn

    config = hf_model.config.get_text_config(decoder=True)
    limits = [max_forward_tokens]
    if limit := field_of(config, *_LENGTH_FIELDS):
        limits.append(limit)
    for name, module in decoder_of(hf_model).named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and last in _POSITION_TABLES:
            limits.append(module.num_embeddings - _reserved_rows(module))
    return min(limits)


def has_rotary_positions(hf_model: PreTrainedModel) -> bool:
    """Return whether positions enter by rotary embeddings only, as far as the modules show."""
    from torch import nn

    modules = list(decoder_of(hf_model).named_modules())
    is_rotary = any("inv_freq" in name for _, m in modules for name, _ in m.named_buffers())
    return is_rotary and not any(
        isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES
        for name, module in modules
    )


_POSITION_TABLES = frozenset({"position_embeddings", "embed_positions", "wpe", "positions_embed"})


def _reserved_rows(table: nn.Embedding) -> int:
    padding = table.padding_idx
    return int(getattr(table, "offset", 0)) if padding is None else padding + 1


State = dict[tuple[str, str], Any]


def state_of(hf_model: nn.Module, except_modules: set[nn.Module]) -> State:
    """Return what a pass could change in the modules: attributes, buffers, and their versions.

    Modules whose state changes can't compute several passes at once.
    """
    state: State = {}
    for name, module in hf_model.named_modules():
        if module in except_modules:
            continue
        for key, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
            if key not in ("_parameters", "_buffers", "_modules"):
                is_tensor = hasattr(value, "is_inference")
                version = value._version if is_tensor and not value.is_inference() else None
                state[name, key] = (value, version)
    return state


def has_changed(before: State, after: State) -> bool:
    """Return whether a pass between the two has replaced or overwritten anything."""
    return before.keys() != after.keys() or any(
        before[key][1] != version or before[key][0] is not value
        for key, (value, version) in after.items()
    )


@contextmanager
def first_layers(hf_model: PreTrainedModel) -> Iterator[None]:
    """Keep the model's first layers only, at least two and one of every kind.

    Long probes are affordable then, and every kind of layer still sees them.
    """
    from torch import nn

    decoder = decoder_of(hf_model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        yield
        return
    kinds = [_kind_of(layer) for layer in layers]
    count = max(2, max(kinds.index(kind) for kind in kinds) + 1)
    decoder.layers = layers[:count]
    try:
        yield
    finally:
        decoder.layers = layers


def _kind_of(layer: nn.Module) -> str:
    """Return a text that is equal for layers of equal structure and options."""
    return repr(
        [
            (name, type(module).__name__, key, value)
            for name, module in layer.named_modules()
            for key, value in sorted(vars(module).items())
            if isinstance(value, bool | int | str | type(None))
            and not key.endswith(("idx", "index", "layer_id", "layer_number"))
        ]
    )
