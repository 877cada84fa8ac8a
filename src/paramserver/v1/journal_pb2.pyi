from paramserver.v1 import common_pb2 as _common_pb2
from paramserver.v1 import scheduler_pb2 as _scheduler_pb2
from paramserver.v1 import server_pb2 as _server_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PartKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PART_KIND_UNSPECIFIED: _ClassVar[PartKind]
    PART_GRADIENT: _ClassVar[PartKind]
    PART_VALUE: _ClassVar[PartKind]
    PART_KEYS: _ClassVar[PartKind]
    PART_TIMES: _ClassVar[PartKind]
    PART_BYTES: _ClassVar[PartKind]
    PART_STATE: _ClassVar[PartKind]
PART_KIND_UNSPECIFIED: PartKind
PART_GRADIENT: PartKind
PART_VALUE: PartKind
PART_KEYS: PartKind
PART_TIMES: PartKind
PART_BYTES: PartKind
PART_STATE: PartKind

class Entry(_message.Message):
    __slots__ = ("group", "begun", "made", "stored", "stepped", "closed", "opened", "arrived", "ticked", "completed", "abandoned", "expected", "shrunk", "lead", "vectors", "added", "contributed", "collected", "reduced", "dumped_slice", "dumped_group", "dumped_rest", "came", "bound", "followed", "released", "parts", "buckets")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    STEPPED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    TICKED_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    ABANDONED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    SHRUNK_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ADDED_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    COLLECTED_FIELD_NUMBER: _ClassVar[int]
    REDUCED_FIELD_NUMBER: _ClassVar[int]
    DUMPED_SLICE_FIELD_NUMBER: _ClassVar[int]
    DUMPED_GROUP_FIELD_NUMBER: _ClassVar[int]
    DUMPED_REST_FIELD_NUMBER: _ClassVar[int]
    CAME_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    group: str
    begun: Begun
    made: _scheduler_pb2.GetGroupReply
    stored: Stored
    stepped: Stepped
    closed: Closed
    opened: Opened
    arrived: Arrived
    ticked: Ticked
    completed: Completed
    abandoned: Abandoned
    expected: Expected
    shrunk: Shrunk
    lead: LeadEvent
    vectors: _server_pb2.VectorsRequest
    added: _server_pb2.AddVector
    contributed: _server_pb2.Contribute
    collected: _server_pb2.Collect
    reduced: _server_pb2.Reduce
    dumped_slice: DumpedSlice
    dumped_group: DumpedGroup
    dumped_rest: DumpedRest
    came: DumpedSlice
    bound: Bound
    followed: Followed
    released: int
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    buckets: _containers.RepeatedCompositeFieldContainer[Bucket]
    def __init__(self, group: _Optional[str] = ..., begun: _Optional[_Union[Begun, _Mapping]] = ..., made: _Optional[_Union[_scheduler_pb2.GetGroupReply, _Mapping]] = ..., stored: _Optional[_Union[Stored, _Mapping]] = ..., stepped: _Optional[_Union[Stepped, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., arrived: _Optional[_Union[Arrived, _Mapping]] = ..., ticked: _Optional[_Union[Ticked, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ..., abandoned: _Optional[_Union[Abandoned, _Mapping]] = ..., expected: _Optional[_Union[Expected, _Mapping]] = ..., shrunk: _Optional[_Union[Shrunk, _Mapping]] = ..., lead: _Optional[_Union[LeadEvent, _Mapping]] = ..., vectors: _Optional[_Union[_server_pb2.VectorsRequest, _Mapping]] = ..., added: _Optional[_Union[_server_pb2.AddVector, _Mapping]] = ..., contributed: _Optional[_Union[_server_pb2.Contribute, _Mapping]] = ..., collected: _Optional[_Union[_server_pb2.Collect, _Mapping]] = ..., reduced: _Optional[_Union[_server_pb2.Reduce, _Mapping]] = ..., dumped_slice: _Optional[_Union[DumpedSlice, _Mapping]] = ..., dumped_group: _Optional[_Union[DumpedGroup, _Mapping]] = ..., dumped_rest: _Optional[_Union[DumpedRest, _Mapping]] = ..., came: _Optional[_Union[DumpedSlice, _Mapping]] = ..., bound: _Optional[_Union[Bound, _Mapping]] = ..., followed: _Optional[_Union[Followed, _Mapping]] = ..., released: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., buckets: _Optional[_Iterable[_Union[Bucket, _Mapping]]] = ...) -> None: ...

class Bucket(_message.Message):
    __slots__ = ("slices",)
    SLICES_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slices: _Optional[_Iterable[int]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("slice", "kind", "dtype", "bytes", "name", "shape")
    SLICE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    slice: int
    kind: PartKind
    dtype: _common_pb2.DType
    bytes: int
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slice: _Optional[int] = ..., kind: _Optional[_Union[PartKind, str]] = ..., dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., bytes: _Optional[int] = ..., name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Begun(_message.Message):
    __slots__ = ("format", "server", "job")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    format: int
    server: str
    job: int
    def __init__(self, format: _Optional[int] = ..., server: _Optional[str] = ..., job: _Optional[int] = ...) -> None: ...

class Stored(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Stepped(_message.Message):
    __slots__ = ("clock", "options", "slices", "now")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    clock: int
    options: _containers.RepeatedCompositeFieldContainer[_common_pb2.Options]
    slices: _containers.RepeatedScalarFieldContainer[int]
    now: float
    def __init__(self, clock: _Optional[int] = ..., options: _Optional[_Iterable[_Union[_common_pb2.Options, _Mapping]]] = ..., slices: _Optional[_Iterable[int]] = ..., now: _Optional[float] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("clock", "version", "pushes")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    clock: int
    version: int
    pushes: _containers.RepeatedCompositeFieldContainer[Settled]
    def __init__(self, clock: _Optional[int] = ..., version: _Optional[int] = ..., pushes: _Optional[_Iterable[_Union[Settled, _Mapping]]] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ("rank", "incarnation", "clock", "dropped", "samples", "digest")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    dropped: bool
    samples: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    digest: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ..., dropped: bool = ..., samples: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ..., digest: _Optional[int] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("rank", "incarnation", "clock", "slices")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ..., slices: _Optional[_Iterable[int]] = ...) -> None: ...

class Arrived(_message.Message):
    __slots__ = ("rank", "incarnation", "clock", "options", "slices", "checksums", "bases", "now")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    BASES_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    options: _containers.RepeatedCompositeFieldContainer[_common_pb2.Options]
    slices: _containers.RepeatedScalarFieldContainer[int]
    checksums: _containers.RepeatedScalarFieldContainer[int]
    bases: _containers.RepeatedScalarFieldContainer[int]
    now: float
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ..., options: _Optional[_Iterable[_Union[_common_pb2.Options, _Mapping]]] = ..., slices: _Optional[_Iterable[int]] = ..., checksums: _Optional[_Iterable[int]] = ..., bases: _Optional[_Iterable[int]] = ..., now: _Optional[float] = ...) -> None: ...

class Ticked(_message.Message):
    __slots__ = ("slices",)
    SLICES_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slices: _Optional[_Iterable[int]] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("rank", "incarnation", "clock", "version", "staleness", "samples", "digest")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    version: int
    staleness: float
    samples: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    digest: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ..., version: _Optional[int] = ..., staleness: _Optional[float] = ..., samples: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ..., digest: _Optional[int] = ...) -> None: ...

class Abandoned(_message.Message):
    __slots__ = ("rank", "incarnation", "clock")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ...) -> None: ...

class Expected(_message.Message):
    __slots__ = ("rank", "incarnation", "clock")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    clock: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., clock: _Optional[int] = ...) -> None: ...

class Shrunk(_message.Message):
    __slots__ = ("slice", "now")
    SLICE_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    slice: int
    now: float
    def __init__(self, slice: _Optional[int] = ..., now: _Optional[float] = ...) -> None: ...

class LeadEvent(_message.Message):
    __slots__ = ("staged", "observed", "skip", "restated", "closed")
    STAGED_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    SKIP_FIELD_NUMBER: _ClassVar[int]
    RESTATED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    staged: _server_pb2.Report
    observed: Observed
    skip: _server_pb2.Drop
    restated: str
    closed: _server_pb2.Close
    def __init__(self, staged: _Optional[_Union[_server_pb2.Report, _Mapping]] = ..., observed: _Optional[_Union[Observed, _Mapping]] = ..., skip: _Optional[_Union[_server_pb2.Drop, _Mapping]] = ..., restated: _Optional[str] = ..., closed: _Optional[_Union[_server_pb2.Close, _Mapping]] = ...) -> None: ...

class Observed(_message.Message):
    __slots__ = ("started", "active", "lost", "consistency", "present")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    started: bool
    active: _containers.RepeatedCompositeFieldContainer[_server_pb2.Staged]
    lost: _containers.RepeatedCompositeFieldContainer[_server_pb2.Staged]
    consistency: _common_pb2.Consistency
    present: _containers.RepeatedCompositeFieldContainer[_server_pb2.Staged]
    def __init__(self, started: bool = ..., active: _Optional[_Iterable[_Union[_server_pb2.Staged, _Mapping]]] = ..., lost: _Optional[_Iterable[_Union[_server_pb2.Staged, _Mapping]]] = ..., consistency: _Optional[_Union[_common_pb2.Consistency, _Mapping]] = ..., present: _Optional[_Iterable[_Union[_server_pb2.Staged, _Mapping]]] = ...) -> None: ...

class DumpedSlice(_message.Message):
    __slots__ = ("position", "slice", "numbers", "closed", "now")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    position: int
    slice: int
    numbers: bytes
    closed: int
    now: float
    def __init__(self, position: _Optional[int] = ..., slice: _Optional[int] = ..., numbers: _Optional[bytes] = ..., closed: _Optional[int] = ..., now: _Optional[float] = ...) -> None: ...

class DumpedGroup(_message.Message):
    __slots__ = ("position", "numbers")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    position: int
    numbers: bytes
    def __init__(self, position: _Optional[int] = ..., numbers: _Optional[bytes] = ...) -> None: ...

class DumpedRest(_message.Message):
    __slots__ = ("position", "kind", "numbers")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    position: int
    kind: str
    numbers: bytes
    def __init__(self, position: _Optional[int] = ..., kind: _Optional[str] = ..., numbers: _Optional[bytes] = ...) -> None: ...

class Bound(_message.Message):
    __slots__ = ("move", "map", "group")
    MOVE_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    move: int
    map: _common_pb2.SliceMap
    group: _server_pb2.MovedGroup
    def __init__(self, move: _Optional[int] = ..., map: _Optional[_Union[_common_pb2.SliceMap, _Mapping]] = ..., group: _Optional[_Union[_server_pb2.MovedGroup, _Mapping]] = ...) -> None: ...

class Followed(_message.Message):
    __slots__ = ("map", "now")
    MAP_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    map: _common_pb2.SliceMap
    now: float
    def __init__(self, map: _Optional[_Union[_common_pb2.SliceMap, _Mapping]] = ..., now: _Optional[float] = ...) -> None: ...
