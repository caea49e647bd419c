from rustray.proto.rustray.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CoordinationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COORDINATION_KIND_UNSPECIFIED: _ClassVar[CoordinationKind]
    COORDINATION_KIND_LOCK: _ClassVar[CoordinationKind]
    COORDINATION_KIND_SEMAPHORE: _ClassVar[CoordinationKind]
    COORDINATION_KIND_EVENT: _ClassVar[CoordinationKind]
    COORDINATION_KIND_QUEUE: _ClassVar[CoordinationKind]

class CoordinationAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COORDINATION_ACTION_UNSPECIFIED: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_RENEW: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_END: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_ABANDON: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_ACQUIRE: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_RELEASE: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_CHECK: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_COUNT: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_SET: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_CLEAR: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_AWAIT: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_PUT: _ClassVar[CoordinationAction]
    COORDINATION_ACTION_GET: _ClassVar[CoordinationAction]

class CoordinationVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COORDINATION_VERDICT_UNSPECIFIED: _ClassVar[CoordinationVerdict]
    COORDINATION_VERDICT_DONE: _ClassVar[CoordinationVerdict]
    COORDINATION_VERDICT_WAITING: _ClassVar[CoordinationVerdict]
    COORDINATION_VERDICT_BUSY: _ClassVar[CoordinationVerdict]
COORDINATION_KIND_UNSPECIFIED: CoordinationKind
COORDINATION_KIND_LOCK: CoordinationKind
COORDINATION_KIND_SEMAPHORE: CoordinationKind
COORDINATION_KIND_EVENT: CoordinationKind
COORDINATION_KIND_QUEUE: CoordinationKind
COORDINATION_ACTION_UNSPECIFIED: CoordinationAction
COORDINATION_ACTION_RENEW: CoordinationAction
COORDINATION_ACTION_END: CoordinationAction
COORDINATION_ACTION_ABANDON: CoordinationAction
COORDINATION_ACTION_ACQUIRE: CoordinationAction
COORDINATION_ACTION_RELEASE: CoordinationAction
COORDINATION_ACTION_CHECK: CoordinationAction
COORDINATION_ACTION_COUNT: CoordinationAction
COORDINATION_ACTION_SET: CoordinationAction
COORDINATION_ACTION_CLEAR: CoordinationAction
COORDINATION_ACTION_AWAIT: CoordinationAction
COORDINATION_ACTION_PUT: CoordinationAction
COORDINATION_ACTION_GET: CoordinationAction
COORDINATION_VERDICT_UNSPECIFIED: CoordinationVerdict
COORDINATION_VERDICT_DONE: CoordinationVerdict
COORDINATION_VERDICT_WAITING: CoordinationVerdict
COORDINATION_VERDICT_BUSY: CoordinationVerdict

class RegisterWorkerRequest(_message.Message):
    __slots__ = ("worker_id", "incarnation", "name", "address", "resources", "labels", "functions", "version", "pid", "host_key", "object_port", "protocol", "oldest_protocol")
    class ResourcesEntry(_message.Message):
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
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_KEY_FIELD_NUMBER: _ClassVar[int]
    OBJECT_PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: int
    name: str
    address: str
    resources: _containers.ScalarMap[str, float]
    labels: _containers.ScalarMap[str, str]
    functions: _containers.RepeatedCompositeFieldContainer[_common_pb2.Function]
    version: str
    pid: int
    host_key: str
    object_port: str
    protocol: int
    oldest_protocol: int
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., resources: _Optional[_Mapping[str, float]] = ..., labels: _Optional[_Mapping[str, str]] = ..., functions: _Optional[_Iterable[_Union[_common_pb2.Function, _Mapping]]] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., host_key: _Optional[str] = ..., object_port: _Optional[str] = ..., protocol: _Optional[int] = ..., oldest_protocol: _Optional[int] = ...) -> None: ...

class EnrollWorkerRequest(_message.Message):
    __slots__ = ("worker_id", "signing_request")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    signing_request: bytes
    def __init__(self, worker_id: _Optional[str] = ..., signing_request: _Optional[bytes] = ...) -> None: ...

class EnrollWorkerResponse(_message.Message):
    __slots__ = ("certificate_pem", "ca_pem", "verification_document")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    CA_PEM_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    ca_pem: bytes
    verification_document: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ..., ca_pem: _Optional[bytes] = ..., verification_document: _Optional[bytes] = ...) -> None: ...

class RegisterWorkerResponse(_message.Message):
    __slots__ = ("session", "heartbeat_interval_s", "lease_ttl_s", "takes_output")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_TTL_S_FIELD_NUMBER: _ClassVar[int]
    TAKES_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    session: int
    heartbeat_interval_s: float
    lease_ttl_s: float
    takes_output: bool
    def __init__(self, session: _Optional[int] = ..., heartbeat_interval_s: _Optional[float] = ..., lease_ttl_s: _Optional[float] = ..., takes_output: _Optional[bool] = ...) -> None: ...

