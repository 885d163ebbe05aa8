"""Smoke test of football: a few env steps; the exit code is 0 if they succeed.

Run it with `python -m scripts.check_football`.
"""

from __future__ import annotations

import sys
from contextlib import closing

import numpy as np

from htsrl_cli.cli.compose import Composer, to_train_config
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import ConfigError

SCENARIO = "academy_empty_goal_close"
NUM_STEPS = 10


def main() -> int:
    """Plays a few env steps; returns the exit code."""
    try:
        config = to_train_config(Composer("train").job([f"env=football/{SCENARIO}"]))
        with closing(make_env(config.env, 0)) as env:
            env.reset(seed=0)
            for _ in range(NUM_STEPS):
                env.step(np.array([0]))
    except (ConfigError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
