"""Stable-Baselines3's PPO on Pong or football: the other side of `compare_stable_baselines3`.

Runs by itself, in an environment that has stable-baselines3 and need not have htsrl. On Pong all is
that library's default or published setting: its wrappers, its Nature CNN, torch's threads. On
football it is given the settings of the HTS-RL paper and gfootball's own environment.
Prints a JSON line with `env_steps` and `time/seconds` at the end of every rollout.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

NUM_STEPS = 128
SCENARIO = "academy_3_vs_1_with_keeper"


class Football(gymnasium.Env[Any, Any]):
    """gfootball's environment, which has the interface of an old Gym, as one of Gymnasium."""

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


def build_pong() -> PPO:
    """8 environments in this process."""
    import ale_py

    gymnasium.register_envs(ale_py)
    env = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs=8, seed=1), n_stack=4)
    return PPO(
        "CnnPolicy",
        env,
        n_steps=NUM_STEPS,
        batch_size=256,
        n_epochs=4,
        learning_rate=2.5e-4,
        clip_range=0.1,
        ent_coef=0.01,
        seed=1,
        device="cpu",
    )


def build_football() -> PPO:
    """16 environments in a process each."""
    env = SubprocVecEnv([lambda i=i: Football(seed=i) for i in range(16)])
    return PPO(
        "CnnPolicy",
        env,
        n_steps=NUM_STEPS,
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


TASKS = {"pong": build_pong, "football": build_football}


def main() -> None:
    """Trains for `--env-steps`; the last rollout's end is the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--env-steps", type=int, required=True, help="env steps to train for")
    args = parser.parse_args()
    model = TASKS[args.task]()
    rollout = NUM_STEPS * model.n_envs
    start = time.monotonic()

    def after_step(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        if model.num_timesteps % rollout == 0:
            seconds = time.monotonic() - start
            print(
                json.dumps({"env_steps": model.num_timesteps, "time/seconds": seconds}), flush=True
            )
        return True

    model.learn(args.env_steps, callback=after_step)
    model.env.close()


if __name__ == "__main__":
    main()
