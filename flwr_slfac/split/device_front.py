"""The front of a device: under the mask of the round, trained, sent back, kept."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flwr_slfac.errors import TrainingError
from flwr_slfac.lightweight import StepCost
from flwr_slfac.lightweight.pruning import Channels, CutMask
from flwr_slfac.split.batches import require_batch
from flwr_slfac.split.device import TrainedFront
from flwr_slfac.split.features import require_cut
from flwr_slfac.split.forwards import Forwards, TwoCopies
from flwr_slfac.split.front_cost import FrontCosts
from flwr_slfac.split.front_features import (
    Activations,
    FrontUpdate,
    activations_of,
    update_of,
)
from flwr_slfac.split.gradient_rules import GradientRule, gradient_rules
from flwr_slfac.split.held_part import HeldPart
from flwr_slfac.split.lasting import same_mask
from flwr_slfac.split.place import Moment, seeded
from flwr_slfac.split.protocol import Begin, TrainRequest
from flwr_slfac.split.tuning import Tuning

Kept = Mapping[str, Any]


class DeviceFront:
    """A device's front, from round to round.

    Between rounds it has no state of its own: what the device keeps is a mapping that
    `finish` returns and `take` and `start` are given, with the keys ``front`` (of a
    front that stays on the device), ``mask``, ``residual``, ``tuning`` and ``buffers``
    (those that are not persistent, if they changed).

    Parameters
    ----------
    device : TrainedFront
        The front and how it is trained.
    example : callable
        Returns one input, batch first; called when channels are first asked for.
    """

    def __init__(
        self, device: TrainedFront, example: Callable[[], torch.Tensor]
    ) -> None:
        self._device = device
        self._where = torch.device(device.device)
        self._part = HeldPart(device.front.to(self._where), example)
        self._activations = Activations()
        self._rules: list[GradientRule] = []
        self._update = FrontUpdate()
        self._tuning: Tuning | None = None
        self._forwards = Forwards(self.network)
        self._costs = FrontCosts(self._part.full, self._where)

    @property
    def network(self) -> nn.Module:
        """What runs: the whole front unless channels are pruned."""
        return self._part.network

    @property
    def channels_sent(self) -> CutMask:
        """Which channels of the smashed data the network computes."""
        return self._part.channels_sent

    @property
    def channels(self) -> Channels:
        """The channels that can be pruned.

        Raises
        ------
        SettingError
            If the front's channels cannot be pruned.
        """
        return self._part.channels

    def take(self, begin: Begin, kept: Kept, who: str) -> bool:
        """Load the front that was sent, or the kept one; False if that is not here.

        Raises
        ------
        DecodeError, SettingError
            If the mask is not one of this front; if channels cannot be pruned, names
            or shapes differ, or the cut does.
        """
        require_cut(begin.cut_features, self._part.full, who)
        front, same = begin.front, same_mask(begin.mask, kept)
        if front is None:
            resident = kept.get("front")
            if not same or not resident or resident["version"] != begin.version:
                return False
            front = resident["state"]
        self._configure(begin)
        self._part.trained.load(front, who)
        self.load_buffers(kept.get("buffers", {}) if same else {})
        return True

    def start(self, begin: Begin, kept: Kept) -> None:
        """Make ready to train from what `take` loaded.

        What refers to the server's front refers to the one that was sent last, also
        where the device goes on with its own.

        Raises
        ------
        SettingError
            If the front cannot be trained as asked.
        """
        if begin.front is not None:
            self._update.start(self._part.trained.part)
        else:
            self._update.reference = kept["front"]["reference"]
        # What was lost under another mask belongs to other coordinates.
        same = same_mask(begin.mask, kept)
        self._update.residual = kept.get("residual", {}) if same else {}
        for rule in self._rules:
            rule.start(self.network)
            if begin.front is None:
                rule.go_on(kept["front"]["rules"], self._where)
        if begin.pipeline_depth:
            self._forwards = TwoCopies(self.network)
        self._tuning = self._part.tuning(self._device)
        # Moments of another mask fit no more; the schedule goes on.
        self._tuning.load(kept.get("tuning", {}), moments=same)
        self._tuning.start_round(begin.server_round)

    def forward(
        self, inputs: torch.Tensor, moment: Moment, *, again: bool = False
    ) -> torch.Tensor:
        """Return the activations of a training batch, or those that it gave before.

        Raises
        ------
        SettingError
            If the front does not give one tensor, batch first, or cannot be pipelined.
        """
        network = self._forwards.network(moment.step, again=again)
        network.train()
        with (
            seeded(moment.seed_of("forward"), self._where),
            self._activations.holding(network),
        ):
            out = network(inputs.to(self._where))
        require_batch(out, len(inputs))
        self._forwards.ran(moment.step)
        return out  # type: ignore[no-any-return]

    def handle(self, sent: torch.Tensor) -> torch.Tensor:
        """Return what `step` begins at once `sent` is on the wire."""
        return self._activations.handle(sent)

    def step(self, sent: torch.Tensor, gradient: torch.Tensor, moment: Moment) -> None:
        """Update the weights by the gradient of what was sent."""
        tuning = self._require_started()
        tuning.zero_grad()
        if sent.requires_grad:
            sent.backward(gradient)  # type: ignore[no-untyped-call]
        self._forwards.collect(moment.step)
        self._part.trained.drop_gradients()
        for rule in self._rules:
            rule.apply(self.network, moment)
        tuning.step()

    def send(self, moment: Moment) -> dict[str, Any]:
        """Return the fields of a reply that bring the front, before a mean comes."""
        return self._update.pack(self._part.trained.part(), moment)[0]

    def go_on(self, request: TrainRequest, moment: Moment, who: str) -> None:
        """Take up the mean that followed what `send` returned, perhaps under a mask.

        Raises
        ------
        DecodeError, SettingError, TrainingError
            If it is not a mean of such fronts, or the mask none of this front.
        """
        update = self._update
        mean = update.unpack_mean(request)
        _, update.residual = update.pack(self._part.trained.part(), moment)
        if request.mask:
            self._renew(request.mask)
        with self._require_started().carried():
            self._part.trained.load(mean, who)
        update.start(self._part.trained.part)
        for rule in self._rules:
            rule.start(self.network)

    def test(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the activations of a test batch."""
        with torch.no_grad():
            return self.network(inputs.to(self._where))  # type: ignore[no-any-return]

    def finish(
        self, begin: Begin, moment: Moment
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields of the last reply, and what is kept, after a round."""
        tuning = self._require_started()
        part = self._part.trained.part()
        sent: dict[str, Any] = {}
        residual = self._update.residual
        keeps: dict[str, Any] = {}
        if begin.aggregate:
            sent, residual = self._update.pack(part, moment)
        else:
            keeps["front"] = {
                "state": part,
                "version": begin.version,
                "reference": self._update.reference,
                "rules": {rule.name: rule.state() for rule in self._rules},
            }
        if residual:
            keeps["residual"] = dict(residual)
        d = self._device
        if d.keep_optimizer or d.scheduler:
            keeps["tuning"] = tuning.state(moments=d.keep_optimizer)
        if self._part.mask:
            keeps["mask"] = self._part.mask
        buffers = self.buffers()
        if unsent := {n: b for n, b in buffers.items() if n not in part}:
            keeps["buffers"] = unsent
        return sent, keeps

    def cost(self, begin: Begin, inputs: Callable[[], torch.Tensor]) -> StepCost | None:
        """Return what a step on a batch costs, where asked for."""
        return self._costs.of(self.held_of(begin), self.network, inputs)

    def forget_round(self) -> None:
        """Let go of what lasts for a round."""
        self._tuning, self._rules = None, []
        self._update = FrontUpdate()
        self._forwards = Forwards(self.network)

    def held_of(self, begin: Begin) -> Begin:
        """Return what would begin the round with the part that is held now."""
        return replace(begin, front=None, mask=self._part.mask)

    def state(self, step: int) -> dict[str, Any]:
        """Return the state after the forward of a step; with buffers, for `restore`."""
        return {
            **self._forwards.state(step),
            "front": self.network.state_dict(),
            "rules": [rule.state() for rule in self._rules],
            "reference": self._update.reference,
            "residual": dict(self._update.residual),
            "tuning": None
            if self._tuning is None
            else self._tuning.state(moments=True),
        }

    def restore(self, begin: Begin, state: Mapping[str, Any], step: int) -> None:
        """Take up the round that `state` describes, after the forward of a step."""
        self._configure(begin)
        self.network.load_state_dict(state["front"])
        self.load_buffers(state["buffers"])
        for rule, own in zip(self._rules, state["rules"], strict=True):
            rule.load(own, self._where)
        self._update.reference = state["reference"]
        self._update.residual = state["residual"]
        self._tuning = None
        if "weights" in state:
            copies = self._forwards = TwoCopies(self.network)
            copies.load(step, state)
        if state["tuning"] is not None:
            self._tuning = self._part.tuning(self._device)
            self._tuning.load(state["tuning"])

    def buffers(self) -> dict[str, torch.Tensor]:
        """Return a copy of the buffers that a forward may change, or has changed."""
        return self._part.buffers()

    def load_buffers(self, buffers: Mapping[str, torch.Tensor]) -> None:
        """Bring back what `buffers` returned."""
        self._part.load_buffers(buffers)

    def _configure(self, begin: Begin) -> None:
        """Take over the configuration and the mask of a round."""
        self._activations = activations_of(begin.config)
        self._rules = gradient_rules(begin)
        self._update = update_of(begin.config)
        self._part.put_on(begin.mask, begin.config)
        self._forwards = Forwards(self.network)

    def _renew(self, mask: bytes) -> None:
        """Hold another part, as at the start of a round under another mask."""
        schedule = self._require_started().state(moments=False)
        self._part.renew(mask)
        self._forwards, self._update.residual = Forwards(self.network), {}
        self._tuning = self._part.tuning(self._device)
        self._tuning.load(schedule, moments=False)

    def _require_started(self) -> Tuning:
        if self._tuning is None:
            raise TrainingError("the front was asked to step before a round began")
        return self._tuning
