"""The device under test: flwr_slfac's ClientApp behind a door that can fail."""

import os
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from unittest import mock

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import TensorDataset

import flwr_slfac._release
from flwr_slfac import Device, client_app, cut
from splitapp.task import Fault, Job, build_data, build_device, build_model

app = ClientApp()


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
    return client_app(partial(device, text), live_cache=Job.from_json(text).live_cache)


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


app.train("step")(answer)
app.evaluate("step")(answer)
app.query("partition")(answer)
app.query("describe")(answer)
