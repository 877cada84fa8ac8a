"""A linear layer over features that are split between parties."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paramserver.errors import ConfigurationError, UsageError
from paramserver.worker.client import Client
from paramserver.worker.party import LABEL


class VerticalLinear(nn.Module):
    """The part of a linear layer that belongs to this party's own features.

    Every party makes one, with as many input features as it has itself. The output is the same on
    every party: ``Z = sum of X_p W_p^T over parties + b``, summed on the servers in party order.
    Only the label party (party 0) has the bias, the layers above and the labels.

    All parties of a replica call ``forward`` and ``backward`` equally often, on the same samples.

    Args:
        features: columns of this party; may be 0.
        out: columns of the output, the same on every party.
        client: of this worker.
        bias: the label party adds one.
        name: of the layer; the same on every party, another one for each layer.
        dtype, device: as for ``nn.Linear``.

    Raises:
        ConfigurationError: a size that cannot be.

    Attributes:
        weight: [out, features].
        bias: [out] on the label party, else None.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        features: int,
        out: int,
        *,
        client: Client,
        bias: bool = True,
        name: str = "vertical",
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        for what, value, least in (("features", features, 0), ("out", out, 1)):
            if value < least:
                raise ConfigurationError(f"{what}={value}: must be >= {least}")
        self.features, self.out, self.name = features, out, name
        self.weight = nn.Parameter(torch.empty(out, features, dtype=dtype, device=device))
        own = bias and client.party == LABEL
        self.bias = nn.Parameter(torch.empty(out, dtype=dtype, device=device)) if own else None
        self._party = client.party
        self._sums = client.party_sums
        self._forwards = self._backwards = 0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """First values as in ``nn.Linear``, by the number of this party's own features."""
        bound = 1 / math.sqrt(max(self.features, 1))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"features={self.features}, out={self.out}, name={self.name!r}, party={self._party}"

    def forward(self, x: Tensor) -> Tensor:
        """Z of the whole features, [..., out], from this party's own x, [..., features].

        Waits for the other parties. Gradients go on into whatever made ``x``.

        Raises:
            UsageError: ``x`` has another number of columns.
            MismatchError: the parties have batches of different sizes, or types.
        """
        if x.shape[-1] != self.features:
            raise UsageError(
                f"x has {x.shape[-1]} columns: layer {self.name!r} of party {self._party} has "
                f"{self.features} features"
            )
        own = nn.functional.linear(x, self.weight, self.bias)
        self._forwards += 1
        total = self._sums.reduce(f"{self.name}/forward", self._forwards, own.detach())
        z: Tensor = _Total.apply(own, total)  # type: ignore[no-untyped-call]
        if z.requires_grad:
            z.retain_grad()
        return z

    def backward(self, z: Tensor, loss: Tensor | None) -> None:
        """The backward pass of all parties: each accumulates the gradients of its own parameters.

        Args:
            z: what ``forward`` returned.
            loss: a scalar on the label party, None on every other.

        Raises:
            UsageError: a loss where there should be none, none where there should be one, or
                another tensor than ``forward`` returned.
        """
        labels = self._party == LABEL
        if labels != (loss is not None):
            raise UsageError(
                f"party {self._party} of layer {self.name!r} called backward with "
                f"{'no loss' if loss is None else 'a loss'}: the label party (party 0) gives it, "
                "the others give None"
            )
        if not z.retains_grad:  # forward asked for it
            raise UsageError(
                f"layer {self.name!r}: backward needs the z that forward returned, not something "
                "made of it, and forward must not have run under torch.no_grad"
            )
        if loss is not None:
            z.grad = None
            loss.backward()  # through the layers above, and down into this party's own
        self._backwards += 1
        given = z.grad if labels and z.grad is not None else torch.zeros_like(z)
        key = self._backwards
        gradient = self._sums.reduce(f"{self.name}/backward", key, given.detach(), [LABEL])
        if loss is None:
            z.backward(gradient)


class _Total(torch.autograd.Function):
    """The sum over parties in the forward pass; its gradient is everybody's."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, total: Tensor) -> Tensor:
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
