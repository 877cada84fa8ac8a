from paramserver.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MoveStep(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MOVE_STEP_UNSPECIFIED: _ClassVar[MoveStep]
    MOVE_HOLD: _ClassVar[MoveStep]
    MOVE_DRAIN: _ClassVar[MoveStep]
    MOVE_TAKE: _ClassVar[MoveStep]
    MOVE_FOLLOW: _ClassVar[MoveStep]
    MOVE_RELEASE: _ClassVar[MoveStep]
MOVE_STEP_UNSPECIFIED: MoveStep
MOVE_HOLD: MoveStep
MOVE_DRAIN: MoveStep
MOVE_TAKE: MoveStep
MOVE_FOLLOW: MoveStep
MOVE_RELEASE: MoveStep

class Frame(_message.Message):
    __slots__ = ("header", "check", "padding", "payload")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    header: Header
    check: bytes
    padding: bytes
    payload: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., check: _Optional[bytes] = ..., padding: _Optional[bytes] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("request", "push", "data", "commit", "pull", "store", "contribute", "collect", "cancel", "accepted", "done", "failure", "waiting", "add_vector", "pull_vector", "reduce", "lookup")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    COLLECT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    ADD_VECTOR_FIELD_NUMBER: _ClassVar[int]
    PULL_VECTOR_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    request: int
    push: Push
    data: Data
    commit: Commit
    pull: Pull
    store: Store
    contribute: Contribute
    collect: Collect
    cancel: Cancel
    accepted: Accepted
    done: Done
    failure: _common_pb2.Failure
    waiting: Waiting
    add_vector: AddVector
    pull_vector: PullVector
    reduce: Reduce
    lookup: Lookup
    def __init__(self, request: _Optional[int] = ..., push: _Optional[_Union[Push, _Mapping]] = ..., data: _Optional[_Union[Data, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., pull: _Optional[_Union[Pull, _Mapping]] = ..., store: _Optional[_Union[Store, _Mapping]] = ..., contribute: _Optional[_Union[Contribute, _Mapping]] = ..., collect: _Optional[_Union[Collect, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., failure: _Optional[_Union[_common_pb2.Failure, _Mapping]] = ..., waiting: _Optional[_Union[Waiting, _Mapping]] = ..., add_vector: _Optional[_Union[AddVector, _Mapping]] = ..., pull_vector: _Optional[_Union[PullVector, _Mapping]] = ..., reduce: _Optional[_Union[Reduce, _Mapping]] = ..., lookup: _Optional[_Union[Lookup, _Mapping]] = ...) -> None: ...

class Data(_message.Message):
    __slots__ = ("slices", "sizes", "checksums", "versions")
    SLICES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedScalarFieldContainer[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slices: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., versions: _Optional[_Iterable[int]] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("worker", "group", "map_version", "clock", "weight", "wire_dtype", "slices", "bases", "samples", "options", "deferred", "pull", "activated")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DEFERRED_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    ACTIVATED_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    clock: int
    weight: float
    wire_dtype: _common_pb2.DType
    slices: _containers.RepeatedScalarFieldContainer[int]
    bases: _containers.RepeatedScalarFieldContainer[int]
    samples: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    options: _containers.RepeatedCompositeFieldContainer[_common_pb2.Options]
    deferred: bool
    pull: Pull
    activated: bool
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., clock: _Optional[int] = ..., weight: _Optional[float] = ..., wire_dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., slices: _Optional[_Iterable[int]] = ..., bases: _Optional[_Iterable[int]] = ..., samples: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ..., options: _Optional[_Iterable[_Union[_common_pb2.Options, _Mapping]]] = ..., deferred: bool = ..., pull: _Optional[_Union[Pull, _Mapping]] = ..., activated: bool = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("weight", "samples", "options", "slices")
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    weight: float
    samples: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    options: _containers.RepeatedCompositeFieldContainer[_common_pb2.Options]
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, weight: _Optional[float] = ..., samples: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ..., options: _Optional[_Iterable[_Union[_common_pb2.Options, _Mapping]]] = ..., slices: _Optional[_Iterable[int]] = ...) -> None: ...

class Pull(_message.Message):
    __slots__ = ("worker", "group", "map_version", "clock", "slices", "have", "wire_dtype", "timeout", "latest")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    clock: int
    slices: _containers.RepeatedScalarFieldContainer[int]
    have: _containers.RepeatedScalarFieldContainer[int]
    wire_dtype: _common_pb2.DType
    timeout: float
    latest: bool
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., clock: _Optional[int] = ..., slices: _Optional[_Iterable[int]] = ..., have: _Optional[_Iterable[int]] = ..., wire_dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., timeout: _Optional[float] = ..., latest: bool = ...) -> None: ...

class Lookup(_message.Message):
    __slots__ = ("worker", "group", "map_version", "clock", "slices", "have", "wire_dtype", "timeout", "latest")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    clock: int
    slices: _containers.RepeatedScalarFieldContainer[int]
    have: _containers.RepeatedScalarFieldContainer[int]
    wire_dtype: _common_pb2.DType
    timeout: float
    latest: bool
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., clock: _Optional[int] = ..., slices: _Optional[_Iterable[int]] = ..., have: _Optional[_Iterable[int]] = ..., wire_dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., timeout: _Optional[float] = ..., latest: bool = ...) -> None: ...

class Store(_message.Message):
    __slots__ = ("worker", "group", "map_version", "slices")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., slices: _Optional[_Iterable[int]] = ...) -> None: ...

class Contribute(_message.Message):
    __slots__ = ("worker", "name", "sequence", "dtype", "pieces", "sizes")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    name: str
    sequence: int
    dtype: _common_pb2.DType
    pieces: _containers.RepeatedScalarFieldContainer[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., name: _Optional[str] = ..., sequence: _Optional[int] = ..., dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., pieces: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class Collect(_message.Message):
    __slots__ = ("worker", "name", "round", "op", "contributions")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    OP_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    name: str
    round: int
    op: str
    contributions: _containers.RepeatedCompositeFieldContainer[Contribution]
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., name: _Optional[str] = ..., round: _Optional[int] = ..., op: _Optional[str] = ..., contributions: _Optional[_Iterable[_Union[Contribution, _Mapping]]] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("rank", "incarnation", "sequence")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    sequence: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class Reduce(_message.Message):
    __slots__ = ("worker", "name", "key", "party", "parties", "replica", "contributors", "dtype", "shape", "pieces", "sizes", "timeout")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PARTY_FIELD_NUMBER: _ClassVar[int]
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    name: str
    key: str
    party: int
    parties: int
    replica: int
    contributors: _containers.RepeatedScalarFieldContainer[int]
    dtype: _common_pb2.DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    pieces: _containers.RepeatedScalarFieldContainer[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    timeout: float
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., name: _Optional[str] = ..., key: _Optional[str] = ..., party: _Optional[int] = ..., parties: _Optional[int] = ..., replica: _Optional[int] = ..., contributors: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., pieces: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Iterable[int]] = ..., timeout: _Optional[float] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("clock", "version", "staleness", "dropped", "applied", "refused", "durability")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    clock: int
    version: int
    staleness: float
    dropped: bool
    applied: bool
    refused: _containers.RepeatedScalarFieldContainer[int]
    durability: str
    def __init__(self, clock: _Optional[int] = ..., version: _Optional[int] = ..., staleness: _Optional[float] = ..., dropped: bool = ..., applied: bool = ..., refused: _Optional[_Iterable[int]] = ..., durability: _Optional[str] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("clock", "version", "dropped", "staleness", "durability")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    clock: int
    version: int
    dropped: bool
    staleness: float
    durability: str
    def __init__(self, clock: _Optional[int] = ..., version: _Optional[int] = ..., dropped: bool = ..., staleness: _Optional[float] = ..., durability: _Optional[str] = ...) -> None: ...

class Waiting(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ActivateRequest(_message.Message):
    __slots__ = ("worker", "group", "map_version", "skip")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    skip: bool
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., skip: bool = ...) -> None: ...

class ActivateReply(_message.Message):
    __slots__ = ("clock",)
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    clock: int
    def __init__(self, clock: _Optional[int] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("server", "group", "map_version", "staged", "hello", "next_clock", "view")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    NEXT_CLOCK_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    server: str
    group: str
    map_version: int
    staged: _containers.RepeatedCompositeFieldContainer[Staged]
    hello: bool
    next_clock: int
    view: int
    def __init__(self, server: _Optional[str] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., staged: _Optional[_Iterable[_Union[Staged, _Mapping]]] = ..., hello: bool = ..., next_clock: _Optional[int] = ..., view: _Optional[int] = ...) -> None: ...

class Staged(_message.Message):
    __slots__ = ("rank", "incarnation", "clock", "weight")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    weight: float
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ..., weight: _Optional[float] = ...) -> None: ...

class Notice(_message.Message):
    __slots__ = ("group", "close", "min_clock", "drop", "cut")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    MIN_CLOCK_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    group: str
    close: Close
    min_clock: int
    drop: Drop
    cut: Cut
    def __init__(self, group: _Optional[str] = ..., close: _Optional[_Union[Close, _Mapping]] = ..., min_clock: _Optional[int] = ..., drop: _Optional[_Union[Drop, _Mapping]] = ..., cut: _Optional[_Union[Cut, _Mapping]] = ...) -> None: ...

class Cut(_message.Message):
    __slots__ = ("id", "clock")
    ID_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    id: int
    clock: int
    def __init__(self, id: _Optional[int] = ..., clock: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("clock", "contributors")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    clock: int
    contributors: _containers.RepeatedCompositeFieldContainer[Staged]
    def __init__(self, clock: _Optional[int] = ..., contributors: _Optional[_Iterable[_Union[Staged, _Mapping]]] = ...) -> None: ...

class Drop(_message.Message):
    __slots__ = ("rank", "incarnation")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("group",)
    GROUP_FIELD_NUMBER: _ClassVar[int]
    group: str
    def __init__(self, group: _Optional[str] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class AppliedSpansRequest(_message.Message):
    __slots__ = ("view", "job", "rank", "incarnation")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    view: int
    job: int
    rank: int
    incarnation: int
    def __init__(self, view: _Optional[int] = ..., job: _Optional[int] = ..., rank: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class AppliedSpansReply(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupSpans]
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupSpans, _Mapping]]] = ...) -> None: ...

class GroupSpans(_message.Message):
    __slots__ = ("group", "spans")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    group: str
    spans: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    def __init__(self, group: _Optional[str] = ..., spans: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ...) -> None: ...

class ShrinkRequest(_message.Message):
    __slots__ = ("worker", "group", "map_version", "clock", "park_seconds")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    PARK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    clock: int
    park_seconds: float
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., clock: _Optional[int] = ..., park_seconds: _Optional[float] = ...) -> None: ...

class ShrinkReply(_message.Message):
    __slots__ = ("evicted", "pending")
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    evicted: int
    pending: str
    def __init__(self, evicted: _Optional[int] = ..., pending: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("groups", "resident_bytes", "staged_bytes", "received_bytes", "sent_bytes", "duplicates", "refusals", "non_finite")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupStatus]
    resident_bytes: int
    staged_bytes: int
    received_bytes: int
    sent_bytes: int
    duplicates: int
    refusals: int
    non_finite: int
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupStatus, _Mapping]]] = ..., resident_bytes: _Optional[int] = ..., staged_bytes: _Optional[int] = ..., received_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., duplicates: _Optional[int] = ..., refusals: _Optional[int] = ..., non_finite: _Optional[int] = ...) -> None: ...

