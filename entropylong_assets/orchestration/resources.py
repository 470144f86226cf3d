"""The settings of a corpus or dataset as Dagster resources, one per section.

The launchpad of a job shows the sections that its stages read, sorted by name. While a user types,
it checks names, types and enumerated values (`order: shufle`). It can't check the bounds of numbers
or settings that contradict each other: these fail the step that reads them, with one line.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, ValidationError, create_model

from entropylong_assets.orchestration.naming import settings_key
from entropylong_assets.settings.section import Settings, SettingsError, one_line, printable
from entropylong_assets.stages.stage import Stage

_FIXED = ("name", "data_uri", "corpus")
"""Settings that a single run can't change, because they name the data."""


def _launchpad_type(annotation: Any, value: Any) -> Any:
    """Return the type of Dagster's config system that stands for a type of the settings."""
    if get_origin(annotation) is Annotated:
        return _launchpad_type(get_args(annotation)[0], value)
    if isinstance(value, BaseModel):
        return create_model(type(value).__name__, __base__=dg.Config, **_launchpad_fields(value))
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return list[_launchpad_type(inner, _blank(inner))]  # type: ignore[misc]
    if get_origin(annotation) in (Mapping, dict):
        key, item = get_args(annotation)
        return dict[key, _launchpad_type(item, _blank(item))]  # type: ignore[valid-type,misc]
    if get_origin(annotation) in (Union, types.UnionType):
        inner = next(a for a in get_args(annotation) if a is not type(None))
        return Optional[_launchpad_type(inner, None)]  # noqa: UP045  # the form Dagster knows
    if get_origin(annotation) is Literal:
        return str  # inside a list or an optional value, where Dagster does not know it
    return annotation


def _blank(annotation: Any) -> BaseModel | None:
    """An object of a section's class with its defaults; None for any other type."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation.model_construct() if is_section else None


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _launchpad_fields(settings: BaseModel) -> dict[str, Any]:
    """Fields of a Dagster config class whose defaults are these settings, at every level.

    Dagster fills in what a user leaves out from the classes' defaults, not from an instance.
    """
    fields: dict[str, Any] = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name, ...)
        is_literal = get_origin(info.annotation) is Literal
        kind: Any = info.annotation if is_literal else _launchpad_type(info.annotation, value)
        description = f"{' '.join((info.description or '').split())}{_limits(info.metadata)}"
        if is_literal:
            description += f" One of: {', '.join(get_args(info.annotation))}."
        if isinstance(value, BaseModel):
            value = kind()
        elif isinstance(value, tuple):
            value = [_plain(item) for item in value]
        elif isinstance(value, Mapping):
            value = {name: _plain(item) for name, item in value.items()}
        fields[name] = (kind, Field(value, description=description))
    return fields


_WORDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _limits(metadata: Sequence[Any]) -> str:
    """The bounds of a number as a sentence, for its description."""
    bounds = [
        f"{word} {getattr(item, name)}"
        for item in metadata
        for name, word in _WORDS.items()
        if hasattr(item, name)
    ]
    return f" Allowed: {', '.join(bounds)}." if bounds else ""


def settings_resources(settings: Settings) -> dict[str, dg.ResourceDefinition]:
    """The resources of a corpus or dataset by key: one per section, one for the other settings.

    Each gives the values of its settings as a mapping. What a launchpad changes applies to that
    run alone.
    """
    fields = {k: v for k, v in _launchpad_fields(settings).items() if k not in _FIXED}
    groups: dict[str, dict[str, Any]] = {}
    for name, field in fields.items():
        groups.setdefault(_key_of(settings, name), {})[name] = field
    return {key: _resource(settings, group) for key, group in groups.items()}


def _resource(settings: Settings, fields: Mapping[str, Any]) -> dg.ResourceDefinition:
    section = next(iter(fields))
    is_section = isinstance(getattr(settings, section), BaseModel)
    entry = (
        fields[section][0] if is_section else create_model("Settings", __base__=dg.Config, **fields)
    )

    def give(context: dg.InitResourceContext) -> dict[str, Any]:
        values: dict[str, Any] = dict(context.resource_config)
        return {section: values} if is_section else values

    return dg.ResourceDefinition(give, config_schema=entry.to_config_schema().as_field())


def _key_of(settings: Settings, field: str) -> str:
    """Key of the resource that has a setting or section."""
    is_section = isinstance(getattr(settings, field), BaseModel)
    return settings_key(settings, field) if is_section else settings_key(settings)


def resource_keys(settings: Settings, stage: Stage) -> set[str]:
    """Keys of the resources with the settings that a stage reads: a job shows no others."""
    read = {path.partition(".")[0] for path in stage.determined_by(settings)} | set(stage.sections)
    return {_key_of(settings, field) for field in read - set(_FIXED)}


def chosen_settings(settings: Settings, stage: Stage, resources: Any) -> Settings:
    """These settings, with those of a run's resources. Raises SettingsError for a wrong value."""
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    for key in sorted(resource_keys(settings, stage)):
        values |= getattr(resources, key)
    try:
        return type(settings).model_validate(values)
    except ValidationError as error:
        raise SettingsError(printable(one_line(error, settings.name))) from None
