from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ToServer(_message.Message):
    __slots__ = ("hello", "ready", "reply", "data")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ready: Ready
    reply: Reply
    data: bytes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ToDevice(_message.Message):
    __slots__ = ("welcome", "request", "bye", "data")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    request: Request
    bye: Bye
    data: bytes
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("token", "node", "device", "release", "received")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    node: int
    device: int
    release: str
    received: int
    def __init__(self, token: _Optional[bytes] = ..., node: _Optional[int] = ..., device: _Optional[int] = ..., release: _Optional[str] = ..., received: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("token", "answered")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    answered: int
    def __init__(self, token: _Optional[bytes] = ..., answered: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("number", "blob_sizes", "train", "evaluate", "describe")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BLOB_SIZES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    number: int
    blob_sizes: _containers.RepeatedScalarFieldContainer[int]
    train: TrainRequest
    evaluate: EvaluateRequest
    describe: DescribeRequest
    def __init__(self, number: _Optional[int] = ..., blob_sizes: _Optional[_Iterable[int]] = ..., train: _Optional[_Union[TrainRequest, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateRequest, _Mapping]] = ..., describe: _Optional[_Union[DescribeRequest, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("number", "blob_sizes", "train", "evaluate", "describe", "refused")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BLOB_SIZES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    number: int
    blob_sizes: _containers.RepeatedScalarFieldContainer[int]
    train: TrainReply
    evaluate: EvaluateReply
    describe: Description
    refused: Refused
    def __init__(self, number: _Optional[int] = ..., blob_sizes: _Optional[_Iterable[int]] = ..., train: _Optional[_Union[TrainReply, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateReply, _Mapping]] = ..., describe: _Optional[_Union[Description, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "blob")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    blob: int
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., blob: _Optional[int] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("round", "seed", "release", "min_batch", "proximal_mu", "version", "aggregate", "up", "config", "features", "front", "mask_blob", "told_blob", "pipeline_depth")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    MIN_BATCH_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_MU_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    FRONT_FIELD_NUMBER: _ClassVar[int]
    MASK_BLOB_FIELD_NUMBER: _ClassVar[int]
    TOLD_BLOB_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    round: int
    seed: int
    release: str
    min_batch: int
    proximal_mu: float
    version: int
    aggregate: bool
    up: str
    config: str
    features: str
    front: State
    mask_blob: int
    told_blob: int
    pipeline_depth: int
    def __init__(self, round: _Optional[int] = ..., seed: _Optional[int] = ..., release: _Optional[str] = ..., min_batch: _Optional[int] = ..., proximal_mu: _Optional[float] = ..., version: _Optional[int] = ..., aggregate: bool = ..., up: _Optional[str] = ..., config: _Optional[str] = ..., features: _Optional[str] = ..., front: _Optional[_Union[State, _Mapping]] = ..., mask_blob: _Optional[int] = ..., told_blob: _Optional[int] = ..., pipeline_depth: _Optional[int] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("step", "begin", "gradient_blob", "memory_order", "front", "update_blob", "mask_blob")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_BLOB_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ORDER_FIELD_NUMBER: _ClassVar[int]
    FRONT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_BLOB_FIELD_NUMBER: _ClassVar[int]
    MASK_BLOB_FIELD_NUMBER: _ClassVar[int]
    step: int
    begin: Begin
    gradient_blob: int
    memory_order: _containers.RepeatedScalarFieldContainer[int]
    front: State
    update_blob: int
    mask_blob: int
    def __init__(self, step: _Optional[int] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., gradient_blob: _Optional[int] = ..., memory_order: _Optional[_Iterable[int]] = ..., front: _Optional[_Union[State, _Mapping]] = ..., update_blob: _Optional[int] = ..., mask_blob: _Optional[int] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("first", "max_bytes", "begin")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    first: int
    max_bytes: int
    begin: Begin
    def __init__(self, first: _Optional[int] = ..., max_bytes: _Optional[int] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("channels",)
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    channels: bool
    def __init__(self, channels: bool = ...) -> None: ...

class Smashed(_message.Message):
    __slots__ = ("activations_blob", "targets_blob", "num_examples", "shape", "memory_order", "order")
    ACTIVATIONS_BLOB_FIELD_NUMBER: _ClassVar[int]
    TARGETS_BLOB_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_ORDER_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    activations_blob: int
    targets_blob: int
    num_examples: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    memory_order: _containers.RepeatedScalarFieldContainer[int]
    order: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, activations_blob: _Optional[int] = ..., targets_blob: _Optional[int] = ..., num_examples: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., memory_order: _Optional[_Iterable[int]] = ..., order: _Optional[_Iterable[int]] = ...) -> None: ...

class StepCost(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, int]
    def __init__(self, values: _Optional[_Mapping[str, int]] = ...) -> None: ...

class TrainReply(_message.Message):
    __slots__ = ("device", "num_steps", "smashed", "done", "front", "update_blob", "wants_front", "cost", "metrics_blob", "compute_s", "codec_s", "kept")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    SMASHED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FRONT_FIELD_NUMBER: _ClassVar[int]
    UPDATE_BLOB_FIELD_NUMBER: _ClassVar[int]
    WANTS_FRONT_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    METRICS_BLOB_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    CODEC_S_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    device: int
    num_steps: int
    smashed: Smashed
    done: bool
    front: State
    update_blob: int
    wants_front: bool
    cost: StepCost
    metrics_blob: int
    compute_s: float
    codec_s: float
    kept: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, device: _Optional[int] = ..., num_steps: _Optional[int] = ..., smashed: _Optional[_Union[Smashed, _Mapping]] = ..., done: bool = ..., front: _Optional[_Union[State, _Mapping]] = ..., update_blob: _Optional[int] = ..., wants_front: bool = ..., cost: _Optional[_Union[StepCost, _Mapping]] = ..., metrics_blob: _Optional[int] = ..., compute_s: _Optional[float] = ..., codec_s: _Optional[float] = ..., kept: _Optional[_Iterable[str]] = ...) -> None: ...

class EvaluateReply(_message.Message):
    __slots__ = ("device", "num_batches", "batches", "compute_s", "codec_s")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_BATCHES_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    CODEC_S_FIELD_NUMBER: _ClassVar[int]
    device: int
    num_batches: int
    batches: _containers.RepeatedCompositeFieldContainer[Smashed]
    compute_s: float
    codec_s: float
    def __init__(self, device: _Optional[int] = ..., num_batches: _Optional[int] = ..., batches: _Optional[_Iterable[_Union[Smashed, _Mapping]]] = ..., compute_s: _Optional[float] = ..., codec_s: _Optional[float] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("device", "profile_blob", "channels_blob")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_BLOB_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_BLOB_FIELD_NUMBER: _ClassVar[int]
    device: int
    profile_blob: int
    channels_blob: int
    def __init__(self, device: _Optional[int] = ..., profile_blob: _Optional[int] = ..., channels_blob: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "at_fault")
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_FAULT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    at_fault: bool
    def __init__(self, reason: _Optional[str] = ..., at_fault: bool = ...) -> None: ...
