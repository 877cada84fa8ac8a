"""A snapshot as one plain PyTorch file, which loads without this product."""

from __future__ import annotations
