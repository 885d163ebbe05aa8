"""Stable-Baselines3's PPO on an Atari game: the other side of `compare_stable_baselines3`.

Runs by itself, in an environment that has stable-baselines3 and need not have htsrl. Everything is
that library's default or published setting: its wrappers, its Nature CNN, torch's threads.
Prints a JSON line with `env_steps` and `time/seconds` at the end of every rollout.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import ale_py
import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

NUM_ENVS = 8
NUM_STEPS = 128


def main() -> None:
    """Trains for `--env-steps`; the last rollout's end is the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-id", default="PongNoFrameskip-v4", help="a Gymnasium id of the ALE")
    parser.add_argument("--env-steps", type=int, required=True, help="env steps to train for")
    parser.add_argument("--update-epochs", type=int, default=4, help="epochs (default: 4)")
    args = parser.parse_args()
    gymnasium.register_envs(ale_py)
    model = PPO(
        "CnnPolicy",
        VecFrameStack(make_atari_env(args.env_id, n_envs=NUM_ENVS, seed=1), n_stack=4),
        n_steps=NUM_STEPS,
        batch_size=256,
        n_epochs=args.update_epochs,
        learning_rate=2.5e-4,
        clip_range=0.1,
        ent_coef=0.01,
        seed=1,
        device="cpu",
    )
    start = time.monotonic()

    def after_step(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        if model.num_timesteps % (NUM_ENVS * NUM_STEPS) == 0:
            seconds = time.monotonic() - start
            print(
                json.dumps({"env_steps": model.num_timesteps, "time/seconds": seconds}), flush=True
            )
        return True

    model.learn(args.env_steps, callback=after_step)


if __name__ == "__main__":
    main()
