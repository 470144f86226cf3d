"""Whether the fields that the settings name exist in a source: a wrong name spoils every row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.registry import is_virtual
from entropylong_assets.stages.corpus.rows import BadRow, Item
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shard_plan import Shard, ShardPlan
from entropylong_assets.stages.corpus.shards import read_shard

ROWS = 8
"""Rows read per source."""


def field_fault(source: SourceSettings, items: Sequence[Item]) -> CorpusError | None:
    """Return the error if every one of these rows lacks a field that the source names, or None.

    A single row without the field is a bad row, not a wrong setting.
    """
    lacking = [i for i in items if isinstance(i, BadRow) and i.reason == "missing_field"]
    if not items or len(lacking) < len(items):
        return None
    first = lacking[0]
    return CorpusError(
        f"source '{source.name}': none of {len(items):,} rows looked at has its fields. "
        f"{one_line(first.file)}, row {first.row}: {first.detail}; correct the source's text_field "
        "or id_field"
    )


def require_fields(corpus: Settings, plan: ShardPlan) -> None:
    """Raise CorpusError if the first rows of a source all lack a field that its settings name.

    Reads `ROWS` rows of one shard per source: a new one, if there is one. Shards whose files are
    missing or can't be read are passed over, as a scan reports them.
    """
    first: dict[str, Shard] = {}
    new = set(plan.new)
    for shard in sorted(plan.shards, key=lambda shard: shard.key not in new):
        if shard.key not in plan.missing_shards:
            first.setdefault(shard.source, shard)
    for source in corpus.sources:
        if source.name not in first or is_virtual(first[source.name].kind):
            continue
        shard = first[source.name]
        items: list[Item] = []
        with suppress(CorpusError, OSError):
            items = list(itertools.islice(read_shard(shard, source), ROWS))
        if fault := field_fault(source, items):
            raise fault
