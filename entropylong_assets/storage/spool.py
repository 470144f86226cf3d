"""Token ids of many texts on disk, so that memory does not grow with their number of tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import polars as pl


class TokenSpool:
    """Token ids by the name of their text.

    Memory contains the names and two numbers per name. The token ids are in an unnamed temporary
    file, which the system removes when it is closed or the process ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="entropylong-tokens-")  # noqa: SIM115
        self._names: list[pl.Series] = []
        self._lengths: list[int] = []
        self._index: pl.DataFrame | None = None

    def __enter__(self) -> TokenSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, names: Sequence[str], token_ids: Sequence[Sequence[int]]) -> None:
        """Add texts under new names. All must be added before the first call of `take`."""
        assert self._index is None, "texts can't be added after the first call of `take`"
        self._names.append(pl.Series("name", names, pl.String))
        self._lengths += [len(ids) for ids in token_ids]
        for ids in token_ids:
            self._file.write(np.asarray(ids, np.uint32).tobytes())

    def take(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Return the token ids of these texts. Raises KeyError if one was not added."""
        if self._index is None:
            self._file.flush()
            lengths = pl.Series("length", self._lengths, pl.Int64)
            known = pl.concat([pl.Series("name", [], pl.String), *self._names])
            self._index = pl.DataFrame(
                [known, lengths, (lengths.cum_sum() - lengths).alias("start")]
            )
            self._names = []
        wanted = pl.DataFrame({"name": names}, schema={"name": pl.String}).unique()
        rows = wanted.join(self._index, on="name", how="left")
        for (missing,) in rows.filter(pl.col("start").is_null()).select("name").iter_rows():
            raise KeyError(missing)
        taken = {}
        for name, length, start in rows.iter_rows():
            self._file.seek(4 * start)
            taken[name] = np.frombuffer(self._file.read(4 * length), np.uint32).tolist()
        return taken
