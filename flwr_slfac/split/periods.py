"""Fronts averaged within a round, after every few steps: who holds what.

With a period of I steps, of a device that takes T steps in the round::

    step      0 .. I-1       t = I                        I .. 2 I - 1      ...   T
    device    W = R + steps  ──W - R──►                   W = R + steps           W ──►
    server                   W' = W + (x - R)
                             x  = mean of W' by coordinate
                             ◄──x - R──  R moves by it

x is what the server holds, R what a device was last given, the same on both sides. In
32 bits fronts travel whole and R is the device's part of x. In fewer, both differences
are quantized, and R lags behind x by what was lost on its way down; it is part of the
next difference, as in error feedback, and W' counts it for the device.

A mean is taken after steps I, 2 I, ... over the devices that have taken so many steps
and have further ones in the round, weighted by the examples of their period, by
coordinate over those who hold it. Who is done brings its front at the end of the round,
when the wrapped strategy aggregates all W'. Who is lost leaves what it brought to
earlier means, and nothing else. Copies of the back (``sflv1``) are averaged at the
round's end only.

Where masks are renewed, after every n-th mean, they are chosen from x, for those who go
on. A device whose mask changes is sent the mask and its part of x whole, R, and goes on
as at the start of a round under another mask: without the moments of its optimizer, and
without what its updates and codecs had lost. One whose mask stays goes on as ever.
"""

from collections.abc import Mapping

import torch

from flwr_slfac.lightweight.pruning import Mask, average_coordinates
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.front_features import FrontUpdate
from flwr_slfac.split.inbox import Inbox
from flwr_slfac.split.protocol import TrainReply, TrainRequest
from flwr_slfac.split.server_fronts import Mean, ServerFronts
from flwr_slfac.split.stream import Stream
from flwr_slfac.states import State

Masks = Mapping[int, tuple[Mask, bytes]]


class Periods:
    """What the server and devices hold of fronts within a round.

    Parameters
    ----------
    update : FrontUpdate
        How fronts come back, and means go.

    Attributes
    ----------
    full : mapping of str to Tensor or None
        The front as the server holds it; None before the first mean of a round.
    num_means : int
        Means that were taken in the round.
    """

    def __init__(self, update: FrontUpdate) -> None:
        self._update = update
        self.full: State | None = None
        self.num_means = 0
        # By device: what it was last given, and what it brought to the next mean.
        self._given: dict[int, State] = {}
        self._brought: dict[int, State] = {}

    def start_round(self) -> None:
        """Forget the last round."""
        self.full, self._given, self._brought = None, {}, {}
        self.num_means = 0

    def given(self, device: int) -> State | None:
        """Return what a device was last given within the round, None for nothing."""
        return self._given.get(device)

    def bring(self, device: int, part: State, now: State) -> State:
        """Take the front of a device to the next mean; return what counts of it.

        Parameters
        ----------
        device : int
            Partition id.
        part : mapping of str to Tensor
            The device's front.
        now : mapping of str to Tensor
            Its part of the front as the server holds it.
        """
        given = self._given.get(device, now)
        self._brought[device] = _moved(part, given, now)
        return self._brought[device]

    def average(
        self, masks: Masks, num_examples: Mapping[int, int], full: State
    ) -> State:
        """Return the mean of what devices brought, the front from here on.

        Parameters
        ----------
        masks : mapping of int to (Mask, bytes)
            What devices hold, and its bytes.
        num_examples : mapping of int to int
            Their weights; of those who are asked to go on.
        full : mapping of str to Tensor
            The front as the server holds it.
        """
        order = sorted(num_examples)
        mean = average_coordinates(
            [self._brought[d] for d in order],
            [float(num_examples[d]) for d in order],
            [masks[d][0] for d in order],
            full,
        )
        self.full, self._brought = mean, {}
        self.num_means += 1
        return mean

    def hand_out(self, before: Masks, now: Masks, full: State) -> dict[int, Mean]:
        """Return what each device goes on from.

        Parameters
        ----------
        before, now : mapping of int to (Mask, bytes)
            What devices held, and hold from here on.
        full : mapping of str to Tensor
            The front that devices began the round with.

        Raises
        ------
        DivergedError
            If a difference cannot be sent.
        """
        # To devices that were given the same, the same is coded once.
        coded: dict[tuple[bytes, bytes, int], Mean] = {}
        means = {}
        for device, (mask, data) in now.items():
            given = self._given.get(device)
            key = before[device][1], data, id(given)
            if key not in coded:
                part = mask.take_state(self.full or full)
                if data != before[device][1]:
                    coded[key] = Mean(part, {"front": part, "mask": data})
                else:
                    old = given or mask.take_state(full)
                    fields, arrives = self._update.pack_mean(part, old)
                    coded[key] = Mean(arrives, fields)
            means[device] = coded[key]
        self._given.update({device: mean.part for device, mean in means.items()})
        return means


class Meeting:
    """The devices of a round that wait for a mean.

    Parameters
    ----------
    fronts : ServerFronts
        Takes fronts, and averages them.
    accounts : Accounts
        Where what crosses is entered.
    inbox : Inbox
        Where what devices send is decoded.
    """

    def __init__(self, fronts: ServerFronts, accounts: Accounts, inbox: Inbox) -> None:
        self._fronts, self._accounts, self._inbox = fronts, accounts, inbox
        self._waiting: dict[int, Stream] = {}

    def join(self, stream: Stream, reply: TrainReply, step: int) -> None:
        """Take a device's front before the forward of a step.

        Raises
        ------
        DeviceError
            If it is not what was asked for, or cannot be decoded.
        """
        part = self._fronts.receive(stream.device, reply)
        self._accounts.finished(stream.device, reply, part)
        stream.joined_at = step
        self._waiting[stream.device] = stream

    def requests(self, step: int) -> dict[int, TrainRequest]:
        """Average the fronts of who waits; return what they are told, by key."""
        if not self._waiting:
            return {}
        streams, self._waiting = self._waiting, {}
        weights = {d: s.num_period_examples for d, s in streams.items()}
        requests = {}
        for device, mean in self._fronts.meet(weights).items():
            stream = streams[device]
            stream.num_period_examples = 0
            if mean.fields.get("mask"):
                stream.end.renew(self._fronts.at_cut(device))
                self._inbox.renew(stream.key)
            requests[stream.key] = TrainRequest(step, **mean.fields)
            self._accounts.mean(device, requests[stream.key], mean.part)
        return requests


def _moved(part: State, given: State, now: State) -> State:
    """Return a part moved by what its device lacked of the front."""
    moved = {}
    for name, tensor in part.items():
        old, new = given[name], now[name]
        if not tensor.is_floating_point() or old is new or torch.equal(old, new):
            moved[name] = tensor
            continue
        lacked = new.to(torch.float64) - old.to(torch.float64)
        moved[name] = (tensor.to(torch.float64) + lacked).to(tensor.dtype)
    return moved
