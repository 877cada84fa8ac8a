"""Snapshots of a whole cluster, and going on from them: bit for bit where that is promised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.config import SnapshotConfig
from paramserver.export import export_snapshot
from paramserver.snapshot_files import complete, open_store
from tests.cluster import Cluster, cluster

BATCH, SAMPLES, EPOCHS = 4, 96, 5
Step = tuple[int, int, tuple[int, ...]]  # epoch, clock before it, samples


def set_values(model: nn.Module, seed: int) -> None:
    """First values by a seed; torch's own generator is shared by all threads."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


class Run:
    """A training script on every worker: what it trained on, and what came of it.

    Attributes:
        stop: clock at which the chief asks for a snapshot, and all leave.
    """

    def __init__(
        self,
        made: Cluster,
        stop: int | None = None,
        *,
        shuffle: bool = True,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        **hyper: Any,
    ) -> None:
        self.made, self.stop = made, stop
        self.shuffle = shuffle
        self.optimizer, self.hyper = optimizer, hyper or {"lr": 0.05, "momentum": 0.9}
        self.saved = threading.Event()

    def __call__(self, client: ps.Client) -> tuple[list[Step], dict[str, Tensor], float]:
        model = nn.Sequential(nn.Linear(5, 17), nn.Tanh(), nn.Linear(17, 3))
        set_values(model, client.rank)  # the chief's win
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(SAMPLES, 5, generator=generator)
        y = torch.randint(3, (SAMPLES,), generator=generator)
        data = TensorDataset(torch.arange(SAMPLES), x, y)
        loader = client.loader(data, BATCH, shuffle=self.shuffle, seed=3)
        optimizer = client.optimizer(model, self.optimizer, **self.hyper)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        steps: list[Step] = []
        for epoch in client.epochs(EPOCHS, schedule):
            for index, features, target in loader:
                clock = self._clock(client)
                if clock == self.stop:
                    self._save(client)
                    return steps, client.state_dict(), 0.0
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(features), target).backward()
                optimizer.step()
                steps.append((epoch, clock, tuple(index.tolist())))
            schedule.step()
        return steps, client.state_dict(), float(optimizer.param_groups[0]["lr"])

    def _clock(self, client: ps.Client) -> int:
        return client._registry.clock

    def _save(self, client: ps.Client) -> None:
        if client.is_chief:
            assert client.snapshot("half") == "half"
            self.saved.set()
        assert self.saved.wait(30)


def trained(
    folder: Path,
    workers: int,
    servers: tuple[int, int],
    stop: int,
    assign: str,
    make: Callable[..., Run] = Run,
    **options: Any,
) -> tuple[list[Any], list[Any], list[Any]]:
    """What every worker did: up to a snapshot; from it, on a new cluster; and all in one."""
    where = SnapshotConfig(directory=str(folder))
    with cluster(servers[0], workers, assign=assign, snapshots=where) as made:
        before = made.workers(make(made, stop, **options))
    resume = SnapshotConfig(directory=str(folder), resume="half")
    with cluster(servers[1], workers, assign=assign, snapshots=resume) as made:
        after = made.workers(make(made, **options))
    with cluster(1, workers, assign=assign) as made:
        whole = made.workers(make(made, **options))
    return before, after, whole


@pytest.mark.parametrize("assign", ["round-robin", "random"])
@pytest.mark.parametrize(("workers", "stop"), [(1, 31), (2, 17), (2, 24), (3, 9)])
def test_going_on_is_bit_for_bit_what_would_have_been(
    tmp_path: Path, assign: str, workers: int, stop: int
) -> None:
    before, after, whole = trained(tmp_path, workers, (2, 1), stop, assign)
    for (steps, *_), (rest, values, lr), (all_steps, expected, rate) in zip(
        before, after, whole, strict=True
    ):
        assert steps + rest == all_steps
        assert lr == rate
        for name, value in expected.items():
            assert torch.equal(values[name], value), name
    assert open_store(str(tmp_path)).folders() == ["half"]
    (manifest,) = complete(open_store(str(tmp_path)))
    assert manifest.state["groups"][0]["clock"] == stop


