"""A project: all corpora and datasets of one settings file.

A settings file names any number of corpora and datasets:

    data_uri: /data/lab
    corpora:
      web: {sources: [...], embedding: {model: ...}}
    datasets:
      ours: {corpus: web}
      paper_rule: {corpus: web, profile: paper}

One corpus and one dataset can be written without names; they are then called `corpus` and
`dataset`:

    data_uri: /data/lab
    corpus: {sources: [...]}
    scoring: {model: ...}

Which settings there are follows from the stages, each of which owns its sections.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError, create_model, model_validator

from entropylong_assets.pipeline import STAGES
from entropylong_assets.settings.cluster import ClusterSettings, StepResources
from entropylong_assets.settings.loading import merge, read_settings_file
from entropylong_assets.settings.profiles import DEFAULT_PROFILE, PROFILES
from entropylong_assets.settings.section import (
    Section,
    Settings,
    SettingsError,
    one_line,
    printable,
)
from entropylong_assets.stages.corpus.settings import CorpusSettings
from entropylong_assets.stages.stage import Stage
from entropylong_assets.storage.tables import DEFAULT_CORPUS, DEFAULT_DATASET, TableStore


def open_store(settings: Settings) -> TableStore:
    """The tables of a corpus, or of a dataset and its corpus."""
    if "corpus" in type(settings).model_fields:
        return TableStore(settings.data_uri, settings.corpus.name, settings.name)
    return TableStore(settings.data_uri, settings.name)


class Project(Section):
    """All corpora and datasets of one settings file, and where their steps run."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    stages: tuple[Stage, ...] = STAGES
    data_uri: str = "data"
    cluster: ClusterSettings = ClusterSettings()
    corpora: Mapping[str, Settings]
    datasets: Mapping[str, Settings]

    @property
    def corpus(self) -> Settings:
        """The only corpus. Raises SettingsError if there are several."""
        return self.find_corpus(None)

    @property
    def dataset(self) -> Settings:
        """The only dataset. Raises SettingsError if there are several."""
        return self.find_dataset(None)

    def find_corpus(self, name: str | None) -> Settings:
        """A corpus by name; without a name the only one. Raises SettingsError."""
        return _find("corpus", self.corpora, name)

    def find_dataset(self, name: str | None) -> Settings:
        """A dataset by name; without a name the only one. Raises SettingsError."""
        return _find("dataset", self.datasets, name)

    def datasets_over(self, corpus: str) -> list[Settings]:
        return [d for d in self.datasets.values() if d.corpus.name == corpus]

    def stages_of(self, settings: Settings) -> list[Stage]:
        """The stages of a corpus or a dataset, in the order in which data flows."""
        scope = "dataset" if settings.name in self.datasets else "corpus"
        return [stage for stage in self.stages if stage.scope == scope]

    def resources(self, stage: Stage) -> StepResources:
        """What a step of this stage asks of a cluster node."""
        found: StepResources = getattr(self.cluster.resources, stage.name)  # type: ignore[attr-defined]
        return found


def _find(kind: str, known: Mapping[str, Settings], name: str | None) -> Settings:
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    names = ", ".join(known) or "none"
    if name is None:
        raise SettingsError(f"the settings have {len(known)} {kind}s; name one of: {names}")
    if name not in known:
        raise SettingsError(
            f"no {kind} '{printable(name, 60)}' in the settings; there are: {names}"
        )
    return known[name]


@functools.cache
def corpus_model(stages: tuple[Stage, ...] = STAGES) -> type[CorpusSettings]:
    """Class of a corpus' settings: its own fields and the sections of the corpus stages."""
    return create_model("Corpus", __base__=CorpusSettings, **_sections(stages, "corpus"))


@functools.cache
def dataset_model(stages: tuple[Stage, ...] = STAGES) -> type[Settings]:
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
    return create_model("Dataset", __base__=Dataset, **fields, **_sections(stages, "dataset"))


