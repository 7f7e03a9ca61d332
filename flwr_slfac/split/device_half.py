"""The device's side of a step. State that survives without the live graph.

Between two requests the graph of the last forward may be lost (another process
answers). What is kept is the state before that forward: the forward is then run again
from the same weights, buffers, batch and noise, and gives the same graph.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch

from flwr_slfac._release import RELEASE, compatible
from flwr_slfac.codec import (
    Identity,
    Integers,
    Memory,
    decode,
    encode,
    parse_codec,
    restart,
)
from flwr_slfac.errors import SettingError, TrainingError, VersionError
from flwr_slfac.lightweight import FULL_BITS, Orders, step_cost
from flwr_slfac.lightweight.activations import saved_in_8_bits, without_values
from flwr_slfac.lightweight.quantization import pack_update, quantize_gradients
from flwr_slfac.split.absent import drop_mask
from flwr_slfac.split.batches import BatchOrder, Pair, fetch
from flwr_slfac.split.device import Device, has_batch_norm
from flwr_slfac.split.held_front import HeldFront
from flwr_slfac.split.noise import seed_for, seeded
from flwr_slfac.split.protocol import (
    Begin,
    Description,
    EvaluateReply,
    EvaluateRequest,
    Smashed,
    TrainReply,
    TrainRequest,
)
from flwr_slfac.split.state import pack_state, unpack_state
from flwr_slfac.split.tuning import Tuning
from flwr_slfac.states import State

_FIRST_FORWARD = -1  # "no forward has run yet in this round"


class DeviceHalf:
    """Answers the server's requests for one device.

    Parameters
    ----------
    device : Device
        Model, data and settings.
    partition : int
        Partition id: the device's name in seeds, reports and order of summation.
    """

    def __init__(self, device: Device, partition: int) -> None:
        self.device = device
        self.partition = partition
        self._where = torch.device(device.device)
        self._held = HeldFront(device.front.to(device.device), self._example)
        self._begin: Begin | None = None
        self._orders = Orders()
        self._order: BatchOrder | None = None
        self._tuning: Tuning | None = None
        self._step = _FIRST_FORWARD
        self._graph: torch.Tensor | None = None
        self._buffers_before: dict[str, torch.Tensor] = {}
        self._anchor: dict[str, torch.Tensor] = {}
        # Codec memory: of the encoder now and before the last forward, of the decoder.
        self._up: Memory = {}
        self._up_before: Memory = {}
        self._down: Memory = {}
        self._kept: dict[str, Any] = {}
        self._kept_bytes: bytes | None = None
        # What the server sent, if the update is taken against it.
        self._reference: dict[str, torch.Tensor] = {}
        self._costs: dict[Any, str] = {}
        self._codec_s = 0.0

    @property
    def front(self) -> torch.nn.Module:
        """The network that runs: the front, without the channels that are pruned."""
        return self._held.network

    def describe(self, *, channels: bool) -> Description:
        """Return the device's profile, and the channels of its front where asked.

        Raises
        ------
        SettingError
            If the front's channels cannot be pruned.
        """
        text = self._held.channels.to_text() if channels else ""
        return Description(self.partition, dict(self.device.profile), text)

    def train(self, request: TrainRequest) -> TrainReply:
        """Carry out one fused step; a repeated request gives the same reply.

        Raises
        ------
        SettingError
            If the device's settings or data cannot be trained with.
        TrainingError
            If the request does not follow the one before.
        """
        start = time.perf_counter()
        self._codec_s = 0.0
        if request.begin is not None and not self._begin_round(request.begin):
            return TrainReply(self.partition, 0, wants_front=True)
        if self._begin is None or self._order is None:
            raise TrainingError(
                f"device {self.partition} was asked for step {request.step} of a round "
                "that it did not begin"
            )
        if request.gradient is not None:
            self._backward(request.step - 1, request.gradient)
        smashed, results = None, {}
        if request.step < self._order.num_steps:
            smashed = self._forward(request.step)
        else:
            results = self._finish()
        elapsed = time.perf_counter() - start
        return TrainReply(
            device=self.partition,
            num_steps=self._order.num_steps,
            smashed=smashed,
            done=smashed is None,
            **results,
            compute_s=elapsed - self._codec_s,
            codec_s=self._codec_s,
        )

    def evaluate(self, request: EvaluateRequest) -> EvaluateReply:
        """Run the front over test batches, as many as fit the request's limit."""
        start = time.perf_counter()
        self._codec_s = 0.0
        if request.begin is not None:
            begin = request.begin
            self._require_release(begin)
            if not self._take_front(begin):
                raise TrainingError(
                    f"device {self.partition} does not have the front that it is to "
                    "test"
                )
            self._begin = begin
        if self._begin is None:
            raise TrainingError(
                f"device {self.partition} was not given a front to test"
            )
        sizes = self.device.test_batch_sizes()
        batches: list[Smashed] = []
        num_bytes = 0
        self.front.eval()
        for index in range(request.first, len(sizes)):
            smashed = self._test_batch(index, sizes)
            num_bytes += len(smashed.activations) + len(smashed.targets)
            batches.append(smashed)
            if num_bytes >= request.max_bytes:
                break
        if request.first + len(batches) >= len(sizes):
            self._begin = None
        elapsed = time.perf_counter() - start
        return EvaluateReply(
            device=self.partition,
            num_batches=len(sizes),
            batches=batches,
            compute_s=elapsed - self._codec_s,
            codec_s=self._codec_s,
        )

    def snapshot(self) -> bytes | None:
        """Return the state of the round in progress, or None between rounds."""
        if self._begin is None:
            return None
        state: dict[str, Any] = {
            "begin": {**vars(self._begin), "front": None},
            "front": {**self.front.state_dict(), **self._buffers_before},
            "step": self._step,
            "anchor": self._anchor,
            "reference": self._reference,
            "memory": (self._up, self._up_before, self._down),
        }
        if self._tuning:
            state["tuning"] = self._tuning.state(moments=True)
        return pack_state(state)

    def restore(self, snapshot: bytes | None) -> None:
        """Take up the round that `snapshot` describes; the graph is lost."""
        self._graph = None
        if snapshot is None:
            self._forget_round()
            return
        state = unpack_state(snapshot)
        self._begin = Begin(**state["begin"])
        self._follow(self._begin)
        self.front.load_state_dict(state["front"])
        self._buffers_before = self._clone_buffers()
        self._up, self._up_before, self._down = state["memory"]
        self._anchor = {k: v.to(self._where) for k, v in state["anchor"].items()}
        self._reference = state["reference"]
        self._step = state["step"]
        if "tuning" in state:
            self._order = self._batches(self._begin)
            self._tuning = self._new_tuning()
            self._tuning.load(state["tuning"])

    @property
    def kept(self) -> bytes | None:
        """What the device keeps from round to round, or None."""
        if self._kept_bytes is None and self._kept:
            self._kept_bytes = pack_state(self._kept)
        return self._kept_bytes

    @kept.setter
    def kept(self, data: bytes | None) -> None:
        self._kept = {} if data is None else unpack_state(data)
        self._kept_bytes = data

    def _begin_round(self, begin: Begin) -> bool:
        """Take up a round; return False if its front is not here."""
        self._require_release(begin)
        parse_codec(begin.up)
        order = self._batches(begin)
        if not self._take_front(begin):
            return False
        self._require_batches(order, begin)
        self._forget_round()
        self._begin, self._order = begin, order
        if self._orders.update_bits < FULL_BITS:
            lived = self._kept.get("front", {})
            sent = begin.front is not None
            self._reference = self._held.state() if sent else lived["reference"]
        self._buffers_before = self._clone_buffers()
        if begin.proximal_mu:
            self._anchor = {
                n: p.detach().clone() for n, p in self.front.named_parameters()
            }
        self._tuning = self._new_tuning()
        # Moments of another mask fit no more.
        if self._has_kept(begin.mask):
            self._tuning.load(self._kept.get("tuning", {}))
        self._tuning.start_round(begin.server_round)
        self._up = restart(self._kept.get("memory", {}))
        return True

    def _take_front(self, begin: Begin) -> bool:
        """Wear the mask and load the front that was sent, or the one that was kept."""
        front = begin.front
        if front is None:
            lived = self._kept.get("front")
            if lived is None or lived["version"] != begin.version:
                return False
            if not self._has_kept(begin.mask):
                return False
            front = lived["state"]
        self._follow(begin)
        self._held.load(front, f"device {self.partition}")
        return True

    def _has_kept(self, mask: bytes) -> bool:
        """Say whether what was kept from the last round is under this mask."""
        return bool(self._kept.get("mask", b"") == mask)

    def _follow(self, begin: Begin) -> None:
        self._orders = Orders.from_text(begin.orders) if begin.orders else Orders()
        self._held.wear(begin.mask, structured=self._orders.structured)

    def _forward(self, step: int) -> Smashed:
        """Run the front over a batch and code what comes out."""
        begin = self._require_begun()
        if step == self._step + 1:
            self._buffers_before = self._clone_buffers()
            self._up_before = dict(self._up)
        elif step == self._step:
            self._load_buffers(self._buffers_before)
            self._up = dict(self._up_before)
        else:
            raise self._out_of_step(step)
        self._step = step
        inputs, targets = self._batch(step)
        activations, shape = self._run_front(inputs, step)
        self._graph = self._handle(activations)
        start = time.perf_counter()
        place = (begin.seed, begin.server_round, self.partition, step)
        smashed = Smashed(
            activations=encode(
                activations,
                parse_codec(begin.up),
                role="activation",
                seed=seed_for(*place, "up"),
                memory=self._up,
            ),
            targets=encode_targets(targets),
            num_examples=len(inputs),
            shape=shape,
        )
        self._codec_s += time.perf_counter() - start
        return smashed

    def _backward(self, step: int, gradient: bytes) -> None:
        """Take the step that a gradient asks for, unless it was taken already."""
        if step == self._step - 1 and step >= 0:
            return
        if step != self._step or self._tuning is None or self._begin is None:
            raise self._out_of_step(step)
        if self._graph is None:
            self._load_buffers(self._buffers_before)
            self._graph = self._handle(self._run_front(self._batch(step)[0], step)[0])
        start = time.perf_counter()
        decoded = decode(
            gradient,
            max_elements=self._graph.numel(),
            memory=self._down,
            device=self._where,
        )
        self._codec_s += time.perf_counter() - start
        if decoded.shape != self._graph.shape:
            raise TrainingError(
                f"device {self.partition}, step {step}: the gradient has shape "
                f"{tuple(decoded.shape)}, the activations {tuple(self._graph.shape)}"
            )
        self._tuning.zero_grad()
        if self._graph.requires_grad:
            self._graph.backward(decoded.to(self._graph.dtype))  # type: ignore[no-untyped-call]
        self._add_proximal_term(self._begin.proximal_mu)
        self._quantize_gradients(self._begin, step)
        self._tuning.step()
        self._graph = None

    def _finish(self) -> dict[str, Any]:
        """Return what the last reply holds, and keep what outlives the round."""
        tuning, begin = self._tuning, self._require_begun()
        if tuning is None:
            raise self._out_of_step(self._step)
        front = self._held.state()
        results: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        if begin.orders:
            results["cost"] = self._cost(begin)
        if not begin.aggregate:
            kept["front"] = {
                "state": front,
                "version": begin.version,
                "reference": self._reference,
            }
            if "residual" in self._kept:
                kept["residual"] = self._kept["residual"]
        elif self._orders.update_bits < FULL_BITS:
            results["update"] = self._pack(begin, front, kept)
        else:
            results["front"] = front
        if self.device.keep_optimizer or self.device.scheduler:
            kept["tuning"] = tuning.state(moments=self.device.keep_optimizer)
        if memory := restart(self._up):
            kept["memory"] = memory
        if begin.mask:
            kept["mask"] = begin.mask
        self._kept, self._kept_bytes = kept, None
        order = self._order
        self._forget_round()
        self._order = order
        return results

    def _pack(self, begin: Begin, front: State, kept: dict[str, Any]) -> bytes:
        """Quantize the front's update; put what it lost where it is kept."""
        orders = self._orders
        residual: dict[str, torch.Tensor] | None = None
        if orders.error_feedback:
            residual = {}
            # What was lost under another mask belongs to other coordinates.
            if self._has_kept(begin.mask):
                residual = dict(self._kept.get("residual", {}))
            kept["residual"] = residual
        place = (begin.seed, begin.server_round, self.partition, self._step)
        generator = torch.Generator().manual_seed(seed_for(*place, "update"))
        return pack_update(
            front,
            self._reference,
            orders.update_bits,
            generator,
            bucket=orders.bucket,
            residual=residual,
        )

    def _quantize_gradients(self, begin: Begin, step: int) -> None:
        if self._orders.gradient_bits == FULL_BITS:
            return
        place = (begin.seed, begin.server_round, self.partition, step)
        generator = torch.Generator().manual_seed(seed_for(*place, "gradient"))
        quantize_gradients(
            self.front.parameters(),
            self._orders.gradient_bits,
            generator,
            self._orders.bucket,
        )

    def _cost(self, begin: Begin) -> str:
        """Return what a step costs, measured once a mask."""
        key = (begin.mask, begin.orders)
        if key not in self._costs:
            inputs = self._batch(0)[0].to(self._where)
            cost = step_cost(
                self.front, self._held.full, inputs, self._orders.saved_bits
            )
            self._costs = {key: cost.to_text()}
        return self._costs[key]

    def _forget_round(self) -> None:
        self._begin = self._order = self._tuning = self._graph = None
        self._step = _FIRST_FORWARD
        self._anchor, self._buffers_before, self._reference = {}, {}, {}
        self._up, self._up_before, self._down = {}, {}, {}

    def _example(self) -> torch.Tensor:
        """Return one training input, for the analysis of the front."""
        with seeded(0, self._where):
            inputs, _ = fetch(self.device.train_set, torch.tensor([0]))
        return inputs.to(self._where)

    def _batch(self, step: int) -> Pair:
        begin = self._require_begun()
        if self._order is None:
            raise self._out_of_step(step)
        place = (begin.seed, begin.server_round, self.partition, step)
        with seeded(seed_for(*place, "data"), self._where):
            return fetch(self.device.train_set, self._order.indices(step))

    def _run_front(
        self, inputs: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Return what travels, and the activations' shape if some are dropped."""
        begin, orders = self._require_begun(), self._orders
        place = (begin.seed, begin.server_round, self.partition, step)
        self.front.train()
        with seeded(seed_for(*place, "forward"), self._where):
            if orders.saved_bits == FULL_BITS:
                out = self.front(inputs.to(self._where))
            else:
                with saved_in_8_bits(self.front):
                    out = self.front(inputs.to(self._where))
        if (
            not isinstance(out, torch.Tensor)
            or out.ndim == 0
            or len(out) != len(inputs)
        ):
            raise SettingError(
                "the front must give one tensor whose first dimension is the batch; "
                f"for {len(inputs)} examples it gave "
                f"{tuple(out.shape) if isinstance(out, torch.Tensor) else type(out)}"
            )
        if not orders.dropout:
            return out, ()
        shape = tuple(out.shape)
        return drop_mask(orders, shape, *place).gather(out), shape

    def _handle(self, activations: torch.Tensor) -> torch.Tensor:
        """Return what backward begins at; in 8 bits, it holds no values itself."""
        plain = self._orders.saved_bits == FULL_BITS
        return activations if plain else without_values(activations)

    def _test_batch(self, index: int, sizes: list[int]) -> Smashed:
        begin = self._require_begun()
        first = sum(sizes[:index])
        indices = torch.arange(first, first + sizes[index])
        place = (begin.seed, begin.server_round, self.partition, index)
        if self.device.test_set is None:
            raise self._out_of_step(index)
        with seeded(seed_for(*place, "test"), self._where), torch.no_grad():
            inputs, targets = fetch(self.device.test_set, indices)
            out = self.front(inputs.to(self._where))
        start = time.perf_counter()
        smashed = Smashed(
            # A fresh memory: test batches are coded on their own.
            activations=encode(
                out,
                parse_codec(begin.up),
                role="activation",
                seed=seed_for(*place, "test-up"),
            ),
            targets=encode_targets(targets),
            num_examples=len(inputs),
        )
        self._codec_s += time.perf_counter() - start
        return smashed

    def _add_proximal_term(self, mu: float) -> None:
        """Add the gradient of FedProx's mu/2 |w - w_global|^2."""
        if not mu:
            return
        for name, p in self.front.named_parameters():
            if p.grad is not None:
                p.grad.add_(p.detach() - self._anchor[name], alpha=mu)

    def _batches(self, begin: Begin) -> BatchOrder:
        return self.device.batches(begin.seed, begin.server_round, self.partition)

    def _new_tuning(self) -> Tuning:
        d = self.device
        tuning = Tuning(
            self.front.parameters(),
            d.optimizer,
            d.scheduler,
            d.scheduler_per,
            d.clip_norm,
        )
        self._held.hold_zero(tuning.optimizer)
        return tuning

    def _clone_buffers(self) -> dict[str, torch.Tensor]:
        state = self.front.state_dict()
        names = {n for n, _ in self.front.named_buffers()}
        return {n: t.clone() for n, t in state.items() if n in names}

    def _load_buffers(self, buffers: Mapping[str, torch.Tensor]) -> None:
        own = dict(self.front.named_buffers())
        with torch.no_grad():
            for name, value in buffers.items():
                own[name].copy_(value)

    def _require_begun(self) -> Begin:
        if self._begin is None:
            raise self._out_of_step(self._step)
        return self._begin

    def _require_release(self, begin: Begin) -> None:
        if not compatible(begin.release, RELEASE):
            raise VersionError(
                f"device {self.partition} runs flwr-slfac {RELEASE}, the server "
                f"{begin.release}; install the same release on both"
            )

    def _require_batches(self, order: BatchOrder, begin: Begin) -> None:
        sizes = order.sizes
        if not sizes:
            raise SettingError(
                f"device {self.partition} has fewer examples than batch_size="
                f"{self.device.batch_size} and drop_last=True, so no batch at all; "
                "lower batch_size or set drop_last=False"
            )
        smallest = max(begin.min_batch, 2 if has_batch_norm(self.front) else 1)
        if min(sizes) < smallest:
            raise SettingError(
                f"device {self.partition} has a batch of {min(sizes)} example, and "
                "BatchNorm needs 2; set drop_last=True or choose another batch_size"
            )

    def _out_of_step(self, step: int) -> TrainingError:
        return TrainingError(
            f"device {self.partition} was asked for step {step}; its last forward was "
            f"of step {self._step}"
        )


def encode_targets(targets: torch.Tensor) -> bytes:
    """Code targets without loss, integers in the narrowest width that holds them."""
    return encode(targets, Identity() if targets.is_floating_point() else Integers())
