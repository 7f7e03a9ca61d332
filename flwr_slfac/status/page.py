"""A run's status as metrics for Prometheus, on the loopback unless told otherwise."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, get_args

from flwr_slfac.errors import SettingError
from flwr_slfac.report import RoundReport
from flwr_slfac.status.run_status import RunStatus
from flwr_slfac.status.status import Phase, Status

DEFAULT_PORT = 9464


class Watched(Protocol):
    """What has a status; `SplitFed` is one."""

    status: RunStatus


class StatusPage:
    """Serves how the run stands as ``http://127.0.0.1:9464/metrics``.

    A callback of `SplitFed`. Anyone who reaches the page may read it: names of metrics,
    numbers of devices and bytes, nothing of data or models. Look at it in a terminal
    with ``python -m flwr_slfac.status``.

    Needs ``pip install "flwr-slfac[status]"``.

    Parameters
    ----------
    port : int (default: 9464)
        Where it listens, 0 for any free port.
    host : str (default: "127.0.0.1")
        The address it listens at.

    Raises
    ------
    SettingError
        If the port is out of range or prometheus-client is missing; from `on_start`,
        if the port is taken.
    """

    def __init__(self, port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> None:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 2**16:
            raise SettingError(f"port is {port!r}; give one from 0 to 65535")
        try:
            import prometheus_client  # noqa: F401
        except ImportError as error:
            raise SettingError(
                'StatusPage needs prometheus-client: pip install "flwr-slfac[status]"'
            ) from error
        self._host, self._port = host, port
        self._serving: tuple[Any, Any] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._serving[0].server_port if self._serving else self._port

    def on_start(self, strategy: Watched) -> None:
        """Begin to serve.

        Raises
        ------
        SettingError
            If the address cannot be listened at.
        """
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(_Collector(strategy.status))
        try:
            self._serving = start_http_server(
                self._port, addr=self._host, registry=registry
            )
        except OSError as error:
            raise SettingError(
                f"the status page cannot listen at {self._host}:{self._port}: {error}; "
                "give StatusPage another port"
            ) from error

    def on_round(self, report: RoundReport) -> None:
        """Do nothing: who looks is told."""

    def on_end(self) -> None:
        """Stop serving."""
        if self._serving is not None:
            server, thread = self._serving
            self._serving = None
            server.shutdown()
            server.server_close()
            thread.join()


class _Collector:
    """Turns a status into families of metrics whenever they are asked for."""

    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def describe(self) -> list[Any]:
        """Name nothing beforehand."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the families of metrics."""
        now = self._status.now()
        yield _gauge("round", "Round, from 1", [((), now.server_round)])
        yield _gauge("rounds", "Rounds of the run", [((), now.num_rounds)])
        yield _gauge("step", "Steps done in this round", [((), now.step)])
        yield _gauge("steps", "Steps of the device with most", [((), now.num_steps)])
        if now.left_s is not None:
            text = "To the end, at the pace so far"
            yield _gauge("left_seconds", text, [((), now.left_s)])
        phases = [([phase], float(phase == now.phase)) for phase in get_args(Phase)]
        yield _gauge("phase", "What it does", phases, "phase")
        yield _total_bytes(now)
        metrics = [([name], value) for name, value in now.metrics.items()]
        yield _gauge("metric", "Of the last finished round", metrics, "name")
        yield from _of_devices(now)


def _of_devices(now: Status) -> Iterator[Any]:
    connected = [([str(d.device)], float(d.connected)) for d in now.devices]
    yield _gauge("device_connected", "Whether it can be reached", connected, "device")
    waits = [([str(d.device)], d.waiting_s) for d in now.devices if d.waiting_s]
    text = "For how long its answer has been waited for"
    yield _gauge("device_waiting_seconds", text, waits, "device")
    crossed = [
        ([str(d.device), direction], num_bytes)
        for d in now.devices
        for direction, num_bytes in d.num_bytes.items()
    ]
    text = "What crossed in this round"
    yield _gauge("device_bytes", text, crossed, "device", "direction")


def _total_bytes(now: Status) -> Any:
    from prometheus_client.core import CounterMetricFamily

    text = "What crossed since the start"
    family = CounterMetricFamily("slfac_bytes", text, labels=["direction"])
    for direction, num_bytes in now.total_bytes.items():
        family.add_metric([direction], num_bytes)
    return family


def _gauge(
    name: str, text: str, values: Iterable[tuple[Sequence[str], float]], *labels: str
) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"slfac_{name}", text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family
