"""Federated evaluation through the split: test batches up, metrics on the server."""

from flwr_slfac.split.accounts import Accounts
from flwr_slfac.split.crossing import ServerEnd, ServerSide
from flwr_slfac.split.place import Place
from flwr_slfac.split.protocol import Begin, EvaluateReply, EvaluateRequest, Link, Lost
from flwr_slfac.split.results import log_lost
from flwr_slfac.split.server_fronts import ServerFronts
from flwr_slfac.split.server_half import ServerHalf


class Evaluation:
    """One round's evaluation.

    Parameters
    ----------
    server : ServerHalf
        The back.
    fronts : ServerFronts
        Who is to test which front.
    side : ServerSide
        What the ends of all devices share.
    accounts : Accounts
        Where what crosses is entered.
    """

    def __init__(
        self,
        server: ServerHalf,
        fronts: ServerFronts,
        side: ServerSide,
        accounts: Accounts,
    ) -> None:
        self._server, self._fronts = server, fronts
        self._side, self._accounts = side, accounts
        # By key: the device, and sums of metrics over its examples.
        self._devices: dict[int, int] = {}
        self._sums: dict[int, dict[str, float]] = {}

    def evaluate(
        self, link: Link, keys: list[int], begin: Begin, max_bytes: int
    ) -> dict[int, dict[str, float]]:
        """Return each device's metrics by key, see `Rounds.evaluate`."""
        begins = self._begins(link, keys, begin)
        requests = {k: EvaluateRequest(0, max_bytes, b) for k, b in begins.items()}
        while requests:
            answers = link.evaluate(requests)
            following = {}
            for key in sorted(requests):
                answer, first = answers[key], requests[key].first
                if isinstance(answer, Lost):
                    self._sums.pop(key, None)
                    device = key if answer.device is None else answer.device
                    log_lost(begin.server_round, 0, device, answer.reason)
                    continue
                self._take(key, answer, first, begin)
                done = first + len(answer.batches)
                if done < answer.num_batches:
                    following[key] = EvaluateRequest(done, max_bytes)
            requests = following
        return {key: _means(self._sums[key]) for key in self._by_device()}

    def _begins(self, link: Link, keys: list[int], begin: Begin) -> dict[int, Begin]:
        if not self._fronts.needs_devices:
            return dict.fromkeys(keys, begin)
        devices = link.devices(keys)
        self._fronts.prepare(link, devices, self._accounts, None)
        return {k: self._fronts.begin_evaluation(d, begin) for k, d in devices.items()}

    def _take(self, key: int, answer: EvaluateReply, first: int, begin: Begin) -> None:
        """Evaluate the batches of an answer."""
        device = self._devices[key] = answer.device
        self._accounts.carried(device, answer.carried)
        self._accounts.device_codec(device, answer.codec_s)
        place = Place(begin.seed, begin.server_round, device)
        channels = self._fronts.at_cut(device)
        end = ServerEnd(self._side, place, channels, self._accounts, {})
        for index, smashed in enumerate(answer.batches, start=first):
            batch = end.receive_test(smashed, index)
            total = self._sums.setdefault(key, {"num-examples": 0})
            total["num-examples"] += batch.num_examples
            for name, value in self._server.evaluate(batch).items():
                total[name] = total.get(name, 0.0) + value * batch.num_examples

    def _by_device(self) -> list[int]:
        return sorted(self._sums, key=lambda key: self._devices[key])


def _means(sums: dict[str, float]) -> dict[str, float]:
    total = sums["num-examples"]
    return {
        name: value if name == "num-examples" else value / total
        for name, value in sums.items()
    }
