"""Which devices of a step are at fault, where the step of all of them failed."""

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from flwr_slfac.errors import DeviceError, SettingError, SlfacError, TrainingError
from flwr_slfac.split.crossing import Batch
from flwr_slfac.split.server_half import ServerHalf

Answer = tuple[torch.Tensor, float]
Kind = tuple[object, ...]


def step_or_blame(
    server: ServerHalf, step: int, batches: Mapping[int, Batch]
) -> dict[int, Answer]:
    """Let the back learn; should that fail, name a device whose fault it is.

    Parameters
    ----------
    server, step, batches
        As for `step_without_faults`.

    Raises
    ------
    DeviceError
        If a user's back or loss raises for the batch of a device.
    SettingError, DivergedError
        As `ServerHalf.step`.
    """
    if not batches:
        return {}
    try:
        return server.step(step, batches)
    except SlfacError:
        raise
    except Exception as error:  # whatever a back or a loss of the user's raises
        for device, reason in faults(server, step, batches).items():
            raise DeviceError(f"device {device}, step {step}: {reason}") from error
        raise


def step_without_faults(
    server: ServerHalf,
    step: int,
    batches: Mapping[int, Batch],
    drop: Callable[[int, Exception], None],
) -> dict[int, Answer]:
    """Let the back learn as if devices at fault were not in the step.

    Parameters
    ----------
    server : ServerHalf
        The back.
    step : int
        The step of the round, from 0.
    batches : mapping of int to Batch
        By partition id, ascending.
    drop : callable
        Told of each device at fault and its error.

    Returns
    -------
    dict of int to (Tensor, float)
        As `ServerHalf.step`, of the devices that are left.

    Raises
    ------
    Exception
        What the step raised, if no device, or every one of several, is at fault: then
        it is the user's model, loss or learning rate.
    """
    joint = server.scheme == "parallel"
    groups = [dict(batches)] if joint else [{d: b} for d, b in batches.items()]
    answers: dict[int, Answer] = {}
    failures: list[Exception] = []
    blamed: dict[int, Exception] = {}
    for group in groups:
        while group:
            try:
                answers.update(server.step(step, group))
                break
            except Exception as error:  # whatever a back or a loss of the user's raises
                failures.append(error)
                bad = faults(server, step, group)
                if not bad:
                    raise
                blamed.update({d: _named(why, error) for d, why in bad.items()})
                group = {d: b for d, b in group.items() if d not in bad}
    if failures and not answers and len(batches) > 1:
        raise failures[0]
    for device, reason in blamed.items():
        drop(device, reason)
    return answers


def faults(
    server: ServerHalf, step: int, batches: Mapping[int, Batch]
) -> dict[int, str]:
    """Return the reason for each device whose batch is at fault, by partition id.

    First by shape and dtype, which those of most devices tell (of the lowest partition
    id, if two are as common), then by a trial of each batch alone.

    Parameters
    ----------
    server : ServerHalf
        The back; not changed.
    step : int
        The step of the round, from 0.
    batches : mapping of int to Batch
        What the step was to learn from, by partition id.
    """
    odd = _odd_ones(batches)
    if odd and server.scheme == "parallel":
        return odd
    tried = {device: server.fault(step, device, batches[device]) for device in batches}
    return {device: reason for device, reason in tried.items() if reason}


def _named(reason: str, error: Exception) -> Exception:
    """Return a reason as an error of ours, of the kind that the step raised."""
    kind = type(error) if isinstance(error, TrainingError | SettingError) else None
    return (kind or DeviceError)(reason)


def _odd_ones(batches: Mapping[int, Batch]) -> dict[int, str]:
    kinds = {device: _kind(batches[device]) for device in sorted(batches)}
    ((usual, _),) = Counter(kinds.values()).most_common(1)
    return {
        device: f"its smashed data are {kind} per example, those of others {usual}"
        for device, kind in kinds.items()
        if kind != usual
    }


def _kind(batch: Batch) -> Kind:
    x, y = batch.activations, batch.targets
    return (tuple(x.shape[1:]), str(x.dtype), tuple(y.shape[1:]), str(y.dtype))
