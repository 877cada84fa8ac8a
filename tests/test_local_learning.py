"""What local steps learn, between one worker alone and workers that meet at every step."""

from __future__ import annotations

import functools
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from tests.cluster import cluster
from tests.test_exactness import ONE_AT_A_TIME

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTEXT, WORKERS, STEPS, BATCH = 16, 4, 400, 8
AVERAGE = functools.partial(torch.optim.SGD, lr=1.0)
NESTEROV = functools.partial(torch.optim.SGD, lr=0.7, momentum=0.5, nesterov=True)


def network() -> nn.Sequential:
    """The next of 128 characters from the last 16; 27 k parameters."""
    with ONE_AT_A_TIME:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Embedding(128, 16),
            nn.Flatten(),
            nn.Linear(16 * CONTEXT, 64),
            nn.GELU(),
            nn.Linear(64, 128),
        )


class Text:
    """The standard library's source: a quarter for each worker, and a held-out rest."""

    def __init__(self) -> None:
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py"))
        text = b"".join(path.read_bytes() for path in files)[:400_000]
        whole = torch.tensor(list(text)).clamp(max=127)
        self.quarters = whole[:-40_000].chunk(WORKERS)
        self.rest = whole[-40_000:]

    def batch(self, rank: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * step + rank)
        quarter = self.quarters[rank]
        at = torch.randint(0, len(quarter) - CONTEXT - 1, (BATCH,), generator=generator)
        return quarter[at[:, None] + torch.arange(CONTEXT)], quarter[at + CONTEXT]

    @torch.no_grad()
    def loss(self, model: nn.Module) -> float:
        at = torch.arange(0, len(self.rest) - CONTEXT - 1, 20)
        x, y = self.rest[at[:, None] + torch.arange(CONTEXT)], self.rest[at + CONTEXT]
        return float(F.cross_entropy(model(x), y))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, text: Text, ranks: list[int]) -> int:
    """Returns the bytes sent to servers."""
    sent = 0
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        x, y = (torch.cat(part) for part in zip(*(text.batch(r, step) for r in ranks), strict=True))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
        last = getattr(optimizer, "last", None)
        sent += last.sent_bytes if last else 0
    return sent


def alone(text: Text, ranks: list[int]) -> float:
    """One process that sees the quarters of these workers at every step."""
    model = network()
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), text, ranks)
    return text.loss(model)


def together(text: Text, scheme: ps.Local) -> tuple[float, int]:
    """The loss of all workers' model, and the bytes that each has sent."""

    def work(client: ps.Client) -> tuple[float, int]:
        model = network()
        optimizer = client.optimizer(model, torch.optim.AdamW, consistency=scheme, lr=3e-3)
        sent = train(model, optimizer, text, [client.rank])
        client.barrier("trained")
        trained = network()
        trained.load_state_dict(client.state_dict())
        return text.loss(trained), sent

    with cluster(2, WORKERS) as c:
        return c.workers(work)[0]


def test_rounds_learn_more_than_one_worker_and_less_than_every_step() -> None:
    text = Text()
    one, every = alone(text, [0]), alone(text, list(range(WORKERS)))
    average, _ = together(text, ps.Local(20, outer=AVERAGE))
    nesterov, sent = together(text, ps.Local(20, outer=NESTEROV))
    print(f"one {one:.3f}, average {average:.3f}, nesterov {nesterov:.3f}, every {every:.3f}")
    assert every + 0.02 < nesterov < one - 0.02
    assert every + 0.02 < average < one - 0.02
    assert sent == STEPS // 20 * 4 * sum(p.numel() for p in network().parameters())


@pytest.mark.parametrize(("compress", "share"), [("int8", 3.8), ("int4", 7.5)])
def test_small_integers_lose_nothing(compress: Any, share: float) -> None:
    text = Text()
    plain, bytes_ = together(text, ps.Local(20, outer=NESTEROV))
    packed, fewer = together(text, ps.Local(20, outer=NESTEROV, compress=compress))
    print(f"{compress}: {packed:.3f} and not {plain:.3f}, {bytes_ / fewer:.1f} times fewer bytes")
    assert abs(packed - plain) < 0.01
    assert bytes_ / fewer > share


def test_fragments_under_way_while_training_goes_on_cost_little() -> None:
    text = Text()
    waits, _ = together(text, ps.Local(40, outer=NESTEROV, fragments=4))
    scheme = ps.Local(40, outer=NESTEROV, fragments=4, delay=5, alpha=0.5)
    overlaps, _ = together(text, scheme)
    print(f"waits {waits:.3f}, overlaps {overlaps:.3f}")
    assert overlaps < waits + 0.06
    assert overlaps < alone(text, [0]) - 0.02


def test_steps_by_speed_finish_sooner_beside_a_slow_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same samples; worker 3 takes 5 times as long for each. Emulated: nothing is computed."""
    data = TensorDataset(torch.zeros(1600, 1))

    def seconds(scheme: ps.Local) -> float:
        def work(client: ps.Client) -> None:
            model = nn.Linear(1, 1)
            optimizer = client.optimizer(model, torch.optim.SGD, consistency=scheme, lr=0.1)
            loader = client.loader(data, 8, shard_size=8, assign="dynamic")
            for _ in client.epochs(3):
                for (x,) in loader:
                    model(x).sum().backward()
                    optimizer.step()

        with cluster(1, WORKERS, lease_s=2.0) as c:
            began = time.monotonic()
            c.workers(work)
            return time.monotonic() - began

    monkeypatch.setenv("PARAMSERVER_EMULATE", "sample=0.002,slow=3:5")
    equal, by_speed = seconds(ps.Local(10)), seconds(ps.Local(10, dylu=True))
    print(f"{equal:.1f} s with equal steps, {by_speed:.1f} s with steps by speed")
    assert equal / by_speed > 1.4  # about 3 where nothing else runs
