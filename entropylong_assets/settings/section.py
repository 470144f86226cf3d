"""Base classes of all settings, and the messages about wrong values.

A *section* is a group of settings that one stage owns (`verification`, `samples`, ...). A
`Settings` object contains the sections of one corpus or one dataset. The list of stages
(`pipeline.py`) determines which sections exist.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from entropylong_assets.settings.credentials import CREDENTIALS, holds_credentials

NAME_PATTERN = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
"""Names of corpora and datasets, which are used in asset keys, job names and folders. Two
underscores in a row are not allowed, so that `<name>__<job>` is unambiguous."""


class SettingsError(ValueError):
    """A setting is wrong. The message is one line and names the field."""


class Section(BaseModel):
    """A group of settings. Immutable; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def located(self, folder: Path) -> Self:
        """Return these settings with relative paths in this folder, that of the settings file.

        A section with a path overrides this by `self.with_located(folder, <its other fields>)`.
        """
        return self.with_located(folder)

    def with_located(self, folder: Path, /, **changed: Any) -> Self:
        """Return a copy with these fields, in which the sections within this one are located."""
        inner = {name: getattr(self, name) for name in type(self).model_fields}
        located = {name: _located(value, folder) for name, value in inner.items()} | changed
        return self.model_copy(update={n: v for n, v in located.items() if v is not inner[n]})


class Settings(Section):
    """All settings of one corpus or one dataset; its sections are attributes."""

    name: str = Field(pattern=NAME_PATTERN, max_length=40)
    """Name of the corpus or dataset: lower-case letters, digits and single underscores."""
    data_uri: str = "data"
    """Folder or fsspec URI that contains the tables of all corpora and datasets."""
    seed: int = Field(20251002, ge=0)
    """Seed of all random choices: roots, controls, order."""

    @field_validator("data_uri")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a folder or URI")
        return refuse_credentials(value).rstrip("/")

    def located(self, folder: Path) -> Self:
        return self.with_located(folder, data_uri=beside(folder, self.data_uri))

    if TYPE_CHECKING:
        # The sections depend on the list of stages, which stages must not import.
        def __getattr__(self, section: str) -> Any: ...


def _located(value: Any, folder: Path) -> Any:
    if isinstance(value, Section):
        return value.located(folder)
    if isinstance(value, tuple) and any(isinstance(item, Section) for item in value):
        return tuple(_located(item, folder) for item in value)
    if isinstance(value, Mapping) and any(isinstance(item, Section) for item in value.values()):
        return {key: _located(item, folder) for key, item in value.items()}
    return value


def beside(folder: Path, uri: str) -> str:
    """Return a relative path as one in this folder, and any other URI unchanged."""
    if not uri or "://" in uri or uri.startswith("~") or Path(uri).is_absolute():
        return uri
    return str(folder / uri) + ("/" if uri.endswith("/") else "")


def model_beside(folder: Path, reference: str) -> str:
    """Return `./model` and `../model` as a path in this folder. `a/b` is an id of the hub."""
    return beside(folder, reference) if reference.startswith(("./", "../")) else reference


def refuse_credentials(uri: str) -> str:
    """Return the URI. Raises PydanticCustomError if it contains credentials."""
    if holds_credentials(uri):
        # A separate error type, because `one_line` must not repeat the value.
        raise PydanticCustomError("credentials", CREDENTIALS)
    return uri


def one_line(error: ValidationError, prefix: str = "", model: type[BaseModel] | None = None) -> str:
    """Describe the first fault of a validation error: the field, what is wrong, the value.

    model: what was validated; names the setting that a misspelt one is like.
    """
    fault = error.errors(include_url=False)[0]
    path = ".".join([*filter(None, [prefix]), *(str(part) for part in fault["loc"])])
    where = path or "settings"
    if fault["type"] == "extra_forbidden":
        close = _similar_name(model, fault["loc"]) if model else None
        return f"{where}: no such setting{f'; did you mean {close}?' if close else ''}"
    message = re.sub(r"^Value error, ", "", fault["msg"])
    given = fault["input"]
    can_show = isinstance(given, str | int | float | bool) and fault["type"] != "credentials"
    shown = f" (got {given!r})" if can_show else ""
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{where}: {message}{shown}{more}"


def _similar_name(model: type[BaseModel], path: Sequence[str | int]) -> str | None:
    """The setting of the section at this path whose name is like the last part, or None."""
    sections = [model]
    for part in path[:-1]:
        fields = [s.model_fields[part] for s in sections if part in s.model_fields]
        # Otherwise the part is a number in a list, or a key in a mapping, of these sections.
        sections = [s for f in fields for s in _sections_in(f.annotation)] if fields else sections
    names = sorted({name for section in sections for name in section.model_fields})
    return next(iter(difflib.get_close_matches(str(path[-1]), names, 1)), None)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections_in(inner)]


def printable(text: str, limit: int = 500) -> str:
    """Return the text in one line, shortened to `limit` characters, without control characters."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def fingerprint(*values: Any) -> str:
    """Return 16 hex digits of a hash of the values (JSON values or settings)."""
    plain = [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in values]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
