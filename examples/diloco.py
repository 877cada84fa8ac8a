"""DiLoCo: workers learn to write Python each on its own, and meet after every 20 steps.

paramserver run -s 2 -w 4 examples/diloco.py --steps 50
"""

import argparse
import functools
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps

CONTEXT = 16


def network() -> nn.Sequential:
    """Logits of the next of 128 characters (batch x 128) from the last 16 (batch x 16)."""
    layers = [nn.Embedding(128, 32), nn.Flatten(), nn.Linear(32 * CONTEXT, 128), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(128, 128))


def data(size: int) -> tuple[Tensor, Tensor]:
    """Contexts and the characters after them, from the standard library's own source."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
    text = torch.tensor(list(b"".join(f.read_bytes() for f in files)[: size + CONTEXT]))
    return text.clamp(max=127).unfold(0, CONTEXT, 1)[:size], text[CONTEXT:].clamp(max=127)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=20, help="local steps of a round")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()

    torch.manual_seed(0)
    x, y = data(60_000)
    outer = functools.partial(torch.optim.SGD, lr=0.7, momentum=0.5, nesterov=True)
    with ps.connect() as client:
        model = network()
        scheme = ps.Local(options.steps, outer=outer)
        optimizer = client.optimizer(model, torch.optim.AdamW, lr=3e-3, consistency=scheme)
        for _ in client.epochs(options.epochs):
            for context, character in client.loader(TensorDataset(x[:-5_000], y[:-5_000]), 32):
                optimizer.zero_grad()
                F.cross_entropy(model(context), character).backward()
                optimizer.step()
        if client.is_chief:
            loss = F.cross_entropy(model(x[-5_000:]), y[-5_000:])
            print(f"{loss.item() / math.log(2):.3f} bits per character on text not seen")


if __name__ == "__main__":
    main()
