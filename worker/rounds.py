"""Rounds that all workers join: barriers and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from paramserver.errors import ConfigurationError
from paramserver.v1 import scheduler_pb2
from paramserver.worker.collective import Collective
from paramserver.worker.registry import Registry
from paramserver.worker.session import Session

OPS: Sequence[str] = ("mean", "sum", "max", "min")


class Rounds:
    """This worker's part in rounds, by name; each call is one round."""

    def __init__(self, session: Session, registry: Registry) -> None:
        self._session = session
        self._registry = registry
        self._sequences: dict[str, int] = {}

    def join(self, name: str) -> None:
        """Returns when all workers have come.

        Raises:
            WaitTimeoutError: names those who have not.
        """
        self._begin(name)
        self._registry.became_active(self._wait(name).view, True)

    def reduce(self, tensor: Tensor, name: str, op: str) -> Tensor:
        """The reduction of everybody's tensor, in rank order, as a new tensor.

        Raises:
            ConfigurationError: an unknown ``op``.
            WaitTimeoutError: names those who have not come.
        """
        if op not in OPS:
            raise ConfigurationError(f"op={op!r}: must be one of {', '.join(OPS)}")
        sequence = self._begin(name)
        part = Collective(self._session, self._registry.links, tensor, name, sequence)
        part.contribute()
        reply = self._wait(name)
        result = part.collect(reply.round, op, reply.arrivals)
        self._registry.became_active(reply.view, True)
        return result

    def _begin(self, name: str) -> int:
        self._session.check()
        self._session.refuse_reader(name)
        # Idle while pushes are under way, this worker would be waited for and not waited for.
        self._session.settle()
        self._sequences[name] = self._sequences.get(name, 0) + 1
        return self._sequences[name]

    def _wait(self, name: str) -> Any:
        def request(wait_s: float) -> scheduler_pb2.JoinRequest:
            return scheduler_pb2.JoinRequest(
                member=self._session.identity(),
                name=name,
                sequence=self._sequences[name],
                wait_s=wait_s,
            )

        return self._session.poll("Join", request, lambda reply: bool(reply.released), name)
