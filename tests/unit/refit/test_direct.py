import threading

import pytest

from zs_nemo.refit.direct import DirectRefit
from zs_nemo.weights.transfer import TransferAddress

ADDRESS = TransferAddress(host="127.0.0.1", port=1, num_members=2)
TIMEOUT_S = 5.0


class Side:
    """Either side: each of its calls ends only when the other side has made its own, unless it fails."""

    def __init__(self, meeting: threading.Barrier, error: Exception | None = None) -> None:
        self._meeting = meeting
        self._error = error
        self.calls: list[object] = []

    def join_refit(self, address: TransferAddress) -> None:
        self._meeting.wait(TIMEOUT_S)
        self.calls.append(address)

    def send_refit(self) -> None:
        self._exchange("sent")

    def receive_weights(self, version: int) -> None:
        self._exchange(version)

    def _exchange(self, what: object) -> None:
        if self._error is not None:
            raise self._error
        self._meeting.wait(TIMEOUT_S)
        self.calls.append(what)


def test_both_sides_are_called_at_once_and_the_engines_learn_the_version() -> None:
    meeting = threading.Barrier(2)
    policy, engines = Side(meeting), Side(meeting)
    refit = DirectRefit(policy, engines, ADDRESS)
    refit.refit(4)
    refit.refit(5)
    assert policy.calls == [ADDRESS, "sent", "sent"]
    assert engines.calls == [ADDRESS, 4, 5]


@pytest.mark.parametrize("failing", ["policy", "engines"])
def test_a_failure_of_one_side_is_raised_while_the_other_still_waits(failing: str) -> None:
    meeting, error = threading.Barrier(2), RuntimeError("no")
    sides = {name: Side(meeting, error if name == failing else None) for name in ("policy", "engines")}
    refit = DirectRefit(sides["policy"], sides["engines"], ADDRESS)
    try:
        with pytest.raises(RuntimeError, match="no"):
            refit.refit(1)
        assert meeting.n_waiting <= 1 and not meeting.broken, "the other side was waited for"
    finally:
        meeting.abort()
