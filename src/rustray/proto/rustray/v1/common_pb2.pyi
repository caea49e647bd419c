from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_PICKLE: _ClassVar[Codec]
    CODEC_JSON: _ClassVar[Codec]
    CODEC_MSGPACK: _ClassVar[Codec]

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_MEMORY: _ClassVar[Durability]
    DURABILITY_PROCESS: _ClassVar[Durability]
    DURABILITY_FULL: _ClassVar[Durability]

class Executor(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXECUTOR_UNSPECIFIED: _ClassVar[Executor]
    EXECUTOR_PROCESS: _ClassVar[Executor]
    EXECUTOR_THREAD: _ClassVar[Executor]
    EXECUTOR_ASYNC: _ClassVar[Executor]

class TaskState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_STATE_UNSPECIFIED: _ClassVar[TaskState]
    TASK_STATE_QUEUED: _ClassVar[TaskState]
    TASK_STATE_LEASED: _ClassVar[TaskState]
    TASK_STATE_RUNNING: _ClassVar[TaskState]
    TASK_STATE_CANCELLING: _ClassVar[TaskState]
    TASK_STATE_SUCCEEDED: _ClassVar[TaskState]
    TASK_STATE_FAILED: _ClassVar[TaskState]
    TASK_STATE_CANCELLED: _ClassVar[TaskState]
    TASK_STATE_TIMED_OUT: _ClassVar[TaskState]
    TASK_STATE_POISONED: _ClassVar[TaskState]
CODEC_UNSPECIFIED: Codec
CODEC_PICKLE: Codec
CODEC_JSON: Codec
CODEC_MSGPACK: Codec
DURABILITY_UNSPECIFIED: Durability
DURABILITY_MEMORY: Durability
DURABILITY_PROCESS: Durability
DURABILITY_FULL: Durability
EXECUTOR_UNSPECIFIED: Executor
EXECUTOR_PROCESS: Executor
EXECUTOR_THREAD: Executor
EXECUTOR_ASYNC: Executor
TASK_STATE_UNSPECIFIED: TaskState
TASK_STATE_QUEUED: TaskState
TASK_STATE_LEASED: TaskState
TASK_STATE_RUNNING: TaskState
TASK_STATE_CANCELLING: TaskState
TASK_STATE_SUCCEEDED: TaskState
TASK_STATE_FAILED: TaskState
TASK_STATE_CANCELLED: TaskState
TASK_STATE_TIMED_OUT: TaskState
TASK_STATE_POISONED: TaskState

class ErrorDetail(_message.Message):
    __slots__ = ("code", "message", "fields", "retryable")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    fields: _containers.ScalarMap[str, str]
    retryable: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ..., retryable: _Optional[bool] = ...) -> None: ...

class Payloads(_message.Message):
    __slots__ = ("blob", "ends", "base", "placed")
    BLOB_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    blob: bytes
    ends: bytes
    base: int
    placed: bool
    def __init__(self, blob: _Optional[bytes] = ..., ends: _Optional[bytes] = ..., base: _Optional[int] = ..., placed: _Optional[bool] = ...) -> None: ...

