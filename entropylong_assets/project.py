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

The stages determine which settings exist: each stage owns its sections.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import InstanceOf, ValidationError

from entropylong_assets.pipeline import STAGES
from entropylong_assets.settings.cluster import ClusterSettings, StepResources
from entropylong_assets.settings.loading import merge, read_settings_file
from entropylong_assets.settings.profiles import DEFAULT_PROFILE, PROFILES
from entropylong_assets.settings.section import (
    Section,
    Settings,
    SettingsError,
    beside,
    one_line,
    printable,
)
from entropylong_assets.stages.corpus.registry import is_virtual
from entropylong_assets.stages.settings_models import (
    cluster_model,
    corpus_model,
    dataset_model,
    sections,
)
from entropylong_assets.stages.stage import Stage
from entropylong_assets.storage.tables import DEFAULT_CORPUS, DEFAULT_DATASET, TableStore


def open_store(settings: Settings) -> TableStore:
    """The tables of a corpus, or of a dataset and its corpus."""
    if "corpus" in type(settings).model_fields:
        return TableStore(settings.data_uri, settings.corpus.name, settings.name)
    return TableStore(settings.data_uri, settings.name)


class Project(Section):
    """All corpora and datasets of one settings file, and where their steps run."""

    stages: tuple[InstanceOf[Stage], ...] = STAGES
    data_uri: str = "data"
    folder: Path | None = None
    """Folder of the settings file, to which its paths are relative; None without a file."""
    cluster: ClusterSettings = ClusterSettings()
    corpora: Mapping[str, Settings]
    datasets: Mapping[str, Settings]

    def located(self, folder: Path) -> Self:
        data_uri = beside(folder, self.data_uri)
        return self.with_located(folder, data_uri=data_uri, folder=folder)

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
        """Resources that a step of this stage requests of a cluster node."""
        resources: StepResources = getattr(self.cluster.resources, stage.name)  # type: ignore[attr-defined]
        return resources


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


# Settings of earlier versions that have moved, with their new names.
_MOVED = {
    "corpus.root_fraction": "roots.fraction",
    "corpus.root_min_tokens": "roots.min_tokens",
    "corpus.root_max_tokens": "roots.max_tokens",
    "scoring.max_contexts_per_root": "verification.max_contexts_per_root",
    "scoring.max_forward_tokens_per_root": "verification.max_forward_tokens_per_root",
    "scoring.screen": "verification.screen",
    "sources.root_fraction": "roots.fraction_by_source",
}


def make_project(
    values: Mapping[str, Any] = {},
    profile: str | None = None,
    *,
    stages: tuple[Stage, ...] = STAGES,
    default_names: tuple[str, str] = (DEFAULT_CORPUS, DEFAULT_DATASET),
) -> Project:
    """Make a project from the content of a settings file.

    profile: name of the profile to start from, unless the values name one. default_names: of the
    corpus and the dataset of a file without `corpora` and `datasets`. Raises SettingsError, in one
    line that names the field and what is allowed.
    """
    content = dict(values)
    base = _profile(content.pop("profile", profile or DEFAULT_PROFILE))
    places = ("corpora.{}.", "datasets.{}.")
    if not {"corpora", "datasets"} & content.keys():
        content = _named(merge(base, content), stages, *default_names)
        base, places = {}, ("corpus.", "")
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
    try:
        project = Project(
            stages=stages,
            data_uri=next(iter(corpora.values())).data_uri if corpora else shared["data_uri"],
            cluster=cluster,
            corpora=corpora,
            datasets=datasets,
        )
    except ValidationError as error:  # without a corpus, nothing has validated the location yet
        raise SettingsError(one_line(error, "")) from None
    _refuse_unshared_places(project)
    return project


def _named(
    content: dict[str, Any], stages: tuple[Stage, ...], corpus: str, dataset: str
) -> dict[str, Any]:
    """The content of a file with one corpus and one dataset, with their names written out."""
    of_corpus, of_dataset = dict(_mapping(content, "corpus")), dict[str, Any]()
    for key, value in content.items():
        if key in sections(stages, "corpus"):
            of_corpus[key] = value
        elif key not in ("corpus", "data_uri", "seed", "cluster"):
            of_dataset[key] = value
    corpus = of_corpus.pop("name", corpus)
    dataset = of_dataset.pop("name", dataset)
    for place, name in (("corpus.name", corpus), ("name", dataset)):
        if not isinstance(name, str):
            raise SettingsError(f"{place}: expected a name, not {type(name).__name__}")
    named = {key: content[key] for key in ("data_uri", "seed", "cluster") if key in content}
    return named | {
        "corpora": {corpus: of_corpus},
        "datasets": {dataset: {"corpus": corpus, **of_dataset}},
    }


def _mapping(content: Mapping[Any, Any], key: Any, place: str = "") -> Mapping[Any, Any]:
    value = content.get(key, {})
    if not isinstance(value, Mapping):
        place = printable(place.rstrip(".") or str(key), 60)
        raise SettingsError(f"{place}: expected keys and values, not {type(value).__name__}")
    return value


