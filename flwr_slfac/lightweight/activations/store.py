"""What the graph holds for backward: each storage once, coded, narrowed or as it is.

::

    autograd saves a tensor ──pack──► AffineTensor   floating: 8 bits a value
                                      NarrowTensor   integers: the narrowest dtype
                                      ExactTensor    all else: the tensor itself
    backward asks for it   ◄─unpack── restored
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from flwr_slfac.errors import TrainingError
from flwr_slfac.lightweight.activations.affine import AffineTensor, to_affine
from flwr_slfac.lightweight.activations.bearing import ALL, NOTHING, Rule, storage_of

# Elements from which on a tensor is coded. Our choice: 4 KiB and less save little, and
# many so small are statistics of norms, which stay exact.
_SMALL = 1024
# From the narrowest on; torch has no uint16 that its kernels take.
_NARROW = (torch.uint8, torch.int16, torch.int32)


@dataclass
class SavedBytes:
    """What the graph holds for backward, without parameters and buffers.

    Attributes
    ----------
    num_bytes : int
        Bytes as it is stored, each storage once.
    raw_num_bytes : int
        Bytes as PyTorch would hold it, each storage once.
    """

    num_bytes: int = 0
    raw_num_bytes: int = 0


@dataclass(frozen=True)
class ExactTensor:
    """A tensor as it is, and the version that was saved."""

    tensor: torch.Tensor
    version: int

    @property
    def num_bytes(self) -> int:
        """Bytes that are stored."""
        return self.tensor.untyped_storage().nbytes()

    def restore(self) -> torch.Tensor:
        """Return the tensor.

        Raises
        ------
        TrainingError
            If it was changed in place since.
        """
        if self.tensor._version != self.version:
            raise TrainingError(
                f"a tensor of shape {tuple(self.tensor.shape)} that backward needs was "
                "changed in place after the forward; copy it before changing it"
            )
        return self.tensor


@dataclass(frozen=True)
class NarrowTensor:
    """Integers in the narrowest dtype that holds them."""

    narrow: torch.Tensor
    dtype: torch.dtype

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors that are stored."""
        return (self.narrow,)

    @property
    def num_bytes(self) -> int:
        """Bytes that are stored."""
        return self.narrow.numel() * self.narrow.element_size()

    def restore(self) -> torch.Tensor:
        """Return the integers in their own dtype."""
        return self.narrow.to(self.dtype)


Stored = AffineTensor | NarrowTensor | ExactTensor


@dataclass(frozen=True)
class _Entry:
    """A packed tensor and the storage that it came from."""

    # While a weak reference lives, its storage's address is not given to another.
    storage: StorageWeakRef
    packed: Stored