class HeldLease(_message.Message):
    __slots__ = ("lease", "unfinished")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    lease: int
    unfinished: int
    def __init__(self, lease: _Optional[int] = ..., unfinished: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("worker_id", "session", "sent", "received", "held", "running", "cpu_load_ratio", "memory_used_mb", "is_full", "objects")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    CPU_LOAD_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_MB_FIELD_NUMBER: _ClassVar[int]
    IS_FULL_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    session: int
    sent: int
    received: int
    held: _containers.RepeatedCompositeFieldContainer[HeldLease]
    running: int
    cpu_load_ratio: float
    memory_used_mb: float
    is_full: bool
    objects: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker_id: _Optional[str] = ..., session: _Optional[int] = ..., sent: _Optional[int] = ..., received: _Optional[int] = ..., held: _Optional[_Iterable[_Union[HeldLease, _Mapping]]] = ..., running: _Optional[int] = ..., cpu_load_ratio: _Optional[float] = ..., memory_used_mb: _Optional[float] = ..., is_full: _Optional[bool] = ..., objects: _Optional[_Iterable[str]] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("is_known", "unneeded")
    IS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    UNNEEDED_FIELD_NUMBER: _ClassVar[int]
    is_known: bool
    unneeded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, is_known: _Optional[bool] = ..., unneeded: _Optional[_Iterable[str]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("worker_id", "session", "protocol", "oldest_protocol")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    session: int
    protocol: int
    oldest_protocol: int
    def __init__(self, worker_id: _Optional[str] = ..., session: _Optional[int] = ..., protocol: _Optional[int] = ..., oldest_protocol: _Optional[int] = ...) -> None: ...

class LeaseRange(_message.Message):
    __slots__ = ("lease", "offset", "count")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    count: int
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class HeldRange(_message.Message):
    __slots__ = ("lease", "offset", "count", "prefix", "first", "attempt", "alternative", "follows")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    count: int
    prefix: bytes
    first: int
    attempt: int
    alternative: int
    follows: int
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ..., count: _Optional[int] = ..., prefix: _Optional[bytes] = ..., first: _Optional[int] = ..., attempt: _Optional[int] = ..., alternative: _Optional[int] = ..., follows: _Optional[int] = ...) -> None: ...

class LeaseOutcome(_message.Message):
    __slots__ = ("lease", "offset", "state", "payloads", "run_us")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    RUN_US_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    state: _common_pb2.TaskState
    payloads: _common_pb2.Payloads
    run_us: int
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., payloads: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., run_us: _Optional[int] = ...) -> None: ...

class LeaseNews(_message.Message):
    __slots__ = ("lease", "offset", "fraction", "text", "value")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    fraction: float
    text: str
    value: bytes
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ..., fraction: _Optional[float] = ..., text: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class OutputPiece(_message.Message):
    __slots__ = ("prefix", "sequence", "attempt", "is_stderr", "time_unix_s", "data", "function", "pid")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    IS_STDERR_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    prefix: bytes
    sequence: int
    attempt: int
    is_stderr: bool
    time_unix_s: float
    data: bytes
    function: str
    pid: int
    def __init__(self, prefix: _Optional[bytes] = ..., sequence: _Optional[int] = ..., attempt: _Optional[int] = ..., is_stderr: _Optional[bool] = ..., time_unix_s: _Optional[float] = ..., data: _Optional[bytes] = ..., function: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class OutputQuestion(_message.Message):
    __slots__ = ("number", "prefix", "sequence", "attempt", "cursor", "wait_s", "is_live", "is_withdrawn")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    IS_LIVE_FIELD_NUMBER: _ClassVar[int]
    IS_WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    number: int
    prefix: bytes
    sequence: int
    attempt: int
    cursor: int
    wait_s: float
    is_live: bool
    is_withdrawn: bool
    def __init__(self, number: _Optional[int] = ..., prefix: _Optional[bytes] = ..., sequence: _Optional[int] = ..., attempt: _Optional[int] = ..., cursor: _Optional[int] = ..., wait_s: _Optional[float] = ..., is_live: _Optional[bool] = ..., is_withdrawn: _Optional[bool] = ...) -> None: ...

class OutputAnswer(_message.Message):
    __slots__ = ("number", "attempt", "pieces", "next", "dropped_bytes", "attempts")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    attempt: int
    pieces: _containers.RepeatedCompositeFieldContainer[OutputPiece]
    next: int
    dropped_bytes: int
    attempts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number: _Optional[int] = ..., attempt: _Optional[int] = ..., pieces: _Optional[_Iterable[_Union[OutputPiece, _Mapping]]] = ..., next: _Optional[int] = ..., dropped_bytes: _Optional[int] = ..., attempts: _Optional[_Iterable[int]] = ...) -> None: ...

class LeaseItems(_message.Message):
    __slots__ = ("lease", "offset", "first", "payloads")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    first: int
    payloads: _common_pb2.Payloads
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ..., first: _Optional[int] = ..., payloads: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ...) -> None: ...

class StreamCredit(_message.Message):
    __slots__ = ("lease", "offset", "have", "consumed")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    CONSUMED_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    have: int
    consumed: int
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ..., have: _Optional[int] = ..., consumed: _Optional[int] = ...) -> None: ...

