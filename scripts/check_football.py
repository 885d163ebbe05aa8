"""Plays a few steps of football; exit code 0 where that works.

python -m scripts.check_football
"""

from __future__ import annotations

import sys
from contextlib import closing

import numpy as np

from htsrl_cli.envs.football.config import FootballConfig
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import ConfigError

NUM_STEPS = 10


def main() -> int:
    """Returns the exit code."""
    try:
        with closing(make_env(FootballConfig("academy_empty_goal_close"), 0)) as env:
            env.reset(seed=0)
            for _ in range(NUM_STEPS):
                env.step(np.array([0]))
    except (ConfigError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
