"""The settings that a dataset was made with, as its manifests record them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ValidationError

from entropylong_assets.settings.loading import merge
from entropylong_assets.settings.section import Settings, one_line, printable
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.stage import Stage
from entropylong_assets.storage.manifest import Manifest, TableError
from entropylong_assets.storage.tables import WHOLE, TableStore

Recorded = Mapping[str, Sequence[Any]]
"""Distinct recorded values by dotted path (settings) or name (models, index); several values if
shards differ."""

STAGES: tuple[Stage, ...] = (
    *LONG_CONTEXT_SAMPLES_STAGE.upstream(),
    LONG_CONTEXT_SAMPLES_STAGE,
)
"""The stages whose results samples depend on, in the order in which data flows."""

_THREADS = 16
_OTHER_DETERMINANTS = ("code", "settings", "inputs")


class RecordedSettings:
    """The determinants of a dataset's shards, stage by stage."""

    def __init__(self, store: TableStore, shards: Sequence[str]) -> None:
        """Raise TableError if a stage of the dataset has no tables for a shard."""
        manifests = {stage: _manifests(store, stage, shards) for stage in STAGES}
        self._settings: dict[str, list[Any]] = {}
        self.identities: dict[str, list[Any]] = {}
        """Models, embedder and index by name."""
        for stage, of_stage in manifests.items():
            prefix = "corpus." if stage.scope == "corpus" else ""
            for determinants in (manifest.determinants for manifest in of_stage):
                for path, value in determinants.get("settings", {}).items():
                    _add(self._settings, prefix + path, value)
                for name, value in determinants.items():
                    if name not in _OTHER_DETERMINANTS and isinstance(value, str):
                        _add(self.identities, name, value)

    @property
    def values(self) -> dict[str, list[Any]]:
        """Distinct values of every recorded setting, by the dotted path of the single setting."""
        all_values: dict[str, list[Any]] = {}
        for path, recorded in self._settings.items():
            for value in recorded:
                for leaf, single in _leaves(path, value):
                    _add(all_values, leaf, single)
        return all_values

    def laid_over(self, settings: Settings) -> Settings:
        """Return `settings` with the recorded values in place of its own.

        If shards differ in a setting, the first value is used. Settings that no longer exist are
        left out. Raises TableError if a recorded value is no longer valid.
        """
        tree: dict[str, Any] = {}
        for path, values in self._settings.items():
            nested: Any = values[0]
            for part in reversed(path.split(".")):
                nested = {part: nested}
            tree = merge(tree, nested)
        try:
            return type(settings).model_validate(_laid_over(settings, tree))
        except ValidationError as error:
            raise TableError(
                f"dataset {settings.name} under {settings.data_uri} was made with a setting that "
                f"is not valid any more: {printable(one_line(error))}; materialize it again"
            ) from None


def _manifests(store: TableStore, stage: Stage, shards: Sequence[str]) -> list[Manifest]:
    """Manifests of a stage. Those of the corpus may be missing: the dataset does not need them."""
    if stage.scope == "dataset":
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(lambda shard: store.require(stage.tables, shard), shards))
    partitions = shards if stage.partitioned else [WHOLE]
    with ThreadPoolExecutor(_THREADS) as pool:
        manifests = pool.map(lambda shard: store.manifest(stage.tables, shard), partitions)
        return [manifest for manifest in manifests if manifest is not None]


def _add(values: dict[str, list[Any]], name: str, value: Any) -> None:
    known = values.setdefault(name, [])
    if value not in known:
        known.append(value)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Single settings of a recorded value, which may be a whole section."""
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}", part)
    else:
        yield path, value


def _laid_over(section: BaseModel, recorded: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(section)
    for name, value in recorded.items():
        if name not in values:
            continue
        own = values[name]
        is_section = isinstance(own, BaseModel) and isinstance(value, Mapping)
        values[name] = _laid_over(own, value) if is_section else value
    return values


def as_text(values: Sequence[Any]) -> str:
    """One or several values of a setting as text, at most a few hundred characters."""
    texts = [
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for value in values
    ]
    shown = " | ".join({"null": "none", "": "empty"}.get(text, text) for text in texts)
    return shown if len(shown) <= 300 else f"{shown[:299]}…"