class TaskRange(_message.Message):
    __slots__ = ("first", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class TaskClass(_message.Message):
    __slots__ = ("function", "code_hash", "nargs_plus_one", "kwarg_names", "resource_units", "labels", "priority", "max_retries", "retry_exceptions", "timeout_s", "queue_timeout_s", "total_timeout_s", "codec", "executor", "wait_for_resources", "retry_exception_names", "retry_delay_s", "crash_limit", "oom_retries", "exclusive", "detached", "label_selector", "label_selector_soft", "fallback", "alternative", "depth", "inherits_priority", "inherits_retries", "has_inputs", "num_returns", "put", "stream_window", "results_stay", "needs_function", "runtime_env")
    class ResourceUnitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelSelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelSelectorSoftEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    CODE_HASH_FIELD_NUMBER: _ClassVar[int]
    NARGS_PLUS_ONE_FIELD_NUMBER: _ClassVar[int]
    KWARG_NAMES_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_UNITS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    RETRY_EXCEPTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    WAIT_FOR_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    RETRY_EXCEPTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_S_FIELD_NUMBER: _ClassVar[int]
    CRASH_LIMIT_FIELD_NUMBER: _ClassVar[int]
    OOM_RETRIES_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    LABEL_SELECTOR_FIELD_NUMBER: _ClassVar[int]
    LABEL_SELECTOR_SOFT_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    INHERITS_PRIORITY_FIELD_NUMBER: _ClassVar[int]
    INHERITS_RETRIES_FIELD_NUMBER: _ClassVar[int]
    HAS_INPUTS_FIELD_NUMBER: _ClassVar[int]
    NUM_RETURNS_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    RESULTS_STAY_FIELD_NUMBER: _ClassVar[int]
    NEEDS_FUNCTION_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_ENV_FIELD_NUMBER: _ClassVar[int]
    function: str
    code_hash: bytes
    nargs_plus_one: int
    kwarg_names: _containers.RepeatedScalarFieldContainer[str]
    resource_units: _containers.ScalarMap[str, int]
    labels: _containers.ScalarMap[str, str]
    priority: int
    max_retries: int
    retry_exceptions: bool
    timeout_s: float
    queue_timeout_s: float
    total_timeout_s: float
    codec: Codec
    executor: Executor
    wait_for_resources: bool
    retry_exception_names: _containers.RepeatedScalarFieldContainer[str]
    retry_delay_s: float
    crash_limit: int
    oom_retries: int
    exclusive: bool
    detached: bool
    label_selector: _containers.ScalarMap[str, str]
    label_selector_soft: _containers.ScalarMap[str, str]
    fallback: _containers.RepeatedCompositeFieldContainer[Alternative]
    alternative: int
    depth: int
    inherits_priority: bool
    inherits_retries: bool
    has_inputs: bool
    num_returns: int
    put: bool
    stream_window: int
    results_stay: bool
    needs_function: str
    runtime_env: RuntimeEnv
    def __init__(self, function: _Optional[str] = ..., code_hash: _Optional[bytes] = ..., nargs_plus_one: _Optional[int] = ..., kwarg_names: _Optional[_Iterable[str]] = ..., resource_units: _Optional[_Mapping[str, int]] = ..., labels: _Optional[_Mapping[str, str]] = ..., priority: _Optional[int] = ..., max_retries: _Optional[int] = ..., retry_exceptions: _Optional[bool] = ..., timeout_s: _Optional[float] = ..., queue_timeout_s: _Optional[float] = ..., total_timeout_s: _Optional[float] = ..., codec: _Optional[_Union[Codec, str]] = ..., executor: _Optional[_Union[Executor, str]] = ..., wait_for_resources: _Optional[bool] = ..., retry_exception_names: _Optional[_Iterable[str]] = ..., retry_delay_s: _Optional[float] = ..., crash_limit: _Optional[int] = ..., oom_retries: _Optional[int] = ..., exclusive: _Optional[bool] = ..., detached: _Optional[bool] = ..., label_selector: _Optional[_Mapping[str, str]] = ..., label_selector_soft: _Optional[_Mapping[str, str]] = ..., fallback: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., alternative: _Optional[int] = ..., depth: _Optional[int] = ..., inherits_priority: _Optional[bool] = ..., inherits_retries: _Optional[bool] = ..., has_inputs: _Optional[bool] = ..., num_returns: _Optional[int] = ..., put: _Optional[bool] = ..., stream_window: _Optional[int] = ..., results_stay: _Optional[bool] = ..., needs_function: _Optional[str] = ..., runtime_env: _Optional[_Union[RuntimeEnv, _Mapping]] = ...) -> None: ...

class RuntimeEnv(_message.Message):
    __slots__ = ("env_vars", "working_dir", "py_modules")
    class EnvVarsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ENV_VARS_FIELD_NUMBER: _ClassVar[int]
    WORKING_DIR_FIELD_NUMBER: _ClassVar[int]
    PY_MODULES_FIELD_NUMBER: _ClassVar[int]
    env_vars: _containers.ScalarMap[str, str]
    working_dir: bytes
    py_modules: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, env_vars: _Optional[_Mapping[str, str]] = ..., working_dir: _Optional[bytes] = ..., py_modules: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("resource_units", "labels", "label_selector", "label_selector_soft")
    class ResourceUnitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelSelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelSelectorSoftEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RESOURCE_UNITS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_SELECTOR_FIELD_NUMBER: _ClassVar[int]
    LABEL_SELECTOR_SOFT_FIELD_NUMBER: _ClassVar[int]
    resource_units: _containers.ScalarMap[str, int]
    labels: _containers.ScalarMap[str, str]
    label_selector: _containers.ScalarMap[str, str]
    label_selector_soft: _containers.ScalarMap[str, str]
    def __init__(self, resource_units: _Optional[_Mapping[str, int]] = ..., labels: _Optional[_Mapping[str, str]] = ..., label_selector: _Optional[_Mapping[str, str]] = ..., label_selector_soft: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ClassDefinition(_message.Message):
    __slots__ = ("number", "task_class", "code", "packages")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TASK_CLASS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    number: int
    task_class: TaskClass
    code: bytes
    packages: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, number: _Optional[int] = ..., task_class: _Optional[_Union[TaskClass, _Mapping]] = ..., code: _Optional[bytes] = ..., packages: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Parameter(_message.Message):
    __slots__ = ("name", "kind", "is_required", "annotation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    IS_REQUIRED_FIELD_NUMBER: _ClassVar[int]
    ANNOTATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    is_required: bool
    annotation: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., is_required: _Optional[bool] = ..., annotation: _Optional[str] = ...) -> None: ...

class Function(_message.Message):
    __slots__ = ("name", "parameters", "doc", "signature", "executor", "resources")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DOC_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.RepeatedCompositeFieldContainer[Parameter]
    doc: str
    signature: str
    executor: Executor
    resources: _containers.ScalarMap[str, float]
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Iterable[_Union[Parameter, _Mapping]]] = ..., doc: _Optional[str] = ..., signature: _Optional[str] = ..., executor: _Optional[_Union[Executor, str]] = ..., resources: _Optional[_Mapping[str, float]] = ...) -> None: ...