class ActivationStore:
    """The pack hook of one forward, which shares what is saved twice.

    Parameters
    ----------
    module : nn.Module or None
        Whose buffers are no activations.
    enabled : bool
        False: tensors stay as they are, and are counted.
    """

    def __init__(self, module: nn.Module | None, enabled: bool) -> None:
        self.bytes = SavedBytes()
        self._enabled = enabled
        # Of the operation that is running; each sets its own.
        self.rule = NOTHING
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._storages: dict[int, StorageWeakRef] = {}
        self._exact: set[int] = set()
        buffers = () if module is None else module.buffers()
        # Storages that are not activations: buffers, and what was coded or narrowed.
        self._own = {storage_of(b) for b in buffers}
        # Alive as long as their storages are in `_own`.
        self._alive: list[torch.Tensor] = []

    def coded(self, tensor: torch.Tensor) -> AffineTensor | None:
        """Return an activation in 8 bits, or None if it stays as it is."""
        packed, _ = self._pack(tensor, ALL)
        if isinstance(packed, AffineTensor) and packed.codes.shape == tensor.shape:
            return packed
        return None

    def pack(self, tensor: torch.Tensor) -> tuple[Stored, torch.Size | None]:
        """Return what the graph holds for a tensor of the running operation."""
        return self._pack(tensor, self.rule)

    def _pack(
        self, tensor: torch.Tensor, rule: Rule
    ) -> tuple[Stored, torch.Size | None]:
        if self._is_known(tensor) or tensor.layout is not torch.strided:
            return ExactTensor(tensor, tensor._version), None
        reference, key = _identity(tensor)
        entry = self._entries.get(key)
        found = None if entry is None else entry.packed
        if found is None and reference.cdata in self._exact:
            # Held as it is for another operation, it would only take more memory.
            return ExactTensor(tensor, tensor._version), None
        packed = found if found is not None else self._to_store(tensor.detach(), rule)
        if not _bears(rule, tensor, packed):
            packed = ExactTensor(tensor, tensor._version)
        if packed is not found:
            self._count(tensor, reference, packed)
        if isinstance(packed, ExactTensor):
            return ExactTensor(tensor, tensor._version), None
        if packed is not found:
            self._entries[key] = _Entry(reference, packed)
            self._claim(*packed.tensors)
        return packed, tensor.shape

    def narrow(self, indices: torch.Tensor) -> torch.Tensor:
        """Return integers, narrowed, that an operation will save itself."""
        packed = to_narrow(indices)
        self.bytes.raw_num_bytes += indices.numel() * indices.element_size()
        self.bytes.num_bytes += packed.num_bytes
        self._claim(packed.narrow)
        return packed.narrow

    def share(self, tensor: torch.Tensor, affine: AffineTensor) -> None:
        """Let later operations that save a tensor share what it was coded to."""
        reference, key = _identity(tensor)
        self._entries[key] = _Entry(reference, affine)

    def clear(self) -> None:
        """Let go of everything, so that only the graph holds it."""
        self._entries.clear()
        self._storages.clear()
        self._exact.clear()
        self._alive.clear()

    def _claim(self, *tensors: torch.Tensor) -> None:
        self._alive += tensors
        self._own |= {storage_of(t) for t in tensors}

    def _is_known(self, tensor: torch.Tensor) -> bool:
        """Say whether a tensor is a parameter, a buffer, or stored here already."""
        origin = tensor._base if tensor._base is not None else tensor
        if isinstance(origin, nn.Parameter) or (
            origin.is_leaf and origin.requires_grad
        ):
            return True
        return storage_of(tensor) in self._own

    def _to_store(self, tensor: torch.Tensor, rule: Rule) -> Stored:
        num_bytes = tensor.numel() * tensor.element_size()
        expanded = tensor.untyped_storage().nbytes() < num_bytes
        if self._enabled and tensor.numel() >= _SMALL and not expanded:
            if tensor.dtype in (torch.int64, torch.int32):
                return to_narrow(tensor)
            if tensor.is_floating_point() and rule.codes:
                affine = to_affine(tensor)
                if affine is not None:
                    return affine
        return ExactTensor(tensor, tensor._version)

    def _count(
        self, tensor: torch.Tensor, reference: StorageWeakRef, packed: Stored
    ) -> None:
        first = reference.cdata not in self._storages
        self._storages[reference.cdata] = reference
        if first:
            self.bytes.raw_num_bytes += tensor.untyped_storage().nbytes()
        exact = isinstance(packed, ExactTensor)
        if not exact or reference.cdata not in self._exact:
            self.bytes.num_bytes += packed.num_bytes
        if exact:
            self._exact.add(reference.cdata)


def unpack(saved: tuple[Stored, torch.Size | None]) -> torch.Tensor:
    """Undo `ActivationStore.pack`."""
    packed, shape = saved
    tensor = packed.restore()
    return tensor if shape is None else tensor.reshape(shape)


def _bears(rule: Rule, tensor: torch.Tensor, packed: Stored) -> bool:
    """Say whether an operation bears a tensor that is stored so."""
    if not isinstance(packed, AffineTensor):
        return True
    if not rule.codes:
        return False
    if rule.storages is not None and storage_of(tensor) not in rule.storages:
        return False
    limit = rule.largest_step
    return limit is None or bool((packed.step <= limit).all())


def _identity(tensor: torch.Tensor) -> tuple[StorageWeakRef, tuple[Any, ...]]:
    """Return a key that equal values of one storage share, and what keeps it valid."""
    reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    key = (reference.cdata, tensor._version, tensor.dtype, *_geometry(tensor))
    return reference, key


def _geometry(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what tells views of one storage apart, shapes of the same values not."""
    if tensor.is_contiguous():
        return (tensor.storage_offset(), tensor.numel())
    return (tensor.storage_offset(), tensor.shape, tensor.stride())


def to_narrow(tensor: torch.Tensor) -> NarrowTensor:
    """Return integers in the narrowest dtype that holds them."""
    low, high = int(tensor.min()), int(tensor.max())
    dtype = next(
        (
            d
            for d in _NARROW
            if torch.iinfo(d).min <= low and high <= torch.iinfo(d).max
        ),
        tensor.dtype,
    )
    return NarrowTensor(tensor.to(dtype), tensor.dtype)
