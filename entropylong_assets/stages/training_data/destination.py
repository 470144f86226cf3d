"""Where exports are: `<destination>/<version>`, by default `<data_uri>/<dataset>/exports`.

The tables store only the version, so that a copied data folder finds its own exports.
"""

from __future__ import annotations

from entropylong_assets.settings.section import Settings


def destination_of(settings: Settings) -> str:
    """URI of the folder that contains all exports of a dataset."""
    return settings.export.destination or f"{settings.data_uri}/{settings.name}/exports"


def export_uri(settings: Settings, version: str) -> str:
    """URI of one export."""
    return f"{destination_of(settings).rstrip('/')}/{version}"
