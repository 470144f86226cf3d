"""Prompts and tasks with which a sentence transformer embeds queries and documents.

A retrieval model is trained with a text before every query or every document ("query: ",
"passage: "), and perhaps with a task that selects an adapter. Its own are named in its files; the
settings can replace them. Nothing here loads a model or imports torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from entropylong_assets.stages.model_files import ModelError

SideName = Literal["query", "document"]

NAMES: Mapping[SideName, tuple[str, ...]] = {
    "query": ("query", "retrieval.query", "search.query", "web.search.query", "s2p.query"),
    "document": (
        "document",
        "passage",
        "corpus",
        "retrieval.document",
        "retrieval.passage",
        "search.document",
    ),
}
"""Names that models give to the prompt or task of a retrieval query or document, the preferred one
first; compared by `_plain`. `encode_query` and `encode_document` know some of the first three."""

CONFIG = "config_sentence_transformers.json"

_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"\be5-.*instruct", "Instruct: {task}\\nQuery: ", ""),
    (r"\be5-", "query: ", "passage: "),
    (r"\bnomic-embed-text", "search_query: ", "search_document: "),
    (
        r"\bbge-(small|base|large)-en",
        "Represent this sentence for searching relevant passages: ",
        "",
    ),
)
"""Families whose model cards ask for prompts that many of their files don't name: name of the
model, prompt of a query, prompt of a document."""


class Declared(NamedTuple):
    """What a model's files say about prompts."""

    prompts: Mapping[str, str]
    default: str
    """Prompt of texts of any kind; may be empty."""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", ".", name.lower())


def read_config(folder: Path) -> dict[str, object]:
    """Return the model's `config_sentence_transformers.json`; empty if it has none.

    Raises ModelError if the file is no JSON object.
    """
    path = folder / CONFIG
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: invalid JSON ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: it is no JSON object; fetch the model again")
    return config


def declared_prompts(folder: Path) -> Declared:
    """Return the prompts that a model's files name."""
    config = read_config(folder)
    named = config.get("prompts") or {}
    texts = named.items() if isinstance(named, dict) else ()
    prompts = {name: text for name, text in texts if isinstance(text, str)}
    return Declared(prompts, prompts.get(str(config.get("default_prompt_name")), ""))


def first_named(names: Iterable[str], side: SideName) -> str | None:
    """Return the one of these names that stands for a retrieval query or document, if any does."""
    by_plain = {_plain(name): name for name in names}
    return next((by_plain[plain] for plain in NAMES[side] if plain in by_plain), None)


def own_prompt(declared: Declared, side: SideName) -> str:
    """Return the model's own prompt for queries or documents; empty if it has none.

    Its default prompt holds for both if it names none for either. An empty prompt counts as not
    named: sentence-transformers adds empty ones to every model that it saves.
    """
    named = {name: text for name, text in declared.prompts.items() if text}
    name = first_named(named, side)
    if name is not None:
        return named[name]
    other: SideName = "document" if side == "query" else "query"
    return "" if first_named(named, other) is not None else declared.default


def prompt_in_force(chosen: str | None, folder: Path, side: SideName) -> str:
    """Return the prompt of a side: the chosen one, or else the model's own."""
    return own_prompt(declared_prompts(folder), side) if chosen is None else chosen


def missing_prompts(reference: str, missing: Iterable[SideName]) -> str | None:
    """Return a note if the model's name tells that it was trained with prompts.

    missing: sides for which neither the model's files nor the settings name a prompt.
    """
    plain = reference.lower().replace("_", "-")
    for pattern, query, document in _FAMILIES:
        if not re.search(pattern, plain):
            continue
        prompts: dict[SideName, str] = {"query": query, "document": document}
        wanted = [
            f"embedding.{side}_prompt: '{prompts[side]}'" for side in missing if prompts[side]
        ]
        if wanted:
            return (
                f"by its name it was trained with prompts that its files don't declare; set "
                f'{" and ".join(wanted)} ("" if it needs none)'
            )
        return None
    return None
