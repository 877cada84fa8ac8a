"""``paramserver.minimize``, with or without a client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from paramserver._connect import connect
from paramserver.worker.client import Client
from paramserver.worker.parameters import Model
from paramserver.worker.schemes.lbfgs import MinimizeResult
from paramserver.worker.schemes.lbfgs import minimize as _minimize


def minimize(
    fn: Callable[..., Tensor],
    dataset: Dataset[Any],
    method: str = "l-bfgs",
    *,
    model: Model | None = None,
    client: Client | None = None,
    l2: float = 0.0,
    history: int = 10,
    max_iter: int = 100,
    gtol: float = 1e-6,
    ftol: float = 1e-12,
    portion: int | None = None,
    batch_size: int = 1024,
    backups: bool = True,
    name: str = "minimize",
) -> MinimizeResult:
    """Minimizes the mean loss of a data set by L-BFGS; every worker calls it, alike.

    The objective is mean loss + l2/2 |parameters|^2. Every evaluation goes over the whole data set
    in portions, each leased to whoever is free; gradients are summed on the servers, which hold all
    vectors. One worker also coordinates, by dot products alone; if it is lost, another goes on from
    the same point with the same history. On return, the parameters of every worker's model are the
    best found.

    Args:
        fn: takes a batch as the data set gives it (``fn(x, y)`` for pairs) and returns the losses
            of its samples, one each, or their mean. The loss of a sample must not depend on the
            other samples, nor on chance.
        dataset: map-style, the same on every worker.
        method: "l-bfgs".
        model: an ``nn.Module``, or (name, parameter) pairs; default: ``fn``, if that is a module.
            Parameters that need no gradient stay; buffers stay local.
        client: from ``paramserver.connect``; default: one for this call.
        l2: weight of half the squared norm of all parameters.
        history: pairs (s, y) kept.
        max_iter: iterations at most.
        gtol: converged when the Euclidean norm of the gradient is at most this.
        ftol: converged when an iteration lowers the loss by at most this times max(1, |loss|).
        portion: samples of a lease; default: an epoch is 12 portions for each worker.
        batch_size: samples that ``fn`` sees at a time, at most.
        backups: near the end of an evaluation, portions that are out are leased once more to idle
            workers; the first answer counts.
        name: of the group, the data set and the coordination; one minimization of a job each.

    Raises:
        ConfigurationError, UnsupportedError: what cannot work, and why.
        MismatchError, InvalidRequestError: workers say different things; names the difference.
        JobFailedError: ``fn`` raised on another worker; says where and what.
        WaitTimeoutError: names whom it waited for.
    """
    with nullcontext(client) if client is not None else connect() as made:
        return _minimize(
            made,
            fn,
            dataset,
            method,
            model=model,
            l2=l2,
            history=history,
            max_iter=max_iter,
            gtol=gtol,
            ftol=ftol,
            portion=portion,
            batch_size=batch_size,
            backups=backups,
            name=name,
        )
