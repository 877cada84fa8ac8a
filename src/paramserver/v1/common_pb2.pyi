from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_INT32: _ClassVar[DType]
    DTYPE_INT16: _ClassVar[DType]
    DTYPE_INT8: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]
    DTYPE_BOOL: _ClassVar[DType]
    DTYPE_INT8_BLOCK: _ClassVar[DType]
    DTYPE_INT4_BLOCK: _ClassVar[DType]

class Rule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_UNSPECIFIED: _ClassVar[Rule]
    RULE_STEP: _ClassVar[Rule]
    RULE_ADD: _ClassVar[Rule]
    RULE_DELTA: _ClassVar[Rule]
    RULE_MAXIMUM: _ClassVar[Rule]
    RULE_FIRST: _ClassVar[Rule]
    RULE_FROZEN: _ClassVar[Rule]
    RULE_ROWS: _ClassVar[Rule]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT64: DType
DTYPE_BFLOAT16: DType
DTYPE_FLOAT16: DType
DTYPE_INT64: DType
DTYPE_INT32: DType
DTYPE_INT16: DType
DTYPE_INT8: DType
DTYPE_UINT8: DType
DTYPE_BOOL: DType
DTYPE_INT8_BLOCK: DType
DTYPE_INT4_BLOCK: DType
RULE_UNSPECIFIED: Rule
RULE_STEP: Rule
RULE_ADD: Rule
RULE_DELTA: Rule
RULE_MAXIMUM: Rule
RULE_FIRST: Rule
RULE_FROZEN: Rule
RULE_ROWS: Rule

class TensorSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype", "rule", "param_group")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    PARAM_GROUP_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: DType
    rule: Rule
    param_group: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[DType, str]] = ..., rule: _Optional[_Union[Rule, str]] = ..., param_group: _Optional[int] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("number", "integer", "flag", "text", "numbers", "none")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    NONE_FIELD_NUMBER: _ClassVar[int]
    number: float
    integer: int
    flag: bool
    text: str
    numbers: Numbers
    none: bool
    def __init__(self, number: _Optional[float] = ..., integer: _Optional[int] = ..., flag: bool = ..., text: _Optional[str] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ..., none: bool = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Options(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.MessageMap[str, Value]
    def __init__(self, values: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Consistency(_message.Message):
    __slots__ = ("kind", "backup", "deterministic", "bound", "scale_lr", "backend")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BACKUP_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    SCALE_LR_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    kind: str
    backup: int
    deterministic: bool
    bound: int
    scale_lr: str
    backend: str
    def __init__(self, kind: _Optional[str] = ..., backup: _Optional[int] = ..., deterministic: bool = ..., bound: _Optional[int] = ..., scale_lr: _Optional[str] = ..., backend: _Optional[str] = ...) -> None: ...

class GroupSpec(_message.Message):
    __slots__ = ("name", "tensors", "optimizer", "param_groups", "consistency", "scheme", "table", "on_nonfinite")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    PARAM_GROUPS_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ON_NONFINITE_FIELD_NUMBER: _ClassVar[int]
    name: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    optimizer: str
    param_groups: _containers.RepeatedCompositeFieldContainer[Options]
    consistency: Consistency
    scheme: str
    table: TableSpec
    on_nonfinite: str
    def __init__(self, name: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., optimizer: _Optional[str] = ..., param_groups: _Optional[_Iterable[_Union[Options, _Mapping]]] = ..., consistency: _Optional[_Union[Consistency, _Mapping]] = ..., scheme: _Optional[str] = ..., table: _Optional[_Union[TableSpec, _Mapping]] = ..., on_nonfinite: _Optional[str] = ...) -> None: ...

class TableSpec(_message.Message):
    __slots__ = ("dim", "rows", "initial", "low", "high", "seed", "admit", "admit_numbers", "evict", "evict_numbers")
    DIM_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ADMIT_FIELD_NUMBER: _ClassVar[int]
    ADMIT_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    EVICT_FIELD_NUMBER: _ClassVar[int]
    EVICT_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    dim: int
    rows: int
    initial: str
    low: float
    high: float
    seed: int
    admit: str
    admit_numbers: _containers.RepeatedScalarFieldContainer[float]
    evict: str
    evict_numbers: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, dim: _Optional[int] = ..., rows: _Optional[int] = ..., initial: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., seed: _Optional[int] = ..., admit: _Optional[str] = ..., admit_numbers: _Optional[_Iterable[float]] = ..., evict: _Optional[str] = ..., evict_numbers: _Optional[_Iterable[float]] = ...) -> None: ...

class SliceMap(_message.Message):
    __slots__ = ("version", "servers", "addresses", "slice_elements", "owners", "lead")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SLICE_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    version: int
    servers: _containers.RepeatedScalarFieldContainer[str]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    slice_elements: int
    owners: _containers.RepeatedScalarFieldContainer[int]
    lead: int
    def __init__(self, version: _Optional[int] = ..., servers: _Optional[_Iterable[str]] = ..., addresses: _Optional[_Iterable[str]] = ..., slice_elements: _Optional[int] = ..., owners: _Optional[_Iterable[int]] = ..., lead: _Optional[int] = ...) -> None: ...

class Restore(_message.Message):
    __slots__ = ("directory", "clock", "version", "files")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    directory: str
    clock: int
    version: int
    files: _containers.RepeatedCompositeFieldContainer[RestoreFile]
    def __init__(self, directory: _Optional[str] = ..., clock: _Optional[int] = ..., version: _Optional[int] = ..., files: _Optional[_Iterable[_Union[RestoreFile, _Mapping]]] = ...) -> None: ...

class RestoreFile(_message.Message):
    __slots__ = ("file", "slices")
    FILE_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    file: str
    slices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, file: _Optional[str] = ..., slices: _Optional[_Iterable[int]] = ...) -> None: ...

class Identity(_message.Message):
    __slots__ = ("name", "incarnation", "rank", "view", "job")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    name: str
    incarnation: int
    rank: int
    view: int
    job: int
    def __init__(self, name: _Optional[str] = ..., incarnation: _Optional[int] = ..., rank: _Optional[int] = ..., view: _Optional[int] = ..., job: _Optional[int] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("lease", "start", "stop")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    lease: int
    start: int
    stop: int
    def __init__(self, lease: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...
