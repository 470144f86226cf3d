"""What `dg dev` and Dagster's services load: the project that ENTROPYLONG_SETTINGS names."""

from __future__ import annotations

import dagster as dg

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.project import load_project


@dg.definitions
def defs() -> dg.Definitions:
    """All definitions of the project. Raises SettingsError if its settings are wrong."""
    return build_definitions(load_project())
