"""The settings as a Dagster resource, so that the launchpad shows every one of them."""

from __future__ import annotations

import types
from typing import Any, Literal, Optional, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model

from entropylong_assets.settings.model import Settings, make_settings
from entropylong_assets.storage.tables import TableStore


def _launchpad_type(annotation: Any, value: Any) -> Any:
    """The type that Dagster's config system knows in the place of a type of the settings."""
    if isinstance(value, BaseModel):
        return create_model(type(value).__name__, __base__=dg.Config, **_launchpad_fields(value))
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        is_model = isinstance(inner, type) and issubclass(inner, BaseModel)
        blank = inner.model_construct() if is_model else None
        return list[_launchpad_type(inner, blank)]  # type: ignore[misc]
    if get_origin(annotation) in (Union, types.UnionType):
        inner = next(a for a in get_args(annotation) if a is not type(None))
        return Optional[_launchpad_type(inner, None)]  # noqa: UP045  # what Dagster knows
    if get_origin(annotation) is Literal:
        return str  # the settings themselves say what is allowed
    return annotation


def _launchpad_fields(settings: BaseModel) -> dict[str, Any]:
    """Fields of a Dagster config class whose defaults are these settings, at every level.

    Dagster fills what a person leaves out from the classes' defaults, not from an instance.
    """
    fields = {}
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name, ...)
        kind = _launchpad_type(info.annotation, value)
        description = " ".join((info.description or "").split())
        if get_origin(info.annotation) is Literal:
            description += f" One of: {', '.join(get_args(info.annotation))}."
        if isinstance(value, BaseModel):
            value = kind()
        elif isinstance(value, tuple):
            value = [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
        fields[name] = (kind, Field(value, description=description))
    return fields


class Pipeline:
    """Settings and tables of one pipeline, as the assets use them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = TableStore(settings.data_uri)


class _PipelineResource(dg.ConfigurableResource):
    def create_resource(self, context: dg.InitResourceContext) -> Pipeline:  # noqa: ARG002
        """Raises SettingsError where a value is not allowed."""
        values = self.model_dump(warnings=False)  # sources are plain dicts here
        return Pipeline(make_settings(values.pop("profile"), values))


def pipeline_resource(settings: Settings) -> dg.ConfigurableResource:
    """The resource `pipeline`: its defaults are these settings, and what is changed in the
    launchpad holds for that run alone."""
    fields = _launchpad_fields(settings)
    del fields["cluster"]  # settled before a run begins
    made: type[_PipelineResource] = create_model(
        "PipelineResource", __base__=_PipelineResource, **fields
    )
    return made()
