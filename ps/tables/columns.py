"""Memory by place: columns that grow where they lie, and which places are free."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from paramserver.ps.tables.index import Places

FIRST_BYTES = mmap.PAGESIZE
HUGE_FROM = 4 << 20
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Column:
    """An array by place. It grows by moving page tables, not bytes; untouched pages cost nothing.

    Nobody may hold a view of ``array`` while it grows.

    Args:
        width: elements per place; None: one.
        blocks: equal parts of a row that are copied out, and back, each by itself.

    Attributes:
        array: [places, width], or [places]; zeros where never written.
    """

    def __init__(self, dtype: npt.DTypeLike, width: int | None = None, blocks: int = 1) -> None:
        self._dtype, self._width, self._blocks = np.dtype(dtype), width, blocks
        self._block = (width or 1) // blocks
        self.row_bytes = self._dtype.itemsize * (width or 1)
        self._map = mmap.mmap(-1, _pages(self.row_bytes), flags=_FLAGS)
        self._view()

    def _advise(self) -> None:
        """Large columns lie in huge pages where the system has them: rows are read at random."""
        if len(self._map) >= HUGE_FROM and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def _view(self) -> None:
        rows = len(self._map) // self.row_bytes
        flat: npt.NDArray[Any] = np.frombuffer(self._map, self._dtype, rows * (self._width or 1))
        self.array = flat if self._width is None else flat.reshape(rows, self._width)
        # Copied as opaque bytes: twice as fast as element by element.
        self._parts = flat.view(f"V{self.row_bytes // self._blocks}")

    def __len__(self) -> int:
        return len(self.array)

    def take(self, places: Places) -> npt.NDArray[Any]:
        """Copies of rows, [n, width]."""
        found = self._parts.take(self._at(places).T)
        return found.view(self._dtype).reshape(len(places), self._width or 1)

    def take_first(self, places: Places) -> npt.NDArray[Any]:
        """Copies of the first block of rows, [n, width / blocks]."""
        found = self._parts.take(places.astype(np.int64) * self._blocks)
        return found.view(self._dtype).reshape(len(places), self._block)

    def put(self, places: Places, rows: npt.NDArray[Any]) -> None:
        """Writes rows, [n, width], contiguous."""
        self._parts[self._at(places).T.reshape(-1)] = rows.view(self._parts.dtype).reshape(-1)

    def take_blocks(self, places: Places) -> npt.NDArray[Any]:
        """Copies of rows, [blocks, n, width / blocks]: every block is contiguous."""
        found = self._parts.take(self._at(places)).view(self._dtype)
        return found.reshape(self._blocks, len(places), self._block)

    def put_blocks(self, places: Places, rows: npt.NDArray[Any]) -> None:
        """Writes what ``take_blocks`` gave, changed."""
        self._parts[self._at(places).reshape(-1)] = rows.view(self._parts.dtype).reshape(-1)

    def _at(self, places: Places) -> npt.NDArray[np.int64]:
        """Where the blocks of rows are, [blocks, n]."""
        return places.astype(np.int64) * self._blocks + np.arange(self._blocks)[:, None]

    def reserve(self, rows: int) -> None:
        """Makes room for at least so many places."""
        if rows <= len(self):
            return
        size = _pages(max(rows * self.row_bytes, 2 * len(self._map)))
        del self.array, self._parts
        try:
            self._map.resize(size)
        except (BufferError, SystemError, ValueError):  # no mremap here, or somebody looks at it
            larger = mmap.mmap(-1, size, flags=_FLAGS)
            larger[: len(self._map)] = self._map[:]
            self._map = larger
        self._advise()
        self._view()


class Allocator:
    """Places in use and free ones.

    Attributes:
        used: places ever taken; those behind have not been written.
    """

    def __init__(self) -> None:
        self._free: list[Places] = []
        self.used = 0

    def take(self, count: int) -> Places:
        """Free places: those given back first."""
        taken: list[Places] = []
        while self._free and count:
            part = self._free.pop()
            if len(part) > count:
                self._free.append(part[count:])
                part = part[:count]
            taken.append(part)
            count -= len(part)
        taken.append(np.arange(self.used, self.used + count, dtype=np.int32))
        self.used += count
        return np.concatenate(taken)

    def give_back(self, places: Places) -> None:
        """These are free now."""
        self._free.append(places)

    @property
    def free(self) -> Places:
        """Places given back."""
        return np.concatenate([*self._free, np.empty(0, np.int32)])


def _pages(size: int) -> int:
    return -(-max(size, FIRST_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
