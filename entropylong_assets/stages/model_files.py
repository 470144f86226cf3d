"""Files of a model: a hub id, folder, GGUF file or installed package, resolved to one folder.

A hub id may name a revision, `model@revision`: a commit, tag or branch.

This module does not import torch: identities are needed where no model is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from entropylong_assets.settings.section import printable
from entropylong_assets.stages.progress import announce

SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.gguf", "*.jinja")
"""Files fetched from a hub: weights as safetensors or GGUF, never pickles."""

_HASHED_WHOLE = 256 << 20
"""Files up to this size (bytes) are hashed whole; of larger ones the first and last MiB."""


class ModelError(ValueError):
    """A model can't be used. The message is one line and says what to do."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk."""

    folder: Path
    gguf_file: str | None
    """Name of the file in `folder` if the weights are a GGUF file."""
    identity: str
    """Name and hash of the content: equal for equal weights under the same name, on any machine.
    For a model of the hub, its commit takes the place of the hash."""


class HubModel(NamedTuple):
    """A model of the hub, and which of its revisions."""

    name: str
    revision: str | None
    """Commit, tag or branch; None: the hub's default branch."""

    @classmethod
    def parse(cls, reference: str) -> HubModel | None:
        """Return the model that `name` or `name@revision` stands for, or None if it is neither."""
        match = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./+-]+))?", reference)
        return cls(match[1], match[2]) if match else None


def refusal(setting: str, reference: str, error: Exception, otherwise: str) -> ModelError:
    """Make the error for a model that a library can't load.

    setting: section of the settings, `scoring` or `embedding`. otherwise: message for all models
    that do not need trust_remote_code; `{reason}` stands for the library's own message.
    """
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{setting}.model {reference}: it needs Python code of its own, which is run only if "
            f"{setting}.trust_remote_code is true; set that if you trust the code, or name another "
            f"model"
        )
    reason = printable(" ".join(str(error).split()), 200)
    return ModelError(f"{setting}.model {reference}: {otherwise.format(reason=reason)}")


def locate(reference: str, trust_remote_code: bool = False) -> ModelFiles:
    """Find the files of a model, and download them if necessary.

    reference: folder, `*.gguf` file, `pkg://<package>/<file or folder>`, or hub id with or without
    a revision. Raises ModelError if there is no such model.
    """
    if not reference.strip():
        raise ModelError("model '': no model is named; name a hub id, a folder or a GGUF file")
    if reference.startswith("pkg://"):
        path = _package_path(reference)
    else:
        path = Path(reference).expanduser()
        looks_local = reference.startswith((".", "/", "~")) or reference.endswith(".gguf")
        model = None if looks_local or path.exists() else HubModel.parse(reference)
        if model is not None and not Path(model.name).exists():
            path = _snapshot(model, reference, trust_remote_code)
            _refuse_pickles(reference, path)
            return ModelFiles(path, None, f"{model.name}@{path.name}")
    if not path.exists():
        _refuse_revision(reference)
        raise ModelError(f"model {reference}: {path} does not exist; check the setting")
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model {reference}: a single file must be a .gguf; name its folder")
        return ModelFiles(path.parent, path.name, f"{reference}@{_content_hash([path])}")
    files = [f for pattern in SAFE_FILES for f in path.rglob(pattern) if f.is_file()]
    if not (path / "config.json").exists() and not (path / "modules.json").exists():
        raise ModelError(f"model {reference}: {path} has no config.json; name a model folder")
    _refuse_pickles(reference, path)
    return ModelFiles(path, None, f"{reference}@{_content_hash(files)}")


def _refuse_pickles(reference: str, folder: Path) -> None:
    """Refuse weights that exist only as a pickle: unpickling runs whatever code it contains."""
    for pickle in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(pickle.parent.glob("*.safetensors")):
            raise ModelError(
                f"model {reference}: its weights {pickle} are a pickle, which could run any code; "
                f"only safetensors and GGUF are loaded: name a revision that has them, or convert "
                f"the file if you trust it"
            )


def _package_path(reference: str) -> Path:
    package, _, rest = reference.removeprefix("pkg://").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model {reference}: no package '{package}' is installed; install it with pip"
        )
    return Path(next(iter(spec.submodule_search_locations))) / rest


def _refuse_revision(reference: str) -> None:
    """Refuse `name@revision` if the name is a local model."""
    name, at, revision = reference.rpartition("@")
    if not at:
        return
    path = _package_path(name) if name.startswith("pkg://") else Path(name).expanduser()
    if path.is_file() or (path / "config.json").exists() or (path / "modules.json").exists():
        raise ModelError(
            f"model {reference}: only models of the hub have revisions, and {name} is local; leave "
            f"out '@{revision}'"
        )


def _snapshot(model: HubModel, reference: str, trust_remote_code: bool) -> Path:
    """Return the folder of the files, which is named by the commit."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # The card of an embedder says to which dimensions its vectors may be shortened.
    patterns = [*SAFE_FILES, "README.md", *(["*.py"] if trust_remote_code else [])]
    offline = os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True")
    config = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
    if not offline and not isinstance(config, str):
        announce(f"fetching the model {reference} …")
    try:
        return Path(
            snapshot_download(
                model.name,
                revision=model.revision,
                allow_patterns=patterns,
                local_files_only=offline,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        if offline and isinstance(error, LocalEntryNotFoundError):
            reason = "it was not downloaded before, and HF_HUB_OFFLINE forbids it now"
        raise ModelError(
            f"model {reference}: no local folder or file, and the model hub did not provide it "
            f"({reason}); check the name, the revision, the network, or HF_TOKEN for a gated model"
        ) from None


def _content_hash(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            if size <= _HASHED_WHOLE:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            else:
                digest.update(file.read(1 << 20))
                file.seek(-(1 << 20), os.SEEK_END)
                digest.update(file.read())
    return digest.hexdigest()[:12]