class GroupStatus(_message.Message):
    __slots__ = ("group", "slices", "bytes", "version", "min_clock", "lead", "waiting", "workers", "table", "overflows")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_CLOCK_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    OVERFLOWS_FIELD_NUMBER: _ClassVar[int]
    group: str
    slices: int
    bytes: int
    version: int
    min_clock: int
    lead: bool
    waiting: str
    workers: _containers.RepeatedCompositeFieldContainer[WorkerClock]
    table: TableStatus
    overflows: int
    def __init__(self, group: _Optional[str] = ..., slices: _Optional[int] = ..., bytes: _Optional[int] = ..., version: _Optional[int] = ..., min_clock: _Optional[int] = ..., lead: bool = ..., waiting: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[WorkerClock, _Mapping]]] = ..., table: _Optional[_Union[TableStatus, _Mapping]] = ..., overflows: _Optional[int] = ...) -> None: ...

class TableStatus(_message.Message):
    __slots__ = ("rows", "evicted", "not_admitted")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    NOT_ADMITTED_FIELD_NUMBER: _ClassVar[int]
    rows: int
    evicted: int
    not_admitted: int
    def __init__(self, rows: _Optional[int] = ..., evicted: _Optional[int] = ..., not_admitted: _Optional[int] = ...) -> None: ...

