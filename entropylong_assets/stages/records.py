"""The record of a corpus or dataset that has data: what its name stands for.

It is stored at `<data_uri>/<name>/record.json`. If the name is used again for something else, the
settings are refused when they are loaded, before anything is overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from entropylong_assets.settings.section import Settings, SettingsError
from entropylong_assets.stages.stage import Partition, Stage, is_corpus
from entropylong_assets.stages.versioning import setting_at
from entropylong_assets.storage.tables import TableStore

RECORD = "record.json"


class Record(BaseModel):
    """What a name stands for."""

    model_config = ConfigDict(frozen=True)

    kind: str
    """`corpus` or `dataset`."""
    corpus: str
    """Name of the dataset's corpus, or of the corpus itself."""
    permanent: dict[str, Any] = {}
    """Settings that can't change while the name is kept, by dotted path."""


def record_of(settings: Settings, stages: Sequence[Stage]) -> Record:
    """Return the record of a corpus or dataset under these settings. stages: those of its scope."""
    permanent = {path: setting_at(settings, path) for s in stages for path in s.permanent}
    if is_corpus(settings):
        return Record(kind="corpus", corpus=settings.name, permanent=permanent)
    return Record(kind="dataset", corpus=settings.corpus.name, permanent=permanent)


def read_record(store: TableStore, name: str) -> Record | None:
    """The stored record, or None if the name has no data yet or the record is damaged."""
    try:
        content = store.fs.cat_file(f"{store.root}/{name}/{RECORD}")
        return Record.model_validate_json(content)
    except (FileNotFoundError, ValidationError):
        return None


def write_record(stage: Stage, partition: Partition) -> None:
    """Store the record of the corpus or dataset that a stage belongs to, if it is new."""
    settings, store = partition.settings, partition.store
    known = read_record(store, settings.name)
    wanted = record_of(settings, [stage])
    if known is None or not wanted.permanent.items() <= known.permanent.items():
        permanent = {**(known.permanent if known else {}), **wanted.permanent}
        content = wanted.model_copy(update={"permanent": permanent}).model_dump_json(indent=2)
        store.put(f"{store.root}/{settings.name}/{RECORD}", content.encode())


def refuse_contradiction(settings: Settings, stages: Sequence[Stage], store: TableStore) -> None:
    """Raise SettingsError if the name stands for something else under the same data_uri.

    Does nothing if the store can't be reached: the first step reports that.
    """
    try:
        known = read_record(store, settings.name)
    except OSError:
        return
    if known is None:
        return
    wanted, place = record_of(settings, stages), f"under {settings.data_uri}"
    if known.kind != wanted.kind:
        raise SettingsError(
            f"{settings.name}: {place} this is the name of a {known.kind}; choose another name "
            f"for the {wanted.kind}"
        )
    if known.corpus != wanted.corpus:
        raise SettingsError(
            f"{settings.name}.corpus: {place} this dataset is over the corpus '{known.corpus}'; "
            f"choose another name for a dataset over '{wanted.corpus}'"
        )
    for path, value in wanted.permanent.items():
        if path in known.permanent and known.permanent[path] != value:
            raise SettingsError(
                f"{settings.name}.{path}: {place} '{settings.name}' was made with "
                f"{_shown(known.permanent[path])}; choose another name for one with {_shown(value)}"
            )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
