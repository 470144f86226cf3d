"""Recording which settings a piece of code really reads.

`recorded(settings)` returns a copy of the settings of a corpus or dataset that behaves like the
original, and a set that fills with the dotted paths of the settings that are read from it, leaf by
leaf:

    settings, reads = recorded(dataset)
    settings.verification.epsilon                    # reads: verification.epsilon
    settings.corpus.embedding.model                  # reads: corpus.embedding.model
    settings.export.model_dump(include={"formats"})  # reads: export.formats

- Accessing a section reads nothing; its leaves do. A leaf is any field that is not a section: a
  number, a string, but also a tuple of sources or a mapping of fractions.
- `model_dump`, iteration, comparison and hashing of a section read all its fields (`model_dump`
  those that it includes).
- A `model_copy` reads nothing, and keeps recording. Fields that its `update` replaces are no longer
  settings of the user, so reading them from the copy is not recorded.

Not recorded: reads through `vars(section)`, and in other processes (the copy can't be pickled).

`computation_reads(stage, partition)` materializes a partition and returns the paths that the
stage's computation reads. Reads by `determined_by` and `identify` are not recorded: these two say
what determines the content, and that is what the reads are compared with. `leaves(settings, paths)`
replaces sections among the paths of `determined_by` by their leaves. A test then states, for each
stage:

    reads = computation_reads(stage, partition)
    determining = leaves(settings, stage.determined_by(settings))
    assert determining <= reads                    # else a change makes content stale needlessly
    assert reads - determining == WITHOUT_EFFECT   # else a change leaves stale content unnoticed
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import reduce
from typing import Any, TypeVar

from pydantic import PrivateAttr

from entropylong_assets.settings.section import Section, Settings, fingerprint
from entropylong_assets.stages.progress import Progress
from entropylong_assets.stages.stage import Partition, Stage, Step
from entropylong_assets.stages.versioning import determinants, eligible_shards
from entropylong_assets.storage.checkpoints import remove_checkpoints

AnySection = TypeVar("AnySection", bound=Section)


class _Recording(Section):
    """A section whose reads are recorded; combined with the class of the original."""

    _path: str = PrivateAttr("")
    _reads: set[str] = PrivateAttr(default_factory=set)
    _replaced: frozenset[str] = PrivateAttr(frozenset())

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in type(self).__pydantic_fields__ and not isinstance(value, _Recording):
            self._record(name)
        return value

    def _record(self, name: str) -> None:
        if name not in self._replaced:
            self._reads.add(f"{self._path}{name}")

    def _record_all(self, dumped: Iterable[str] | None = None) -> None:
        """Record all leaves, or those of a dump of the section."""
        values = self.__dict__
        for name in type(self).__pydantic_fields__:
            if dumped is not None and name not in dumped:
                continue
            value = values[name]
            if isinstance(value, _Recording):
                value._record_all(dumped[name] if isinstance(dumped, dict) else None)
            else:
                self._record(name)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        selection = {k: v for k, v in options.items() if k in ("include", "exclude")}
        self._record_all(super().model_dump(**selection))
        return super().model_dump(**options)

    def model_dump_json(self, **options: Any) -> str:
        selection = {k: v for k, v in options.items() if k in ("include", "exclude")}
        self._record_all(super().model_dump(**selection))
        return super().model_dump_json(**options)

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Any:
        assert not deep, "a deep copy would record into a copy of the set"
        copied = super().model_copy(update=update)
        copied._replaced = self._replaced | frozenset(update or ())
        return copied

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._record_all()
        return super().__iter__()

    def __eq__(self, other: object) -> bool:
        self._record_all()
        return super().__eq__(other)

    def __hash__(self) -> int:
        self._record_all()
        return super().__hash__()


@functools.cache
def _recording_class(model: type[Section]) -> type[_Recording]:
    return type(model.__name__, (_Recording, model), {"__module__": model.__module__})


def _recording(section: AnySection, path: str, reads: set[str]) -> AnySection:
    values = {
        name: _recording(value, f"{path}{name}.", reads) if isinstance(value, Section) else value
        for name, value in section.__dict__.items()
    }
    recording = _recording_class(type(section)).model_construct(section.model_fields_set, **values)
    recording._path, recording._reads = path, reads
    return recording  # type: ignore[return-value]


def recorded(settings: AnySection) -> tuple[AnySection, set[str]]:
    """Return settings that record what is read from them, and the set of paths read so far."""
    reads: set[str] = set()
    return _recording(settings, "", reads), reads


def computation_reads(stage: Stage, partition: Partition) -> set[str]:
    """Materialize a partition; return the dotted paths that the stage's computation reads."""
    settings, reads = recorded(partition.settings)
    made_from = determinants(stage, partition)
    left_out = {} if stage.partitioned else eligible_shards(stage, partition).left_out
    with partition.store.write(
        stage.tables, partition.shard, fingerprint=fingerprint(made_from), determinants=made_from
    ) as writer:
        seen = replace(partition, settings=settings)
        step = Step(
            **vars(seen),
            stage=stage,
            determinants=made_from,
            writer=writer,
            progress=Progress(stage.unit, lambda _: None),
            log=lambda _: None,
            warn=lambda _: None,
            left_out=left_out,
        )
        result = stage.compute(step)
        writer.summary = result.summary.model_dump(mode="json")
    remove_checkpoints(partition.store, stage.tables, partition.shard)
    return set(reads)


def leaves(settings: Settings, paths: Iterable[str]) -> set[str]:
    """Replace each path of a section by the paths of its leaves."""

    def under(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, Section):
            yield path
            return
        for name, child in value.__dict__.items():
            yield from under(child, f"{path}.{name}")

    return {
        leaf for path in paths for leaf in under(reduce(getattr, path.split("."), settings), path)
    }
