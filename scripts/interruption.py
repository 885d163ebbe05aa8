"""A SIGTERM that ends a script as Ctrl+C does."""

from __future__ import annotations

import signal
import sys


def exit_on_sigterm() -> None:
    """Lets SIGTERM raise SystemExit, so that `with` and `finally` blocks end what they began."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
