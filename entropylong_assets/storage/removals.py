"""Records of what was removed from a corpus: retired shards and sources, documents taken down.

A removal is in force while its record exists:

    <corpus>/removed/shards/<shard>.json
    <corpus>/removed/sources/<source>.json
    <corpus>/removed/documents/<doc_id>/record.json
    <corpus>/removed/documents/<doc_id>/in-<shard>.json     a shard that held it at that time

One small file per removal makes it a single atomic step: a killed process leaves nothing half done,
and two removals at once can't overwrite each other. The names alone say what is removed, so one
listing answers every question.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from entropylong_assets.storage.tables import TableStore

Kind = Literal["shard", "source", "document"]

FOLDER, RECORD, IN_SHARD = "removed", "record", "in-"


class Removal(BaseModel):
    """Who removed what, when and why."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    name: str
    """Key of a shard, name of a source, or doc_id."""
    reason: str
    by: str
    at: str
    """Time in ISO 8601, UTC."""


class Removed(NamedTuple):
    """Names of everything that is removed from a corpus."""

    shards: frozenset[str]
    sources: frozenset[str]
    documents: Mapping[str, frozenset[str]]
    """By doc_id: the shards that held the document when it was taken down."""

    def hides(self, shard: str) -> bool:
        """Whether a shard, or its source, is retired. Keys of shards are `<source>-<number>`."""
        return shard in self.shards or shard.rpartition("-")[0] in self.sources


def find_removed(store: TableStore) -> Removed:
    """List what is removed from the store's corpus. Raises the errors of a listing."""
    names: dict[str, set[str]] = {"shards": set(), "sources": set()}
    documents: dict[str, set[str]] = {}
    root = _folder(store)
    for path in store.fs.find(root):
        kind, *parts = path.rpartition(f"/{FOLDER}/")[2].removesuffix(".json").split("/")
        if kind in names and len(parts) == 1:
            names[kind].add(parts[0])
        elif kind == "documents" and len(parts) == 2:
            shards = documents.setdefault(parts[0], set())
            if parts[1].startswith(IN_SHARD):
                shards.add(parts[1].removeprefix(IN_SHARD))
    return Removed(
        frozenset(names["shards"]),
        frozenset(names["sources"]),
        {doc_id: frozenset(shards) for doc_id, shards in documents.items()},
    )


def _folder(store: TableStore) -> str:
    return f"{store.root}/{store.corpus}/{FOLDER}"


def _path(store: TableStore, kind: Kind, name: str) -> str:
    return f"{_folder(store)}/{kind}s/{name}{f'/{RECORD}' if kind == 'document' else ''}.json"


def record_removal(
    store: TableStore, kind: Kind, name: str, reason: str, by: str | None = None
) -> Removal:
    """Record a removal, unless it is in force already; return its record.

    by: who removes it; default: the user of this process.
    """
    known = read_removal(store, kind, name)
    if known is not None:
        return known
    now = datetime.now(UTC).isoformat(timespec="seconds")
    removal = Removal(kind=kind, name=name, reason=reason, by=by or _user(), at=now)
    store.put(_path(store, kind, name), removal.model_dump_json(indent=2).encode())
    return removal


def record_shards_of(store: TableStore, doc_id: str, shards: list[str]) -> None:
    """Record which shards hold a document that is taken down."""
    known = find_removed(store).documents.get(doc_id, frozenset())
    for shard in sorted(set(shards) - known):
        store.put(f"{_folder(store)}/documents/{doc_id}/{IN_SHARD}{shard}.json", b"{}")


def read_removal(store: TableStore, kind: Kind, name: str) -> Removal | None:
    """Read a record; None if the removal is not in force. A damaged record is still in force."""
    try:
        return Removal.model_validate_json(store.fs.cat_file(_path(store, kind, name)))
    except FileNotFoundError:
        return None
    except ValidationError:
        return Removal(kind=kind, name=name, reason="(its record is damaged)", by="", at="")


def read_removals(store: TableStore) -> list[Removal]:
    """Read all records of the store's corpus: sources, shards, documents, each sorted by name."""
    removed = find_removed(store)
    names: dict[Kind, list[str]] = {
        "source": sorted(removed.sources),
        "shard": sorted(removed.shards),
        "document": sorted(removed.documents),
    }
    removals = [read_removal(store, kind, name) for kind, of in names.items() for name in of]
    return [removal for removal in removals if removal is not None]


def delete_removal(store: TableStore, kind: Literal["shard", "source"], name: str) -> None:
    """End a removal. Does nothing if it is not in force."""
    path = _path(store, kind, name)
    if store.fs.exists(path):
        store.fs.rm(path)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        return "unknown"
