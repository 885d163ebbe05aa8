"""Wording of configuration errors: values as a user types them, and suggestions for names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches

from htsrl_cli.errors import ConfigError

# Keys by the names that other libraries give them.
_OTHER_NAMES = {
    "lr": "algo.learning_rate",
    "ent_coef": "algo.entropy_coef",
    "vf_coef": "algo.value_coef",
    "clip_range": "algo.clip_coef",
    "clip_range_vf": "algo.clip_value_loss",
    "clip_vloss": "algo.clip_value_loss",
    "norm_adv": "algo.normalize_advantage",
    "anneal_lr": "algo.anneal_learning_rate",
    "lam": "algo.gae_lambda",
    "n_epochs": "algo.update_epochs",
    "num_epochs": "algo.update_epochs",
    "epochs": "algo.update_epochs",
    "batch_size": "algo.num_minibatches",
    "minibatch_size": "algo.num_minibatches",
    "n_steps": "runner.sync_interval",
    "num_steps": "runner.sync_interval",
    "rollout": "runner.sync_interval",
    "rollout_length": "runner.sync_interval",
    "n_envs": "actors.num_envs",
    "num_workers": "actors.num_executors",
    "net_arch": "network.hidden_sizes",
    "activation_fn": "network.activation",
    "lstm_hidden_size": "network.memory_size",
    "rnn_size": "network.memory_size",
    "rnn_type": "network.memory",
    "use_rnn": "network.memory",
    "env_id": "env.id",
    "device": "learner.device",
    "timesteps": "total_steps",
    "num_timesteps": "total_steps",
    "total_timesteps": "total_steps",
    "train_for_env_steps": "total_steps",
    "n_eval_episodes": "episodes",
    "deterministic": "greedy",
    "train_dir": "hydra.run.dir",
    "log_dir": "hydra.run.dir",
    "output_dir": "hydra.run.dir",
}
# Minimum similarity (0 to 1) of the last parts of two names; `dir` and `dri` have 0.67.
_ALIKE = 0.65
_ATARI_ID = r"(?:ale_py:)?(?:ALE/)?([A-Za-z]+?)(?:-ram)?(?:NoFrameskip|Deterministic)?-v\d+"
# Maximum number of characters of a value that an error message repeats.
_LONGEST = 80


def shown(value: object) -> str:
    """Returns `value` as a user types it on the command line; a long value is truncated."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def kind_of(value: object) -> str:
    """Returns the words with which an error message describes the type of `value`."""
    names = {
        type(None): "null",
        bool: "true or false",
        int: "an integer",
        float: "a decimal number",
        str: "text",
        list: "a list",
    }
    return names.get(type(value), "a section")


def unknown_key(key: str, value: object, known: list[str]) -> ConfigError:
    """Returns the error for an unknown key; the message suggests a similar key, if any."""
    return ConfigError(key, shown(value), f"no such key{did_you_mean(key, known)}")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Returns ` (did you mean ...?)` with the name in `known` closest to `word`, if any is close.

    For a key that was replaced, returns what to write instead. Otherwise, returns an empty string.
    See `closest`.
    """
    if _last_part(word) == "reevaluate" and "algo.correction" in known:
        return ": write algo.correction=proximal for true, algo.correction=none for false"
    name = closest(word, known)
    return f" (did you mean {name}?)" if name else ""


def closest(word: str, known: Sequence[str]) -> str | None:
    """Returns the name in `known` that is closest to `word`; None if no name is close.

    Names have parts (`algo.gamma`, `atari/pong`). A name is close only if its last part is similar
    to the last part of `word`, or is another library's name for the same key. A key without its
    section is therefore found, but two names are not close merely because they share a folder.
    """
    last = _last_part(word)
    by_last_part = {_last_part(name): name for name in known}
    if last in by_last_part:
        return by_last_part[last]
    if _OTHER_NAMES.get(last) in known:
        return _OTHER_NAMES[last]
    for name in get_close_matches(word, known):
        if SequenceMatcher(None, last, _last_part(name)).ratio() >= _ALIKE:
            return name
    for part in get_close_matches(last, list(by_last_part), n=1, cutoff=_ALIKE):
        return by_last_part[part]
    return None


def atari_game(env_id: str) -> str | None:
    """Returns the name in snake case of the Atari game in a Gymnasium id; None if there is none.

    For example, both `ALE/SpaceInvaders-v5` and `SpaceInvadersNoFrameskip-v4` give
    `space_invaders`. Ids of other environments may also give a name, which is then no game.
    """
    match = re.fullmatch(_ATARI_ID, env_id)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match[1]).lower() if match else None


def _last_part(name: str) -> str:
    return re.split(r"[./]", name)[-1]