def test_nobody_waits_for_a_chief_that_waits_for_the_snapshot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are ahead of it, so it never comes to the clock of the cut."""
    ahead = threading.Event()

    def work(client: ps.Client) -> None:
        group = client.register("sum", {"w": torch.zeros(3)}, consistency=ps.Stale(4))
        for _ in client.epochs(1):
            for _ in range(2 if client.is_chief else 4):
                group.push({"w": torch.ones(3)})
            if client.is_chief:
                assert ahead.wait(30)
                client.snapshot("here")
            ahead.set()
            client.barrier("end")

    with cluster(1, 2, snapshots=SnapshotConfig(directory=str(tmp_path))) as made:
        made.workers(work)
    (manifest,) = complete(open_store(str(tmp_path)))
    assert manifest.state["groups"][0]["clock"] == 4
    assert "has not told its schedule" not in caplog.text


def test_an_export_loads_into_plain_torch(tmp_path: Path) -> None:
    """Model and optimizer go on without this product, exactly as they would have with it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Linear(40, 2))
    alone = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.Linear(40, 2))
    batches = [[torch.randn(8, 6), torch.randn(8, 2)] for _ in range(6)]

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, batch: list[Tensor]) -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(net(batch[0]), batch[1]).backward()
        optimizer.step()

    where = SnapshotConfig(directory=str(tmp_path / "snapshots"))
    with cluster(3, 1, snapshots=where) as made, made.connect() as client:
        optimizer = client.optimizer(model, torch.optim.AdamW, lr=0.02, weight_decay=0.1)
        for batch in batches[:3]:
            step(model, optimizer, batch)
        made.snapshot("three")
        for batch in batches[3:]:
            step(model, optimizer, batch)
    source = str(tmp_path / "snapshots" / "three")
    export_snapshot(source, tmp_path / "model.safetensors")
    export_snapshot(str(tmp_path / "snapshots"), tmp_path / "all.pt", optimizer=True)
    from safetensors.torch import load_file

    content = torch.load(tmp_path / "all.pt", weights_only=True)
    for name, value in load_file(tmp_path / "model.safetensors").items():
        assert torch.equal(value, content["model"][name]), name
    alone.load_state_dict(content["model"], strict=True)
    plain = torch.optim.AdamW(alone.parameters())
    plain.load_state_dict(content["optimizer"])
    assert plain.param_groups[0]["lr"] == 0.02
    for batch in batches[3:]:
        step(alone, plain, batch)
    for (name, value), other in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(value, other), name
    for buffer, expected in zip(model.buffers(), alone.buffers(), strict=True):
        assert torch.allclose(buffer, expected, atol=1e-6)


class Busy:
    """Training that a snapshot is taken of from outside, while it goes on.

    Attributes:
        at: clock from which on the snapshot is asked for; None: none is.
    """

    def __init__(self, made: Cluster, at: int | None, scheme: ps.Consistency | ps.Local) -> None:
        self.made, self.at, self.scheme = made, at, scheme
        self.asking: threading.Thread | None = None

    def __call__(self, client: ps.Client) -> tuple[list[Step], dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(SAMPLES, 5, generator=generator), torch.arange(SAMPLES) % 3
        loader = client.loader(TensorDataset(torch.arange(SAMPLES), x, y), BATCH, seed=9)
        model = nn.Linear(5, 3)
        optimizer = client.optimizer(model, torch.optim.Adam, lr=0.1, consistency=self.scheme)
        total = EPOCHS * SAMPLES // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total)
        steps: list[Step] = []
        for epoch in client.epochs(EPOCHS, schedule):
            for index, features, target in loader:
                clock = client._registry.clock
                if client.is_chief and self.at is not None and clock >= self.at:
                    self.asking = self.asking or self._ask()
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(features), target).backward()
                optimizer.step()
                schedule.step()
                steps.append((epoch, clock, tuple(index.tolist())))
        client.barrier("end")
        return steps, client.state_dict()

    def _ask(self) -> threading.Thread:
        thread = threading.Thread(target=self.made.snapshot, args=("busy",))
        thread.start()
        return thread


