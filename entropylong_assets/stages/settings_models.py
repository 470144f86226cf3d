"""Classes of the settings, made from the stages: each stage owns its sections."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import create_model, model_validator

from entropylong_assets.settings.cluster import ClusterSettings, StepResources
from entropylong_assets.settings.section import Section, Settings
from entropylong_assets.stages.corpus.settings import CorpusSettings
from entropylong_assets.stages.stage import Stage

Stages = tuple[Stage, ...]


@functools.cache
def corpus_model(stages: Stages) -> type[CorpusSettings]:
    """Class of a corpus' settings: its own fields and the sections of the corpus stages."""

    class Corpus(CorpusSettings):
        """Settings of one corpus: its sources, and the stages that all its datasets share."""

        @model_validator(mode="after")
        def _sections_agree(self) -> Corpus:
            for stage in stages:
                if stage.scope == "corpus":
                    stage.validate(self)
            return self

    return create_model("Corpus", __base__=Corpus, **_fields(stages, "corpus"))


@functools.cache
def dataset_model(stages: Stages) -> type[Settings]:
    """Class of a dataset's settings: its corpus and the sections of the dataset stages."""

    class Dataset(Settings):
        """Settings of one dataset: a construction over a corpus."""

        @model_validator(mode="after")
        def _sections_agree(self) -> Dataset:
            for stage in stages:
                if stage.scope == "dataset":
                    stage.validate(self)
            return self

    fields: dict[str, Any] = {"corpus": (corpus_model(stages), ...)}
    return create_model("Dataset", __base__=Dataset, **fields, **_fields(stages, "dataset"))


@functools.cache
def cluster_model(stages: Stages) -> type[ClusterSettings]:
    """Class of the cluster settings: `resources` has an entry per stage, and one for checks."""
    entries: dict[str, Any] = {s.name: (_resources(s.resources), s.resources) for s in stages}
    entries["checks"] = (StepResources, StepResources())
    resources = create_model("ClusterResources", __base__=Section, **entries)
    return create_model("Cluster", __base__=ClusterSettings, resources=(resources, resources()))


@functools.cache
def _resources(default: StepResources) -> type[StepResources]:
    """StepResources whose defaults are these: a part that a user leaves out stays as declared."""
    fields: dict[str, Any] = {
        name: (info.annotation, getattr(default, name))
        for name, info in StepResources.model_fields.items()
    }
    return create_model("StepResources", __base__=StepResources, **fields)


def sections(stages: Stages, scope: str) -> dict[str, type[Section]]:
    """The sections that the stages of a scope own, by name."""
    by_name: dict[str, type[Section]] = {}
    for stage in stages:
        for name, section in stage.sections.items() if stage.scope == scope else ():
            assert by_name.setdefault(name, section) is section, f"two sections named {name}"
    return by_name


def _fields(stages: Stages, scope: str) -> dict[str, Any]:
    return {name: (section, section()) for name, section in sections(stages, scope).items()}
