"""Loading a network from the scoring model's files: conversion of GGUF files, checks, refusals."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.model_files import ModelError, ModelFiles, locate, refusal
from entropylong_assets.stages.progress import announce
from entropylong_assets.storage.folders import locked, remove_dead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 3
"""Maximum number of weights that a message names."""

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of converted models: ENTROPYLONG_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ENTROPYLONG_CACHE") or Path(base) / "entropylong")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence progress bars and messages of transformers, which would garble our own output."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def folder_of(files: ModelFiles) -> Path:
    """Return the folder of weights and tokenizer, after conversion if it is a GGUF file."""
    return _converted(files) if files.gguf_file else files.folder


def _converted(files: ModelFiles) -> Path:
    """Return a folder of safetensors, converted once: reading a GGUF file takes tens of seconds."""
    import torch
    from transformers import AutoTokenizer

    folder = cache_folder() / f"gguf-{files.identity.rpartition('@')[2]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent):
        remove_dead(folder.parent, "gguf-*.*")
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
        alive = ExitStack()
        alive.enter_context(locked(part))
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, gguf_file=files.gguf_file)
        model = _from_pretrained(files.folder, gguf_file=files.gguf_file, dtype=torch.float32)
        # The weights are float32 now, but transformers still treats them as quantised.
        vars(model).update(hf_quantizer=None, is_quantized=False)
        del model.config.quantization_config
        tokenizer.save_pretrained(part)
        model.save_pretrained(part)
        with contextlib.suppress(OSError):  # another process was first; its folder is equal
            part.rename(folder)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the readers of transformers may raise any error
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model {files.folder / (files.gguf_file or '')}: can't be read as GGUF ({reason}); "
            f"check that the file is whole and that transformers supports its architecture"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        alive.close()
    return folder


def _from_pretrained(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a causal language model. Raises ValueError if some of its weights are not in the files:
    transformers would fill them with random numbers."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    kind = type(model).__name__
    missing = sorted(set(report["missing_keys"]) | {str(k) for k in report["mismatched_keys"]})
    if missing:
        raise ValueError(f"its files lack the weights {_first(missing)} of {kind}")
    if unused := sorted(report["unexpected_keys"]):
        log.warning("model %s: %s does not use the weights %s", folder, kind, _first(unused))
    return model


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


@lru_cache(maxsize=1)
def load_weights(
    reference: str, trust_remote_code: bool, device: str, dtype: str
) -> PreTrainedModel:
    """Load the model onto the device, for inference; the last one stays loaded.

    Raises ModelError, with one line for whatever transformers raises.
    """
    announce(f"loading the model {reference} …")
    import torch

    files = locate(reference, trust_remote_code)
    with quietly():
        try:
            model = _from_pretrained(
                folder_of(files),
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
            return model.eval().to(device)
        except (ModelError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # hundreds of classes, each with its own errors
            raise refusal(
                "scoring",
                reference,
                error,
                "can't be loaded as a causal language model ({reason}); check that its files are "
                "whole, its weights are safetensors, and the packages that it needs are installed",
            ) from error


def outline(settings: ScoringModelSettings) -> PreTrainedModel:
    """Make the model without weights, on torch's `meta` device: cheap for any size.

    Raises ModelError if transformers can't make it, or if there are no weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    trusted = settings.trust_remote_code
    files = locate(settings.model, trusted)
    with quietly():
        folder = folder_of(files)
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"model {settings.model}: {folder} holds no weights (*.safetensors); copy or fetch "
                "it whole"
            )
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        except Exception as error:
            raise refusal(
                "scoring",
                settings.model,
                error,
                "can't be made as a causal language model ({reason}); check its config.json and "
                "that the packages that it needs are installed",
            ) from error


def weights_bytes(hf_model: PreTrainedModel, dtype: str) -> int:
    """Return the memory of the weights in this dtype (bytes)."""
    import torch

    return sum(p.numel() for p in hf_model.parameters()) * getattr(torch, dtype).itemsize
