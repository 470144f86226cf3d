"""The Dagster component: corpora and datasets in anybody's `dg` project.

    # defs/web/defs.yaml
    type: entropylong_assets.EntropyLong
    attributes:
      data_uri: /data/web
      corpus: {sources: [{name: web, uri: "/corpus/*.jsonl"}]}
      scoring: {model: HuggingFaceTB/SmolLM2-135M}

The attributes are those of a settings file. Without `corpora` and `datasets`, the dataset is named
like the component's folder and its corpus `<folder>_corpus`, so that a project can have several
components.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import ConfigDict

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.project import make_project


class EntropyLongAttributes(dg.Model):
    """Attributes of the component: the content of a settings file (docs/settings.md)."""

    model_config = ConfigDict(extra="allow")

    profile: str | None = None
    """Named profile that the settings start from: `calibrated`, `paper`, `quickstart`."""
    data_uri: str | None = None
    """Folder or fsspec URI that contains the tables."""
    seed: int | None = None
    """Seed of every random choice."""
    cluster: dict[str, Any] | None = None
    """Where steps run: `engine`, `address`, `resources`."""
    corpora: dict[str, dict[str, Any]] | None = None
    """Corpora by name; or one without a name under `corpus`."""
    datasets: dict[str, dict[str, Any]] | None = None
    """Datasets by name; or the sections of one without a name at the top level."""


class EntropyLong(dg.Component):
    """Turns a corpus of short documents into verified long-context training data."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = attributes

    @classmethod
    def get_model_cls(cls) -> type[dg.Model]:
        return EntropyLongAttributes

    @classmethod
    def load(cls, attributes: Any, context: dg.ComponentLoadContext) -> EntropyLong:
        """Make the component from the attributes of its YAML file, templates rendered."""
        given = attributes.model_dump(exclude_none=True) if attributes is not None else {}
        return cls(context.resolution_context.resolve_value(given))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        folder = re.sub(r"[^a-z0-9]+", "_", context.path.name.lower()).strip("_")
        project = make_project(self.attributes, default_names=(f"{folder}_corpus", folder))
        return build_definitions(project, with_executor=False)
