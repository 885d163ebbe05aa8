"""Training throughput of Stable-Baselines3 on Pong or football, for `compare_peers`.

This script needs a virtual environment with stable-baselines3. Pong also needs ale-py and OpenCV;
football also needs gfootball. The script does not need htsrl. On Pong, all settings are the
library's defaults or its published Atari settings, with its own wrappers and Nature CNN, and
torch's default number of threads. On football, the library trains on gfootball's own environment
with the settings of the HTS-RL paper. At the end of every rollout, the script prints a JSON line
with `env_steps` (so far) and `seconds` (since the end of the first rollout).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

SCENARIO = "academy_3_vs_1_with_keeper"


class Football(gymnasium.Env[Any, Any]):
    """A Gymnasium wrapper of gfootball's environment, which has the interface of the old Gym."""

    def __init__(self, seed: int) -> None:
        from gfootball.env import create_environment

        self._env = create_environment(
            env_name=SCENARIO,
            stacked=True,
            representation="extracted",
            rewards="scoring,checkpoints",
            other_config_options={"game_engine_random_seed": seed},
        )
        shape = self._env.observation_space.shape
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self._env.action_space.n)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        """Begins an episode."""
        return self._env.reset(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes an env step."""
        obs, reward, done, _ = self._env.step(int(action))
        return obs, float(reward), bool(done), False, {}


def build_pong(num_envs: int) -> VecFrameStack:
    """Builds Pong environments in this process."""
    import ale_py

    gymnasium.register_envs(ale_py)
    env = make_atari_env("PongNoFrameskip-v4", n_envs=num_envs, seed=1)
    return VecFrameStack(env, n_stack=4)


def build_pong_ppo() -> PPO:
    """Builds PPO with the published Atari settings and 8 environments."""
    return PPO(
        "CnnPolicy",
        build_pong(8),
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=2.5e-4,
        clip_range=0.1,
        ent_coef=0.01,
        seed=1,
        device="cpu",
    )


def build_pong_a2c() -> A2C:
    """Builds A2C with the published Atari settings and 16 environments."""
    return A2C("CnnPolicy", build_pong(16), n_steps=5, ent_coef=0.01, seed=1, device="cpu")


def build_football() -> PPO:
    """Builds PPO with the paper's football settings and 16 environments in 16 processes."""
    env = SubprocVecEnv([lambda i=i: Football(seed=i) for i in range(16)])
    return PPO(
        "CnnPolicy",
        env,
        n_steps=128,
        batch_size=256,
        n_epochs=2,
        learning_rate=3.43e-4,
        gamma=0.993,
        gae_lambda=0.95,
        clip_range=0.08,
        clip_range_vf=0.08,
        ent_coef=0.003,
        max_grad_norm=0.64,
        seed=1,
        device="cpu",
    )


TASKS: dict[str, Callable[[], OnPolicyAlgorithm]] = {
    "pong_ppo": build_pong_ppo,
    "pong_a2c": build_pong_a2c,
    "football": build_football,
}


def main() -> None:
    """Trains for at least `--seconds` seconds after the first rollout, until a rollout ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    model = TASKS[args.task]()
    rollout = model.n_steps * model.n_envs
    ends: list[float] = []

    def after_step(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        if model.num_timesteps % rollout:
            return True
        ends.append(time.monotonic())
        line = {"env_steps": model.num_timesteps, "seconds": ends[-1] - ends[0]}
        print(json.dumps(line), flush=True)
        return bool(ends[-1] - ends[0] < args.seconds)

    model.learn(10**9, callback=after_step)
    model.env.close()


if __name__ == "__main__":
    main()
