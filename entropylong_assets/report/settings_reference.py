"""The settings reference: a Markdown page made from the classes of the settings."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

import yaml

from entropylong_assets.settings.cluster import ClusterSettings, StepResources
from entropylong_assets.settings.profiles import DEFAULT_PROFILE, PROFILES
from entropylong_assets.settings.section import Section, Settings
from entropylong_assets.stages.corpus.settings import CorpusSettings, SourceSettings
from entropylong_assets.stages.settings_models import sections
from entropylong_assets.stages.stage import Stage

_INTRODUCTION = """# Settings reference

<!-- Written by `entropylong settings --markdown`; `make settings-reference` writes this file. -->

A settings file is YAML. It has the sections below at its top level, if it describes one corpus and
one dataset:

```yaml
profile: default                 # what the file leaves out comes from this profile
data_uri: /data/my-run
corpus:
  sources: [{name: web, uri: "/corpus/web/*.jsonl.zst"}]
scoring: {model: HuggingFaceTB/SmolLM2-360M}
verification: {epsilon: 0.3}
```

With several of them, the sections of a corpus are under `corpora.<name>` and those of a dataset
under `datasets.<name>`:

```yaml
data_uri: /data/lab
corpora:
  web:
    sources: [{name: web, uri: "/corpus/web/*.jsonl.zst"}]
    embedding: {chunk_tokens: 128}
datasets:
  ours: {corpus: web}
  paper_rule: {corpus: web, verification: {rule: plain, require_surprisal_drop: false}}
```

`entropylong` and Dagster read the file that `--settings` or the environment variable
`ENTROPYLONG_SETTINGS` names. An unknown key or a value out of range is refused with one line that
names it. [concepts.md](concepts.md) explains the terms.
"""

_PROFILES = """## Profiles

`profile` names a set of values that the file starts from. Without a file, the environment variable
`ENTROPYLONG_PROFILE` names it. The default is `{default}`, which consists of the defaults of this
page. The other profiles differ from it in these values.
"""

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
}


def settings_page(stages: tuple[Stage, ...]) -> str:
    """Return the page: every setting of these stages with type, limits, default and description."""
    parts = [
        _INTRODUCTION,
        _heading("Top level", "", "Valid for all corpora and datasets of the file."),
        _table(Settings, leave_out={"name"}),
        _heading(
            "cluster", "", "Where the steps of a run are executed ([cluster.md](cluster.md))."
        ),
        _table(ClusterSettings),
        "`cluster.resources.<asset>` is what one step of an asset requests, and "
        "`cluster.resources.checks` what one step of a check requests. By default, the steps that "
        "run a model request one GPU.\n",
        _table(StepResources),
        _heading("corpus", "corpus", "Which texts become documents ([inputs.md](inputs.md))."),
        _table(CorpusSettings, leave_out={"name", "data_uri", "seed", "sources"}),
        "Each entry of `corpus.sources`:\n",
        _table(SourceSettings),
    ]
    for field, entry in _entries(CorpusSettings):
        if field != "sources":
            parts += [_heading(f"corpus.{field}", "", entry.__doc__ or ""), _table(entry)]
    for scope in ("corpus", "dataset"):
        for name, section in sections(stages, scope).items():
            parts += [_heading(name, scope, (section.__doc__ or "").strip()), _table(section)]
            for field, entry in _entries(section):
                parts += [_heading(f"{name}.{field}", "", entry.__doc__ or ""), _table(entry)]
    parts.append(_PROFILES.format(default=DEFAULT_PROFILE))
    for name, values in PROFILES.items():
        if values:
            parts.append(f"### {name}\n\n```yaml\n{_yaml(values)}```\n")
    return "\n".join(parts)


def _entries(section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """The fields that hold sections by name, and the class of these."""
    for name, field in section.model_fields.items():
        for item in get_args(field.annotation):
            if isinstance(item, type) and issubclass(item, Section):
                yield name, item


def _heading(name: str, scope: str, description: str) -> str:
    of = f"Of a {scope}. " if scope else ""
    return f"## {name}\n\n{of}{' '.join(description.split())}\n"


def _table(section: type[Section], leave_out: Collection[str] = ()) -> str:
    """One row per setting of a section."""
    schema = section.model_json_schema()
    lines = ["| setting | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in schema["properties"].items():
        if name not in leave_out:
            value = " or ".join(dict.fromkeys(_values(field, schema.get("$defs", {}))))
            default = "required" if name in schema.get("required", ()) else _default(field)
            meaning = _cell(section.model_fields[name].description or "")
            lines.append(f"| `{name}` | {value} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _values(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """What a field of a JSON schema accepts, in words."""
    if "anyOf" in field:
        for option in field["anyOf"]:
            yield from _values(option, definitions)
    elif "enum" in field:
        yield ", ".join(f"`{value}`" for value in field["enum"])
    elif field.get("type") == "array":
        yield f"list of: {' or '.join(_values(field['items'], definitions))}"
    elif field.get("type") == "object" or "$ref" in field:
        inner = field.get("additionalProperties")
        yield "keys and values" + (
            f": {' '.join(_values(inner, definitions))}" if isinstance(inner, Mapping) else ""
        )
    elif field.get("type") == "null":
        yield "`null`"
    else:
        bounds = [text.format(field[key]) for key, text in _BOUNDS.items() if key in field]
        kind: str = field.get("type", "string")
        yield f"{kind} {' and '.join(bounds)}" if bounds else kind


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if isinstance(default, list):
        return ", ".join(f"`{value}`" for value in default) or "empty"
    if default == "" or default == {}:
        return "empty"
    if isinstance(default, str) and default.isprintable():
        return f"`{default}`"
    return f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    """Text of an attribute's docstring in one table cell."""
    text = " ".join(text.split()).replace("|", "\\|")
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](\1)", text)


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)
