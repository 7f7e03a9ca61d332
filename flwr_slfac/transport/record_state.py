"""State dicts that stay Flower's records until somebody reads them."""

from collections.abc import Iterator, Mapping

import torch
from flwr.app import ArrayRecord

from flwr_slfac.errors import DecodeError, SettingError
from flwr_slfac.states import State


class RecordState(Mapping[str, torch.Tensor]):
    """A state dict that stays a Flower ArrayRecord until somebody reads a tensor."""

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record
        self._tensors: dict[str, torch.Tensor] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._tensors is None:
            try:
                self._tensors = dict(self.record.to_torch_state_dict())
            except Exception as error:  # of Flower or NumPy, for bytes of anybody's
                raise DecodeError(f"a model cannot be read: {error}") from error
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.record)

    def __len__(self) -> int:
        return len(self.record)


def require_recordable(state: State) -> None:
    """Raise SettingError if Flower's records, which are NumPy's, lack a dtype."""
    for name, tensor in state.items():
        if tensor.dtype is torch.bfloat16:
            raise SettingError(
                f"the front's {name!r} is {tensor.dtype}, which Flower's records do "
                "not carry; keep the weights in float32 and run the front's forward "
                "under torch.autocast"
            )


def as_record(state: State) -> ArrayRecord:
    """Return a state dict as an ArrayRecord, without work if it is one already.

    Raises
    ------
    SettingError
        If Flower has no record of a tensor.
    """
    if isinstance(state, RecordState):
        return state.record
    require_recordable(state)
    return ArrayRecord(dict(state))
