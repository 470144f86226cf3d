"""The settings of a corpus or dataset as a Dagster resource: the launchpad shows every one.

Dagster itself checks names, types and words (`order: shufle`) while one types. It has no numbers
with bounds: a number out of bounds, or settings that contradict each other, end the first step with
one line. It sorts settings by name, whatever their order here is.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, ValidationError, create_model

from entropylong_assets.settings.section import Settings, SettingsError, one_line, printable

_FIXED = ("name", "data_uri", "corpus")
"""Not for a single run to change: they say where the data is."""


def _launchpad_type(annotation: Any, value: Any) -> Any:
    """The type that Dagster's config system knows in place of a type of the settings."""
    if get_origin(annotation) is Annotated:
        return _launchpad_type(get_args(annotation)[0], value)
    if isinstance(value, BaseModel):
        return create_model(type(value).__name__, __base__=dg.Config, **_launchpad_fields(value))
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        is_model = isinstance(inner, type) and issubclass(inner, BaseModel)
        blank = inner.model_construct() if is_model else None
        return list[_launchpad_type(inner, blank)]  # type: ignore[misc]
    if get_origin(annotation) in (Mapping, dict):
        key, item = get_args(annotation)
        return dict[key, _launchpad_type(item, None)]  # type: ignore[valid-type,misc]
    if get_origin(annotation) in (Union, types.UnionType):
        inner = next(a for a in get_args(annotation) if a is not type(None))
        return Optional[_launchpad_type(inner, None)]  # noqa: UP045  # the form Dagster knows
    if get_origin(annotation) is Literal:
        return str  # inside a list or an optional value, where Dagster does not know it
    return annotation


def _launchpad_fields(settings: BaseModel) -> dict[str, Any]:
    """Fields of a Dagster config class whose defaults are these settings, at every level.

    Dagster fills in what a user leaves out from the classes' defaults, not from an instance.
    """
    fields: dict[str, Any] = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name, ...)
        is_literal = get_origin(info.annotation) is Literal
        kind = info.annotation if is_literal else _launchpad_type(info.annotation, value)
        description = f"{' '.join((info.description or '').split())}{_limits(info.metadata)}"
        if is_literal:
            description += f" One of: {', '.join(get_args(info.annotation))}."
        if isinstance(value, BaseModel):
            value = kind()
        elif isinstance(value, tuple):
            value = [i.model_dump(mode="json") if isinstance(i, BaseModel) else i for i in value]
        elif isinstance(value, Mapping):
            value = dict(value)
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


@dataclass(frozen=True)
class RefusedSettings:
    """What a launchpad's entry gives that the settings do not allow."""

    message: str
    """One line: the setting, what is wrong, the value."""


def chosen_settings(resource: Settings | RefusedSettings) -> Settings:
    """The settings that the resource gives. Raises SettingsError if they were refused."""
    if isinstance(resource, RefusedSettings):
        raise SettingsError(resource.message)
    return resource


def settings_resource(settings: Settings) -> dg.ResourceDefinition:
    """A resource that gives these settings; what a launchpad changes applies to that run alone.

    Values that are not allowed give RefusedSettings: Dagster would wrap an error that is raised
    here into several stack traces. `chosen_settings` raises it within the step.
    """
    fixed = {name: getattr(settings, name) for name in _FIXED if hasattr(settings, name)}
    fields = {k: v for k, v in _launchpad_fields(settings).items() if k not in _FIXED}
    entry = create_model("Launchpad", __base__=dg.Config, **fields)

    def give(context: dg.InitResourceContext) -> Settings | RefusedSettings:
        values = {**context.resource_config, **fixed}
        try:
            return type(settings).model_validate(values)
        except ValidationError as error:
            return RefusedSettings(printable(one_line(error, settings.name)))

    return dg.ResourceDefinition(give, config_schema=entry.to_config_schema().as_field())