def _entry(written: Mapping[Any, Any], name: Any, place: str) -> dict[Any, Any]:
    """The settings under the name of a corpus or dataset; empty if there is only the name."""
    own = {} if written[name] is None else dict(_mapping(written, name, place))
    for key in ("name", "data_uri"):
        if key in own:
            remedy = "the name is the key above" if key == "name" else "put it at the top level"
            raise SettingsError(f"{printable(place, 60)}{key}: not here; {remedy}")
    return own


def _refuse_moved(section: str, content: object, place: str) -> None:
    for old, new in _MOVED.items():
        its_section, _, name = old.partition(".")
        if section == its_section and isinstance(content, Mapping) and name in content:
            raise SettingsError(f"{printable(place, 80)}{name}: no such setting; it is now {new}")


def _profile(name: object) -> Mapping[str, Any]:
    if not isinstance(name, str) or name not in PROFILES:
        raise SettingsError(
            f"profile: no profile '{printable(str(name), 60)}'; there are {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def _make_corpora(
    written: Mapping[Any, Any],
    base: Mapping[str, Any],
    shared: Mapping[str, Any],
    stages: tuple[Stage, ...],
    place: str,
) -> dict[str, Settings]:
    owned = sections(stages, "corpus").keys()
    corpora: dict[str, Settings] = {}
    for name in written:
        where = place.format(name)
        own = _entry(written, name, where)
        _refuse_moved("corpus", own, where)
        sources = own.get("sources")
        for number, source in enumerate(sources if isinstance(sources, list | tuple) else ()):
            _refuse_moved("sources", source, f"{where}sources.{number}.")
        profile = _profile(own.pop("profile")) if "profile" in own else base
        values = {k: v for k, v in profile.items() if k in owned}
        values = merge({**values, **profile.get("corpus", {})}, own)
        # With one corpus only its own fields are written under `corpus`.
        at_top = {*(shared.keys() - own.keys()), *(owned if "{}" not in place else ())}
        corpora[name] = _validated(
            corpus_model(stages), {**shared, **values, "name": name}, where, at_top
        )
    return corpora


def _make_datasets(
    written: Mapping[Any, Any],
    base: Mapping[str, Any],
    shared: Mapping[str, Any],
    corpora: Mapping[str, Settings],
    stages: tuple[Stage, ...],
    place: str,
) -> dict[str, Settings]:
    owned = sections(stages, "dataset").keys()
    datasets: dict[str, Settings] = {}
    for name in written:
        where = place.format(name)
        own = _entry(written, name, where)
        corpus = own.pop("corpus", None)
        if corpus is None and len(corpora) == 1:
            corpus = next(iter(corpora))
        if not isinstance(corpus, str) or corpus not in corpora:
            raise SettingsError(
                f"{printable(where, 60)}corpus: no corpus '{printable(str(corpus), 60)}'; there "
                f"are {', '.join(corpora) or 'none'}"
            )
        for section, content in own.items():
            _refuse_moved(section, content, f"{where}{section}.")
        profile = _profile(own.pop("profile")) if "profile" in own else base
        values = merge({k: v for k, v in profile.items() if k in owned}, own)
        values = {**shared, **values, "name": name, "corpus": corpora[corpus]}
        at_top = shared.keys() - own.keys()
        datasets[name] = _validated(dataset_model(stages), values, where, at_top)
    return datasets


def _validated(
    model: type[Any], values: Mapping[Any, Any], place: str, at_top: Collection[str] = ()
) -> Any:
    """An object of the settings. place: where its fields are written, except those `at_top`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]["loc"]
        prefix = "" if first and first[0] in at_top else place.rstrip(".")
        raise SettingsError(printable(one_line(error, prefix, model))) from None
    except RecursionError:
        raise SettingsError("settings: values are nested too deeply; write them out") from None


def _refuse_unshared_places(project: Project) -> None:
    """Raise SettingsError if the nodes of a cluster would not share what steps read and write."""
    if project.cluster.engine == "local":
        return
    places = [("data_uri", project.data_uri)]
    for corpus in project.corpora.values():
        places += [
            (f"uri of source '{source.name}'", source.uri)
            for source in corpus.sources
            if not is_virtual(source.kind)
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
    ENTROPYLONG_PROFILE names. Relative paths in the file are relative to its folder, whatever the
    working folder is. Raises SettingsError, also if nothing names a file or profile.
    """
    path = path or os.environ.get("ENTROPYLONG_SETTINGS")
    if not path and (profile := os.environ.get("ENTROPYLONG_PROFILE")):
        return make_project(profile=profile)
    if not path:
        raise SettingsError(
            "no settings: neither --settings nor ENTROPYLONG_SETTINGS names a file, and "
            "ENTROPYLONG_PROFILE names no profile. Write a file (docs/own-corpus.md) and add "
            "--settings FILE; for the demo, set ENTROPYLONG_PROFILE=quickstart"
        )
    content = read_settings_file(path)
    try:
        folder = Path(path).resolve().parent
        return make_project(content).located(folder)
    except SettingsError as error:
        raise SettingsError(f"settings file {path}: {error}") from None
