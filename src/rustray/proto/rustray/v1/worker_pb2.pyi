from rustray.proto.rustray.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ExecuteTaskRequest(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: _common_pb2.TaskRequest
    def __init__(self, task: _Optional[_Union[_common_pb2.TaskRequest, _Mapping]] = ...) -> None: ...

class ExecuteTaskResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _common_pb2.TaskResult
    def __init__(self, result: _Optional[_Union[_common_pb2.TaskResult, _Mapping]] = ...) -> None: ...

class FetchObjectRequest(_message.Message):
    __slots__ = ("object_id", "offset")
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    object_id: str
    offset: int
    def __init__(self, object_id: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ObjectChunk(_message.Message):
    __slots__ = ("data", "size", "digest")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    size: int
    digest: bytes
    def __init__(self, data: _Optional[bytes] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class WorkerStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExecutorProcess(_message.Message):
    __slots__ = ("executor_id", "kind", "pid", "state", "tasks")
    EXECUTOR_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    executor_id: int
    kind: str
    pid: int
    state: str
    tasks: int
    def __init__(self, executor_id: _Optional[int] = ..., kind: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., tasks: _Optional[int] = ...) -> None: ...

class WorkerStatusResponse(_message.Message):
    __slots__ = ("worker_id", "name", "state", "head", "version", "pid", "uptime_s", "resources", "used", "labels", "functions", "slots", "held", "running", "queued", "finished", "executors", "counters")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class UsedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    name: str
    state: str
    head: str
    version: str
    pid: int
    uptime_s: float
    resources: _containers.ScalarMap[str, float]
    used: _containers.ScalarMap[str, float]
    labels: _containers.ScalarMap[str, str]
    functions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Function]
    slots: int
    held: int
    running: int
    queued: int
    finished: int
    executors: _containers.RepeatedCompositeFieldContainer[ExecutorProcess]
    counters: _containers.ScalarMap[str, int]
    def __init__(self, worker_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., head: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., uptime_s: _Optional[float] = ..., resources: _Optional[_Mapping[str, float]] = ..., used: _Optional[_Mapping[str, float]] = ..., labels: _Optional[_Mapping[str, str]] = ..., functions: _Optional[_Iterable[_Union[_common_pb2.Function, _Mapping]]] = ..., slots: _Optional[int] = ..., held: _Optional[int] = ..., running: _Optional[int] = ..., queued: _Optional[int] = ..., finished: _Optional[int] = ..., executors: _Optional[_Iterable[_Union[ExecutorProcess, _Mapping]]] = ..., counters: _Optional[_Mapping[str, int]] = ...) -> None: ...
