"""Which prompts a model's files name for queries and documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.stages.embeddings.prompts import (
    SideName,
    declared_prompts,
    missing_prompts,
    own_prompt,
    prompt_in_force,
)
from entropylong_assets.stages.model_files import ModelError

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "none": ({}, "", ""),
    "snowflake": ({"prompts": {"query": "query: "}}, "query: ", ""),
    "both": ({"prompts": {"query": "q: ", "document": "d: "}}, "q: ", "d: "),
    "passage": ({"prompts": {"query": "q: ", "passage": "p: "}}, "q: ", "p: "),
    "corpus": ({"prompts": {"corpus": "c: "}}, "", "c: "),
    "document before passage": ({"prompts": {"passage": "p: ", "document": "d: "}}, "", "d: "),
    "empty ones that the library adds": (
        {"prompts": {"query": "", "document": "", "passage": "p: "}},
        "",
        "p: ",
    ),
    "jina v3": (
        {"prompts": {"retrieval.query": "Q: ", "retrieval.passage": "P: ", "separation": ""}},
        "Q: ",
        "P: ",
    ),
    "embeddinggemma": (
        {"prompts": {"Retrieval-query": "Q: ", "Retrieval-document": "D: ", "STS": "S: "}},
        "Q: ",
        "D: ",
    ),
    "e5-mistral": ({"prompts": {"sts_query": "S: ", "web_search_query": "W: "}}, "W: ", ""),
    "a default for all": ({"prompts": {"x": "X: "}, "default_prompt_name": "x"}, "X: ", "X: "),
    "a default of one side": (
        {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
        "q: ",
        "",
    ),
    "a default without text": ({"prompts": {}, "default_prompt_name": "x"}, "", ""),
    "null": ({"prompts": None, "default_prompt_name": None}, "", ""),
    "null prompt": ({"prompts": {"query": None, "document": "d: "}}, "", "d: "),
}


@pytest.mark.parametrize(("config", "query", "document"), CASES.values(), ids=CASES.keys())
def test_own_prompt_is_what_the_files_name(
    tmp_path: Path, config: dict[str, Any], query: str, document: str
) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    declared = declared_prompts(tmp_path)
    assert (own_prompt(declared, "query"), own_prompt(declared, "document")) == (query, document)


def test_prompt_in_force_is_that_of_the_settings_even_if_empty(tmp_path: Path) -> None:
    config = {"prompts": {"query": "q: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    chosen = {None: "q: ", "": "", "mine: ": "mine: "}
    assert {c: prompt_in_force(c, tmp_path, "query") for c in chosen} == chosen
    assert prompt_in_force(None, tmp_path / "elsewhere", "query") == ""


@pytest.mark.parametrize("content", ["{oops", "[1]"])
def test_declared_prompts_refuse_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "config_sentence_transformers.json").write_text(content)
    with pytest.raises(ModelError, match=r"config_sentence_transformers\.json: .*fetch"):
        declared_prompts(tmp_path)


BOTH: tuple[SideName, ...] = ("query", "document")


@pytest.mark.parametrize(
    ("reference", "missing", "wanted"),
    [
        ("intfloat/e5-base-v2", BOTH, ["query_prompt: 'query: '", "document_prompt: 'passage: '"]),
        ("/models/multilingual-e5-small", ("document",), ["document_prompt: 'passage: '"]),
        ("pkg://e5_small/model", ("query",), ["query_prompt: 'query: '"]),
        ("intfloat/multilingual-e5-large-instruct", BOTH, ["query_prompt: 'Instruct: "]),
        ("nomic-ai/nomic-embed-text-v1.5", BOTH, ["'search_query: '", "'search_document: '"]),
        ("BAAI/bge-small-en-v1.5", BOTH, ["query_prompt: 'Represent this sentence"]),
    ],
)
def test_missing_prompts_names_what_the_family_needs(
    reference: str, missing: tuple[SideName, ...], wanted: list[str]
) -> None:
    note = missing_prompts(reference, missing) or ""
    assert all(text in note for text in wanted)
    assert note.count("embedding.") == len(wanted)


@pytest.mark.parametrize(
    ("reference", "missing"),
    [
        ("intfloat/e5-base-v2", ()),
        ("BAAI/bge-small-en-v1.5", ("document",)),
        ("sentence-transformers/all-MiniLM-L6-v2", BOTH),
        ("BAAI/bge-m3", BOTH),
        ("someone/tune5-base", BOTH),
    ],
)
def test_missing_prompts_says_nothing_without_a_reason(
    reference: str, missing: tuple[SideName, ...]
) -> None:
    assert missing_prompts(reference, missing) is None
