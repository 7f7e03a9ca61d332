"""Federated evaluation through the split: test batches up, metrics on the server."""

import math
from collections.abc import Mapping

from flwr_slfac.errors import DeviceError
from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.codec_pool import CodecPool
from flwr_slfac.split.crossing import ServerEnd
from flwr_slfac.split.inbox import EvaluationInbox
from flwr_slfac.split.link import Link
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import (
    Begin,
    EvaluateAnswer,
    EvaluateReply,
    EvaluateRequest,
    Lost,
)
from flwr_slfac.split.results import log_lost
from flwr_slfac.split.server_run import ServerRun


class Evaluation:
    """One round's evaluation.

    Parameters
    ----------
    run : ServerRun
        The server's side of the run.
    accounts : Accounts
        Where what crosses is entered.
    """

    def __init__(self, run: ServerRun, accounts: Accounts) -> None:
        self._run, self._accounts = run, accounts
        self._server, self._fronts, self._side = run.server, run.fronts, run.side
        self._raises = run.on_device_error == "raise"
        # By key: the device, and sums of metrics over its examples.
        self._devices: dict[int, int] = {}
        self._num_batches: dict[int, int] = {}
        self._faults: list[Exception] = []
        self._sums: dict[int, dict[str, float]] = {}
        # Examples behind the loss: batches whose targets are all ignored have none.
        self._judged: dict[int, int] = {}

    def evaluate(
        self,
        link: Link,
        keys: list[int],
        begin: Begin,
        max_bytes: int,
        pool: CodecPool,
    ) -> dict[int, dict[str, float]]:
        """Return each device's metrics by key, see `Rounds.evaluate`."""
        begins = self._begins(link, keys, begin)
        requests = {k: EvaluateRequest(0, max_bytes, b) for k, b in begins.items()}
        self._inbox = EvaluationInbox(self._side, pool)
        while requests:
            answers = self._exchange(link, requests)
            following = {}
            for key in sorted(requests):
                answer, first = answers[key], requests[key].first
                try:
                    done = self._take(key, answer, first, begin)
                except Exception as error:  # of the back, too: it is given test data
                    if self._raises:
                        raise
                    self._faults.append(error)
                    self._lose(key, answer, f"at fault: {error}", begin)
                    continue
                if done:
                    following[key] = EvaluateRequest(done, max_bytes)
            requests = following
        if len(self._faults) == len(keys) > 1:
            # Every device at fault: that is the user's setting, model or metric.
            raise self._faults[0]
        return self._means()

    def _exchange(
        self, link: Link, requests: Mapping[int, EvaluateRequest]
    ) -> dict[int, EvaluateAnswer]:
        """Ask devices; begin to decode the first answers as they arrive."""
        answers: dict[int, EvaluateAnswer] = {}
        for key, answer in link.evaluate_each(requests.items()):
            answers[key] = answer
            if isinstance(answer, EvaluateReply):
                self._inbox.put(key, answer.batches)
        replies = {k: a for k, a in answers.items() if isinstance(a, EvaluateReply)}
        self._inbox.line_up({k: replies[k].batches for k in sorted(replies)})
        return answers

    def _begins(self, link: Link, keys: list[int], begin: Begin) -> dict[int, Begin]:
        if not (self._fronts.needs_devices or self._run.codecs):
            return dict.fromkeys(keys, begin)
        devices = link.devices(keys)
        self._fronts.prepare(link, devices, self._accounts, None)
        begins = {}
        for key, device in devices.items():
            own = self._fronts.begin_evaluation(device, begin)
            begins[key], _ = self._run.coding(device, own)
            self._accounts.begun(device, begins[key])
        return begins

    def _take(self, key: int, answer: EvaluateAnswer, first: int, begin: Begin) -> int:
        """Evaluate the batches of an answer; return how many there are, 0 if all.

        Raises
        ------
        DeviceError
            If the device is at fault.
        """
        if isinstance(answer, Lost):
            if answer.at_fault:
                name = key if answer.device is None else answer.device
                raise DeviceError(f"device {name} {answer.reason}")
            self._lose(key, answer, answer.reason, begin)
            return 0
        device = self._devices.setdefault(key, answer.device)
        done = self._require_in_turn(key, answer, first)
        self._accounts.carried(device, answer.carried)
        self._accounts.device_codec(device, answer.codec_s)
        place = Place(begin.seed, begin.server_round, device)
        channels = self._fronts.at_cut(device)
        end = ServerEnd(self._side, place, channels, self._accounts, {})
        for index, smashed in enumerate(answer.batches):
            decoded = self._inbox.take(key, index)
            batch = end.receive_test(smashed, decoded, first + index)
            batch = self._fronts.lift_test(device, batch)
            total = self._sums.setdefault(key, {"num-examples": 0})
            total["num-examples"] += batch.num_examples
            values = self._server.evaluate(batch)
            if "loss" in values:
                self._judged[key] = self._judged.get(key, 0) + batch.num_examples
            for metric, value in values.items():
                total[metric] = total.get(metric, 0.0) + value * batch.num_examples
        return done if done < answer.num_batches else 0

    def _require_in_turn(self, key: int, answer: EvaluateReply, first: int) -> int:
        """Return how many batches there are with these, or raise DeviceError."""
        device, num_batches = self._devices[key], answer.num_batches
        if num_batches:
            self._side.size.limits.require_steps("test batches", num_batches)
        same = self._num_batches.setdefault(key, num_batches) == num_batches
        done = first + len(answer.batches)
        if answer.device != device or not same:
            raise DeviceError(
                f"device {device} says that it is {answer.device}, with {num_batches} "
                f"test batches, and had {self._num_batches[key]}"
            )
        if done > num_batches or (not answer.batches and num_batches):
            raise DeviceError(
                f"device {device} sent {len(answer.batches)} test batches from {first} "
                f"on, of {num_batches} in all"
            )
        return done

    def _lose(self, key: int, answer: EvaluateAnswer, why: str, begin: Begin) -> None:
        self._sums.pop(key, None)
        name = key if answer.device is None else answer.device
        where = f"round {begin.server_round}, evaluation"
        log_lost(where, self._devices.get(key, name), why)

    def _means(self) -> dict[int, dict[str, float]]:
        """Return means by key, in the order of devices.

        A device that has no loss is given the mean of all others.
        """
        judged = sum(self._judged.values())
        losses = sum(sums.get("loss", 0.0) for sums in self._sums.values())
        mean = losses / judged if judged else math.nan
        means = {}
        for key in sorted(self._sums, key=lambda key: self._devices[key]):
            sums = self._sums[key]
            total = sums["num-examples"]
            own = {name: value / total for name, value in sums.items()}
            own["num-examples"] = total
            own["loss"] = sums["loss"] / self._judged[key] if "loss" in sums else mean
            means[key] = own
        return means
