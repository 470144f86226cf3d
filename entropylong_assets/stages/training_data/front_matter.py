"""Front matter of the dataset card: what the Hugging Face Hub and `load_dataset` read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from entropylong_assets.stages.training_data.registry import EXPORT_FORMATS, ExportFacts

LICENSES = "LICENSE.md"
"""File of an export that lists the licences of its sources."""

_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
"""The Hub's categories of size, by powers of ten from 1,000 samples."""

# Identifiers of licences of data and texts that the Hub knows; it rejects cards with others.
# https://huggingface.co/docs/hub/repositories-licenses
_HUB_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsl-1.0 c-uda cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl
ncsa odbl odc-by ofl-1.1 osl-3.0 pddl postgresql unknown unlicense wtfpl zlib
"""

NO_TABLE = "this-export-has-no-parquet-files"
"""A path that does not exist. Without it, `load_dataset` would take the first JSON files that it
finds, such as an index of MDS, for the samples."""


def _license(licenses: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """The fields of the licence. Several licences, or one unknown to the Hub, are `other`."""
    names = {name.lower() for by_name in licenses.values() for name in by_name}
    if len(names) == 1 and names <= set(_HUB_LICENSES.split()):
        return {"license": next(iter(names))}
    return {
        "license": "other",
        "license_name": "licenses-of-the-sources",
        "license_link": LICENSES,
    }


def _configs(formats: list[str], facts: ExportFacts) -> dict[str, Any]:
    """All fields that formats add; `configs` of several formats follow each other."""
    fields: dict[str, Any] = {"configs": []}
    for name in formats:
        added = dict(EXPORT_FORMATS[name].front_matter(facts))
        fields["configs"] += added.pop("configs", [])
        fields |= added
    if not fields["configs"]:
        absent = {"config_name": "default", "data_files": NO_TABLE}
        return fields | {"configs": [absent], "viewer": False}
    return fields


class _Dumper(yaml.SafeDumper):
    """Writes equal values twice: the Hub does not want YAML's references."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def front_matter(content: Mapping[str, Any], facts: ExportFacts) -> str:
    """The front matter of an export with this manifest, between its lines of dashes."""
    figures = content["figures"]
    place = max(0, len(str(figures["samples"])) - 3)
    fields = {
        "pretty_name": "Long-context samples with verified dependencies",
        **_license(figures["licenses"]),
        "task_categories": ["text-generation"],
        "tags": ["long-context", "pre-training", "entropylong"],
        "size_categories": [_SIZES[min(place, len(_SIZES) - 1)]],
        **_configs(content["formats"], facts),
    }
    return f"---\n{yaml.dump(fields, Dumper=_Dumper, sort_keys=False)}---\n"
