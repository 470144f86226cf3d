"""Loading a sentence transformer, or refusing it in one line."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from entropylong_assets.stages.dtypes import Dtype, resolve_dtype
from entropylong_assets.stages.embeddings.prompts import read_config
from entropylong_assets.stages.embeddings.sides import (
    input_modules,
    read_special_tokens_as_text,
)
from entropylong_assets.stages.embeddings.windows import fit_window, is_bare
from entropylong_assets.stages.model_files import ModelError, ModelFiles, locate, refusal
from entropylong_assets.stages.progress import announce

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_NOT_DENSE = {
    "SparseEncoder": "a sparse encoder",
    "CrossEncoder": "a cross-encoder, which scores pairs of texts",
    "MultiVectorEncoder": "a multi-vector (late interaction) model",
}
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


class Loaded(NamedTuple):
    """A model in memory and what its files say."""

    model: SentenceTransformer
    files: ModelFiles
    input_modules: list[Any]
    """The modules that take texts; several in an asymmetric model."""
    notes: tuple[str, ...]


def load_model(
    reference: str,
    trust_remote_code: bool,
    device: str,
    dtype: Dtype,
    prompts: tuple[str, ...] = (),
) -> Loaded:
    """Load a model; a second call in the same process returns the same weights.

    prompts: texts that will be put before others; they keep their special tokens. Raises ModelError
    if it can't be loaded or is no dense embedder of texts.
    """
    placed = None if device == "auto" else device
    return _load(reference, trust_remote_code, placed, dtype, prompts)


@lru_cache(maxsize=2)
def _load(
    reference: str,
    trust_remote_code: bool,
    device: str | None,
    dtype: Dtype,
    prompts: tuple[str, ...],
) -> Loaded:
    announce(f"loading the model {reference} …")
    import torch
    from sentence_transformers import SentenceTransformer

    files = locate(reference, trust_remote_code)
    try:
        _refuse_other_kinds(files)
        model = SentenceTransformer(
            str(files.folder),
            device=device,
            trust_remote_code=trust_remote_code,
            model_kwargs={"use_safetensors": True},
        )
        model.to(getattr(torch, resolve_dtype(dtype, model.device.type)))
        modules = input_modules(model)
        for module in modules:
            _refuse_empty_tokenizer(module)
            read_special_tokens_as_text(module, prompts)
        notes = [note for module in modules if (note := fit_window(module))]
        notes += [note for note in (_random_weights(files.folder, modules),) if note]
    except ModelError as error:
        raise ModelError(f"embedding.model {reference}: {error}") from None
    except Exception as error:  # every model class, and code of a model's own, raises its own
        otherwise = "can't be loaded as a sentence transformer ({reason}); " + _remedy(files)
        raise refusal("embedding", reference, error, otherwise) from error
    return Loaded(model, files, modules, tuple(notes))


def _refuse_empty_tokenizer(module: Any) -> None:
    """Refuse a model without its tokenizer's files: the library makes one of special tokens."""
    rows = getattr(getattr(module, "config", None), "vocab_size", None)
    if is_bare(module.tokenizer) or not isinstance(rows, int):
        return
    known = len(module.tokenizer)
    if known < rows / 2:
        raise ModelError(
            f"its tokenizer knows {known:,} of the model's {rows:,} tokens; the tokenizer's files "
            f"are missing or another model's: fetch it again"
        )


def _random_weights(folder: Path, modules: list[Any]) -> str | None:
    """Return a note if weights stand in none of the model's files: they were made at random.

    Names in files may have other prefixes than those in memory, or be others altogether (then this
    says nothing). The weights of a pooler are often missing, and not used by mean pooling.
    """
    from safetensors import safe_open

    stored: set[str] = set()
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            stored.update(file.keys())
    endings = {ending for name in stored for ending in _endings(name)}
    for module in modules:
        own = [n for n, _ in module.named_parameters() if "pooler" not in n.split(".")]
        missing = [name for name in own if not endings.intersection(_endings(name)[:3])]
        if missing and len(missing) < len(own) / 2:
            return (
                f"{len(missing):,} of its {len(own):,} weights are in none of its files, so they "
                f"are random: {missing[0]}; fetch it again, or name another model"
            )
    return None


def _endings(name: str) -> list[str]:
    """Return the name of a weight, and what is left of it without its first parts."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(max(1, len(parts) - 1))]


def _remedy(files: ModelFiles) -> str:
    quantised = _read_json(files.folder / "config.json").get("quantization_config")
    if isinstance(quantised, dict):
        method = quantised.get("quant_method", "unnamed method")
        return f"its weights are quantised ({method}): name one with plain weights"
    return "check that its files are whole"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _refuse_other_kinds(files: ModelFiles) -> None:
    """Refuse what sentence-transformers would silently turn into a mean of token vectors."""
    if files.gguf_file is not None:
        raise ModelError("a GGUF file can't be the embedder; name a sentence transformer")
    kind = read_config(files.folder).get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        what = _NOT_DENSE.get(str(kind), f"a {kind}")
        raise ModelError(f"it is {what}, not a dense embedder; name a sentence transformer")
    if (files.folder / "modules.json").exists():
        return
    architectures = _read_json(files.folder / "config.json").get("architectures") or []
    for name in architectures:
        if str(name).endswith(_CLASSIFIERS):
            raise ModelError(f"it is a {name}, not an embedder; name a sentence transformer")


def _card_header(folder: Path) -> str:
    """Return the metadata of the model's card, in lower case; its text mentions all and sundry."""
    card = folder / "README.md"
    text = card.read_text("utf-8", "replace") if card.exists() else ""
    return text.lower().partition("---\n")[2].partition("\n---")[0]


def matryoshka_note(loaded: Loaded, dimensions: int) -> str | None:
    """Return a note unless the model's files allow to cut its vectors to these dimensions."""
    folder, names = loaded.files.folder, ("matryoshka_dimensions", "matryoshka_dims")
    configs = [read_config(folder), _read_json(folder / "config.json")]
    declared = next((c[name] for c in configs for name in names if c.get(name)), None)
    if isinstance(declared, list):
        if dimensions in declared:
            return None
        return f"it was trained for the dimensions {declared}, not for {dimensions:,}"
    if configs[0].get("truncate_dim") or "matryoshka" in _card_header(folder):
        return None
    return (
        f"its files don't declare Matryoshka training: the first {dimensions:,} dimensions of its "
        f"vectors may say little; measure the retrieval, or remove embedding.dimensions"
    )
