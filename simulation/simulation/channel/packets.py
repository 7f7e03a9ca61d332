"""Packets that are lost and sent again, and messages that arrive late."""

from dataclasses import dataclass

from simulation.draws import generator
from simulation.numbers import require_at_least, require_positive, require_share


@dataclass(frozen=True)
class Packets:
    """Loss, latency and jitter of messages.

    Parameters
    ----------
    latency_s : float
        Least one-way delay of a message, beside the time of sending it.
    jitter_s : float
        Mean of what is added to it: exponential, drawn by message. Our choice, because
        delays have a floor and a tail to the right.
    loss : float
        Share of packets that are lost, in [0, 1). A lost packet is sent again until it
        arrives, at the cost of its time on air only (selective repeat).
    drawn : bool
        False: n bytes take n / (1 - loss) on air, the mean. True: the packets that are
        lost are drawn by message (negative binomial).
    packet_bytes : int
        Size of a packet; 1500 is an Ethernet frame's payload.

    Raises
    ------
    SettingError
        If a number is out of range.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    drawn: bool = False
    packet_bytes: int = 1500

    def __post_init__(self) -> None:
        require_at_least("latency_s", self.latency_s, 0)
        require_at_least("jitter_s", self.jitter_s, 0)
        require_share("packet_loss", self.loss, below_one=True)
        require_positive("packet_bytes", self.packet_bytes)

    def delay_s(self, seed: int, direction: str, *place: int) -> float:
        """Return a message's one-way delay, by its place (device, round, step)."""
        if not self.jitter_s:
            return self.latency_s
        draws = generator(seed, f"jitter-{direction}", *place)
        return self.latency_s + float(draws.exponential(self.jitter_s))

    def air_bytes(
        self, num_bytes: float, seed: int, direction: str, *place: int
    ) -> float:
        """Return the bytes on air of a message, those sent again too.

        Examples
        --------
        >>> Packets(loss=0.5).air_bytes(3000, 0, "up", 0, 1, 0)
        6000.0
        """
        if not self.loss or not num_bytes:
            return float(num_bytes)
        if not self.drawn:
            return num_bytes / (1 - self.loss)
        num_packets = -(-int(num_bytes) // self.packet_bytes)
        draws = generator(seed, f"loss-{direction}", *place)
        lost = int(draws.negative_binomial(num_packets, 1 - self.loss))
        return num_bytes * (1 + lost / num_packets)
