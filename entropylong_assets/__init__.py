"""EntropyLong: verified long-context training data from short documents, as Dagster assets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from entropylong_assets.heaps import limit_heaps

if TYPE_CHECKING:
    from entropylong_assets.component import EntropyLong

__all__ = ["EntropyLong"]

limit_heaps()


def __getattr__(name: str) -> Any:
    """Import the component only when it is used, since it imports Dagster."""
    if name == "EntropyLong":
        from entropylong_assets.component import EntropyLong

        return EntropyLong
    raise AttributeError(name)


def __dir__() -> list[str]:
    """Names of the module; `dg` finds the component among them."""
    return [*globals(), *__all__]