class WorkerClock(_message.Message):
    __slots__ = ("rank", "incarnation", "clock", "active")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    active: bool
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ..., active: bool = ...) -> None: ...

class AddVector(_message.Message):
    __slots__ = ("worker", "group", "map_version", "vector", "slices", "number", "start", "stop", "total")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    vector: str
    slices: _containers.RepeatedScalarFieldContainer[int]
    number: int
    start: int
    stop: int
    total: float
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., vector: _Optional[str] = ..., slices: _Optional[_Iterable[int]] = ..., number: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., total: _Optional[float] = ...) -> None: ...

class PullVector(_message.Message):
    __slots__ = ("group", "map_version", "vector", "slices")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    group: str
    map_version: int
    vector: str
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, group: _Optional[str] = ..., map_version: _Optional[int] = ..., vector: _Optional[str] = ..., slices: _Optional[_Iterable[int]] = ...) -> None: ...

class VectorsRequest(_message.Message):
    __slots__ = ("worker", "group", "map_version", "operation", "lin", "dots", "tallies", "drop", "names")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    LIN_FIELD_NUMBER: _ClassVar[int]
    DOTS_FIELD_NUMBER: _ClassVar[int]
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Identity
    group: str
    map_version: int
    operation: int
    lin: _containers.RepeatedCompositeFieldContainer[Lin]
    dots: _containers.RepeatedCompositeFieldContainer[Dot]
    tallies: _containers.RepeatedScalarFieldContainer[str]
    drop: _containers.RepeatedScalarFieldContainer[str]
    names: bool
    def __init__(self, worker: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., operation: _Optional[int] = ..., lin: _Optional[_Iterable[_Union[Lin, _Mapping]]] = ..., dots: _Optional[_Iterable[_Union[Dot, _Mapping]]] = ..., tallies: _Optional[_Iterable[str]] = ..., drop: _Optional[_Iterable[str]] = ..., names: bool = ...) -> None: ...