@functools.cache
def cluster_model(stages: tuple[Stage, ...] = STAGES) -> type[ClusterSettings]:
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


def _sections(stages: tuple[Stage, ...], scope: str) -> dict[str, Any]:
    """Fields for the sections that the stages of a scope own."""
    found: dict[str, type[Section]] = {}
    for stage in stages:
        for name, section in stage.sections.items() if stage.scope == scope else ():
            assert found.setdefault(name, section) is section, f"two sections named {name}"
    return {name: (section, section()) for name, section in found.items()}


# Settings that have moved, and where to.
_MOVED = {
    "corpus.root_fraction": "roots.fraction",
    "corpus.root_min_tokens": "roots.min_tokens",
    "corpus.root_max_tokens": "roots.max_tokens",
    "scoring.max_contexts_per_root": "verification.max_contexts_per_root",
    "scoring.max_forward_tokens_per_root": "verification.max_forward_tokens_per_root",
    "scoring.screen": "verification.screen",
}


def make_project(
    values: Mapping[str, Any] = {},
    profile: str | None = None,
    *,
    stages: tuple[Stage, ...] = STAGES,
    default_names: tuple[str, str] = (DEFAULT_CORPUS, DEFAULT_DATASET),
) -> Project:
    """Make a project from the content of a settings file.

    profile: laid under the values, unless they name one themselves. default_names: of the corpus
    and the dataset of a file without `corpora` and `datasets`. Raises SettingsError, in one line
    that names the field and what is allowed.
    """
    content = dict(values)
    base = _profile(content.pop("profile", None) or profile or DEFAULT_PROFILE)
    places = ("corpora.{}", "datasets.{}")
    if not {"corpora", "datasets"} & content.keys():
        content = _named(merge(base, content), stages, *default_names)
        base, places = {}, ("", "")
    top = {"data_uri", "seed", "cluster", "corpora", "datasets"}
    for key in content.keys() - top:
        raise SettingsError(
            f"{printable(str(key), 60)}: not at the top level beside `corpora` and `datasets`; put "
            "it under the corpus or dataset that it is for"
        )
    shared = {"data_uri": base.get("data_uri", "data")}
    shared |= {key: content[key] for key in ("data_uri", "seed") if key in content}
    corpora = _make_corpora(_mapping(content, "corpora"), base, shared, stages, places[0])
    datasets = _make_datasets(
        _mapping(content, "datasets"), base, shared, corpora, stages, places[1]
    )
    for name in corpora.keys() & datasets.keys():
        raise SettingsError(f"datasets.{name}: a corpus has this name already; choose another")
    cluster = _validated(cluster_model(stages), content.get("cluster", {}), "cluster")
    project = Project(
        stages=stages,
        data_uri=next(iter(corpora.values())).data_uri if corpora else shared["data_uri"],
        cluster=cluster,
        corpora=corpora,
        datasets=datasets,
    )
    _refuse_unshared_places(project)
    return project


def _named(
    content: dict[str, Any], stages: tuple[Stage, ...], corpus: str, dataset: str
) -> dict[str, Any]:
    """The content of a file with one corpus and one dataset, with their names written out."""
    of_corpus, of_dataset = dict(_mapping(content, "corpus")), dict[str, Any]()
    for old, new in _MOVED.items():
        section, _, name = old.partition(".")
        if isinstance(content.get(section), Mapping) and name in content[section]:
            raise SettingsError(f"{old}: no such setting; it is now {new}")
    for key, value in content.items():
        if key in _sections(stages, "corpus"):
            of_corpus[key] = value
        elif key not in ("corpus", "data_uri", "seed", "cluster"):
            of_dataset[key] = value
    corpus = of_corpus.pop("name", corpus)
    dataset = of_dataset.pop("name", dataset)
    named = {key: content[key] for key in ("data_uri", "seed", "cluster") if key in content}
    return named | {
        "corpora": {corpus: of_corpus},
        "datasets": {dataset: {"corpus": corpus, **of_dataset}},
    }


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key) or {}
    if not isinstance(found, Mapping):
        raise SettingsError(f"{key}: expected names and settings, not {printable(repr(found), 60)}")
    return found


