"""Which data a Dagster instance shows: one `data_uri` per name of a corpus or dataset.

Asset keys contain only the names. If an instance also showed data of the same names under another
`data_uri`, it would show partitions as materialized that do not exist there, and mix the histories
of both. So the instance stores the `data_uri` of each name. The data does not depend on an
instance: any other one can take it over without a run (`adoption.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.records import read_record
from entropylong_assets.stages.stage import is_corpus
from entropylong_assets.storage.tables import TableStore

_KEY = "entropylong/data_uri/{}"


class InstanceError(ValueError):
    """The Dagster instance belongs to other data. The message is one line with the remedy."""


def bind_data(owners: Iterable[Settings], instance: dg.DagsterInstance) -> None:
    """Make the instance remember where the data of these corpora and datasets are.

    Raises InstanceError, as `refuse_other_data` does. If the data have been moved, the instance
    stores the new place.
    """
    new = refuse_other_data(owners, instance)
    if new:
        instance.daemon_cursor_storage.set_cursor_values(new)


def refuse_other_data(owners: Iterable[Settings], instance: dg.DagsterInstance) -> dict[str, str]:
    """Raise InstanceError if the instance shows data of the same name under another data_uri.

    Writes nothing. Returns what the instance does not know yet: new places by key.
    """
    keys = {_KEY.format(settings.name): settings for settings in owners}
    known = instance.daemon_cursor_storage.get_cursor_values(set(keys))
    new = {}
    for key, settings in keys.items():
        place = _place(settings.data_uri)
        if known.get(key, place) != place and _has_data(settings, known[key]):
            kind = "corpus" if is_corpus(settings) else "dataset"
            raise InstanceError(
                f"the Dagster instance in {instance.root_directory} shows {kind} "
                f"'{settings.name}' of {known[key]}, but data_uri is {place}; set data_uri to the "
                "first, or DAGSTER_HOME to another folder: a new instance takes over finished "
                "data without running anything"
            )
        if key not in known or known[key] != place:
            new[key] = place
    return new


def _place(data_uri: str) -> str:
    return data_uri if "://" in data_uri else str(Path(data_uri).resolve())


def _has_data(settings: Settings, data_uri: str) -> bool:
    """Whether the name has data there; True if the store can't be reached."""
    store = open_store(settings)
    try:
        return read_record(TableStore(data_uri, store.corpus), settings.name) is not None
    except Exception:  # no credentials, no network, an unknown protocol
        return True