class Lin(_message.Message):
    __slots__ = ("out", "terms")
    OUT_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    out: str
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    def __init__(self, out: _Optional[str] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("coefficient", "vector")
    COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    coefficient: float
    vector: str
    def __init__(self, coefficient: _Optional[float] = ..., vector: _Optional[str] = ...) -> None: ...

class Dot(_message.Message):
    __slots__ = ("left", "right")
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    left: str
    right: str
    def __init__(self, left: _Optional[str] = ..., right: _Optional[str] = ...) -> None: ...

class VectorsReply(_message.Message):
    __slots__ = ("dots", "tallies", "names")
    DOTS_FIELD_NUMBER: _ClassVar[int]
    TALLIES_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    dots: _containers.RepeatedScalarFieldContainer[float]
    tallies: _containers.RepeatedCompositeFieldContainer[Tally]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dots: _Optional[_Iterable[float]] = ..., tallies: _Optional[_Iterable[_Union[Tally, _Mapping]]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class Tally(_message.Message):
    __slots__ = ("samples", "total")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    samples: int
    total: float
    def __init__(self, samples: _Optional[int] = ..., total: _Optional[float] = ...) -> None: ...

class ReplicateRequest(_message.Message):
    __slots__ = ("server", "job", "epoch", "number", "records", "more", "fill", "position")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    server: str
    job: int
    epoch: int
    number: int
    records: _containers.RepeatedScalarFieldContainer[bytes]
    more: bool
    fill: bool
    position: int
    def __init__(self, server: _Optional[str] = ..., job: _Optional[int] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., records: _Optional[_Iterable[bytes]] = ..., more: bool = ..., fill: bool = ..., position: _Optional[int] = ...) -> None: ...

class ReplicateReply(_message.Message):
    __slots__ = ("applied",)
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    applied: int
    def __init__(self, applied: _Optional[int] = ...) -> None: ...

class HoldRequest(_message.Message):
    __slots__ = ("job", "hold", "groups", "limit_s")
    JOB_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    job: int
    hold: int
    groups: _containers.RepeatedCompositeFieldContainer[GroupClocks]
    limit_s: float
    def __init__(self, job: _Optional[int] = ..., hold: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[GroupClocks, _Mapping]]] = ..., limit_s: _Optional[float] = ...) -> None: ...