class TaskResult(_message.Message):
    __slots__ = ("task_id", "state", "codec", "payload", "worker_id", "attempts", "progress", "message", "num_returns")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_RETURNS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    state: TaskState
    codec: Codec
    payload: bytes
    worker_id: str
    attempts: int
    progress: float
    message: str
    num_returns: int
    def __init__(self, task_id: _Optional[str] = ..., state: _Optional[_Union[TaskState, str]] = ..., codec: _Optional[_Union[Codec, str]] = ..., payload: _Optional[bytes] = ..., worker_id: _Optional[str] = ..., attempts: _Optional[int] = ..., progress: _Optional[float] = ..., message: _Optional[str] = ..., num_returns: _Optional[int] = ...) -> None: ...

class Resources(_message.Message):
    __slots__ = ("cpu_cores", "memory_mb", "gpus", "custom", "labels", "label_selector", "label_selector_soft", "fallback")
    class CustomEntry(_message.Message):
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
    class LabelSelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelSelectorSoftEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_SELECTOR_FIELD_NUMBER: _ClassVar[int]
    LABEL_SELECTOR_SOFT_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_FIELD_NUMBER: _ClassVar[int]
    cpu_cores: float
    memory_mb: float
    gpus: float
    custom: _containers.ScalarMap[str, float]
    labels: _containers.ScalarMap[str, str]
    label_selector: _containers.ScalarMap[str, str]
    label_selector_soft: _containers.ScalarMap[str, str]
    fallback: _containers.RepeatedCompositeFieldContainer[Resources]
    def __init__(self, cpu_cores: _Optional[float] = ..., memory_mb: _Optional[float] = ..., gpus: _Optional[float] = ..., custom: _Optional[_Mapping[str, float]] = ..., labels: _Optional[_Mapping[str, str]] = ..., label_selector: _Optional[_Mapping[str, str]] = ..., label_selector_soft: _Optional[_Mapping[str, str]] = ..., fallback: _Optional[_Iterable[_Union[Resources, _Mapping]]] = ...) -> None: ...

