"""Tests of saved states of other packages' environments: MuJoCo's and MinAtar's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from htsrl_cli.envs.gym.environment import GymEnv
from htsrl_cli.envs.probe import random_action, restores_exactly
from tests import sections
from tests.pages import ROOT

CHILD = """
import sys
from pathlib import Path
from htsrl_cli.envs.gym.environment import GymEnv
from tests import sections
from tests.unit.test_gym_other_states import continued
print(continued(GymEnv(sections.gym(sys.argv[1])), Path(sys.argv[2]).read_bytes()))
"""


def continued(env: GymEnv, state: bytes) -> list[Any]:
    """Returns the results of 50 env steps with random actions after `state`."""
    rng = np.random.default_rng(1)
    results: list[Any] = [env.set_state(state).tobytes()]
    for _ in range(50):
        obs, *rest = env.step(random_action(env, rng))
        results.append((obs.tobytes(), repr(rest)))
        if rest[1] or rest[2]:
            results.append(env.reset(seed=0)[0].tobytes())
    return results


GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
ENVIRONMENTS = {
    "mujoco": ("HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Pusher-v5"),
    "minatar": tuple(f"MinAtar/{game}-v1" for game in GAMES),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "env_id"), [(package, i) for package, ids in ENVIRONMENTS.items() for i in ids]
)
def test_the_environment_continues_exactly_in_another_process(
    package: str, env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MuJoCo writes a log to the working directory.
    monkeypatch.chdir(tmp_path)
    pytest.importorskip(package, reason=f"{package} is not installed (pip install {package})")
    assert restores_exactly(sections.gym(env_id))
    env, rng = GymEnv(sections.gym(env_id)), np.random.default_rng(0)
    env.reset(seed=1)
    for _ in range(70):
        _, _, terminated, truncated, _ = env.step(random_action(env, rng))
        if terminated or truncated:
            env.reset(seed=2)
    path = tmp_path / "state"
    path.write_bytes(env.get_state())
    assert b'"snapshot"' in path.read_bytes()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, env_id, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    assert child.stdout.splitlines()[-1] == str(continued(env, path.read_bytes()))


@pytest.mark.filterwarnings("ignore")
def test_minatars_last_action_survives_a_reset() -> None:
    pytest.importorskip("minatar", reason="minatar is not installed (pip install minatar)")
    env_id = "MinAtar/Breakout-v1"
    env, restored = GymEnv(sections.gym(env_id)), GymEnv(sections.gym(env_id))
    games: list[Any] = [each.wrapped.unwrapped.game for each in (env, restored)]  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.step(np.array([2]))
    env.reset(seed=1)
    restored.set_state(env.get_state())
    assert games[0].last_action == games[1].last_action != 0