class GroupClocks(_message.Message):
    __slots__ = ("group", "map_version", "workers", "lead", "next_clock")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    NEXT_CLOCK_FIELD_NUMBER: _ClassVar[int]
    group: str
    map_version: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerClock]
    lead: bool
    next_clock: int
    def __init__(self, group: _Optional[str] = ..., map_version: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerClock, _Mapping]]] = ..., lead: bool = ..., next_clock: _Optional[int] = ...) -> None: ...

class HoldReply(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupClocks]
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupClocks, _Mapping]]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("job", "hold", "groups")
    JOB_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    job: int
    hold: int
    groups: _containers.RepeatedCompositeFieldContainer[GroupClocks]
    def __init__(self, job: _Optional[int] = ..., hold: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[GroupClocks, _Mapping]]] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupClocks]
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupClocks, _Mapping]]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("job", "hold")
    JOB_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    job: int
    hold: int
    def __init__(self, job: _Optional[int] = ..., hold: _Optional[int] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("held_s",)
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    held_s: float
    def __init__(self, held_s: _Optional[float] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("job", "id", "directory", "name", "cuts", "hold", "patience_s")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    HOLD_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_S_FIELD_NUMBER: _ClassVar[int]
    job: int
    id: int
    directory: str
    name: str
    cuts: _containers.RepeatedCompositeFieldContainer[GroupCut]
    hold: int
    patience_s: float
    def __init__(self, job: _Optional[int] = ..., id: _Optional[int] = ..., directory: _Optional[str] = ..., name: _Optional[str] = ..., cuts: _Optional[_Iterable[_Union[GroupCut, _Mapping]]] = ..., hold: _Optional[int] = ..., patience_s: _Optional[float] = ...) -> None: ...

class GroupCut(_message.Message):
    __slots__ = ("group", "map_version", "clock", "since")
    class SinceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    group: str
    map_version: int
    clock: int
    since: _containers.ScalarMap[int, int]
    def __init__(self, group: _Optional[str] = ..., map_version: _Optional[int] = ..., clock: _Optional[int] = ..., since: _Optional[_Mapping[int, int]] = ...) -> None: ...

class SnapshotReply(_message.Message):
    __slots__ = ("file", "bytes", "sha256", "groups", "held_s", "wrote_s")
    FILE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    WROTE_S_FIELD_NUMBER: _ClassVar[int]
    file: str
    bytes: int
    sha256: str
    groups: _containers.RepeatedCompositeFieldContainer[CapturedGroup]
    held_s: float
    wrote_s: float
    def __init__(self, file: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[CapturedGroup, _Mapping]]] = ..., held_s: _Optional[float] = ..., wrote_s: _Optional[float] = ...) -> None: ...

