"""Leak checks: recognizing candidates that repeat the text of the root.

A chunk of a near-duplicate of the root resolves every uncertainty, and a model learns nothing from
it. The paper does not say how it excludes such chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from entropylong_assets.settings.registry import Registry

if TYPE_CHECKING:
    from entropylong_assets.stages.retrieval.settings import RetrievalSettings


class LeakCheck(Protocol):
    """Compares chunks with the text of one root.

    To write a leak check, write a class with these two methods and register it: in this package
    with `@LEAK_CHECKS.register("my_check")`, in another package through an entry point of the group
    `entropylong_assets.leak_checks`. It is then available as `retrieval.leak_check: my_check`.

    One object is made per root and compared with many chunks, so work on the root's text belongs
    into the constructor. The result must depend on the arguments alone.
    """

    def __init__(self, settings: RetrievalSettings, root_text: str) -> None: ...

    def containment(self, chunk_text: str) -> float:
        """Return how much of the chunk occurs in the root: from 0, nothing, to 1, all of it.

        A chunk with at least `retrieval.max_containment` is rejected as a near-duplicate.
        """
        ...


LEAK_CHECKS: Registry[type[LeakCheck]] = Registry(
    "leak check",
    "entropylong_assets.leak_checks",
    "entropylong_assets.stages.retrieval.leak_check",
)
"""Leak checks by name."""


def make_leak_check(settings: RetrievalSettings, root_text: str) -> LeakCheck:
    """Make the leak check that the settings name, for one root."""
    return LEAK_CHECKS[settings.leak_check](settings, root_text)
