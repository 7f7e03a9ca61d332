"""The device under test: flwr_slfac's ClientApp behind a door that can fail."""

import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    RecordDict,
)
from flwr.clientapp import ClientApp, mod
from torch.optim import SGD
from torch.utils.data import TensorDataset

import flwr_slfac._release
from flwr_slfac import Device, client_app, cut
from flwr_slfac.split import DeviceHalf, TrainReply, TrainRequest
from splitapp.task import Fault, Job, build_data, build_device, build_model

app = ClientApp()


def shouting_mod(message: Message, context: Context, call_next: Any) -> Message:
    """Change what the device receives."""
    message.content["config"]["server-round"] = 99
    return call_next(message, context)


def halving_mod(message: Message, context: Context, call_next: Any) -> Message:
    """Halve the update, and say so."""
    before = message.content["arrays"].copy()
    reply = call_next(message, context)
    after = reply.content["arrays"]
    for name, array in before.items():
        old, new = array.numpy(), after[name].numpy()
        after[name] = Array(np.asarray((old + (new - old) / 2).astype(old.dtype)))
    reply.content["metrics"]["halved"] = 1
    return reply


def shrinking_mod(message: Message, context: Context, call_next: Any) -> Message:
    """Send fewer tensors than were trained."""
    reply = call_next(message, context)
    reply.content["arrays"].pop(next(iter(reply.content["arrays"])))
    return reply


def failing_mod(message: Message, context: Context, call_next: Any) -> Message:
    """Answer with an error."""
    return Message(Error(code=1, reason="it is too cold"), reply_to=message)


MODS = {
    **{name: getattr(mod, name) for name in mod.__all__},
    "LocalDpMod": mod.LocalDpMod(0.5, 0.01, 1.0, 1e-3),
    **{
        each.__name__: each
        for each in (shouting_mod, halving_mod, shrinking_mod, failing_mod)
    },
}


def device(text: str, context: Context) -> Device:
    """Build this node's device for a job, spoiled where the job says so."""
    torch.set_num_threads(1)
    job, partition = Job.from_json(text), int(context.node_config["partition-id"])
    with (Path(str(context.run_config["folder"])) / "built.txt").open("a") as file:
        file.write(f"{job.name} {partition} {os.getpid()}\n")
    built = build_device(job, partition)
    if partition != 1:
        return built
    if job.bad == "other front":
        built.front = cut(build_model(job.seed, channels=5), at="front").front
    elif job.bad == "empty partition":
        built.train_set = TensorDataset(*build_data(1, 0)[:0])
    elif job.bad == "targets dtype":
        x, y = build_data(16, 1).tensors
        built.train_set = TensorDataset(x, y.double())
    return built


@cache
def inner_app(text: str) -> ClientApp:
    """Return flwr_slfac's ClientApp of a job."""
    job = Job.from_json(text)
    return client_app(
        partial(device, text),
        live_cache=job.live_cache,
        mods=[MODS[name] for name in job.mods],
        configure=partial(configure, job) if job.configure else None,
    )


def configure(job: Job, device: Device, config: Mapping[str, Any]) -> None:
    """Take over the learning rate and the number of epochs."""
    device.optimizer = partial(SGD, lr=config.get("lr", 0.1), momentum=0.9)
    device.epochs = config.get("epochs", device.epochs)


def answer(message: Message, context: Context) -> Message:
    """Fail as the job asks, or let flwr_slfac answer."""
    folder = Path(str(context.run_config["folder"]))
    text = (folder / "job.json").read_text()
    job = Job.from_json(text)
    notes = context.state.config_records.get("notes", ConfigRecord({"job": ""}))
    if notes["job"] != job.name:
        # A new job is a new run to the device: nothing is kept from the last one.
        context.state.clear()
        notes = ConfigRecord({"job": job.name, "round": 0})
    record = message.content.config_records["split"]
    notes["round"] = record.get("round", notes["round"])
    context.state["notes"] = notes
    wrong = ""
    if message.metadata.message_type == "train.step":
        here = (context.node_config["partition-id"], notes["round"], record["step"])
        for fault in job.faults:
            if (fault.device, fault.server_round, fault.step) == here:
                wrong = fault.kind if fault.kind in WRONG else fail(fault, folder)
    release = "9.9.9" if job.bad == "release" else flwr_slfac.__version__
    with mock.patch.object(flwr_slfac._release, "RELEASE", release):
        reply = inner_app(text)(message, context)
    return Message(WRONG[wrong](reply.content), reply_to=message) if wrong else reply


def with_value(key: str, value: object) -> Callable[[RecordDict], RecordDict]:
    """Return what sets one value of a reply."""

    def change(content: RecordDict) -> RecordDict:
        content.config_records["split"][key] = value  # type: ignore[assignment]
        return content

    return change


def with_nan(content: RecordDict) -> RecordDict:
    """Return a last reply whose front is NaN."""
    state = content.array_records["arrays"].to_torch_state_dict()
    nan = {k: v * torch.nan if v.is_floating_point() else v for k, v in state.items()}
    content["arrays"] = ArrayRecord(nan)
    return content


def with_noise(content: RecordDict) -> RecordDict:
    """Return a last reply whose front is no array at all."""
    name = next(iter(content.array_records["arrays"]))
    array = Array("float32", (3,), "numpy.ndarray", b"no array")
    content.array_records["arrays"][name] = array
    return content


WRONG: dict[str, Callable[[RecordDict], RecordDict]] = {
    "garbage": with_value("activations", b"garbage"),
    "no number": with_value("num-steps", "many"),
    "no end": with_value("num-steps", 10**15),
    "an impostor": with_value("device", 0),
    "no record": lambda content: RecordDict({}),
    "NaN": with_nan,
    "noise": with_noise,
}


def fail(fault: Fault, folder: Path) -> str:
    """Raise, die, or answer not before the run is over."""
    with (folder / "faults.txt").open("a") as file:
        file.write(f"{fault.kind} {fault.device} {os.getpid()}\n")
    if fault.kind == "raise":
        raise ValueError("the battery is flat")
    if fault.kind == "die":
        os._exit(9)
    if fault.kind == "die late":
        time.sleep(1.0)
        os._exit(9)
    deadline = time.monotonic() + 120
    while not (folder / "over").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return ""


def stream(message: Message, context: Context) -> Message:
    """Let flwr_slfac answer a whole session; the device's data fail as the job asks."""
    folder = Path(str(context.run_config["folder"]))
    text = (folder / "job.json").read_text()
    job = Job.from_json(text)
    notes = context.state.config_records.get("notes", ConfigRecord({"job": ""}))
    if notes["job"] != job.name:
        context.state.clear()
        context.state["notes"] = ConfigRecord({"job": job.name, "round": 0})
    partition, place = context.node_config["partition-id"], {"round": 0}
    plain_train = DeviceHalf.train

    def train(half: DeviceHalf, request: TrainRequest) -> TrainReply:
        if request.begin is not None:
            place["round"] = request.begin.server_round
        for fault in job.faults:
            here = (partition, place["round"], request.step)
            if (fault.device, fault.server_round, fault.step) == here:
                fail(fault, folder)
        time.sleep(job.pace_s)
        return plain_train(half, request)

    with mock.patch.object(DeviceHalf, "train", train):
        return inner_app(text)(message, context)


app.train("step")(answer)
app.train("stream")(stream)
app.evaluate("step")(answer)
app.query("partition")(answer)
app.query("describe")(answer)
