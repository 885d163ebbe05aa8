"""Training throughput of Sample Factory's asynchronous PPO on Pong, for `compare_peers`.

This script needs a virtual environment with sample-factory, gymnasium below 1.0 without its extra
"atari" (whose ale-py is too old), ale-py 0.10 or later, and opencv-python-headless. It does not
need htsrl. All settings are Sample Factory's own for Atari (network, loss, 4 epochs in minibatches
of 256, rollouts of 128), except for the device, asynchronous collection, and the 16 environments in
two processes. Whenever the library reports its progress, the script prints a JSON line with
`env_steps` (number of env steps trained on so far) and `seconds` (since the first such line).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import tempfile
import time
from contextlib import suppress
from typing import Any

import gymnasium
from ale_py.registration import register_v0_v4_envs
from sample_factory.envs.env_utils import register_env
from sample_factory.train import run_rl
from sample_factory.utils.utils import log
from sf_examples.atari.atari_utils import make_atari_env
from sf_examples.atari.train_atari import parse_atari_args

# Start of a report's format. Its second argument counts emulator frames, four per env step.
REPORT = "Fps is %s. Total num frames: %d."
FRAME_SKIP = 4


class Reports(logging.Handler):
    """Log handler that prints reports of progress as JSON lines, and ends the training.

    Args:
        seconds: the training ends with the first report that is at least this many seconds after
            the first one.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._start: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a line if the record reports env steps that were trained on."""
        if not (str(record.msg).startswith(REPORT) and isinstance(record.args, tuple)):
            return
        frames, now = int(str(record.args[1])), time.monotonic()
        if frames == 0:
            return
        self._start = now if self._start is None else self._start
        line = {"env_steps": frames // FRAME_SKIP, "seconds": now - self._start}
        print(json.dumps(line), flush=True)
        if now - self._start >= self._seconds:
            # Stops the training like Ctrl-C; the library's own limit on seconds has no effect.
            os.kill(os.getpid(), signal.SIGINT)


def make_pong(*args: Any, **kwargs: Any) -> Any:
    """Makes Sample Factory's Atari environment.

    In each process, the first call registers ale-py's environments, because this old version of
    Gymnasium does not find them by itself.
    """
    if "PongNoFrameskip-v4" not in gymnasium.registry:
        register_v0_v4_envs()  # type: ignore[no-untyped-call]
    return make_atari_env(*args, **kwargs)


def main() -> None:
    """Trains for at least `--seconds` seconds after the first report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["pong_ppo"])
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    # A shell starts background jobs with SIGINT ignored; the training would then never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    register_env("atari_pong", make_pong)
    with tempfile.TemporaryDirectory(prefix="sample-factory-") as folder:
        cfg = parse_atari_args(
            [
                "--env=atari_pong",
                "--experiment=pong",
                f"--train_dir={folder}",
                "--device=cpu",
                "--seed=1",
                "--num_workers=2",
                "--num_envs_per_worker=8",
                "--worker_num_splits=2",
                "--async_rl=True",
            ]
        )
        log.addHandler(Reports(args.seconds))
        with suppress(KeyboardInterrupt):
            run_rl(cfg)


if __name__ == "__main__":
    main()
