"""Names and schemas of the tables of a stage.

Each stage folder declares its tables once, in `tables.py`, as a `TableSet`: a `pyarrow.Schema` per
table, whose fields have `unit` and `description` as metadata. The writer enforces the schema, and
the UI shows it.

Column names used by several stages: `root_id` is the `doc_id` of a root; `anchor` is a token
position in its root, from 0; `chunk_id` identifies a chunk of a document; H is an entropy in nats;
I(x) = -ln p(x) is the surprisal of the true token in nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

Scope = Literal["corpus", "dataset"]


class Summary(BaseModel):
    """Counts and figures of one partition. Dropped rows are counted per reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=Summary)


@dataclass(frozen=True, eq=False)
class TableSet(Generic[S]):
    """The tables that one stage writes per partition."""

    name: str
    """Name of the stage, of its Dagster asset and of its folder."""
    scope: Scope
    """Whether it belongs to a corpus, and is shared by its datasets, or to one dataset."""
    schemas: Mapping[str, pa.Schema]
    """Schema of each table."""
    main: str
    """The table whose columns and rows represent the stage in the UI."""
    summary: type[S]
    """Class of the summary of a partition."""
    optional: frozenset[str] = field(default_factory=frozenset)
    """Tables that have no file if no row was written to them."""
    format_version: int = 1
    """Increased when the meaning of a table changes, so that readers refuse older partitions."""


def column(
    name: str, kind: pa.DataType, description: str, unit: str = "", null: bool = False
) -> pa.Field:
    """Return a field of a schema, with its description and unit as metadata."""
    metadata = {"description": description} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=null, metadata=metadata)


TEXT, INT, FLOAT, BOOL = pa.string(), pa.int32(), pa.float32(), pa.bool_()
IDS = pa.list_(pa.field("item", pa.uint32(), nullable=False))
FLOATS = pa.list_(pa.field("item", pa.float32()))
INTS = pa.list_(pa.field("item", pa.int32(), nullable=False))
NAMES = pa.list_(pa.field("item", pa.string(), nullable=False))

ROOT_ID = column("root_id", TEXT, "doc_id of the root")
ANCHOR = column("anchor", INT, "position in the root, from 0", "token")
CHUNK_ID = column("chunk_id", TEXT, "chunk: its doc_id, a dash, its number in the document")
DOC_ID = column("doc_id", TEXT, "document: 32 hex digits of the hash of its canonical text")
SOURCE = column("source", TEXT, "name of the source in the settings")
SHARD = column("shard", TEXT, "partition that contains the document")
REASON = column("reason", TEXT, "why it was dropped")
START = column("start", INT, "first character in the document", "character")
END = column("end", INT, "one past the last character", "character")


def entropy_and_surprisal(given: tuple[str, ...], null: bool = False) -> list[pa.Field]:
    """Return the columns of H and I(x): of the root alone, and given each of these contexts."""
    fields = []
    for name, sign in (("entropy", "H"), ("surprisal", "I(x_t)")):
        fields.append(column(name, FLOAT, f"{sign} of the root alone", "nat", null))
        fields += [column(f"{name}_{g}", FLOAT, f"{sign}, {g}", "nat", null) for g in given]
    return fields
