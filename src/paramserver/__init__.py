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
from paramserver.trust import Tls
from paramserver.types import Adaptive, AllReduce, Async, DataShard, Stale, StepResult, Sync

if TYPE_CHECKING:
    from paramserver._connect import connect
    from paramserver._minimize import minimize
    from paramserver.local import LocalCluster, local_cluster
    from paramserver.worker.client import Client
    from paramserver.worker.embedding import Embedding, EmbeddingBag
    from paramserver.worker.group import Group
    from paramserver.worker.schemes.lbfgs import MinimizeResult
    from paramserver.worker.schemes.vertical import VerticalLinear
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
    "Embedding",
    "EmbeddingBag",
    "Group",
    "Local",
    "LocalCluster",
    "MinimizeResult",
    "Normal",
    "ParameterServerError",
    "Probability",
    "Stale",
    "StepResult",
    "Sync",
    "Table",
    "Tls",
    "Uniform",
    "VerticalLinear",
    "Zeros",
    "__version__",
    "connect",
    "errors",
    "local_cluster",
    "minimize",
]

_WHERE = {
    "Client": "paramserver.worker.client",
    "Embedding": "paramserver.worker.embedding",
    "EmbeddingBag": "paramserver.worker.embedding",
    "Group": "paramserver.worker.group",
    "VerticalLinear": "paramserver.worker.schemes.vertical",
    "LocalCluster": "paramserver.local",
    "MinimizeResult": "paramserver.worker.schemes.lbfgs",
    "Table": "paramserver.worker.table",
    "connect": "paramserver._connect",
    "local_cluster": "paramserver.local",
    "minimize": "paramserver._minimize",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'paramserver' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
