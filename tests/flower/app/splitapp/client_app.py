"""The device under test: flwr_slfac's ClientApp behind a door that can fail."""

import os
import time
from functools import cache, partial
from pathlib import Path
from unittest import mock

import torch
from flwr.app import ConfigRecord, Context, Message
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
    if message.metadata.message_type == "train.step":
        here = (context.node_config["partition-id"], notes["round"], record["step"])
        for fault in job.faults:
            if (fault.device, fault.server_round, fault.step) == here:
                fail(fault, folder)
    release = "9.9.9" if job.bad == "release" else flwr_slfac.__version__
    with mock.patch.object(flwr_slfac._release, "RELEASE", release):
        return inner_app(text)(message, context)


def fail(fault: Fault, folder: Path) -> None:
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


app.train("step")(answer)
app.evaluate("step")(answer)
app.query("partition")(answer)
app.query("describe")(answer)
