"""Conversion of checkpoints from earlier format versions to the current version.

* Version 1, up to htsrl 0.1.0 of November 2026: the name of an array begins with an older prefix,
  a key of `_PREFIXES`; version 2 has the value of this key there. The configuration has no section
  `network`, and the sizes of hidden layers are in the key `algo.hidden_sizes`.
* Version 2: names of arrays begin with the name of their part (`htsrl_cli.checkpoints.state`). The
  configuration has the section `network`.
* Version 3, the current version: the section `network` of a Nature CNN has the key `linear_kernel`.
  Earlier versions always computed the linear layer of this network as a convolution.

Keys that were added within a version get the value that gives the earlier results: those of
`_ADDED`, `algo.squash`, for Gymnasium environments `scale_observations`, `scale_actions`,
`ignore_observations`, `mask_actions`, `normalize_obs` and `normalize_reward`, for networks `memory`
and `memory_size`, and for perceptrons `activation` and `separate_value`. The key `algo.reevaluate`
of earlier versions becomes `algo.correction`.
"""

from __future__ import annotations

from typing import Any

from htsrl_cli.checkpoints.state import Array

# First components of array names in version 1, and the text that replaces them in version 2.
_PREFIXES = {
    "params": "learner/params",
    "optimizer": "learner/optimizer",
    "previous": "learner/previous",
    "env": "envs",
    "obs": "envs/obs",
    "slot": "slot",
}
# Keys that earlier versions lack, by section.
_ADDED: dict[str, dict[str, Any]] = {
    "learner": {"num_shards": 1, "check_interval": 100},
    "runner": {"rank_timeout_s": 600.0},
    "eval": {"max_episode_steps": 120_000},
}
# Attributes of `EnvSpec` that earlier versions lack.
_SPEC = {"obs_max": 255, "has_masks": False, "normalize_obs": False, "normalize_reward": False}


def upgrade(
    version: int, arrays: dict[str, Array], meta: dict[str, Any]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Converts a checkpoint's arrays and `meta` from format `version` to the current format."""
    new = dict(meta)
    if "config" in new:
        new["config"] = upgrade_config(new["config"])
    if "env_spec" in new:
        new["env_spec"] = {**_SPEC, **new["env_spec"]}
    if version > 1:
        return arrays, new
    renamed = {}
    for name, array in arrays.items():
        first, slash, rest = name.partition("/")
        renamed[f"{_PREFIXES.get(first, first)}{slash}{rest}"] = array
    return renamed, _by_part(new)


def _by_part(meta: dict[str, Any]) -> dict[str, Any]:
    new = dict(meta)
    if "interval" in new:
        new["parts"] = {
            "learner": {"num_updates": new.pop("num_updates")},
            "envs": {key: new.pop(key) for key in ("num_episodes", "training_returns")},
            "rollouts": {"sha256": new.pop("rollouts_sha256")},
            "log": new.pop("log"),
        }
    return new


def upgrade_config(config: dict[str, Any]) -> dict[str, Any]:
    """Converts a stored configuration of any version to the current layout."""
    algo, network = dict(config.get("algo", {})), dict(config.get("network", {}))
    if not network and "hidden_sizes" in algo:
        network = {"name": "auto", "hidden_sizes": algo.pop("hidden_sizes")}
    if network.get("name") in ("auto", "nature_cnn"):
        network.setdefault("linear_kernel", "convolution")
    if network.get("name") in ("auto", "mlp"):
        network = {"activation": "tanh", "separate_value": True, **network}
    if network:
        network = {"memory": "none", "memory_size": 256, **network}
    if "reevaluate" in algo:
        algo["correction"] = "proximal" if algo.pop("reevaluate") else "none"
        algo.update(max_weight=2.0, vtrace_rho=1.0, vtrace_c=1.0)
    if algo:
        algo = {"squash": "clip", **algo}
    env = dict(config.get("env", {}))
    if env.get("kind") == "gym":
        env = {
            "scale_observations": False,
            "scale_actions": False,
            "ignore_observations": [],
            "mask_actions": False,
            "normalize_obs": False,
            "normalize_reward": False,
            **env,
        }
    changed = {"env": env, "algo": algo, "network": network}
    added = {name: {**keys, **config[name]} for name, keys in _ADDED.items() if name in config}
    return {**config, **added, **{name: section for name, section in changed.items() if section}}
