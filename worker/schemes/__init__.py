"""What ``client.optimizer`` makes of each consistency model and scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from paramserver.schemes import Downpour, Local, Scheme
from paramserver.types import AllReduce
from paramserver.worker.job_optimizer import JobOptimizer
from paramserver.worker.optimizer import open_server_optimizer
from paramserver.worker.parameters import Model
from paramserver.worker.registry import Registry
from paramserver.worker.schemes.allreduce import open_allreduce_optimizer
from paramserver.worker.schemes.downpour import open_downpour_optimizer
from paramserver.worker.schemes.local import open_local_optimizer

OPENERS: dict[type, Callable[..., JobOptimizer]] = {
    AllReduce: open_allreduce_optimizer,
    Downpour: open_downpour_optimizer,
    Local: open_local_optimizer,
}


def open_optimizer(
    registry: Registry,
    model: Model,
    optimizer_class: type[torch.optim.Optimizer],
    hyperparameters: Mapping[str, Any],
    *,
    consistency: Scheme,
    group: str,
    buffers: str,
    wire_dtype: str | None,
    overlap: bool,
    on_nonfinite: str,
) -> JobOptimizer:
    """Registers a model as a group; see ``Client.optimizer``."""
    opens: Callable[..., JobOptimizer] = OPENERS.get(type(consistency), open_server_optimizer)
    return opens(
        registry,
        model,
        optimizer_class,
        hyperparameters,
        consistency=consistency,
        group=group,
        buffers=buffers,
        wire_dtype=wire_dtype,
        overlap=overlap,
        on_nonfinite=on_nonfinite,
    )
