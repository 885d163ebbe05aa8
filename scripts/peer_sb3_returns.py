"""A training run of Stable-Baselines3's PPO on a Gymnasium environment, for `compare_returns`.

    SB3_VENV/bin/python scripts/peer_sb3_returns.py '{"env_id": "Pendulum-v1", ...}'

The argument is a JSON object with all settings; see `scripts.compare_returns.sb3_settings`. At the
end of the run, the script prints a JSON object with `env_steps`, `seconds` (without the start) and
`last`, the mean raw return of the last 100 episodes. It does not need htsrl.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

ACTIVATIONS = {
    "tanh": torch.nn.Tanh,
    "relu": torch.nn.ReLU,
    "elu": torch.nn.ELU,
    "silu": torch.nn.SiLU,
    "gelu": torch.nn.GELU,
}


def build(settings: Mapping[str, Any]) -> PPO:
    """Builds PPO with its environments, which are all in this process."""
    env: VecEnv = make_vec_env(
        settings["env_id"], n_envs=settings["num_envs"], seed=settings["seed"]
    )
    observations, rewards = settings["normalize_obs"], settings["normalize_reward"]
    if observations or rewards:
        env = VecNormalize(
            env, norm_obs=observations, norm_reward=rewards, gamma=settings["ppo"]["gamma"]
        )
    sizes, learning_rate = settings["hidden_sizes"], settings["learning_rate"]
    rate: float | Callable[[float], float] = learning_rate
    if settings["anneal_learning_rate"]:
        rate = lambda remaining: learning_rate * remaining  # noqa: E731
    return PPO(
        "MlpPolicy",
        env,
        learning_rate=rate,
        policy_kwargs={
            "net_arch": {"pi": sizes, "vf": sizes},
            "activation_fn": ACTIVATIONS[settings["activation"]],
            "optimizer_kwargs": {"eps": settings["adam_eps"]},
        },
        seed=settings["seed"],
        device="cpu",
        **settings["ppo"],
    )


def main() -> None:
    """Trains, and prints the result."""
    settings = json.loads(sys.argv[1])
    model = build(settings)
    began = time.monotonic()
    model.learn(settings["total_steps"])
    seconds = time.monotonic() - began
    episodes = model.ep_info_buffer or []
    last = statistics.fmean(episode["r"] for episode in episodes)
    print(json.dumps({"env_steps": model.num_timesteps, "seconds": seconds, "last": last}))
    model.env.close()


if __name__ == "__main__":
    main()
