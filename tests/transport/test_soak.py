"""Many devices at once leave nothing behind in the server, round after round."""

import statistics

import pytest

from flwr_slfac.split import TrainReply, TrainRequest
from flwr_slfac.split import codec_pool as pools
from tests.bench import soak
from tests.transport.loopback import linked

# What glibc keeps for threads of a round that is over comes and goes by about this.
_SLACK_MB = 40.0


def test_rounds_of_many_devices_leave_no_memory_thread_or_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a warm-up the server has as much of each between any two rounds."""
    monkeypatch.setattr(pools, "_LEAST_ELEMENTS", 0)
    samples, _ = soak.soak(
        24, 20.0, num_processes=1, shape=(8, 16, 8, 8), codec_threads=2, sample_s=0.2
    )
    warm = samples[len(samples) // 3 :]
    assert len(warm) >= 4
    assert len({sample.num_files for sample in warm}) == 1
    # gRPC starts a thread now and then, and none more the longer it runs.
    assert max(s.num_threads for s in warm) - min(s.num_threads for s in warm) <= 2
    half = len(warm) // 2
    early, late = (
        statistics.median(s.resident_mb for s in part)
        for part in (warm[:half], warm[half:])
    )
    assert late < 1.05 * early + _SLACK_MB


def test_sessions_that_are_over_are_forgotten() -> None:
    """A service that devices come to and leave for ever holds no more than a few."""
    answers = {d: lambda request, d=d: TrainReply(d, 1) for d in range(4)}
    with linked(answers) as (link, opener):
        for _ in range(60):
            assert len(link.devices([1000, 1001, 1002, 1003])) == 4
            # Known devices are asked again only where they are to train.
            for _ in link.train_each([(1000 + d, TrainRequest(0)) for d in range(4)]):
                pass
            link.hold([])
            opener.join()
        assert len(opener.openings) == 240
        assert len(link._service._sessions) <= 128
        assert len(link._service._tokens._sessions) <= 128
