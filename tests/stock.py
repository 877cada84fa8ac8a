"""A worker with nothing but the stock generated stubs: as any language would speak the protocol."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import xxhash
from numpy.typing import NDArray

from paramserver.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc, server_pb2_grpc
from paramserver.v1 import server_pb2 as pb

Floats = NDArray[np.float32]


class StockWorker:
    """One additive float32 tensor "w" of ``size`` elements in group "g" on the only server."""

    def __init__(self, address: str, size: int, consistency: str = "async", name: str = "") -> None:
        self.size = size
        self._channels = [grpc.insecure_channel(address)]
        self.scheduler = scheduler_pb2_grpc.SchedulerStub(self._channels[0])
        reply = self.scheduler.Register(
            scheduler_pb2.RegisterRequest(protocol=1, role=scheduler_pb2.ROLE_WORKER, name=name)
        )
        self.identity = reply.identity
        self.view(self.scheduler.AwaitStart(self._ask(scheduler_pb2.AwaitStartRequest, wait_s=5)))
        spec = common_pb2.GroupSpec(
            name="g",
            tensors=[
                common_pb2.TensorSpec(
                    name="w",
                    shape=[size],
                    dtype=common_pb2.DTYPE_FLOAT32,
                    rule=common_pb2.RULE_ADD,
                )
            ],
            consistency=common_pb2.Consistency(
                kind=consistency, scale_lr="none", deterministic=True
            ),
        )
        registered = self.scheduler.RegisterGroup(
            self._ask(scheduler_pb2.RegisterGroupRequest, spec=spec)
        )
        self.map = registered.map
        self._channels.append(grpc.insecure_channel(self.map.addresses[0]))
        self.server = server_pb2_grpc.ServerStub(self._channels[1])
        self.slices = len(self.map.owners)
        self._store()
        active = self._ask(scheduler_pb2.SetActiveRequest, active=True)
        self.identity.view = self.scheduler.SetActive(active).view
        request = pb.ActivateRequest(worker=self.identity, group="g", map_version=self.map.version)
        self.clock = self.server.Activate(request).clock

    def view(self, reply: scheduler_pb2.AwaitStartReply) -> None:
        self.identity.view = reply.view.number

    def _ask(self, kind: Any, **fields: object) -> Any:
        return kind(member=self.identity, **fields)

    def _store(self) -> None:
        state = self.scheduler.AwaitGroup(
            self._ask(scheduler_pb2.AwaitGroupRequest, group="g", wait_s=5)
        )
        if state.initialize:
            store = pb.Store(
                worker=self.identity,
                group="g",
                map_version=self.map.version,
                slices=range(self.slices),
            )
            zeros = np.zeros(self.size, np.float32)
            self.ask([pb.Record(request=1, store=store), *self.data(1, zeros)], zeros.tobytes())
            self.scheduler.GroupStored(self._ask(scheduler_pb2.GroupStoredRequest, group="g"))

    def bounds(self, index: int) -> slice:
        step = self.map.slice_elements
        return slice(index * step, min((index + 1) * step, self.size))

    def data(self, request: int, values: Floats) -> list[pb.Record]:
        """One record with all slices."""
        parts = [values[self.bounds(i)].tobytes() for i in range(self.slices)]
        data = pb.Data(
            slices=range(self.slices),
            sizes=[len(p) for p in parts],
            checksums=[xxhash.xxh3_64_intdigest(p) for p in parts],
        )
        return [pb.Record(request=request, data=data)]

    def push(self, clock: int, **fields: object) -> pb.Push:
        """The declaration of a push of all slices."""
        push = pb.Push(
            worker=self.identity,
            group="g",
            map_version=self.map.version,
            clock=clock,
            weight=1.0,
            slices=range(self.slices),
        )
        for name, value in fields.items():
            if name == "slices":
                del push.slices[:]
                push.slices.extend(value)  # type: ignore[arg-type]
            else:
                setattr(push, name, value)
        return push

    def add(self, clock: int, values: Floats, **fields: object) -> list[pb.Record]:
        """Pushes; the answers."""
        push = pb.Record(request=7, push=self.push(clock, **fields))
        return self.ask([push, *self.data(7, values)], values.tobytes())

    def pull(self) -> Floats:
        """The newest values."""
        pull = pb.Pull(worker=self.identity, group="g", map_version=self.map.version, latest=True)
        values = np.zeros(self.size, np.float32)
        stream = Stream(self.server)
        stream.send([pb.Record(request=9, pull=pull)])
        for frame in stream.until_done():
            at = 0
            for record in frame.header.records:
                for index, size in zip(record.data.slices, record.data.sizes, strict=True):
                    part = np.frombuffer(frame.payload[at : at + size], np.float32)
                    values[self.bounds(index)] = part
                    at += size
        stream.close()
        return values

    def ask(self, records: Iterable[pb.Record], payload: bytes = b"") -> list[pb.Record]:
        """Sends one frame on a stream of its own; the records that answer it."""
        stream = Stream(self.server)
        stream.send(records, payload)
        found = [r for frame in stream.until_done() for r in frame.header.records]
        stream.close()
        return found

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class Stream:
    """One Exchange."""

    def __init__(self, server: server_pb2_grpc.ServerStub) -> None:
        self._frames: queue.SimpleQueue[pb.Frame | None] = queue.SimpleQueue()
        self.answers = server.Exchange(iter(self._frames.get, None), timeout=20)

    def send(self, records: Iterable[pb.Record], payload: bytes = b"") -> None:
        self._frames.put(pb.Frame(header=pb.Header(records=records), payload=payload))

    def until_done(self) -> Iterator[pb.Frame]:
        """Frames up to the first Done, Failure or list of refused slices."""
        for frame in self.answers:
            yield frame
            for record in frame.header.records:
                if record.WhichOneof("body") in ("done", "failure") or record.accepted.refused:
                    return

    def close(self) -> None:
        self._frames.put(None)
