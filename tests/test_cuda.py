"""Models on a GPU: gradients leave it, values come back to it. Skipped without one."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import paramserver as ps
from tests.cluster import cluster

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def network(device: str) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(40, 600), nn.BatchNorm1d(600), nn.Linear(600, 10)).to(device)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_model_on_a_gpu_trains_as_plain_pytorch(overlap: bool) -> None:
    x, y = torch.randn(64, 40, device="cuda"), torch.randint(0, 10, (64,), device="cuda")

    def work(client: ps.Client) -> dict[str, torch.Tensor]:
        model = network("cuda")
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, momentum=0.9, overlap=overlap)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        assert all(p.device.type == "cuda" for p in model.parameters())
        found = client.state_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(value.cpu(), found[name]), name
        return found

    with cluster(2, 1) as c:
        (found,) = c.workers(work)
    model = network("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value.cpu(), rtol=1e-5, atol=1e-5)


def test_local_steps_on_a_gpu() -> None:
    """One worker and plain averaging: plain PyTorch."""
    x, y = torch.randn(64, 40, device="cuda"), torch.randint(0, 10, (64,), device="cuda")
    outer = functools.partial(torch.optim.SGD, lr=1.0)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(8):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    def work(client: ps.Client) -> dict[str, torch.Tensor]:
        model = network("cuda")
        scheme = ps.Local(4, outer=outer, fragments=2)
        train(model, client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=scheme))
        client.barrier("trained")
        assert all(p.device.type == "cuda" for p in model.parameters())
        return client.state_dict()

    with cluster(2, 1) as c:
        (found,) = c.workers(work)
    model = network("cuda")
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value.cpu(), rtol=1e-5, atol=1e-5)


def test_a_grad_scaler_on_a_gpu() -> None:
    def work(client: ps.Client) -> float:
        model = network("cuda")
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)  # overflows at first
        first = last = 0.0
        for step in range(40):
            x = torch.randn(64, 40, device="cuda")
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.float16):
                loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            now = loss.item()
            first, last = (now, now) if step == 0 else (first, now)
        assert optimizer.last is not None
        assert optimizer.last.clock == 39  # a skipped step ticks as well
        return first - last

    with cluster(1, 1) as c:
        (fell,) = c.workers(work)
    assert fell > 0.2


def test_a_tensor_on_a_gpu_is_reduced() -> None:
    def work(client: ps.Client) -> torch.Tensor:
        return client.all_reduce(torch.full((3,), 1.0 + client.rank, device="cuda"), "t", op="sum")

    with cluster(1, 2) as c:
        for total in c.workers(work):
            assert total.device.type == "cuda"
            assert torch.equal(total.cpu(), torch.full((3,), 3.0))


def test_rows_of_a_table_on_a_gpu() -> None:
    """Ids from the GPU bring rows to it, and gradients leave it."""
    ids = torch.tensor([[1, 2, 2], [0, 5, 1]])

    def work(client: ps.Client) -> torch.Tensor:
        table = client.table("e", 4, optimizer=torch.optim.SGD, lr=1.0)
        model = ps.EmbeddingBag(table, mode="sum", padding_idx=0)
        optimizer = client.optimizer(model, torch.optim.SGD)
        first = table.pull(ids)
        found = model(ids.cuda())
        assert found.device.type == "cuda"
        first[1, 0] = 0
        torch.testing.assert_close(found.cpu(), first.sum(1))
        found.sum().backward()
        optimizer.step()
        return (first - table.pull(ids.cuda()).cpu())[:, 1:, 0]

    with cluster(2, 1) as c:
        (moved,) = c.workers(work)
    torch.testing.assert_close(moved, torch.tensor([[2.0, 2.0], [1.0, 2.0]]))
