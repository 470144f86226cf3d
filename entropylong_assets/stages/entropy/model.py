"""The scoring model M: loading, tokenization, and the plain definition of a score.

Legend: T tokens of a sequence, N scored positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.model_files import ModelError, ModelFiles, locate, refusal
from entropylong_assets.storage.folders import locked, remove_dead

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def cache_folder() -> Path:
    """Return the folder of converted models: ENTROPYLONG_CACHE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ENTROPYLONG_CACHE") or Path(base) / "entropylong")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence progress bars and messages of transformers, which would garble our own output."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _converted(files: ModelFiles) -> Path:
    """Return a folder of safetensors, converted once: reading a GGUF file takes tens of seconds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

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
        model = AutoModelForCausalLM.from_pretrained(
            files.folder, gguf_file=files.gguf_file, dtype=torch.float32
        )
        # The weights are float32 now, but transformers still treats them as quantised.
        vars(model).update(hf_quantizer=None, is_quantized=False)
        del model.config.quantization_config
        tokenizer.save_pretrained(part)
        model.save_pretrained(part)
        with contextlib.suppress(OSError):  # another process was first; its folder is equal
            part.rename(folder)
    except (ValueError, KeyError, OSError, NotImplementedError, struct.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model {files.folder / (files.gguf_file or '')}: can't be read as GGUF ({reason}); "
            f"check that the file is whole and that transformers supports its architecture"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        alive.close()
    return folder


def model_folder(settings: ScoringModelSettings) -> Path:
    """Return the folder of weights and tokenizer, after conversion if it is a GGUF file.

    Raises ModelError.
    """
    files = locate(settings.model, settings.trust_remote_code)
    with _quietly():
        return _converted(files) if files.gguf_file else files.folder


@lru_cache(maxsize=4)
def _tokenizer(reference: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    files = locate(reference, trust_remote_code)
    with _quietly():
        folder = _converted(files) if files.gguf_file else files.folder
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise refusal(
                "scoring",
                reference,
                error,
                "it has no tokenizer that transformers can load; add the tokenizer's files "
                "(tokenizer.json) to the folder of the weights",
            ) from error
    if len(tokenizer) < 2 or not tokenizer.encode("a b", add_special_tokens=False):
        raise ModelError(
            f"model {reference}: its tokenizer returns no tokens; add the tokenizer's files "
            f"(tokenizer.json) to the folder of the weights"
        )
    tokenizer.model_max_length = int(1e9)  # lengths are checked by this package
    return tokenizer


@dataclass(frozen=True)
class Tokenizer:
    """The scoring model's tokenizer. Text that spells a special token is scored as text."""

    hf_tokenizer: PreTrainedTokenizerBase
    bos_ids: tuple[int, ...]
    """The BOS token that begins every sequence, or empty."""
    separator_ids: tuple[int, ...]
    """Tokens after every context and every root."""
    pad_id: int

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        if not texts:
            return []
        return self.hf_tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
        )["input_ids"]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens."""
        return [len(ids) for ids in self.encode(texts)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.hf_tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)


def load_tokenizer(settings: ScoringModelSettings) -> Tokenizer:
    """Load the tokenizer alone, without the weights. Raises ModelError if there is none."""
    tokenizer = _tokenizer(settings.model, settings.trust_remote_code)
    bos = tokenizer.bos_token_id
    adds_bos = tokenizer("a")["input_ids"][:1] == [bos]
    wanted = settings.bos == "always" or (settings.bos == "auto" and adds_bos)
    if wanted and bos is None:
        raise ModelError(
            f"model {settings.model}: scoring.bos is 'always', but it has no BOS token"
        )
    separator = tokenizer.encode(settings.separator, add_special_tokens=False)
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, bos, 0) if i is not None)
    return Tokenizer(tokenizer, (bos,) if wanted else (), tuple(separator), int(pad))


@dataclass(frozen=True, eq=False)
class ScoringModel:
    """A loaded causal language model with its tokenizer."""

    hf_model: PreTrainedModel
    tokenizer: Tokenizer
    identity: str
    """Reference, content hash and dtype."""
    max_forward_tokens: int

    @property
    def vocab_size(self) -> int:
        return int(self.hf_model.get_output_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int:
        """Maximum length of a sequence (tokens)."""
        config = self.hf_model.config.get_text_config()
        return min(int(config.max_position_embeddings), self.max_forward_tokens)


def resolve_device(settings: ScoringModelSettings) -> tuple[str, str]:
    """Return (device, dtype), with `auto` resolved for this machine."""
    import torch

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(
            f"scoring.device is '{device}', but torch finds no CUDA device; use 'auto'"
        )
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    return device, dtype


def model_identity(settings: ScoringModelSettings) -> str:
    """Return the identity of the model that these settings name, without loading it."""
    _, dtype = resolve_device(settings)
    return f"{locate(settings.model, settings.trust_remote_code).identity}:{dtype}"


@lru_cache(maxsize=1)
def _weights(reference: str, trust_remote_code: bool, device: str, dtype: str) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    files = locate(reference, trust_remote_code)
    with _quietly():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                _converted(files) if files.gguf_file else files.folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise refusal(
                "scoring",
                reference,
                error,
                "can't be loaded as a causal language model ({reason}); check that its files are "
                "whole and its weights are safetensors",
            ) from error
    return model.eval().to(device)


def load_scoring_model(settings: ScoringModelSettings) -> ScoringModel:
    """Load the model; a second call in the same process returns the same weights.

    Raises ModelError if the model, its tokenizer or the device is not available.
    """
    device, dtype = resolve_device(settings)
    tokenizer = load_tokenizer(settings)
    return ScoringModel(
        hf_model=_weights(settings.model, settings.trust_remote_code, device, dtype),
        tokenizer=tokenizer,
        identity=model_identity(settings),
        max_forward_tokens=settings.max_forward_tokens,
    )


def score_plainly(model: ScoringModel, request: ScoringRequest) -> PositionScores:
    """Score by the definition: one forward pass, all logits, entropy computed in float32."""
    import torch

    with torch.inference_mode():
        ids_1T = torch.from_numpy(request.token_ids_T)[None].to(model.hf_model.device)
        logits_TV = model.hf_model(input_ids=ids_1T, use_cache=False).logits[0]
        positions_N = torch.from_numpy(request.positions_N).to(logits_TV.device)
        log_p_NV = torch.log_softmax(logits_TV[positions_N - 1].float(), dim=-1)
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
        surprisal_N = -log_p_NV.gather(1, ids_1T[0, positions_N][:, None])[:, 0]
    return PositionScores(as_float32(entropy_N), as_float32(surprisal_N))


class PlainScorer:
    """Scores one request at a time by the definition. Slow; the reference for engines."""

    def __init__(self, model: ScoringModel) -> None:
        self._model = model

    def score(
        self,
        requests: Sequence[ScoringRequest],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        scores = []
        for request in requests:
            scores.append(score_plainly(self._model, request))
            on_progress(len(request.token_ids_T))
        return scores


def as_float32(tensor_N: Any) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = tensor_N.float().cpu().numpy()
    return scores