class CapturedGroup(_message.Message):
    __slots__ = ("group", "clock", "version", "slices", "versions", "spans", "stored")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    group: str
    clock: int
    version: int
    slices: _containers.RepeatedScalarFieldContainer[int]
    versions: _containers.RepeatedScalarFieldContainer[int]
    spans: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    stored: bool
    def __init__(self, group: _Optional[str] = ..., clock: _Optional[int] = ..., version: _Optional[int] = ..., slices: _Optional[_Iterable[int]] = ..., versions: _Optional[_Iterable[int]] = ..., spans: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ..., stored: bool = ...) -> None: ...

class MoveRequest(_message.Message):
    __slots__ = ("job", "move", "group", "map_version", "step", "pushes", "workers", "frontier", "slices", "source", "map", "limit_s")
    JOB_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MAP_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    job: int
    move: int
    group: str
    map_version: int
    step: MoveStep
    pushes: bool
    workers: _containers.RepeatedCompositeFieldContainer[WorkerClock]
    frontier: int
    slices: _containers.RepeatedScalarFieldContainer[int]
    source: str
    map: _common_pb2.SliceMap
    limit_s: float
    def __init__(self, job: _Optional[int] = ..., move: _Optional[int] = ..., group: _Optional[str] = ..., map_version: _Optional[int] = ..., step: _Optional[_Union[MoveStep, str]] = ..., pushes: bool = ..., workers: _Optional[_Iterable[_Union[WorkerClock, _Mapping]]] = ..., frontier: _Optional[int] = ..., slices: _Optional[_Iterable[int]] = ..., source: _Optional[str] = ..., map: _Optional[_Union[_common_pb2.SliceMap, _Mapping]] = ..., limit_s: _Optional[float] = ...) -> None: ...

class MoveReply(_message.Message):
    __slots__ = ("workers", "frontier", "holds")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerClock]
    frontier: int
    holds: bool
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerClock, _Mapping]]] = ..., frontier: _Optional[int] = ..., holds: bool = ...) -> None: ...

class FetchSlicesRequest(_message.Message):
    __slots__ = ("job", "move", "group", "slices")
    JOB_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    job: int
    move: int
    group: str
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, job: _Optional[int] = ..., move: _Optional[int] = ..., group: _Optional[str] = ..., slices: _Optional[_Iterable[int]] = ...) -> None: ...

class SlicePart(_message.Message):
    __slots__ = ("group", "slice", "staged", "name", "dtype", "shape", "size", "checksum", "data", "numbers")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    group: MovedGroup
    slice: int
    staged: int
    name: str
    dtype: _common_pb2.DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    size: int
    checksum: int
    data: bytes
    numbers: str
    def __init__(self, group: _Optional[_Union[MovedGroup, _Mapping]] = ..., slice: _Optional[int] = ..., staged: _Optional[int] = ..., name: _Optional[str] = ..., dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., size: _Optional[int] = ..., checksum: _Optional[int] = ..., data: _Optional[bytes] = ..., numbers: _Optional[str] = ...) -> None: ...

class MovedGroup(_message.Message):
    __slots__ = ("version", "frontier", "ledger", "staged", "clock")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    version: int
    frontier: int
    ledger: str
    staged: _containers.RepeatedCompositeFieldContainer[StagedPush]
    clock: str
    def __init__(self, version: _Optional[int] = ..., frontier: _Optional[int] = ..., ledger: _Optional[str] = ..., staged: _Optional[_Iterable[_Union[StagedPush, _Mapping]]] = ..., clock: _Optional[str] = ...) -> None: ...

class StagedPush(_message.Message):
    __slots__ = ("push", "options", "samples")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    push: Staged
    options: _containers.RepeatedCompositeFieldContainer[_common_pb2.Options]
    samples: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    def __init__(self, push: _Optional[_Union[Staged, _Mapping]] = ..., options: _Optional[_Iterable[_Union[_common_pb2.Options, _Mapping]]] = ..., samples: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ...) -> None: ...
