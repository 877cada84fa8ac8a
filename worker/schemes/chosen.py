"""The scheme that the environment chose for a script."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from paramserver.scheme_text import Choice
from paramserver.schemes import Local, Scheme


def scheme_of(chosen: Choice | None, own: Scheme) -> Scheme:
    """The chosen scheme, with its outer optimizer made; ``own`` if none was chosen."""
    if chosen is None:
        return own
    if isinstance(chosen.scheme, Local) and chosen.outer is not None:
        lr, momentum = chosen.outer
        outer = partial(torch.optim.SGD, lr=lr, momentum=momentum, nesterov=momentum > 0)
        return replace(chosen.scheme, outer=outer)
    return chosen.scheme
