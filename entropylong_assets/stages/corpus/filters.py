"""The built-in document filters: adapters for the functions and filters of other libraries.

Each takes the object that it runs as `module:attribute`. The libraries are no dependencies of this
package: whatever version is installed is used.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.filter_registry import (
    DOCUMENT_FILTERS,
    DocumentFilter,
    Dropped,
    Verdict,
)
from entropylong_assets.stages.corpus.settings import FilterSettings


def load_object(path: str) -> Any:
    """Import `module:attribute`. Raises ValueError if there is no such object."""
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ValueError(f"'{path}' is not of the form module:attribute")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"'{path}' can't be imported ({one_line(error, 200)})") from None


@DOCUMENT_FILTERS.register("callable")
def from_callable(function: str, **arguments: Any) -> DocumentFilter:
    """Run a function of our own protocol: `function(**arguments)` makes the filter."""
    document_filter: DocumentFilter = load_object(function)(**arguments)
    return document_filter


@DOCUMENT_FILTERS.register("datatrove")
def from_datatrove(filter: str, **arguments: Any) -> DocumentFilter:  # noqa: A002
    """Run a filter of datatrove, unchanged: a class, made with the arguments, or an object."""
    from datatrove.data import Document

    loaded = load_object(filter)
    datatrove_filter = loaded(**arguments) if isinstance(loaded, type) else loaded

    def judge(documents: pl.DataFrame) -> list[Verdict]:
        batch = [
            Document(text=row["text"], id=row["doc_id"], metadata=_metadata(row))
            for row in documents.iter_rows(named=True)
        ]
        size = max(1, getattr(datatrove_filter, "batch_size", 1))
        results = [
            result
            for start in range(0, len(batch), size)
            for result in datatrove_filter.filter_batch(batch[start : start + size])
        ]
        return [_of_datatrove(result) for result in results]

    return judge


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    given = {} if row["metadata"] is None else json.loads(row["metadata"])
    return {**given, "source": row["source"], "external_id": row["external_id"]}


def _of_datatrove(result: Any) -> Verdict:
    kept, reason = result if isinstance(result, tuple) else (result, None)
    return None if kept else Dropped(str(reason or "filtered"))


@DOCUMENT_FILTERS.register("datasets")
def from_datasets(
    function: str,
    batched: bool = False,
    column: str | None = None,
    arguments: Mapping[str, Any] = {},
) -> DocumentFilter:
    """Run a function as `datasets.Dataset.filter` or `.map` would, unchanged.

    batched: whether it takes columns of many examples. column: for a function of `map`, the
    returned column that is true for examples to keep; None: the function is one of `filter`.
    arguments: passed as `fn_kwargs`.
    """
    run: Callable[..., Any] = functools.partial(load_object(function), **arguments)

    def judge(documents: pl.DataFrame) -> list[Verdict]:
        examples = [
            {**_metadata(row), "id": row["doc_id"], "text": row["text"]}
            for row in documents.iter_rows(named=True)
        ]
        kept: Sequence[Any]
        if batched:
            names = dict.fromkeys(name for example in examples for name in example)
            returned = run({name: [example.get(name) for example in examples] for name in names})
            kept = returned if column is None else returned[column]
        else:
            results = map(run, examples)
            kept = [result if column is None else result[column] for result in results]
        return [None if keep else Dropped("filtered") for keep in kept]

    return judge


def make_filter(settings: FilterSettings) -> DocumentFilter:
    """Make a filter. Raises CorpusError if it, or what it runs, can't be made."""
    make = DOCUMENT_FILTERS[settings.use]
    try:
        return make(**settings.arguments)
    except Exception as error:  # of another package
        raise CorpusError(
            f"corpus.filters, filter '{settings.name}': it can't be made "
            f"({type(error).__name__}: {one_line(error, 300)}); correct its arguments or install "
            "what it needs"
        ) from error


def run_filter(
    settings: FilterSettings, judge: DocumentFilter, documents: pl.DataFrame
) -> list[Verdict]:
    """Return one verdict per document. Raises CorpusError if the filter fails."""
    try:
        verdicts = list(judge(documents))
        if len(verdicts) != len(documents):
            raise ValueError(f"{len(verdicts)} verdicts for {len(documents)} documents")
    except Exception as error:  # of another package
        first = documents["doc_id"][0]
        raise CorpusError(
            f"corpus.filters, filter '{settings.name}': it failed on a batch that begins with "
            f"document {first} ({type(error).__name__}: {one_line(error, 300)}); correct it or "
            "remove it from corpus.filters"
        ) from error
    return verdicts


@functools.cache
def _version_of(module: str) -> str | None:
    """Versions of the distributions that a module belongs to; None if it has none."""
    names = importlib.metadata.packages_distributions().get(module.partition(".")[0], ())
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in sorted(set(names))) or None


def identify_filters(settings: Settings) -> dict[str, Any]:
    """Versions of the packages that the filters come from; nothing if there is no filter."""
    if not settings.filters:
        return {}
    versions = {}
    for own in settings.filters:
        objects = [v for v in own.arguments.values() if isinstance(v, str) and ":" in v]
        modules = [o.partition(":")[0] for o in objects] or [DOCUMENT_FILTERS[own.use].__module__]
        versions[own.name] = [_version_of(module) for module in modules]
    return {"filters": versions}