@pytest.mark.parametrize("at", [7, 12, 25])
def test_training_goes_on_and_the_cut_is_one_clock(tmp_path: Path, at: int) -> None:
    """From whatever clock it was, with a rate that changes every step, what follows is the same."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(3, 2, assign="random", snapshots=where) as made:
        busy = Busy(made, at, ps.Sync())
        whole = made.workers(busy)
        assert busy.asking is not None
        busy.asking.join(20)
    (manifest,) = complete(open_store(str(tmp_path)))
    clock = manifest.state["groups"][0]["clock"]
    assert at <= clock <= EPOCHS * SAMPLES // BATCH // 2
    resume = SnapshotConfig(directory=str(tmp_path), resume="latest")
    with cluster(2, 2, assign="random", snapshots=resume) as made:
        rest = made.workers(Busy(made, None, ps.Sync()))
    for (all_steps, expected), (steps, values) in zip(whole, rest, strict=True):
        assert steps == all_steps[clock:]
        for name, value in expected.items():
            assert torch.equal(values[name], value), name


@pytest.mark.parametrize("scheme", [ps.Stale(2), ps.Async(), ps.Local(3)])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_sample_is_trained_once_whatever_the_scheme(
    tmp_path: Path, scheme: ps.Consistency | ps.Local, workers: int
) -> None:
    """What the snapshot has not seen is trained after it: two workers before, others after."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(2, 2, assign="dynamic", snapshots=where) as made:
        busy = Busy(made, 4, scheme)
        made.workers(busy)
        assert busy.asking is not None
        busy.asking.join(20)
    (manifest,) = complete(open_store(str(tmp_path)))
    (data,) = manifest.state["datasets"]
    done = sum(stop - start for start, stop in data["done"])
    resume = SnapshotConfig(directory=str(tmp_path), resume="busy")
    with cluster(1, workers, assign="dynamic", snapshots=resume) as made:
        rest = made.workers(Busy(made, None, scheme))
    trained = [i for steps, _ in rest for epoch, _, idx in steps for i in idx]
    assert len(trained) == (EPOCHS - max(data["epoch"], 0)) * SAMPLES - done
    last = [i for steps, _ in rest for epoch, _, idx in steps if epoch == EPOCHS - 1 for i in idx]
    assert sorted(last) == list(range(SAMPLES)) or data["epoch"] == EPOCHS - 1


def test_tables_go_on_with_their_rows_and_counters(tmp_path: Path) -> None:
    """Onto another number of servers, with a filter that counts and rows that age."""
    torch.manual_seed(0)
    batches = [torch.randint(40, (8,)) for _ in range(20)]

    def train(client: ps.Client, part: list[Tensor], stop: int | None) -> Tensor:
        table = client.table(
            "t", 4, seed=3, optimizer=torch.optim.Adagrad, lr=0.3,
            admit=ps.CountFilter(2), evict=ps.TTL(clocks=6),
        )  # fmt: skip
        for ids in part:
            if table.clock == stop:
                client.snapshot("rows")
                break
            table.push(ids, 2 * table.pull(ids) + 1)
        return table.pull(torch.arange(40))

    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(3, 1, snapshots=where) as made, made.connect() as client:
        train(client, batches, 11)
    resume = SnapshotConfig(directory=str(tmp_path), resume="rows")
    with cluster(2, 1, snapshots=resume) as made, made.connect() as client:
        found = train(client, batches[11:], None)
    with cluster(1, 1) as made, made.connect() as client:
        assert torch.equal(train(client, batches, None), found)


@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        ("x.bin", {}, "must end in"),
        ("x.safetensors", {"optimizer": True}, "use OUT.pt"),
        ("x.pt", {"group": "other"}, "it has model"),
    ],
)
def test_an_export_that_cannot_be_says_why(
    tmp_path: Path, target: str, options: dict[str, Any], error: str
) -> None:
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(1, 1, snapshots=where) as made, made.connect() as client:
        client.register("model", {"w": torch.zeros(3)})
        made.snapshot("one")
    with pytest.raises(ps.ParameterServerError, match=error):
        export_snapshot(str(tmp_path), tmp_path / target, **options)
    assert not (tmp_path / target).exists()
    with pytest.raises(ps.ParameterServerError, match="none"):
        export_snapshot(str(tmp_path / "none"), tmp_path / "x.pt")
