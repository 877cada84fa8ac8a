"""Which classes of ``torch.optim`` a group may have, by name."""

from __future__ import annotations

from paramserver.errors import UnsupportedError

ELEMENTWISE = (
    "SGD",
    "Adam",
    "AdamW",
    "Adagrad",
    "RMSprop",
    "Adadelta",
    "Adamax",
    "NAdam",
    "RAdam",
    "ASGD",
    "Rprop",
)
OURS = ("DelayedNesterov",)  # not in torch.optim; servers bring it along
REFUSED = {
    "LBFGS": "its line search needs all parameters at once; use ps.minimize, or a rule such as SGD",
    "Muon": "it orthogonalizes whole matrices, slices hold ranges; use AdamW",
    "Adafactor": "it factors whole matrices, slices hold ranges; use AdamW",
    "SparseAdam": "it takes sparse gradients, dense groups have none; use Adam",
}


def check_elementwise(name: str) -> None:
    """Raises UnsupportedError unless the rule can run on slices."""
    if name not in ELEMENTWISE + OURS:
        why = REFUSED.get(name, f"not one of the elementwise rules {', '.join(ELEMENTWISE)}")
        raise UnsupportedError(f"optimizer {name!r}: {why}")
