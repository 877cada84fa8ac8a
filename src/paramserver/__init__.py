"""A parameter server for PyTorch: ``import paramserver as ps``.

Names are loaded when first used: the scheduler imports this package and has no use for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paramserver import errors
from paramserver.errors import ParameterServerError
from paramserver.initial import Normal, Uniform, Zeros
from paramserver.life_cycle import LRU, TTL, CountFilter, Decay, Probability
from paramserver.schemes import Downpour, Local
from paramserver.types import Adaptive, AllReduce, Async, DataShard, Stale, StepResult, Sync

if TYPE_CHECKING:
    from paramserver._connect import connect
    from paramserver.local import LocalCluster, local_cluster
    from paramserver.worker.client import Client
    from paramserver.worker.group import Group
    from paramserver.worker.table import Table

__version__ = "0.1.0"

__all__ = [
    "LRU",
    "TTL",
    "Adaptive",
    "AllReduce",
    "Async",
    "Client",
    "CountFilter",
    "DataShard",
    "Decay",
    "Downpour",
    "Group",
    "Local",
    "LocalCluster",
    "Normal",
    "ParameterServerError",
    "Probability",
    "Stale",
    "StepResult",
    "Sync",
    "Table",
    "Uniform",
    "Zeros",
    "__version__",
    "connect",
    "errors",
    "local_cluster",
]

_WHERE = {
    "Client": "paramserver.worker.client",
    "Group": "paramserver.worker.group",
    "LocalCluster": "paramserver.local",
    "Table": "paramserver.worker.table",
    "connect": "paramserver._connect",
    "local_cluster": "paramserver.local",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'paramserver' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
