"""The scoring model M: loading, tokenization, and the plain definition of a score.

Legend: T tokens of a sequence, N scored positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.dtypes import resolve_dtype
from entropylong_assets.stages.entropy.network import longest_sequence
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.entropy.special_tokens import TemplateError, prepended_ids
from entropylong_assets.stages.entropy.weights import folder_of, load_weights, quietly
from entropylong_assets.stages.model_files import ModelError, locate, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@lru_cache(maxsize=4)
def _tokenizer(reference: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    files = locate(reference, trust_remote_code)
    with quietly():
        folder = folder_of(files)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:  # each tokenizer class has its own errors
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
    """The special tokens that begin every sequence: usually one, BOS, or none."""
    separator_ids: tuple[int, ...]
    """Tokens after every context and every root."""

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

    def encode_with_spans(
        self, texts: Sequence[str]
    ) -> list[tuple[list[int], list[tuple[int, int]]]] | None:
        """Return the token ids of each text and the characters (start, end) that each token stands
        for. None if the tokenizer can't tell."""
        if not self.hf_tokenizer.is_fast:
            return None
        encoded = self.hf_tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_offsets_mapping=True,
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text in tokens."""
        return [len(ids) for ids in self.encode(texts)]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.hf_tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)


def load_tokenizer(settings: ScoringModelSettings) -> Tokenizer:
    """Load the tokenizer alone, without the weights. Raises ModelError if there is none."""
    tokenizer = _tokenizer(settings.model, settings.trust_remote_code)
    separator = tokenizer.encode(settings.separator, add_special_tokens=False)
    return Tokenizer(tokenizer, _bos_ids(tokenizer, settings), tuple(separator))


def _bos_ids(tokenizer: PreTrainedTokenizerBase, settings: ScoringModelSettings) -> tuple[int, ...]:
    """Return the tokens that begin every sequence. Raises ModelError."""
    if settings.bos == "never":
        return ()
    try:
        own = prepended_ids(tokenizer)
    except TemplateError as error:
        raise ModelError(
            f"model {settings.model}: can't tell what its tokenizer puts before a text ({error}); "
            f"set scoring.bos to 'never'"
        ) from error
    if own or settings.bos == "auto":
        return own
    if tokenizer.bos_token_id is None:
        raise ModelError(
            f"model {settings.model}: scoring.bos is 'always', but it has no BOS token"
        )
    return (int(tokenizer.bos_token_id),)


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
        """Number of tokens that the model distinguishes in its predictions."""
        weight = getattr(self.hf_model.get_output_embeddings(), "weight", None)
        if weight is not None:
            return int(weight.shape[0])
        return int(self.hf_model.config.get_text_config(decoder=True).vocab_size)

    @property
    def input_vocab_size(self) -> int:
        """Number of tokens that the model can read."""
        weight = getattr(self.hf_model.get_input_embeddings(), "weight", None)
        return self.vocab_size if weight is None else min(self.vocab_size, int(weight.shape[0]))

    @property
    def max_positions(self) -> int:
        """Maximum length of a sequence (tokens)."""
        return longest_sequence(self.hf_model, self.max_forward_tokens)


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
    return device, resolve_dtype(settings.dtype, device)


def model_identity(settings: ScoringModelSettings) -> str:
    """Return the identity of the model that these settings name, without loading it."""
    _, dtype = resolve_device(settings)
    return f"{locate(settings.model, settings.trust_remote_code).identity}:{dtype}"


def load_scoring_model(settings: ScoringModelSettings) -> ScoringModel:
    """Load the model; a second call in the same process returns the same weights.

    Raises ModelError if the model, its tokenizer or the device is not available.
    """
    device, dtype = resolve_device(settings)
    tokenizer = load_tokenizer(settings)
    return ScoringModel(
        hf_model=load_weights(settings.model, settings.trust_remote_code, device, dtype),
        tokenizer=tokenizer,
        identity=model_identity(settings),
        max_forward_tokens=settings.max_forward_tokens,
    )


def score_plainly(model: ScoringModel, request: ScoringRequest) -> PositionScores:
    """Score by the definition: what a newly loaded model gives for this sequence and nothing else.

    One forward pass over the whole sequence, also beyond the last scored position, because some
    models choose their rotary factors by the length; without cache, padding or mask, and as if no
    pass had been before. Entropy is computed in float32 from the model's logits.
    """
    import torch

    from entropylong_assets.stages.entropy.rotary import forget_earlier_passes

    forget_earlier_passes(model.hf_model)
    with torch.inference_mode():
        device = model.hf_model.device
        ids_1T = torch.from_numpy(request.token_ids_T)[None].to(device)
        positions_N = torch.from_numpy(request.positions_N).to(device)
        # Logits of all positions would take gigabytes for a long sequence.
        some = "logits_to_keep" in signature(model.hf_model.forward).parameters
        options = {"logits_to_keep": positions_N - 1} if some else {}
        logits_TV = model.hf_model(input_ids=ids_1T, use_cache=False, **options).logits[0]
        logits_NV = (logits_TV if some else logits_TV[positions_N - 1]).float()
        log_p_NV = torch.log_softmax(logits_NV, dim=-1)
        # A model may set logits to -inf: the term 0·(-inf) counts as 0.
        entropy_N = -(log_p_NV.exp() * log_p_NV.clamp(min=-1e30)).sum(-1)
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
