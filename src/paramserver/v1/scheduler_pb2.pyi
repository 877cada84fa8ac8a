from paramserver.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_SERVER: _ClassVar[Role]
    ROLE_WORKER: _ClassVar[Role]
    ROLE_READER: _ClassVar[Role]

class MemberState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMBER_STATE_UNSPECIFIED: _ClassVar[MemberState]
    MEMBER_JOINED: _ClassVar[MemberState]
    MEMBER_ACTIVE: _ClassVar[MemberState]
    MEMBER_IDLE: _ClassVar[MemberState]
    MEMBER_FINISHED: _ClassVar[MemberState]
    MEMBER_LOST: _ClassVar[MemberState]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_WAITING: _ClassVar[JobState]
    JOB_RUNNING: _ClassVar[JobState]
    JOB_DONE: _ClassVar[JobState]
    JOB_FAILED: _ClassVar[JobState]
ROLE_UNSPECIFIED: Role
ROLE_SERVER: Role
ROLE_WORKER: Role
ROLE_READER: Role
MEMBER_STATE_UNSPECIFIED: MemberState
MEMBER_JOINED: MemberState
MEMBER_ACTIVE: MemberState
MEMBER_IDLE: MemberState
MEMBER_FINISHED: MemberState
MEMBER_LOST: MemberState
JOB_STATE_UNSPECIFIED: JobState
JOB_WAITING: JobState
JOB_RUNNING: JobState
JOB_DONE: JobState
JOB_FAILED: JobState

