"""A journal read back makes a server what it was, to the bit; so does a dump with what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import paramserver as ps
from paramserver.config import ServerConfig
from paramserver.errors import InvalidRequestError
from paramserver.ps.dump import dump
from paramserver.ps.journal import Journal
from paramserver.ps.replay import Replay
from paramserver.ps.service import ServerService
from paramserver.ps.wal import read_all
from paramserver.v1 import journal_pb2 as pb
from paramserver.wire.client import AsyncGrpcChannel
from paramserver.wire.entries import decode_entry, encode_entry
from tests.cluster import Cluster, cluster

IDS = torch.tensor([3, 5, -8, 13])


def work(client: ps.Client) -> None:
    """Something of everything that a server keeps."""
    generator = torch.Generator().manual_seed(client.rank)

    def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.BatchNorm1d(30))
    optimizer = client.optimizer(model, torch.optim.AdamW, lr=0.01)
    late = client.register(
        "late", {"w": torch.zeros(50)}, torch.optim.SGD, consistency=ps.Stale(1), lr=0.1
    )
    half = client.register("half", {"w": torch.zeros(9, dtype=torch.bfloat16)})
    rows = client.table("rows", 3, optimizer=torch.optim.Adagrad, admit=ps.CountFilter(2), lr=0.1)
    old = client.table("old", 3, optimizer=None, evict=ps.TTL(seconds=0.2), consistency=ps.Async())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for step in range(6):
        optimizer.zero_grad()
        model(noise(8, 40)).square().sum().backward()
        optimizer.step()
        schedule.step()
        late.push_pull({"w": noise(50)})
        half.push({"w": noise(9, dtype=torch.bfloat16)})
        rows.push(IDS[: 2 + step % 3], noise(2 + step % 3, 3))
        old.push(IDS + step, noise(4, 3))
    client.barrier("trained")
    client.all_reduce(noise(4), name="sum")
    if client.is_chief:
        vector = late.vector("v")
        late.lin("v", [(2.0, "values")])
        vector.add({"w": torch.ones(50)})
        late.lin("values", [(0.5, "v"), (1.0, "values")])
    client.barrier("end")


async def state(service: ServerService, journal: Journal | None = None) -> list[bytes]:
    """All that a server keeps, in a form that can be compared."""
    if journal is not None:
        service.journal = journal
    entries = []
    async for data in dump(service):
        entry, pieces = decode_entry(data)
        for body in (entry.dumped_slice, entry.dumped_group, entry.dumped_rest):
            body.position = 0
        entry.dumped_slice.now = 0
        entry.begun.job = 0
        entries.append(encode_entry(entry, pieces))
    return entries


def blank(made: Cluster, name: str) -> ServerService:
    channel = AsyncGrpcChannel(made.address)
    return ServerService(ServerConfig(scheduler=made.address), name, channel, AsyncGrpcChannel)


@pytest.mark.parametrize("halfway", [False, True], ids=["journal", "dump"])
def test_a_replayed_server_is_equal(tmp_path: Path, halfway: bool) -> None:
    with cluster(servers=2, workers=2, state=tmp_path) as made:
        made.workers(work)
        for number, service in enumerate(made.servers):

            async def compare(number: int = number, service: ServerService = service) -> None:
                assert service.journal is not None
                await service.journal.durable()
                wanted = await state(service)
                again = blank(made, service.name)
                replay = Replay(again)
                start = 0
                if halfway:
                    start = service.journal.position
                    async for dumped in dump(service):
                        await replay.apply(start, dumped)
                for position, data in read_all(tmp_path / f"ps-{number}", start):
                    await replay.apply(position, data)
                found = await state(again, Journal(replay.position))
                assert len(found) == len(wanted)
                for left, right in zip(found, wanted, strict=True):
                    assert left == right, (decode_entry(left), decode_entry(right))
                again.close()

            made.run(compare())


def test_a_dump_says_nothing_twice(tmp_path: Path) -> None:
    """Entries that a dump contains are skipped, part by part."""
    with cluster(workers=2, state=tmp_path) as made:
        made.workers(work)
        service = made.servers[0]

        async def compare() -> None:
            await service.journal.durable()
            again = blank(made, service.name)
            replay = Replay(again)
            async for dumped in dump(service):
                await replay.apply(0, dumped)
            for position, data in read_all(tmp_path / "ps-0"):
                if decode_entry(data).entry.WhichOneof("body") != "begun":
                    await replay.apply(position, data)
            assert await state(again, Journal(1)) == await state(service)
            again.close()

        made.run(compare())


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with cluster(state=tmp_path) as made:

        async def run() -> None:
            replay = Replay(blank(made, "ps-0"))
            for entry, why in [
                (pb.Entry(), "unknown kind"),
                (pb.Entry(begun=pb.Begun(format=99)), "format 99"),
                (pb.Entry(group="g", ticked=pb.Ticked(slices=[1])), "no group 'g'"),
                (pb.Entry(group="g", lead=pb.LeadEvent(restated="x")), "does not lead"),
            ]:
                with pytest.raises(InvalidRequestError, match=why):
                    await replay.apply(1, encode_entry(entry))
            whole = encode_entry(pb.Entry(parts=[pb.Part(bytes=3)]), [b"abc"])
            for length in range(len(whole)):
                with pytest.raises(InvalidRequestError, match=r"entry"):
                    await replay.apply(1, whole[:length])
            with pytest.raises(InvalidRequestError, match="belong to none"):
                await replay.apply(1, whole + b"x")

        made.run(run())
