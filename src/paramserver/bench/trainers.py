"""The training benchmark's workers: one process, DDP over gloo, a plain torch.rpc parameter
server, and ourselves; the same model, batch and learning rate."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import rpc
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from paramserver.bench.exchange import Span
from paramserver.bench.torch_rpc import join_rpc

WIDTHS = (1024, 4096, 4096, 1000)
BATCH = 64
LR = 0.01
RPC_SERVER = "server"


def mlp() -> nn.Sequential:
    """25.1 M parameters: three linear layers of WIDTHS with ReLU between, the same every time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Trainer:
    """A worker that trains by itself; the others change how a step ends."""

    def __init__(self, rank: int = 0) -> None:
        torch.set_num_threads(1)
        self.model: nn.Module = mlp()
        generator = torch.Generator().manual_seed(rank)
        self._x = torch.randn(BATCH, WIDTHS[0], generator=generator)
        self._y = torch.randint(0, WIDTHS[-1], (BATCH,), generator=generator)
        self.optimizer: torch.optim.Optimizer | None = None

    def run(self, operation: str, repeats: int) -> Span:
        """Train on this many batches; there is one operation only."""
        assert operation == "train"
        start = time.monotonic()
        for _ in range(repeats):
            self.model.zero_grad()
            cross_entropy(self.model(self._x), self._y).backward()
            self.update()
        return Span(start, time.monotonic())

    def update(self) -> None:
        """End a step: gradients are there, parameters must be new afterwards."""
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)
        self.optimizer.step()

    def close(self) -> None:
        """Leave."""


class DdpTrainer(Trainer):
    """DistributedDataParallel over gloo."""

    def __init__(self, rank: int, world: int, meeting: str) -> None:
        super().__init__(rank)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world
        )
        self.model = DistributedDataParallel(self.model)

    def close(self) -> None:
        dist.destroy_process_group()


class ProductTrainer(Trainer):
    """Ourselves: ``client.optimizer``."""

    def __init__(self, rank: int, address: str, consistency: str, wire_dtype: str | None) -> None:
        super().__init__(rank)
        import paramserver as ps

        models: dict[str, ps.Sync | ps.Async] = {"sync": ps.Sync(), "async": ps.Async()}
        self._client = ps.connect(address)
        self.optimizer = self._client.optimizer(
            self.model,
            torch.optim.SGD,
            lr=LR,
            consistency=models[consistency],
            wire_dtype=wire_dtype,
        )

    def close(self) -> None:
        self._client.finish()
        self._client.close()


class RpcParameters:
    """A plain parameter server: one SGD; synchronous = one step on the mean of all workers."""

    def __init__(self, workers: int, synchronous: bool) -> None:
        self._workers = workers if synchronous else 1
        self._parameters = list(mlp().parameters())
        self._optimizer = torch.optim.SGD(self._parameters, lr=LR)
        self._lock = threading.Lock()
        self._sums: list[torch.Tensor] = []
        self._arrived = 0
        self._next: Any = torch.futures.Future()

    def values(self) -> list[torch.Tensor]:
        """The parameters, as they are."""
        return [parameter.detach() for parameter in self._parameters]

    def push_pull(self, gradients: list[torch.Tensor]) -> Any:
        """A future of the parameters after the step that these gradients are part of."""
        with self._lock:
            answer = self._next
            self._arrived += 1
            if self._arrived == 1:
                self._sums = gradients
            else:
                torch._foreach_add_(self._sums, gradients)
            if self._arrived == self._workers:
                self._step()
            return answer

    def _step(self) -> None:
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.grad = total if self._workers == 1 else total.div_(self._workers)
        self._optimizer.step()
        answer, self._next, self._arrived = self._next, torch.futures.Future(), 0
        answer.set_result(self.values())


_served: RpcParameters | None = None


@rpc.functions.async_execution  # type: ignore[untyped-decorator]
def rpc_push_pull(gradients: list[torch.Tensor]) -> Any:
    """On the server: see ``RpcParameters.push_pull``."""
    assert _served is not None
    return _served.push_pull(gradients)


class RpcTrainServer:
    """The process that holds ``RpcParameters``."""

    def __init__(self, workers: int, synchronous: bool, meeting: str) -> None:
        global _served
        _served = RpcParameters(workers, synchronous)
        join_rpc(RPC_SERVER, 0, workers + 1, meeting)

    def close(self) -> None:
        """Wait for the workers, then leave."""
        rpc.shutdown()


class RpcTrainer(Trainer):
    """Sends all gradients in one call and copies the answer into the model."""

    def __init__(self, rank: int, workers: int, meeting: str) -> None:
        super().__init__(rank)
        join_rpc(f"worker{rank}", rank + 1, workers + 1, meeting)

    def update(self) -> None:
        parameters = list(self.model.parameters())
        gradients = [parameter.grad for parameter in parameters]
        fresh = rpc.rpc_sync(RPC_SERVER, rpc_push_pull, (gradients,))
        with torch.no_grad():
            for parameter, value in zip(parameters, fresh, strict=True):
                parameter.copy_(value)

    def close(self) -> None:
        rpc.shutdown()