class Member(_message.Message):
    __slots__ = ("name", "role", "rank", "incarnation", "state", "address", "groups", "host", "pid", "heard_s", "reason", "preparing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREPARING_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: Role
    rank: int
    incarnation: int
    state: MemberState
    address: str
    groups: _containers.RepeatedScalarFieldContainer[str]
    host: str
    pid: int
    heard_s: float
    reason: str
    preparing: bool
    def __init__(self, name: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., state: _Optional[_Union[MemberState, str]] = ..., address: _Optional[str] = ..., groups: _Optional[_Iterable[str]] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., heard_s: _Optional[float] = ..., reason: _Optional[str] = ..., preparing: bool = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("number", "job", "state", "message", "members", "started", "reducers", "bounds", "origin", "places")
    class BoundsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    REDUCERS_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    number: int
    job: int
    state: JobState
    message: str
    members: _containers.RepeatedCompositeFieldContainer[Member]
    started: bool
    reducers: _containers.RepeatedScalarFieldContainer[str]
    bounds: _containers.ScalarMap[str, int]
    origin: int
    places: _containers.RepeatedCompositeFieldContainer[Place]
    def __init__(self, number: _Optional[int] = ..., job: _Optional[int] = ..., state: _Optional[_Union[JobState, str]] = ..., message: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., started: bool = ..., reducers: _Optional[_Iterable[str]] = ..., bounds: _Optional[_Mapping[str, int]] = ..., origin: _Optional[int] = ..., places: _Optional[_Iterable[_Union[Place, _Mapping]]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("server", "epoch", "address", "primary", "primary_incarnation", "backup", "backup_incarnation", "backup_address", "ready")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    BACKUP_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BACKUP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    server: str
    epoch: int
    address: str
    primary: str
    primary_incarnation: int
    backup: str
    backup_incarnation: int
    backup_address: str
    ready: bool
    def __init__(self, server: _Optional[str] = ..., epoch: _Optional[int] = ..., address: _Optional[str] = ..., primary: _Optional[str] = ..., primary_incarnation: _Optional[int] = ..., backup: _Optional[str] = ..., backup_incarnation: _Optional[int] = ..., backup_address: _Optional[str] = ..., ready: bool = ...) -> None: ...

class BackupReadyRequest(_message.Message):
    __slots__ = ("member", "server", "epoch")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    server: str
    epoch: int
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., server: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class BackupReadyReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("protocol", "role", "name", "address", "host", "pid", "resumes", "attempt")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RESUMES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    role: Role
    name: str
    address: str
    host: str
    pid: int
    resumes: int
    attempt: str
    def __init__(self, protocol: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., resumes: _Optional[int] = ..., attempt: _Optional[str] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("identity", "lease_s", "heartbeat_s", "protocol", "workers", "servers", "party", "parties", "replica", "snapshots", "goes_on", "durability", "resumed")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    PARTY_FIELD_NUMBER: _ClassVar[int]
    PARTIES_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    GOES_ON_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    identity: _common_pb2.Identity
    lease_s: float
    heartbeat_s: float
    protocol: int
    workers: int
    servers: int
    party: int
    parties: int
    replica: int
    snapshots: bool
    goes_on: bool
    durability: str
    resumed: bool
    def __init__(self, identity: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., lease_s: _Optional[float] = ..., heartbeat_s: _Optional[float] = ..., protocol: _Optional[int] = ..., workers: _Optional[int] = ..., servers: _Optional[int] = ..., party: _Optional[int] = ..., parties: _Optional[int] = ..., replica: _Optional[int] = ..., snapshots: bool = ..., goes_on: bool = ..., durability: _Optional[str] = ..., resumed: bool = ...) -> None: ...

class AwaitStartRequest(_message.Message):
    __slots__ = ("member", "wait_s")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    wait_s: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., wait_s: _Optional[float] = ...) -> None: ...

class AwaitStartReply(_message.Message):
    __slots__ = ("pending", "view", "arrivals")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    pending: str
    view: View
    arrivals: int
    def __init__(self, pending: _Optional[str] = ..., view: _Optional[_Union[View, _Mapping]] = ..., arrivals: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("member", "clocks", "stats")
    class StatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    clocks: _containers.RepeatedCompositeFieldContainer[GroupClock]
    stats: _containers.ScalarMap[str, float]
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., clocks: _Optional[_Iterable[_Union[GroupClock, _Mapping]]] = ..., stats: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GroupClock(_message.Message):
    __slots__ = ("group", "clock")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    group: str
    clock: int
    def __init__(self, group: _Optional[str] = ..., clock: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("view", "state", "message", "fastest", "recalls", "schedule_wanted", "schedule_clock", "leave")
    VIEW_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FASTEST_FIELD_NUMBER: _ClassVar[int]
    RECALLS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_WANTED_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_CLOCK_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    view: int
    state: JobState
    message: str
    fastest: float
    recalls: _containers.RepeatedCompositeFieldContainer[Recall]
    schedule_wanted: bool
    schedule_clock: int
    leave: bool
    def __init__(self, view: _Optional[int] = ..., state: _Optional[_Union[JobState, str]] = ..., message: _Optional[str] = ..., fastest: _Optional[float] = ..., recalls: _Optional[_Iterable[_Union[Recall, _Mapping]]] = ..., schedule_wanted: bool = ..., schedule_clock: _Optional[int] = ..., leave: bool = ...) -> None: ...

class Recall(_message.Message):
    __slots__ = ("dataset", "span")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    span: _common_pb2.Span
    def __init__(self, dataset: _Optional[str] = ..., span: _Optional[_Union[_common_pb2.Span, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("member",)
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ...) -> None: ...

class GetViewRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegisterGroupRequest(_message.Message):
    __slots__ = ("member", "spec")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    spec: _common_pb2.GroupSpec
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., spec: _Optional[_Union[_common_pb2.GroupSpec, _Mapping]] = ...) -> None: ...

class RegisterGroupReply(_message.Message):
    __slots__ = ("map", "view")
    MAP_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    map: _common_pb2.SliceMap
    view: int
    def __init__(self, map: _Optional[_Union[_common_pb2.SliceMap, _Mapping]] = ..., view: _Optional[int] = ...) -> None: ...

class GetGroupRequest(_message.Message):
    __slots__ = ("group", "job")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    group: str
    job: int
    def __init__(self, group: _Optional[str] = ..., job: _Optional[int] = ...) -> None: ...

class GetGroupReply(_message.Message):
    __slots__ = ("spec", "map", "stored", "restore", "moving", "reshaped")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    MOVING_FIELD_NUMBER: _ClassVar[int]
    RESHAPED_FIELD_NUMBER: _ClassVar[int]
    spec: _common_pb2.GroupSpec
    map: _common_pb2.SliceMap
    stored: bool
    restore: _common_pb2.Restore
    moving: int
    reshaped: bool
    def __init__(self, spec: _Optional[_Union[_common_pb2.GroupSpec, _Mapping]] = ..., map: _Optional[_Union[_common_pb2.SliceMap, _Mapping]] = ..., stored: bool = ..., restore: _Optional[_Union[_common_pb2.Restore, _Mapping]] = ..., moving: _Optional[int] = ..., reshaped: bool = ...) -> None: ...

class AwaitGroupRequest(_message.Message):
    __slots__ = ("member", "group", "wait_s")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    group: str
    wait_s: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class AwaitGroupReply(_message.Message):
    __slots__ = ("stored", "initialize", "pending")
    STORED_FIELD_NUMBER: _ClassVar[int]
    INITIALIZE_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    initialize: bool
    pending: str
    def __init__(self, stored: bool = ..., initialize: bool = ..., pending: _Optional[str] = ...) -> None: ...

class GroupStoredRequest(_message.Message):
    __slots__ = ("member", "group")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    group: str
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ...) -> None: ...

class GroupStoredReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WarmStartRequest(_message.Message):
    __slots__ = ("member", "group", "over", "wait_s")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    group: str
    over: bool
    wait_s: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., over: bool = ..., wait_s: _Optional[float] = ...) -> None: ...

class WarmStartReply(_message.Message):
    __slots__ = ("over", "chief", "pending", "view")
    OVER_FIELD_NUMBER: _ClassVar[int]
    CHIEF_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    over: bool
    chief: bool
    pending: str
    view: int
    def __init__(self, over: bool = ..., chief: bool = ..., pending: _Optional[str] = ..., view: _Optional[int] = ...) -> None: ...

class SetActiveRequest(_message.Message):
    __slots__ = ("member", "active")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    active: bool
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., active: bool = ...) -> None: ...

class SetActiveReply(_message.Message):
    __slots__ = ("view",)
    VIEW_FIELD_NUMBER: _ClassVar[int]
    view: int
    def __init__(self, view: _Optional[int] = ...) -> None: ...

class OpenDatasetRequest(_message.Message):
    __slots__ = ("member", "spec")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    spec: DatasetSpec
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., spec: _Optional[_Union[DatasetSpec, _Mapping]] = ...) -> None: ...

class DatasetSpec(_message.Message):
    __slots__ = ("name", "size", "batch_size", "shard_size", "seed", "shuffle", "assign", "backups", "balance")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SHARD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    BACKUPS_FIELD_NUMBER: _ClassVar[int]
    BALANCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    batch_size: int
    shard_size: int
    seed: int
    shuffle: bool
    assign: str
    backups: bool
    balance: str
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., batch_size: _Optional[int] = ..., shard_size: _Optional[int] = ..., seed: _Optional[int] = ..., shuffle: bool = ..., assign: _Optional[str] = ..., backups: bool = ..., balance: _Optional[str] = ...) -> None: ...

class OpenDatasetReply(_message.Message):
    __slots__ = ("spec", "epoch")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    spec: DatasetSpec
    epoch: int
    def __init__(self, spec: _Optional[_Union[DatasetSpec, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class NextShardRequest(_message.Message):
    __slots__ = ("member", "dataset", "epoch", "sequence", "wait_s", "clock", "speed")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    dataset: str
    epoch: int
    sequence: int
    wait_s: float
    clock: int
    speed: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., dataset: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., wait_s: _Optional[float] = ..., clock: _Optional[int] = ..., speed: _Optional[float] = ...) -> None: ...

class Shard(_message.Message):
    __slots__ = ("lease", "id", "epoch", "start", "stop", "joins")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    JOINS_FIELD_NUMBER: _ClassVar[int]
    lease: int
    id: int
    epoch: int
    start: int
    stop: int
    joins: bool
    def __init__(self, lease: _Optional[int] = ..., id: _Optional[int] = ..., epoch: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., joins: bool = ...) -> None: ...

class NextShardReply(_message.Message):
    __slots__ = ("shard", "drained", "pending", "view")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    shard: Shard
    drained: bool
    pending: str
    view: int
    def __init__(self, shard: _Optional[_Union[Shard, _Mapping]] = ..., drained: bool = ..., pending: _Optional[str] = ..., view: _Optional[int] = ...) -> None: ...

class ReportSamplesRequest(_message.Message):
    __slots__ = ("member", "dataset", "done", "returned", "unpushed")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    UNPUSHED_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    dataset: str
    done: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    returned: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    unpushed: int
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., dataset: _Optional[str] = ..., done: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ..., returned: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ..., unpushed: _Optional[int] = ...) -> None: ...

class ReportSamplesReply(_message.Message):
    __slots__ = ("lost_leases",)
    LOST_LEASES_FIELD_NUMBER: _ClassVar[int]
    lost_leases: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lost_leases: _Optional[_Iterable[int]] = ...) -> None: ...

class AwaitEpochRequest(_message.Message):
    __slots__ = ("member", "dataset", "epoch", "wait_s")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    dataset: str
    epoch: int
    wait_s: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., dataset: _Optional[str] = ..., epoch: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class AwaitEpochReply(_message.Message):
    __slots__ = ("drained", "pending", "samples_done")
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_DONE_FIELD_NUMBER: _ClassVar[int]
    drained: bool
    pending: str
    samples_done: int
    def __init__(self, drained: bool = ..., pending: _Optional[str] = ..., samples_done: _Optional[int] = ...) -> None: ...

class CoordinateRequest(_message.Message):
    __slots__ = ("member", "name", "wait_s")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    name: str
    wait_s: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., name: _Optional[str] = ..., wait_s: _Optional[float] = ...) -> None: ...

class CoordinateReply(_message.Message):
    __slots__ = ("coordinates", "number", "text", "pending", "view")
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    coordinates: bool
    number: int
    text: str
    pending: str
    view: int
    def __init__(self, coordinates: bool = ..., number: _Optional[int] = ..., text: _Optional[str] = ..., pending: _Optional[str] = ..., view: _Optional[int] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("member", "name", "number", "text")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    name: str
    number: int
    text: str
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., name: _Optional[str] = ..., number: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class AnnouncedRequest(_message.Message):
    __slots__ = ("member", "name", "after", "wait_s")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    name: str
    after: int
    wait_s: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., name: _Optional[str] = ..., after: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class AnnouncedReply(_message.Message):
    __slots__ = ("number", "text", "pending")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    number: int
    text: str
    pending: str
    def __init__(self, number: _Optional[int] = ..., text: _Optional[str] = ..., pending: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("member", "name", "sequence", "wait_s")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    name: str
    sequence: int
    wait_s: float
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., name: _Optional[str] = ..., sequence: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("released", "round", "arrivals", "pending", "view")
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    released: bool
    round: int
    arrivals: _containers.RepeatedCompositeFieldContainer[Arrival]
    pending: str
    view: int
    def __init__(self, released: bool = ..., round: _Optional[int] = ..., arrivals: _Optional[_Iterable[_Union[Arrival, _Mapping]]] = ..., pending: _Optional[str] = ..., view: _Optional[int] = ...) -> None: ...

class Arrival(_message.Message):
    __slots__ = ("rank", "incarnation", "sequence")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    sequence: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("rank", "incarnation")
    RANK_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    rank: int
    incarnation: int
    def __init__(self, rank: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class Contributed(_message.Message):
    __slots__ = ("replica", "samples")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    replica: Replica
    samples: _containers.RepeatedCompositeFieldContainer[_common_pb2.Span]
    def __init__(self, replica: _Optional[_Union[Replica, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[_common_pb2.Span, _Mapping]]] = ...) -> None: ...

class FormReplicasRequest(_message.Message):
    __slots__ = ("member", "group", "sequence", "clock", "endpoint", "contributed", "wait_s", "whole")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    group: str
    sequence: int
    clock: int
    endpoint: str
    contributed: _containers.RepeatedCompositeFieldContainer[Contributed]
    wait_s: float
    whole: bool
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., group: _Optional[str] = ..., sequence: _Optional[int] = ..., clock: _Optional[int] = ..., endpoint: _Optional[str] = ..., contributed: _Optional[_Iterable[_Union[Contributed, _Mapping]]] = ..., wait_s: _Optional[float] = ..., whole: bool = ...) -> None: ...

class FormReplicasReply(_message.Message):
    __slots__ = ("formed", "number", "replicas", "endpoint", "root", "spread", "pending", "view")
    FORMED_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    formed: bool
    number: int
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    endpoint: str
    root: int
    spread: bool
    pending: str
    view: int
    def __init__(self, formed: bool = ..., number: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., endpoint: _Optional[str] = ..., root: _Optional[int] = ..., spread: bool = ..., pending: _Optional[str] = ..., view: _Optional[int] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("member",)
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ...) -> None: ...

class FinishReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FailRequest(_message.Message):
    __slots__ = ("member", "reason", "fatal", "exit_code")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FATAL_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    reason: str
    fatal: bool
    exit_code: int
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., reason: _Optional[str] = ..., fatal: bool = ..., exit_code: _Optional[int] = ...) -> None: ...

class FailReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LogRequest(_message.Message):
    __slots__ = ("member", "scalars")
    class ScalarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    scalars: _containers.ScalarMap[str, float]
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., scalars: _Optional[_Mapping[str, float]] = ...) -> None: ...

class LogReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SaveScheduleRequest(_message.Message):
    __slots__ = ("member", "epoch", "clock", "state", "wanted", "wanted_clock")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    WANTED_CLOCK_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    epoch: int
    clock: int
    state: str
    wanted: bool
    wanted_clock: int
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ..., epoch: _Optional[int] = ..., clock: _Optional[int] = ..., state: _Optional[str] = ..., wanted: bool = ..., wanted_clock: _Optional[int] = ...) -> None: ...

class SaveScheduleReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadScheduleRequest(_message.Message):
    __slots__ = ("member",)
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    member: _common_pb2.Identity
    def __init__(self, member: _Optional[_Union[_common_pb2.Identity, _Mapping]] = ...) -> None: ...

class LoadScheduleReply(_message.Message):
    __slots__ = ("found", "epoch", "clock", "state", "job_epoch")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    JOB_EPOCH_FIELD_NUMBER: _ClassVar[int]
    found: bool
    epoch: int
    clock: int
    state: str
    job_epoch: int
    def __init__(self, found: bool = ..., epoch: _Optional[int] = ..., clock: _Optional[int] = ..., state: _Optional[str] = ..., job_epoch: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("view", "workers", "datasets", "groups", "scalars", "uptime_s", "expected_workers", "expected_servers", "events", "durability", "keeps_snapshots", "snapshot")
    class ScalarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VIEW_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_WORKERS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_SERVERS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    KEEPS_SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    view: View
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    datasets: _containers.RepeatedCompositeFieldContainer[DatasetStatus]
    groups: _containers.RepeatedCompositeFieldContainer[GroupPlacement]
    scalars: _containers.ScalarMap[str, float]
    uptime_s: float
    expected_workers: int
    expected_servers: int
    events: _containers.RepeatedScalarFieldContainer[str]
    durability: str
    keeps_snapshots: bool
    snapshot: SnapshotStatus
    def __init__(self, view: _Optional[_Union[View, _Mapping]] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., datasets: _Optional[_Iterable[_Union[DatasetStatus, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[GroupPlacement, _Mapping]]] = ..., scalars: _Optional[_Mapping[str, float]] = ..., uptime_s: _Optional[float] = ..., expected_workers: _Optional[int] = ..., expected_servers: _Optional[int] = ..., events: _Optional[_Iterable[str]] = ..., durability: _Optional[str] = ..., keeps_snapshots: bool = ..., snapshot: _Optional[_Union[SnapshotStatus, _Mapping]] = ...) -> None: ...

class SnapshotStatus(_message.Message):
    __slots__ = ("name", "clock", "age_s", "base")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    name: str
    clock: int
    age_s: float
    base: str
    def __init__(self, name: _Optional[str] = ..., clock: _Optional[int] = ..., age_s: _Optional[float] = ..., base: _Optional[str] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("name", "clocks", "stats", "heard_s")
    class StatsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    clocks: _containers.RepeatedCompositeFieldContainer[GroupClock]
    stats: _containers.ScalarMap[str, float]
    heard_s: float
    def __init__(self, name: _Optional[str] = ..., clocks: _Optional[_Iterable[_Union[GroupClock, _Mapping]]] = ..., stats: _Optional[_Mapping[str, float]] = ..., heard_s: _Optional[float] = ...) -> None: ...

class DatasetStatus(_message.Message):
    __slots__ = ("spec", "epoch", "shards", "free", "leased", "done", "requeued", "samples_done", "unpushed", "quarantined")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REQUEUED_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_DONE_FIELD_NUMBER: _ClassVar[int]
    UNPUSHED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    spec: DatasetSpec
    epoch: int
    shards: int
    free: int
    leased: int
    done: int
    requeued: int
    samples_done: int
    unpushed: int
    quarantined: int
    def __init__(self, spec: _Optional[_Union[DatasetSpec, _Mapping]] = ..., epoch: _Optional[int] = ..., shards: _Optional[int] = ..., free: _Optional[int] = ..., leased: _Optional[int] = ..., done: _Optional[int] = ..., requeued: _Optional[int] = ..., samples_done: _Optional[int] = ..., unpushed: _Optional[int] = ..., quarantined: _Optional[int] = ...) -> None: ...

class GroupPlacement(_message.Message):
    __slots__ = ("group", "optimizer", "consistency", "parameters", "bytes", "slices", "server_bytes", "servers", "lead", "stored", "scheme")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    SERVER_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    group: str
    optimizer: str
    consistency: _common_pb2.Consistency
    parameters: int
    bytes: int
    slices: int
    server_bytes: _containers.RepeatedScalarFieldContainer[int]
    servers: _containers.RepeatedScalarFieldContainer[str]
    lead: str
    stored: bool
    scheme: str
    def __init__(self, group: _Optional[str] = ..., optimizer: _Optional[str] = ..., consistency: _Optional[_Union[_common_pb2.Consistency, _Mapping]] = ..., parameters: _Optional[int] = ..., bytes: _Optional[int] = ..., slices: _Optional[int] = ..., server_bytes: _Optional[_Iterable[int]] = ..., servers: _Optional[_Iterable[str]] = ..., lead: _Optional[str] = ..., stored: bool = ..., scheme: _Optional[str] = ...) -> None: ...

class TakeSnapshotRequest(_message.Message):
    __slots__ = ("name", "key", "wait_s", "delta")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    name: str
    key: str
    wait_s: float
    delta: bool
    def __init__(self, name: _Optional[str] = ..., key: _Optional[str] = ..., wait_s: _Optional[float] = ..., delta: bool = ...) -> None: ...

class TakeSnapshotReply(_message.Message):
    __slots__ = ("pending", "name", "bytes", "held_s", "took_s", "base")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    TOOK_S_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    pending: str
    name: str
    bytes: int
    held_s: float
    took_s: float
    base: str
    def __init__(self, pending: _Optional[str] = ..., name: _Optional[str] = ..., bytes: _Optional[int] = ..., held_s: _Optional[float] = ..., took_s: _Optional[float] = ..., base: _Optional[str] = ...) -> None: ...

class RestoreSnapshotRequest(_message.Message):
    __slots__ = ("name", "force")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    force: bool
    def __init__(self, name: _Optional[str] = ..., force: bool = ...) -> None: ...

class RestoreSnapshotReply(_message.Message):
    __slots__ = ("name", "job", "problems")
    NAME_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    name: str
    job: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., job: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("servers",)
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    servers: int
    def __init__(self, servers: _Optional[int] = ...) -> None: ...

class ScaleReply(_message.Message):
    __slots__ = ("pending", "servers", "moved", "total")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    pending: str
    servers: int
    moved: int
    total: int
    def __init__(self, pending: _Optional[str] = ..., servers: _Optional[int] = ..., moved: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...
