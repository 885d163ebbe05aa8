"""Tests of stop signals in this process: the first, a second one, and the grace period."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from htsrl_cli.workers import stopping
from htsrl_cli.workers.stopping import StopSignals


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted(clock: Clock, number: int) -> None:
    before = signal.getsignal(number)
    with StopSignals(grace_s=5.0) as signals:
        signal.raise_signal(number)
        assert signals.signum == number
        clock.now += 4.9
        signals.check()
    assert signal.getsignal(number) is before


def test_grace(clock: Clock) -> None:
    with StopSignals(grace_s=5.0) as signals:
        clock.now += 1000
        signals.check()
        signal.raise_signal(signal.SIGTERM)
        clock.now += 5.1
        with pytest.raises(SystemExit) as end:
            signals.check()
    assert end.value.code == 143


def test_second_signal_ends_at_once(clock: Clock) -> None:
    with StopSignals(grace_s=5.0) as signals:
        signal.raise_signal(signal.SIGTERM)
        # One stop that signals the process and then its group counts once.
        clock.now += stopping.ONE_SIGNAL_S / 2
        signal.raise_signal(signal.SIGTERM)
        clock.now += stopping.ONE_SIGNAL_S
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGINT)
    assert end.value.code == 130
    assert signals.signum == signal.SIGTERM
