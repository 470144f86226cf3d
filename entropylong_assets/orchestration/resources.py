"""The settings of a corpus or dataset as a Dagster resource: the launchpad shows every one."""

from __future__ import annotations

import types
from collections.abc import Mapping
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
        return str  # the settings themselves check the value
    return annotation


def _launchpad_fields(settings: BaseModel) -> dict[str, Any]:
    """Fields of a Dagster config class whose defaults are these settings, at every level.

    Dagster fills in what a user leaves out from the classes' defaults, not from an instance.
    """
    fields: dict[str, Any] = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name, ...)
        kind = _launchpad_type(info.annotation, value)
        description = " ".join((info.description or "").split())
        if get_origin(info.annotation) is Literal:
            description += f" One of: {', '.join(get_args(info.annotation))}."
        if isinstance(value, BaseModel):
            value = kind()
        elif isinstance(value, tuple):
            value = [i.model_dump(mode="json") if isinstance(i, BaseModel) else i for i in value]
        elif isinstance(value, Mapping):
            value = dict(value)
        fields[name] = (kind, Field(value, description=description))
    return fields


def settings_resource(settings: Settings) -> dg.ConfigurableResource:
    """A resource that gives these settings; what a launchpad changes applies to that run alone."""

    class _SettingsResource(dg.ConfigurableResource):
        def create_resource(self, context: dg.InitResourceContext) -> Settings:  # noqa: ARG002
            """Raises SettingsError if a value is not allowed."""
            values = self.model_dump(warnings=False)  # sources are plain dicts here
            fixed = {name: getattr(settings, name) for name in _FIXED if hasattr(settings, name)}
            try:
                return type(settings).model_validate({**values, **fixed})
            except ValidationError as error:
                raise SettingsError(printable(one_line(error, settings.name))) from None

    fields = {k: v for k, v in _launchpad_fields(settings).items() if k not in _FIXED}
    made: type[_SettingsResource] = create_model(
        "SettingsResource", __base__=_SettingsResource, **fields
    )
    return made()
