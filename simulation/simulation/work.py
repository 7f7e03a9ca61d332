"""What a step takes of each half of a cut model: counted operations, least memory."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flwr_slfac import CutPoint, Halves, cut
from flwr_slfac.lightweight import step_cost
from flwr_slfac.report import readable_bytes
from simulation.plan_costs import least_memory_bytes
from simulation.profiles import Profile
from simulation.scenario import Scenario


class _Fed(nn.Module):
    """A back whose input has a gradient, as the smashed data has."""

    def __init__(self, back: nn.Module) -> None:
        super().__init__()
        self.back, self.one = back, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Run the back; multiplying by one is no operation that is counted."""
        out: Tensor = self.back(x * self.one)
        return out


class StepWork:
    """Operations of a step by the size of its batch, each size counted once.

    Parameters
    ----------
    halves : Halves
        The cut model; not changed.
    input_shape : tuple of int
        Of one example.
    """

    def __init__(self, halves: Halves, input_shape: tuple[int, ...]) -> None:
        self._front = copy.deepcopy(halves.front).eval()
        self._back = _Fed(copy.deepcopy(halves.back))
        self._shape = input_shape
        self._known: dict[int, tuple[int, int, int, int]] = {}

    def flops(self, num_examples: int) -> tuple[int, int, int]:
        """Return those of the front's forward and backward, and of the whole back.

        As `flwr_slfac.lightweight.step_cost` counts: convolutions and matrix products,
        a multiply-add as two.
        """
        return self._count(num_examples)[:3]

    def smashed_bytes(self, num_examples: int) -> int:
        """Return the bytes of the smashed data in float32, one way."""
        return self._count(num_examples)[3]

    def _count(self, num_examples: int) -> tuple[int, int, int, int]:
        if num_examples not in self._known:
            inputs = torch.zeros(num_examples, *self._shape)
            with torch.no_grad():
                smashed = self._front(inputs)
            own = step_cost(self._front, self._front, inputs, saved_bits=32)
            back = step_cost(self._back, self._back, smashed, saved_bits=32)
            server = back.forward_flops + back.backward_flops
            self._known[num_examples] = (
                own.forward_flops,
                own.backward_flops,
                server,
                4 * smashed.numel(),
            )
        return self._known[num_examples]


class DeviceWork:
    """Operations of a step of each device, at its own cut.

    Parameters
    ----------
    model : nn.Module
        The model; not changed.
    common : str
        The cut of devices that have none of their own.
    at : mapping of int to str
        Cuts of devices' own.
    input_shape : tuple of int
        Of one example.
    """

    def __init__(
        self,
        model: nn.Module,
        common: str,
        at: Mapping[int, str],
        input_shape: tuple[int, ...],
    ) -> None:
        self._common, self._at = common, dict(at)
        self._works = {
            name: StepWork(cut(model, at=name), input_shape)
            for name in {common, *self._at.values()}
        }

    def of(self, device: int) -> StepWork:
        """Return the operations of a device's steps."""
        return self._works[self._at.get(device, self._common)]


def require_memory(
    scenario: Scenario,
    profiles: Sequence[Profile],
    cuts: Sequence[CutPoint],
    at: Mapping[int, str],
) -> None:
    """Make sure that every device can hold its front.

    Parameters
    ----------
    scenario : Scenario
        Names the cut and the batch size.
    profiles : sequence of Profile
        Its devices.
    cuts : sequence of CutPoint
        All legal cuts of its model.
    at : mapping of int to str
        Cuts of devices' own.

    Raises
    ------
    ScenarioError
        If the cut is none of these, or a device cannot hold it, or any.
    """
    wanted, batch = scenario.training.cut, scenario.training.batch_size
    chosen = next((c for c in cuts if wanted in (c.name, *c.aliases)), None)
    if chosen is None:
        names = ", ".join(cut.name for cut in cuts)
        raise scenario.error("training.cut", f"is {wanted!r}; legal cuts: {names}")
    need = {cut.name: least_memory_bytes(cut, batch) for cut in cuts}
    least = min(need, key=lambda name: need[name])
    for device, profile in enumerate(profiles):
        memory = profile.memory_bytes
        has = f"device {device} has {readable_bytes(memory)} of memory"
        if memory < need[least]:
            raise scenario.error(
                f"devices.tiers.{profile.tier}",
                f"can hold no legal cut: {has}, and the smallest front, up to {least}, "
                f"needs {readable_bytes(need[least])} with batches of {batch}; take "
                "smaller batches, another model, or other devices",
            )
        own = at.get(device, chosen.name)
        if memory < need[own]:
            fits = ", ".join(name for name in need if need[name] <= memory)
            raise scenario.error(
                "training.cut",
                f"is {own if device in at else wanted!r}, whose front needs "
                f"{readable_bytes(need[own])} with batches of {batch}, and "
                f"{has} ({profile.tier}); cuts that it can hold: {fits}",
            )