class TaskRequest(_message.Message):
    __slots__ = ("function_name", "codec", "args", "kwargs", "task_id", "priority", "resources", "max_retries", "timeout_s", "queue_timeout_s", "total_timeout_s", "wait_for_resources", "retry_exceptions", "retry_exception_names", "retry_delay_s", "crash_limit", "oom_retries", "exclusive", "detached", "stream_window", "durability", "deadline_unix_s", "idempotency_key", "reject_duplicate", "task_class", "call", "uses_default_resources", "uses_default_retries")
    class KwargsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    FUNCTION_NAME_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    KWARGS_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    WAIT_FOR_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    RETRY_EXCEPTIONS_FIELD_NUMBER: _ClassVar[int]
    RETRY_EXCEPTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_S_FIELD_NUMBER: _ClassVar[int]
    CRASH_LIMIT_FIELD_NUMBER: _ClassVar[int]
    OOM_RETRIES_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    DETACHED_FIELD_NUMBER: _ClassVar[int]
    STREAM_WINDOW_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    REJECT_DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    TASK_CLASS_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    USES_DEFAULT_RESOURCES_FIELD_NUMBER: _ClassVar[int]
    USES_DEFAULT_RETRIES_FIELD_NUMBER: _ClassVar[int]
    function_name: str
    codec: Codec
    args: _containers.RepeatedScalarFieldContainer[bytes]
    kwargs: _containers.ScalarMap[str, bytes]
    task_id: str
    priority: int
    resources: Resources
    max_retries: int
    timeout_s: float
    queue_timeout_s: float
    total_timeout_s: float
    wait_for_resources: bool
    retry_exceptions: bool
    retry_exception_names: _containers.RepeatedScalarFieldContainer[str]
    retry_delay_s: float
    crash_limit: int
    oom_retries: int
    exclusive: bool
    detached: bool
    stream_window: int
    durability: Durability
    deadline_unix_s: float
    idempotency_key: str
    reject_duplicate: bool
    task_class: TaskClass
    call: bytes
    uses_default_resources: bool
    uses_default_retries: bool
    def __init__(self, function_name: _Optional[str] = ..., codec: _Optional[_Union[Codec, str]] = ..., args: _Optional[_Iterable[bytes]] = ..., kwargs: _Optional[_Mapping[str, bytes]] = ..., task_id: _Optional[str] = ..., priority: _Optional[int] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., max_retries: _Optional[int] = ..., timeout_s: _Optional[float] = ..., queue_timeout_s: _Optional[float] = ..., total_timeout_s: _Optional[float] = ..., wait_for_resources: _Optional[bool] = ..., retry_exceptions: _Optional[bool] = ..., retry_exception_names: _Optional[_Iterable[str]] = ..., retry_delay_s: _Optional[float] = ..., crash_limit: _Optional[int] = ..., oom_retries: _Optional[int] = ..., exclusive: _Optional[bool] = ..., detached: _Optional[bool] = ..., stream_window: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ..., deadline_unix_s: _Optional[float] = ..., idempotency_key: _Optional[str] = ..., reject_duplicate: _Optional[bool] = ..., task_class: _Optional[_Union[TaskClass, _Mapping]] = ..., call: _Optional[bytes] = ..., uses_default_resources: _Optional[bool] = ..., uses_default_retries: _Optional[bool] = ...) -> None: ...