class WorkerFrame(_message.Message):
    __slots__ = ("number", "ack", "has_held", "held", "outcomes", "returned", "started", "draining", "drained", "news", "blocked", "resumed", "printing", "output", "items", "surrendered", "token", "bye")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    HAS_HELD_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    NEWS_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    PRINTING_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SURRENDERED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    number: int
    ack: int
    has_held: bool
    held: _containers.RepeatedCompositeFieldContainer[HeldRange]
    outcomes: _containers.RepeatedCompositeFieldContainer[LeaseOutcome]
    returned: _containers.RepeatedCompositeFieldContainer[LeaseRange]
    started: _containers.RepeatedCompositeFieldContainer[LeaseRange]
    draining: bool
    drained: bool
    news: _containers.RepeatedCompositeFieldContainer[LeaseNews]
    blocked: _containers.RepeatedCompositeFieldContainer[LeaseRange]
    resumed: _containers.RepeatedCompositeFieldContainer[LeaseRange]
    printing: _containers.RepeatedScalarFieldContainer[bytes]
    output: _containers.RepeatedCompositeFieldContainer[OutputAnswer]
    items: _containers.RepeatedCompositeFieldContainer[LeaseItems]
    surrendered: _containers.RepeatedCompositeFieldContainer[Surrendered]
    token: str
    bye: bool
    def __init__(self, number: _Optional[int] = ..., ack: _Optional[int] = ..., has_held: _Optional[bool] = ..., held: _Optional[_Iterable[_Union[HeldRange, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[LeaseOutcome, _Mapping]]] = ..., returned: _Optional[_Iterable[_Union[LeaseRange, _Mapping]]] = ..., started: _Optional[_Iterable[_Union[LeaseRange, _Mapping]]] = ..., draining: _Optional[bool] = ..., drained: _Optional[bool] = ..., news: _Optional[_Iterable[_Union[LeaseNews, _Mapping]]] = ..., blocked: _Optional[_Iterable[_Union[LeaseRange, _Mapping]]] = ..., resumed: _Optional[_Iterable[_Union[LeaseRange, _Mapping]]] = ..., printing: _Optional[_Iterable[bytes]] = ..., output: _Optional[_Iterable[_Union[OutputAnswer, _Mapping]]] = ..., items: _Optional[_Iterable[_Union[LeaseItems, _Mapping]]] = ..., surrendered: _Optional[_Iterable[_Union[Surrendered, _Mapping]]] = ..., token: _Optional[str] = ..., bye: _Optional[bool] = ...) -> None: ...

class Surrendered(_message.Message):
    __slots__ = ("object_id", "payloads", "trouble", "is_gone")
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    TROUBLE_FIELD_NUMBER: _ClassVar[int]
    IS_GONE_FIELD_NUMBER: _ClassVar[int]
    object_id: str
    payloads: _common_pb2.Payloads
    trouble: str
    is_gone: bool
    def __init__(self, object_id: _Optional[str] = ..., payloads: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., trouble: _Optional[str] = ..., is_gone: _Optional[bool] = ...) -> None: ...

class NestedItem(_message.Message):
    __slots__ = ("channel", "opens", "lease", "offset", "data", "ends", "code", "message")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    OPENS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    channel: int
    opens: bool
    lease: int
    offset: int
    data: bytes
    ends: bool
    code: str
    message: str
    def __init__(self, channel: _Optional[int] = ..., opens: _Optional[bool] = ..., lease: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., ends: _Optional[bool] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class NestedFrame(_message.Message):
    __slots__ = ("number", "items", "token", "bye")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    number: int
    items: _containers.RepeatedCompositeFieldContainer[NestedItem]
    token: str
    bye: bool
    def __init__(self, number: _Optional[int] = ..., items: _Optional[_Iterable[_Union[NestedItem, _Mapping]]] = ..., token: _Optional[str] = ..., bye: _Optional[bool] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("lease", "class_number", "attempt", "prefix", "first", "payloads", "time_left_s", "streams", "follows_lease", "follows_offset")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    CLASS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_LEASE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_OFFSET_FIELD_NUMBER: _ClassVar[int]
    lease: int
    class_number: int
    attempt: int
    prefix: bytes
    first: int
    payloads: _common_pb2.Payloads
    time_left_s: float
    streams: _containers.RepeatedCompositeFieldContainer[StreamCredit]
    follows_lease: int
    follows_offset: int
    def __init__(self, lease: _Optional[int] = ..., class_number: _Optional[int] = ..., attempt: _Optional[int] = ..., prefix: _Optional[bytes] = ..., first: _Optional[int] = ..., payloads: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., time_left_s: _Optional[float] = ..., streams: _Optional[_Iterable[_Union[StreamCredit, _Mapping]]] = ..., follows_lease: _Optional[int] = ..., follows_offset: _Optional[int] = ...) -> None: ...

class LeaseCancel(_message.Message):
    __slots__ = ("lease", "offset", "count", "force")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    lease: int
    offset: int
    count: int
    force: bool
    def __init__(self, lease: _Optional[int] = ..., offset: _Optional[int] = ..., count: _Optional[int] = ..., force: _Optional[bool] = ...) -> None: ...

class AssignFrame(_message.Message):
    __slots__ = ("number", "ack", "classes", "leases", "cancels", "recall", "drain", "output", "credits", "free", "surrender", "adopt")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    SURRENDER_FIELD_NUMBER: _ClassVar[int]
    ADOPT_FIELD_NUMBER: _ClassVar[int]
    number: int
    ack: int
    classes: _containers.RepeatedCompositeFieldContainer[_common_pb2.ClassDefinition]
    leases: _containers.RepeatedCompositeFieldContainer[LeaseGrant]
    cancels: _containers.RepeatedCompositeFieldContainer[LeaseCancel]
    recall: _containers.RepeatedCompositeFieldContainer[LeaseRange]
    drain: bool
    output: _containers.RepeatedCompositeFieldContainer[OutputQuestion]
    credits: _containers.RepeatedCompositeFieldContainer[StreamCredit]
    free: _containers.RepeatedScalarFieldContainer[str]
    surrender: _containers.RepeatedScalarFieldContainer[str]
    adopt: _containers.RepeatedCompositeFieldContainer[Adoption]
    def __init__(self, number: _Optional[int] = ..., ack: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[_common_pb2.ClassDefinition, _Mapping]]] = ..., leases: _Optional[_Iterable[_Union[LeaseGrant, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[LeaseCancel, _Mapping]]] = ..., recall: _Optional[_Iterable[_Union[LeaseRange, _Mapping]]] = ..., drain: _Optional[bool] = ..., output: _Optional[_Iterable[_Union[OutputQuestion, _Mapping]]] = ..., credits: _Optional[_Iterable[_Union[StreamCredit, _Mapping]]] = ..., free: _Optional[_Iterable[str]] = ..., surrender: _Optional[_Iterable[str]] = ..., adopt: _Optional[_Iterable[_Union[Adoption, _Mapping]]] = ...) -> None: ...

class Adoption(_message.Message):
    __slots__ = ("name", "place", "token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    place: bytes
    token: str
    def __init__(self, name: _Optional[str] = ..., place: _Optional[bytes] = ..., token: _Optional[str] = ...) -> None: ...

class ClientHello(_message.Message):
    __slots__ = ("prefix", "protocol", "oldest_protocol")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    OLDEST_PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    prefix: bytes
    protocol: int
    oldest_protocol: int
    def __init__(self, prefix: _Optional[bytes] = ..., protocol: _Optional[int] = ..., oldest_protocol: _Optional[int] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("class_number", "first", "payloads", "deadline_unix_s", "durability", "inputs")
    CLASS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    class_number: int
    first: int
    payloads: _common_pb2.Payloads
    deadline_unix_s: float
    durability: _common_pb2.Durability
    inputs: _common_pb2.Payloads
    def __init__(self, class_number: _Optional[int] = ..., first: _Optional[int] = ..., payloads: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., deadline_unix_s: _Optional[float] = ..., durability: _Optional[_Union[_common_pb2.Durability, str]] = ..., inputs: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ...) -> None: ...

class CancelRange(_message.Message):
    __slots__ = ("prefix", "first", "count", "force", "spares_children")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    SPARES_CHILDREN_FIELD_NUMBER: _ClassVar[int]
    prefix: bytes
    first: int
    count: int
    force: bool
    spares_children: bool
    def __init__(self, prefix: _Optional[bytes] = ..., first: _Optional[int] = ..., count: _Optional[int] = ..., force: _Optional[bool] = ..., spares_children: _Optional[bool] = ...) -> None: ...

class StreamRead(_message.Message):
    __slots__ = ("sequence", "consumed", "have", "has_left")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CONSUMED_FIELD_NUMBER: _ClassVar[int]
    HAVE_FIELD_NUMBER: _ClassVar[int]
    HAS_LEFT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    consumed: int
    have: int
    has_left: bool
    def __init__(self, sequence: _Optional[int] = ..., consumed: _Optional[int] = ..., have: _Optional[int] = ..., has_left: _Optional[bool] = ...) -> None: ...

class StreamItems(_message.Message):
    __slots__ = ("sequence", "first", "payloads")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    first: int
    payloads: _common_pb2.Payloads
    def __init__(self, sequence: _Optional[int] = ..., first: _Optional[int] = ..., payloads: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ...) -> None: ...

class ClientFrame(_message.Message):
    __slots__ = ("number", "ack", "classes", "submissions", "cancels", "follow", "reads", "released", "token", "bye")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    SUBMISSIONS_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    number: int
    ack: int
    classes: _containers.RepeatedCompositeFieldContainer[_common_pb2.ClassDefinition]
    submissions: _containers.RepeatedCompositeFieldContainer[Submission]
    cancels: _containers.RepeatedCompositeFieldContainer[CancelRange]
    follow: _containers.RepeatedCompositeFieldContainer[_common_pb2.TaskRange]
    reads: _containers.RepeatedCompositeFieldContainer[StreamRead]
    released: _containers.RepeatedCompositeFieldContainer[_common_pb2.TaskRange]
    token: str
    bye: bool
    def __init__(self, number: _Optional[int] = ..., ack: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[_common_pb2.ClassDefinition, _Mapping]]] = ..., submissions: _Optional[_Iterable[_Union[Submission, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[CancelRange, _Mapping]]] = ..., follow: _Optional[_Iterable[_Union[_common_pb2.TaskRange, _Mapping]]] = ..., reads: _Optional[_Iterable[_Union[StreamRead, _Mapping]]] = ..., released: _Optional[_Iterable[_Union[_common_pb2.TaskRange, _Mapping]]] = ..., token: _Optional[str] = ..., bye: _Optional[bool] = ...) -> None: ...

class AcceptedRange(_message.Message):
    __slots__ = ("first", "count", "durability")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    durability: _common_pb2.Durability
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ..., durability: _Optional[_Union[_common_pb2.Durability, str]] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("first", "count", "code", "message", "retry_after_s", "reason")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    first: int
    count: int
    code: str
    message: str
    retry_after_s: float
    reason: str
    def __init__(self, first: _Optional[int] = ..., count: _Optional[int] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., retry_after_s: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("first", "state", "payloads", "worker_id", "attempts", "items")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    first: int
    state: _common_pb2.TaskState
    payloads: _common_pb2.Payloads
    worker_id: str
    attempts: int
    items: int
    def __init__(self, first: _Optional[int] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., payloads: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., worker_id: _Optional[str] = ..., attempts: _Optional[int] = ..., items: _Optional[int] = ...) -> None: ...

class HeadFrame(_message.Message):
    __slots__ = ("number", "ack", "accepted", "rejected", "outcomes", "unknown", "items")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    number: int
    ack: int
    accepted: _containers.RepeatedCompositeFieldContainer[AcceptedRange]
    rejected: _containers.RepeatedCompositeFieldContainer[Rejection]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    unknown: _containers.RepeatedCompositeFieldContainer[_common_pb2.TaskRange]
    items: _containers.RepeatedCompositeFieldContainer[StreamItems]
    def __init__(self, number: _Optional[int] = ..., ack: _Optional[int] = ..., accepted: _Optional[_Iterable[_Union[AcceptedRange, _Mapping]]] = ..., rejected: _Optional[_Iterable[_Union[Rejection, _Mapping]]] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ..., unknown: _Optional[_Iterable[_Union[_common_pb2.TaskRange, _Mapping]]] = ..., items: _Optional[_Iterable[_Union[StreamItems, _Mapping]]] = ...) -> None: ...

class SubmitTaskRequest(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: _common_pb2.TaskRequest
    def __init__(self, task: _Optional[_Union[_common_pb2.TaskRequest, _Mapping]] = ...) -> None: ...

class SubmitTaskResponse(_message.Message):
    __slots__ = ("task_id", "deduplicated", "durability")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATED_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    deduplicated: bool
    durability: _common_pb2.Durability
    def __init__(self, task_id: _Optional[str] = ..., deduplicated: _Optional[bool] = ..., durability: _Optional[_Union[_common_pb2.Durability, str]] = ...) -> None: ...

class SubmitTasksRequest(_message.Message):
    __slots__ = ("tasks",)
    TASKS_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[_common_pb2.TaskRequest]
    def __init__(self, tasks: _Optional[_Iterable[_Union[_common_pb2.TaskRequest, _Mapping]]] = ...) -> None: ...

class SubmitVerdict(_message.Message):
    __slots__ = ("task_id", "error", "deduplicated", "durability")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATED_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    error: _common_pb2.ErrorDetail
    deduplicated: bool
    durability: _common_pb2.Durability
    def __init__(self, task_id: _Optional[str] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., deduplicated: _Optional[bool] = ..., durability: _Optional[_Union[_common_pb2.Durability, str]] = ...) -> None: ...

class SubmitTasksResponse(_message.Message):
    __slots__ = ("verdicts",)
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[SubmitVerdict]
    def __init__(self, verdicts: _Optional[_Iterable[_Union[SubmitVerdict, _Mapping]]] = ...) -> None: ...

class GetTaskResultRequest(_message.Message):
    __slots__ = ("task_id", "timeout_s", "first_item", "takes_places", "missing")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_ITEM_FIELD_NUMBER: _ClassVar[int]
    TAKES_PLACES_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    timeout_s: float
    first_item: int
    takes_places: bool
    missing: str
    def __init__(self, task_id: _Optional[str] = ..., timeout_s: _Optional[float] = ..., first_item: _Optional[int] = ..., takes_places: _Optional[bool] = ..., missing: _Optional[str] = ...) -> None: ...

class GetTaskResultResponse(_message.Message):
    __slots__ = ("result", "items", "placed", "object_token")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PLACED_FIELD_NUMBER: _ClassVar[int]
    OBJECT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    result: _common_pb2.TaskResult
    items: _common_pb2.Payloads
    placed: bool
    object_token: str
    def __init__(self, result: _Optional[_Union[_common_pb2.TaskResult, _Mapping]] = ..., items: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., placed: _Optional[bool] = ..., object_token: _Optional[str] = ...) -> None: ...

class CancelTaskRequest(_message.Message):
    __slots__ = ("task_ids", "force")
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    force: bool
    def __init__(self, task_ids: _Optional[_Iterable[str]] = ..., force: _Optional[bool] = ...) -> None: ...

class CancelVerdict(_message.Message):
    __slots__ = ("task_id", "state", "error")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    state: _common_pb2.TaskState
    error: _common_pb2.ErrorDetail
    def __init__(self, task_id: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class CancelTaskResponse(_message.Message):
    __slots__ = ("verdicts",)
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[CancelVerdict]
    def __init__(self, verdicts: _Optional[_Iterable[_Union[CancelVerdict, _Mapping]]] = ...) -> None: ...

class LetterFilter(_message.Message):
    __slots__ = ("task_ids", "states", "function", "min_age_s")
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    MIN_AGE_S_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    states: _containers.RepeatedScalarFieldContainer[_common_pb2.TaskState]
    function: str
    min_age_s: float
    def __init__(self, task_ids: _Optional[_Iterable[str]] = ..., states: _Optional[_Iterable[_Union[_common_pb2.TaskState, str]]] = ..., function: _Optional[str] = ..., min_age_s: _Optional[float] = ...) -> None: ...

class LetterCursor(_message.Message):
    __slots__ = ("after", "horizon")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    after: str
    horizon: int
    def __init__(self, after: _Optional[str] = ..., horizon: _Optional[int] = ...) -> None: ...

class LetterVerdict(_message.Message):
    __slots__ = ("task_id", "state", "is_changed", "error")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    IS_CHANGED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    state: _common_pb2.TaskState
    is_changed: bool
    error: _common_pb2.ErrorDetail
    def __init__(self, task_id: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., is_changed: _Optional[bool] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class RetryTasksRequest(_message.Message):
    __slots__ = ("where", "cursor", "dry_run")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    where: LetterFilter
    cursor: LetterCursor
    dry_run: bool
    def __init__(self, where: _Optional[_Union[LetterFilter, _Mapping]] = ..., cursor: _Optional[_Union[LetterCursor, _Mapping]] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class RetryTasksResponse(_message.Message):
    __slots__ = ("verdicts", "changed", "error", "next", "horizon")
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[LetterVerdict]
    changed: int
    error: _common_pb2.ErrorDetail
    next: LetterCursor
    horizon: int
    def __init__(self, verdicts: _Optional[_Iterable[_Union[LetterVerdict, _Mapping]]] = ..., changed: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., next: _Optional[_Union[LetterCursor, _Mapping]] = ..., horizon: _Optional[int] = ...) -> None: ...

class PurgeTasksRequest(_message.Message):
    __slots__ = ("where", "cursor", "dry_run")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    where: LetterFilter
    cursor: LetterCursor
    dry_run: bool
    def __init__(self, where: _Optional[_Union[LetterFilter, _Mapping]] = ..., cursor: _Optional[_Union[LetterCursor, _Mapping]] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class PurgeTasksResponse(_message.Message):
    __slots__ = ("verdicts", "changed", "error", "next", "horizon")
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    HORIZON_FIELD_NUMBER: _ClassVar[int]
    verdicts: _containers.RepeatedCompositeFieldContainer[LetterVerdict]
    changed: int
    error: _common_pb2.ErrorDetail
    next: LetterCursor
    horizon: int
    def __init__(self, verdicts: _Optional[_Iterable[_Union[LetterVerdict, _Mapping]]] = ..., changed: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.ErrorDetail, _Mapping]] = ..., next: _Optional[_Union[LetterCursor, _Mapping]] = ..., horizon: _Optional[int] = ...) -> None: ...

class ExportTasksRequest(_message.Message):
    __slots__ = ("where", "cursor")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    where: LetterFilter
    cursor: LetterCursor
    def __init__(self, where: _Optional[_Union[LetterFilter, _Mapping]] = ..., cursor: _Optional[_Union[LetterCursor, _Mapping]] = ...) -> None: ...

class DeadLetter(_message.Message):
    __slots__ = ("task_id", "function", "state", "priority", "attempts", "worker_id", "submitted_unix_s", "finished_unix_s", "codec", "failure", "arguments")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    FINISHED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    function: str
    state: _common_pb2.TaskState
    priority: int
    attempts: int
    worker_id: str
    submitted_unix_s: float
    finished_unix_s: float
    codec: _common_pb2.Codec
    failure: bytes
    arguments: bytes
    def __init__(self, task_id: _Optional[str] = ..., function: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., priority: _Optional[int] = ..., attempts: _Optional[int] = ..., worker_id: _Optional[str] = ..., submitted_unix_s: _Optional[float] = ..., finished_unix_s: _Optional[float] = ..., codec: _Optional[_Union[_common_pb2.Codec, str]] = ..., failure: _Optional[bytes] = ..., arguments: _Optional[bytes] = ...) -> None: ...

class ExportTasksResponse(_message.Message):
    __slots__ = ("letters", "next")
    LETTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    letters: _containers.RepeatedCompositeFieldContainer[DeadLetter]
    next: LetterCursor
    def __init__(self, letters: _Optional[_Iterable[_Union[DeadLetter, _Mapping]]] = ..., next: _Optional[_Union[LetterCursor, _Mapping]] = ...) -> None: ...

class CoordinateRequest(_message.Message):
    __slots__ = ("holder", "number", "lane", "action", "kind", "space", "name", "limit", "fence", "count", "wait_s", "items", "fences", "taken", "term", "pending")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    FENCES_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    holder: bytes
    number: int
    lane: int
    action: CoordinationAction
    kind: CoordinationKind
    space: str
    name: str
    limit: int
    fence: int
    count: int
    wait_s: float
    items: _common_pb2.Payloads
    fences: _containers.RepeatedScalarFieldContainer[int]
    taken: _containers.RepeatedScalarFieldContainer[int]
    term: int
    pending: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, holder: _Optional[bytes] = ..., number: _Optional[int] = ..., lane: _Optional[int] = ..., action: _Optional[_Union[CoordinationAction, str]] = ..., kind: _Optional[_Union[CoordinationKind, str]] = ..., space: _Optional[str] = ..., name: _Optional[str] = ..., limit: _Optional[int] = ..., fence: _Optional[int] = ..., count: _Optional[int] = ..., wait_s: _Optional[float] = ..., items: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., fences: _Optional[_Iterable[int]] = ..., taken: _Optional[_Iterable[int]] = ..., term: _Optional[int] = ..., pending: _Optional[_Iterable[int]] = ...) -> None: ...

class CoordinateResponse(_message.Message):
    __slots__ = ("verdict", "fence", "count", "items", "term", "lease_s")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    verdict: CoordinationVerdict
    fence: int
    count: int
    items: _common_pb2.Payloads
    term: int
    lease_s: float
    def __init__(self, verdict: _Optional[_Union[CoordinationVerdict, str]] = ..., fence: _Optional[int] = ..., count: _Optional[int] = ..., items: _Optional[_Union[_common_pb2.Payloads, _Mapping]] = ..., term: _Optional[int] = ..., lease_s: _Optional[float] = ...) -> None: ...

class CoordinateForTaskRequest(_message.Message):
    __slots__ = ("worker_id", "lease", "offset", "request")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    lease: int
    offset: int
    request: CoordinateRequest
    def __init__(self, worker_id: _Optional[str] = ..., lease: _Optional[int] = ..., offset: _Optional[int] = ..., request: _Optional[_Union[CoordinateRequest, _Mapping]] = ...) -> None: ...

class ExplainTaskRequest(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class WorkerReason(_message.Message):
    __slots__ = ("worker_id", "is_feasible", "reason")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    IS_FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    is_feasible: bool
    reason: str
    def __init__(self, worker_id: _Optional[str] = ..., is_feasible: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class ExplainTaskResponse(_message.Message):
    __slots__ = ("task_id", "state", "summary", "position", "workers", "advice", "durability")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    state: _common_pb2.TaskState
    summary: str
    position: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerReason]
    advice: str
    durability: _common_pb2.Durability
    def __init__(self, task_id: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., summary: _Optional[str] = ..., position: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerReason, _Mapping]]] = ..., advice: _Optional[str] = ..., durability: _Optional[_Union[_common_pb2.Durability, str]] = ...) -> None: ...

class ListTasksRequest(_message.Message):
    __slots__ = ("states", "function", "worker_id", "cursor", "limit")
    STATES_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[_common_pb2.TaskState]
    function: str
    worker_id: str
    cursor: str
    limit: int
    def __init__(self, states: _Optional[_Iterable[_Union[_common_pb2.TaskState, str]]] = ..., function: _Optional[str] = ..., worker_id: _Optional[str] = ..., cursor: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "function", "state", "priority", "attempts", "worker_id", "submitted_unix_s", "finished_unix_s", "error_code", "error_message", "progress", "message", "durability")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    FINISHED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    function: str
    state: _common_pb2.TaskState
    priority: int
    attempts: int
    worker_id: str
    submitted_unix_s: float
    finished_unix_s: float
    error_code: str
    error_message: str
    progress: float
    message: str
    durability: _common_pb2.Durability
    def __init__(self, task_id: _Optional[str] = ..., function: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., priority: _Optional[int] = ..., attempts: _Optional[int] = ..., worker_id: _Optional[str] = ..., submitted_unix_s: _Optional[float] = ..., finished_unix_s: _Optional[float] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., progress: _Optional[float] = ..., message: _Optional[str] = ..., durability: _Optional[_Union[_common_pb2.Durability, str]] = ...) -> None: ...

class ListTasksResponse(_message.Message):
    __slots__ = ("tasks", "next_cursor", "total")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    next_cursor: str
    total: int
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., next_cursor: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Worker(_message.Message):
    __slots__ = ("worker_id", "name", "address", "state", "resources", "used", "labels", "functions", "leased", "running", "finished", "last_seen_s", "version", "pid", "host_key", "object_port")
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
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    LEASED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_KEY_FIELD_NUMBER: _ClassVar[int]
    OBJECT_PORT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    name: str
    address: str
    state: str
    resources: _containers.ScalarMap[str, float]
    used: _containers.ScalarMap[str, float]
    labels: _containers.ScalarMap[str, str]
    functions: _containers.RepeatedScalarFieldContainer[str]
    leased: int
    running: int
    finished: int
    last_seen_s: float
    version: str
    pid: int
    host_key: str
    object_port: str
    def __init__(self, worker_id: _Optional[str] = ..., name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., resources: _Optional[_Mapping[str, float]] = ..., used: _Optional[_Mapping[str, float]] = ..., labels: _Optional[_Mapping[str, str]] = ..., functions: _Optional[_Iterable[str]] = ..., leased: _Optional[int] = ..., running: _Optional[int] = ..., finished: _Optional[int] = ..., last_seen_s: _Optional[float] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., host_key: _Optional[str] = ..., object_port: _Optional[str] = ...) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ...) -> None: ...

class ListObjectsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class StoredObject(_message.Message):
    __slots__ = ("object_id", "task_id", "function", "size", "worker_id", "age_s", "takers", "is_lost")
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    TAKERS_FIELD_NUMBER: _ClassVar[int]
    IS_LOST_FIELD_NUMBER: _ClassVar[int]
    object_id: str
    task_id: str
    function: str
    size: int
    worker_id: str
    age_s: float
    takers: int
    is_lost: bool
    def __init__(self, object_id: _Optional[str] = ..., task_id: _Optional[str] = ..., function: _Optional[str] = ..., size: _Optional[int] = ..., worker_id: _Optional[str] = ..., age_s: _Optional[float] = ..., takers: _Optional[int] = ..., is_lost: _Optional[bool] = ...) -> None: ...

class StoredTotal(_message.Message):
    __slots__ = ("worker_id", "objects", "bytes", "lost")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    objects: int
    bytes: int
    lost: int
    def __init__(self, worker_id: _Optional[str] = ..., objects: _Optional[int] = ..., bytes: _Optional[int] = ..., lost: _Optional[int] = ...) -> None: ...

class ListObjectsResponse(_message.Message):
    __slots__ = ("objects", "totals")
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[StoredObject]
    totals: _containers.RepeatedCompositeFieldContainer[StoredTotal]
    def __init__(self, objects: _Optional[_Iterable[_Union[StoredObject, _Mapping]]] = ..., totals: _Optional[_Iterable[_Union[StoredTotal, _Mapping]]] = ...) -> None: ...

class ListFunctionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class OfferedFunction(_message.Message):
    __slots__ = ("name", "worker_ids", "function")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    function: _common_pb2.Function
    def __init__(self, name: _Optional[str] = ..., worker_ids: _Optional[_Iterable[str]] = ..., function: _Optional[_Union[_common_pb2.Function, _Mapping]] = ...) -> None: ...

class ListFunctionsResponse(_message.Message):
    __slots__ = ("functions",)
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    functions: _containers.RepeatedCompositeFieldContainer[OfferedFunction]
    def __init__(self, functions: _Optional[_Iterable[_Union[OfferedFunction, _Mapping]]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("cluster_id", "version", "address", "uptime_s", "security", "durability", "strategy", "workers", "tasks", "resources", "used", "counters", "max_payload_bytes", "max_retries")
    class TasksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
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
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    SECURITY_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RETRIES_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    version: str
    address: str
    uptime_s: float
    security: str
    durability: str
    strategy: str
    workers: int
    tasks: _containers.ScalarMap[str, int]
    resources: _containers.ScalarMap[str, float]
    used: _containers.ScalarMap[str, float]
    counters: _containers.ScalarMap[str, int]
    max_payload_bytes: int
    max_retries: int
    def __init__(self, cluster_id: _Optional[str] = ..., version: _Optional[str] = ..., address: _Optional[str] = ..., uptime_s: _Optional[float] = ..., security: _Optional[str] = ..., durability: _Optional[str] = ..., strategy: _Optional[str] = ..., workers: _Optional[int] = ..., tasks: _Optional[_Mapping[str, int]] = ..., resources: _Optional[_Mapping[str, float]] = ..., used: _Optional[_Mapping[str, float]] = ..., counters: _Optional[_Mapping[str, int]] = ..., max_payload_bytes: _Optional[int] = ..., max_retries: _Optional[int] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("task_ids", "functions", "states", "cursor")
    TASK_IDS_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    task_ids: _containers.RepeatedScalarFieldContainer[str]
    functions: _containers.RepeatedScalarFieldContainer[str]
    states: _containers.RepeatedScalarFieldContainer[_common_pb2.TaskState]
    cursor: int
    def __init__(self, task_ids: _Optional[_Iterable[str]] = ..., functions: _Optional[_Iterable[str]] = ..., states: _Optional[_Iterable[_Union[_common_pb2.TaskState, str]]] = ..., cursor: _Optional[int] = ...) -> None: ...

class TaskEvent(_message.Message):
    __slots__ = ("revision", "task_id", "state", "attempt", "worker_id", "function", "time_unix_s", "progress", "message", "name", "value")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    task_id: str
    state: _common_pb2.TaskState
    attempt: int
    worker_id: str
    function: str
    time_unix_s: float
    progress: float
    message: str
    name: str
    value: bytes
    def __init__(self, revision: _Optional[int] = ..., task_id: _Optional[str] = ..., state: _Optional[_Union[_common_pb2.TaskState, str]] = ..., attempt: _Optional[int] = ..., worker_id: _Optional[str] = ..., function: _Optional[str] = ..., time_unix_s: _Optional[float] = ..., progress: _Optional[float] = ..., message: _Optional[str] = ..., name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[TaskEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[TaskEvent, _Mapping]]] = ...) -> None: ...

class TaskLogsRequest(_message.Message):
    __slots__ = ("task_id", "attempt", "cursor", "follow", "goes_on")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    GOES_ON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    cursor: int
    follow: bool
    goes_on: bool
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., cursor: _Optional[int] = ..., follow: _Optional[bool] = ..., goes_on: _Optional[bool] = ...) -> None: ...

class SessionLogsRequest(_message.Message):
    __slots__ = ("prefix",)
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    prefix: bytes
    def __init__(self, prefix: _Optional[bytes] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("task_id", "attempt", "is_stderr", "time_unix_s", "data", "function", "worker_id", "pid", "dropped_bytes")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    IS_STDERR_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    is_stderr: bool
    time_unix_s: float
    data: bytes
    function: str
    worker_id: str
    pid: int
    dropped_bytes: int
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., is_stderr: _Optional[bool] = ..., time_unix_s: _Optional[float] = ..., data: _Optional[bytes] = ..., function: _Optional[str] = ..., worker_id: _Optional[str] = ..., pid: _Optional[int] = ..., dropped_bytes: _Optional[int] = ...) -> None: ...

class LogsResponse(_message.Message):
    __slots__ = ("records", "attempt", "cursor")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[LogRecord]
    attempt: int
    cursor: int
    def __init__(self, records: _Optional[_Iterable[_Union[LogRecord, _Mapping]]] = ..., attempt: _Optional[int] = ..., cursor: _Optional[int] = ...) -> None: ...

class DrainWorkerRequest(_message.Message):
    __slots__ = ("worker_id",)
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    def __init__(self, worker_id: _Optional[str] = ...) -> None: ...

class DrainWorkerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("role", "ttl_s", "allow_code", "audience")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    ALLOW_CODE_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    role: str
    ttl_s: float
    allow_code: bool
    audience: str
    def __init__(self, role: _Optional[str] = ..., ttl_s: _Optional[float] = ..., allow_code: _Optional[bool] = ..., audience: _Optional[str] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenInfo(_message.Message):
    __slots__ = ("token_id", "subject", "role", "scopes", "audience", "issued_unix_s", "expires_unix_s", "renewable_unix_s", "created_by")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    RENEWABLE_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    subject: str
    role: str
    scopes: str
    audience: str
    issued_unix_s: float
    expires_unix_s: float
    renewable_unix_s: float
    created_by: str
    def __init__(self, token_id: _Optional[str] = ..., subject: _Optional[str] = ..., role: _Optional[str] = ..., scopes: _Optional[str] = ..., audience: _Optional[str] = ..., issued_unix_s: _Optional[float] = ..., expires_unix_s: _Optional[float] = ..., renewable_unix_s: _Optional[float] = ..., created_by: _Optional[str] = ...) -> None: ...

class ListTokensResponse(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenInfo]
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenInfo, _Mapping]]] = ...) -> None: ...

class RenewTokenRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewTokenResponse(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...
