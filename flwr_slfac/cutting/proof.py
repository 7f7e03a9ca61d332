"""Prove on an example that the joined halves are the model, bit for bit.

::

    model ─► copy ─► outputs, gradients, buffers ─┐
                                                  ├─► the same bits, or CutError
    halves ─► copies ─► the same, cut in between ─┘

A trial does so in training or in evaluation mode; a second one in each mode has other
numbers in the state, which shows what the trace has made a constant, another size of
the batch, and in evaluation no gradients.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from flwr_slfac.cutting.randomness import unless_others_draw, untouched_randomness
from flwr_slfac.cutting.trials import Found, Pair, Trial, differences
from flwr_slfac.errors import CutError

NO_EXAMPLE = (
    "the halves were not run beside the model, in training or in evaluation: cut() was "
    "given no example"
)
# Kernels that add in no fixed order differ from run to run by about as much.
_NOISE = 10.0
# Ours: more than this part of the largest value is no order of additions.
_LARGEST_NOISE = 1e-3


TRIALS = (
    Trial(training=True, changed=False, gradients=True),
    Trial(training=True, changed=True, gradients=True),
    Trial(training=False, changed=False, gradients=True),
    Trial(training=False, changed=True, gradients=False),
)


def prove(
    model: nn.Module,
    halves: tuple[nn.Module, nn.Module],
    example: Tensor,
) -> tuple[str, ...]:
    """Compare the joined halves with the model.

    Parameters
    ----------
    model : nn.Module
        Not changed; neither is any random state.
    halves : (nn.Module, nn.Module)
        Front and back. Not changed.
    example : Tensor
        An input, batch first.

    Returns
    -------
    tuple of str
        What could not be compared, and why; empty if all could.

    Raises
    ------
    CutError
        If outputs, gradients of parameters or of the input, or buffers differ.
    """
    tensors = [*model.parameters(), *model.buffers(), example]
    if any(t.is_meta for t in tensors):
        return ("values: the model or the example is on the meta device",)
    unproven: list[str] = []
    with untouched_randomness(), _exact():
        for trial in TRIALS:
            tried = partial(_try, Pair(model, halves), trial, example)
            unproven += unless_others_draw(tried)
    return tuple(unproven)


@contextmanager
def _exact() -> Iterator[None]:
    """Switch off kernels that give other bits: PyTorch's fused attention layers.

    The whole model takes them in evaluation without gradients, a half may not.
    """
    fused, cudnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    torch.backends.mha.set_fastpath_enabled(False)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with torch.inference_mode(False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        cudnn.benchmark, cudnn.deterministic = before


def _try(pair: Pair, trial: Trial, example: Tensor) -> list[str]:
    """Make one trial; return what could not be compared in it."""
    batch = example.repeat_interleave(2, 0) if example.shape[:1] == (1,) else example
    inputs = [torch.cat([batch, batch[:1]])] if trial.changed else []
    reason = ""
    for x in [*inputs, batch]:
        try:
            whole = pair.whole(trial, x)
        except CutError:
            raise
        except Exception as error:
            reason = f"the model fails on {len(x)} examples {trial}: {error}"
            continue
        reason = ""
        if differences(whole, _joined(pair, trial, x)):
            with _one_thread():
                whole = pair.whole(trial, x)
                if worst := differences(whole, _joined(pair, trial, x)):
                    reason = _require_noise(worst, whole, pair.whole(trial, x), trial)
        break
    return [reason] if reason else []


def _joined(pair: Pair, trial: Trial, x: Tensor) -> Found:
    try:
        return pair.joined(trial, x)
    except Exception as error:
        raise CutError(
            f"The joined halves fail {trial}, where the model does not: {error}"
        ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """Add in a fixed order on a CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _require_noise(
    worst: list[tuple[str, float]], whole: Found, again: Found, trial: Trial
) -> str:
    """Refuse a difference that is more than that of two runs of the model."""
    noise = dict(differences(whole, again))
    beyond = [(n, by) for n, by in worst if not by <= _NOISE * noise.get(n, 0.0)]
    if beyond:
        raise CutError(_message(beyond, trial))
    for name, by in noise.items():
        value = whole[name]
        most = 0.0
        if isinstance(value, Tensor) and not value.is_cpu:
            most = _LARGEST_NOISE * float(value.abs().max())
        if by > most:
            raise CutError(
                f"The model itself is another each time {trial}: {name} differs by "
                f"{by:.3g} though torch's seed is the same. It may draw from a "
                "generator that is not torch's, or count its calls."
            )
    return f"bits {trial}: the model's own differ from run to run on this device"


def _message(worst: list[tuple[str, float]], trial: Trial) -> str:
    named = ", ".join(
        f"{name} by {by:.3g}" if by < float("inf") else name for name, by in worst[:3]
    )
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return (
        f"The joined halves are not the model {trial}. These differ: {named}{more}. "
        "Its forward does something that a trace does not hold, such as a branch on "
        "values or on torch.is_grad_enabled(), or a context of its own. Write it in "
        "tensors, or move it into a module of torch.nn."
    )
