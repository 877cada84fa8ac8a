"""Row ids of tables on the wire: a hash of the id is the key, and servers own ranges of it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Keys: TypeAlias = npt.NDArray[np.uint64]
Ids: TypeAlias = npt.NDArray[np.int64]

# Odd, so that the product is a permutation of 64-bit numbers: no two ids share a key.
FACTOR = 0x9E3779B97F4A7C15
INVERSE = pow(FACTOR, -1, 1 << 64)


def keys_of(ids: Ids) -> Keys:
    """The key of every id; neighbouring ids lie far apart.

    Args:
        ids: int64 [n], any values.

    Returns:
        uint64 [n].
    """
    return ids.view(np.uint64) * np.uint64(FACTOR)


def ids_of(keys: Keys) -> Ids:
    """The ids that have these keys."""
    return (keys * np.uint64(INVERSE)).view(np.int64)