def _profile(name: object) -> Mapping[str, Any]:
    if not isinstance(name, str) or name not in PROFILES:
        raise SettingsError(
            f"profile: no profile '{printable(str(name), 60)}'; there are {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def _make_corpora(
    written: Mapping[str, Any],
    base: Mapping[str, Any],
    shared: Mapping[str, Any],
    stages: tuple[Stage, ...],
    place: str,
) -> dict[str, Settings]:
    corpora: dict[str, Settings] = {}
    for name in written:
        own = dict(_mapping(written, name))
        profile = _profile(own.pop("profile")) if "profile" in own else base
        values = {k: v for k, v in profile.items() if k in _sections(stages, "corpus")}
        values = merge({**values, **profile.get("corpus", {})}, own)
        corpora[name] = _validated(
            corpus_model(stages), {**shared, **values, "name": name}, place.format(name)
        )
    return corpora


def _make_datasets(
    written: Mapping[str, Any],
    base: Mapping[str, Any],
    shared: Mapping[str, Any],
    corpora: Mapping[str, Settings],
    stages: tuple[Stage, ...],
    place: str,
) -> dict[str, Settings]:
    datasets: dict[str, Settings] = {}
    for name in written:
        own, where = dict(_mapping(written, name)), place.format(name)
        corpus = own.pop("corpus", None) or (next(iter(corpora)) if len(corpora) == 1 else None)
        if not isinstance(corpus, str) or corpus not in corpora:
            raise SettingsError(
                f"{where}.corpus: no corpus '{printable(str(corpus), 60)}'; there are "
                f"{', '.join(corpora) or 'none'}"
            )
        profile = _profile(own.pop("profile")) if "profile" in own else base
        values = {k: v for k, v in profile.items() if k in _sections(stages, "dataset")}
        values = merge(values, own)
        datasets[name] = _validated(
            dataset_model(stages),
            {**shared, **values, "name": name, "corpus": corpora[corpus]},
            where,
        )
    return datasets


def _validated(model: type[Any], values: Mapping[str, Any], where: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise SettingsError(printable(one_line(error, where))) from None
    except RecursionError:
        raise SettingsError("settings: values are nested too deeply; write them out") from None


def _refuse_unshared_places(project: Project) -> None:
    """Raises SettingsError if the nodes of a cluster would not share what steps read and write."""
    if project.cluster.engine == "local":
        return
    places = [("data_uri", project.data_uri)]
    for corpus in project.corpora.values():
        places += [
            (f"uri of source '{source.name}'", source.uri)
            for source in corpus.sources
            if source.kind != "python_docs"
        ]
    for dataset in project.datasets.values():
        places.append(("export.destination", dataset.export.destination))
    for name, uri in places:
        if uri and "://" not in uri and not Path(uri).is_absolute():
            raise SettingsError(
                f"{name} ({uri}) must be a URI or the full path of a folder that all nodes share, "
                f"with cluster.engine '{project.cluster.engine}'"
            )


def load_project(path: str | os.PathLike[str] | None = None) -> Project:
    """Load a settings file.

    Without a path it is the file that ENTROPYLONG_SETTINGS names; without that, the profile that
    ENTROPYLONG_PROFILE names, else `calibrated`. Raises SettingsError.
    """
    path = path or os.environ.get("ENTROPYLONG_SETTINGS")
    if not path:
        return make_project(profile=os.environ.get("ENTROPYLONG_PROFILE"))
    content = read_settings_file(path)
    try:
        return make_project(content)
    except SettingsError as error:
        raise SettingsError(f"settings file {path}: {error}") from None
