"""An independent recomputation of everything that a run wrote into its slots.

It uses nothing that moves experience in a run: no ring, roles, pipes or hosts, and it draws random
numbers from NumPy's Philox directly. A run with a checkpoint at every barrier records, for each
rollout, the parameters that acted and the states of the environments. From these a plain loop
replays the rollout: every cell of every array must have the same bits. Where a checkpoint does not
hold the slot (`runner=sync`, and the last checkpoint), the chain of hashes must agree.

Shapes: T env steps, B columns, D action dimensions, S the numbers of a memory state (0 without a
memory).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint
from htsrl_cli.config.load import load_train_config
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import Env
from htsrl_cli.envs.registry import make_env
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.networks.distributions import sample
from htsrl_cli.networks.registry import build_policies

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

# The order in which a slot is hashed; within a time step it is nearly that of cause and effect.
NAMES = (
    "obs",
    "noise",
    "actions",
    "log_probs",
    "values",
    "versions",
    "rewards",
    "terminated",
    "truncated",
    "final_values",
    "episode_returns",
    "training_returns",
    "episode_lengths",
)
# The slots of policies with a memory begin with another array.
NAMES_WITH_MEMORY = ("memories", *NAMES)
# Purposes, which are part of a generator's key, as documented.
ACTIONS, RESETS = 1, 2


class AuditError(AssertionError):
    """A difference between a run and its recomputation; the message names the first one."""


@dataclass
class Audit:
    """Counts of what was compared, and of the events in it.

    Attributes:
        slots: slots compared cell by cell.
        links: links compared in the chain of hashes.
        life_losses: episodes that ended while the game continued.
        games: episodes that terminated together with their game.
        truncations: episodes that were truncated.
        learned: rollouts that began with other parameters than the previous one.
    """

    slots: int = 0
    links: int = 0
    life_losses: int = 0
    games: int = 0
    truncations: int = 0
    learned: int = 0


def audit(run_dir: Path) -> Audit:
    """Replays all rollouts of a finished run.

    Raises:
        AuditError: the replay differs from what the run wrote.
    """
    set_up_torch()
    files = sorted((run_dir / "checkpoints").glob("step_*.ckpt"))
    checkpoints = [load_checkpoint(file) for file in files]
    config = load_train_config(checkpoints[0].meta["config"])
    assert [c.meta["interval"] for c in checkpoints] == list(range(len(files))), files
    summary = json.loads((run_dir / "summary.json").read_text())
    return _Auditor(config).run(checkpoints, summary)


class _Auditor:
    def __init__(self, config: TrainConfig) -> None:
        self._replay = Replay(config)
        self._lag = 0 if config.runner.name == "sync" else 1
        self._found = Audit()

    def run(self, checkpoints: list[Checkpoint], summary: dict[str, Any]) -> Audit:
        obs, num_episodes = self._replay.first_obs()
        _expect("rollout 0, first observations", checkpoints[0].arrays["envs/obs"], obs)
        hashes = [""]
        for before, after in pairwise(checkpoints):
            slot = self._rollout(before, after, obs, num_episodes)
            obs, num_episodes = slot["obs"][-1], self._replay.num_episodes
            hashes.append(_sha256(hashes[-1], slot))
            self._compare_link(after, hashes)
        self._compare_summary(checkpoints[-1], summary, hashes[-1])
        return self._found

    def _rollout(
        self, before: Checkpoint, after: Checkpoint, obs: Array, num_episodes: list[int]
    ) -> Arrays:
        """Recomputes the rollout between two checkpoints; `obs` are its first observations."""
        rollout = before.meta["interval"]
        _expect(f"rollout {rollout}, first observations", before.arrays["envs/obs"], obs)
        begun = before.meta["parts"]["envs"]["num_episodes"]
        if begun != num_episodes:
            raise AuditError(
                f"rollout {rollout}: the run has begun {begun} episodes, the replay {num_episodes}"
            )
        if "envs/memories" in before.arrays:
            memories = before.arrays["envs/memories"]
            _expect(f"rollout {rollout}, first memories", memories, self._replay.memories)
        restored = self._replay.restore(before)
        _expect(f"rollout {rollout}, restored observations", restored, obs)
        slot = self._replay.play(rollout, obs)
        if "slot/obs" in after.arrays:
            stored = {name: after.arrays[f"slot/{name}"] for name in slot}
            _compare_slots(rollout, stored, slot)
            self._found.slots += 1
        self._compare_previous(before, after)
        self._count(slot)
        return slot

    def _compare_previous(self, before: Checkpoint, after: Checkpoint) -> None:
        """Checks that the θ[j-1] in a checkpoint is the θ[j] of the checkpoint before."""
        learned = False
        for name, theta in _parameters(before).items():
            where = f"checkpoint {after.meta['interval']}, previous {name}"
            _expect(where, after.arrays[f"learner/previous/{name}"], theta)
            learned |= not np.array_equal(theta, after.arrays[f"learner/params/{name}"])
        self._found.learned += learned

    def _compare_link(self, after: Checkpoint, hashes: list[str]) -> None:
        """Checks a checkpoint's hash, which covers the slots that were learned from."""
        num_learned = max(0, after.meta["interval"] - self._lag)
        if after.meta["parts"]["rollouts"]["sha256"] != hashes[num_learned]:
            raise AuditError(
                f"rollout {num_learned - 1}: the hash of its slot is another than the replay's"
            )
        self._found.links += 1

    def _compare_summary(self, last: Checkpoint, summary: dict[str, Any], rollouts: str) -> None:
        theta = hashlib.sha256()
        for _, array in sorted(_parameters(last).items()):
            theta.update(array.tobytes())
        expected = {
            "rollouts_sha256": rollouts,
            "params_sha256": theta.hexdigest(),
            "episodes": self._replay.num_games,
            "updates": last.meta["interval"] - self._lag,
        }
        for name, value in expected.items():
            if summary[name] != value:
                raise AuditError(f"summary: {name} is {summary[name]}, the replay has {value}")

    def _count(self, slot: Arrays) -> None:
        terminated, game_over = slot["terminated"], slot["episode_lengths"] > 0
        self._found.life_losses += int((terminated & ~game_over).sum())
        self._found.games += int((terminated & game_over).sum())
        self._found.truncations += int((slot["truncated"] & ~terminated).sum())


class Replay:
    """A replay of rollouts, one env step and one column at a time.

    Attributes:
        num_episodes: number of episodes started in each environment.
        num_games: number of whole games that ended so far.
        memories: memory states before the next observations, float32 [B, S].
    """

    def __init__(self, config: TrainConfig) -> None:
        self._seed = config.seed
        self._num_steps = config.runner.sync_interval
        self._batch = config.actors.inference_batch
        self._envs: list[Env] = [make_env(config.env, i) for i in range(config.actors.num_envs)]
        self._spec = self._envs[0].env_spec
        self._players = self._spec.num_players
        self._num_columns = len(self._envs) * self._players
        precision = config.actors.precision
        self._policies = build_policies(
            self._spec, config.network, config.algo, precision, torch.device("cpu")
        )
        of_policy: Any = self._policies[0]
        self.memories = np.zeros((self._num_columns, of_policy.memory_width), np.float32)
        self.num_episodes = [0] * len(self._envs)
        self._training_returns = [0.0] * len(self._envs)
        self.num_games = 0

    def first_obs(self) -> tuple[Array, list[int]]:
        """Starts the first episodes; returns observations [B, *obs_shape] and episode counts."""
        obs = [self._reset(i) for i in range(len(self._envs))]
        return self._by_column(obs), list(self.num_episodes)

    def restore(self, checkpoint: Checkpoint) -> Array:
        """Restores parameters and environments; returns the observations [B, *obs_shape]."""
        values = checkpoint.meta["parts"]["envs"]
        self.num_episodes = list(values["num_episodes"])
        self._training_returns = list(values["training_returns"])
        theta = _parameters(checkpoint)
        with torch.no_grad():
            for name, parameter in self._policies.named_parameters():
                parameter.copy_(torch.from_numpy(theta[name]))
        states = (checkpoint.arrays[f"envs/{i}"].tobytes() for i in range(len(self._envs)))
        return self._by_column(
            [env.set_state(state) for env, state in zip(self._envs, states, strict=True)]
        )

    def play(self, rollout: int, obs: Array) -> Arrays:
        """Plays the rollout that starts with `obs`; returns the arrays of its slot."""
        noise = self._noise(rollout)
        rows: dict[str, list[Any]] = {name: [] for name in NAMES}
        first_memories = self.memories.copy()
        for t in range(self._num_steps):
            actions, log_probs, values, self.memories = self._infer(obs, noise[t])
            rows["obs"].append(obs)
            rows["actions"].append(actions)
            rows["log_probs"].append(log_probs)
            rows["values"].append(values)
            obs = self._step(actions, rows)
        rows["obs"].append(obs)
        rows["values"].append(self._infer(obs, noise[0])[2])
        slot = {name: np.array(row, _dtype(name, row)) for name, row in rows.items()}
        slot["noise"] = noise
        slot["versions"] = np.full(slot["values"].shape, rollout, np.int64)
        slot["memories"] = first_memories[None]
        return {name: array for name, array in slot.items() if array.size}

    def _step(self, actions: Array, rows: dict[str, list[Any]]) -> Array:
        """Steps every environment; returns the next observations [B, *obs_shape]."""
        cells: list[tuple[Any, ...]] = []
        final_values: list[float] = []
        following = []
        for i, env in enumerate(self._envs):
            columns = range(i * self._players, (i + 1) * self._players)
            own = actions[columns] if self._players > 1 else actions[i]
            obs, reward, terminated, truncated, info = env.step(own)
            self._training_returns[i] += float(np.mean(reward))
            for c, player_reward in zip(columns, np.atleast_1d(reward), strict=True):
                game = self._game(i, info) if c == columns[0] else (0.0, 0.0, 0)
                cells.append((player_reward, terminated, truncated, *game))
            cut = truncated and not terminated
            seen = self._by_column([obs])
            for c, final_obs in zip(columns, seen, strict=True):
                final_values.append(self._value(c, final_obs) if cut else 0.0)
            if terminated or truncated:
                self.memories[columns] = 0.0
            following.append(self._reset(i) if terminated or truncated else obs)
        ends = ("episode_returns", "training_returns", "episode_lengths")
        names = ("rewards", "terminated", "truncated", *ends)
        for name, column in zip(names, zip(*cells, strict=True), strict=True):
            rows[name].append(column)
        rows["final_values"].append(np.array(final_values, np.float32))
        return self._by_column(following)

    def _game(self, i: int, info: dict[str, Any]) -> tuple[float, float, int]:
        """Returns raw return, training return and length of a game that just ended, else zeros."""
        if "episode" not in info:
            return 0.0, 0.0, 0
        self.num_games += 1
        training_return, self._training_returns[i] = self._training_returns[i], 0.0
        return info["episode"]["r"], training_return, info["episode"]["l"]

    def _by_column(self, observations: list[Array]) -> Array:
        return np.stack(observations).reshape(-1, *self._spec.obs_shape)

    def _reset(self, i: int) -> Array:
        seed = int(_philox(self._seed, RESETS, i, self.num_episodes[i]).integers(2**31))
        self.num_episodes[i] += 1
        return self._envs[i].reset(seed=seed)[0]

    def _noise(self, rollout: int) -> Array:
        shape = (self._num_steps, self._num_columns, self._spec.actions.num_dims)
        rng = _philox(self._seed, ACTIONS, rollout, 0)
        if self._spec.actions.kind == "gaussian":
            return rng.standard_normal(shape, np.float32)
        return rng.random(shape, np.float32)

    def _infer(self, obs: Array, noise: Array) -> tuple[Array, Array, Array, Array]:
        """Returns actions [B, D], log-probabilities [B], values [B] and memory states [B, S]."""
        results: list[Array] = []
        for k, policy in enumerate(self._policies):
            columns = range(k, self._num_columns, len(self._policies))
            for start in range(0, len(columns), self._batch):
                rows = columns[start : start + self._batch]
                parts = self._pass(policy, obs[rows], noise[rows], self.memories[rows])
                if not results:
                    shapes = [(self._num_columns, *part.shape[1:]) for part in parts]
                    results = [np.empty(s, p.dtype) for s, p in zip(shapes, parts, strict=True)]
                for result, part in zip(results, parts, strict=True):
                    result[rows] = part
        actions, log_probs, values, memories = results
        return actions, log_probs, values, memories

    def _value(self, c: int, obs: Array) -> float:
        """Returns the value of one observation, computed in the row that its column has."""
        row = c // len(self._policies) % self._batch
        padded = np.zeros((row + 1, *obs.shape), obs.dtype)
        padded[row] = obs
        memories = np.zeros((row + 1, *self.memories.shape[1:]), np.float32)
        memories[row] = self.memories[c]
        noise = np.zeros((row + 1, self._spec.actions.num_dims), np.float32)
        policy = self._policies[c % len(self._policies)]
        return float(self._pass(policy, padded, noise, memories)[2][row])

    @torch.no_grad()
    def _pass(
        self, policy: Any, obs: Array, noise: Array, memories: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Runs a forward pass of at most `inference_batch` rows, padded with zeros."""
        n, empty = len(obs), self._batch - len(obs)
        padded_obs, padded_noise, states = (
            torch.from_numpy(np.concatenate([a, np.zeros((empty, *a.shape[1:]), a.dtype)]))
            for a in (obs, noise, memories)
        )
        if policy.memory_width:
            params, values, states = policy.step(padded_obs, states)
        else:
            params, values = policy(padded_obs)
        actions, log_probs = sample(self._spec.actions, params, padded_noise)
        return actions.numpy()[:n], log_probs.numpy()[:n], values.numpy()[:n], states.numpy()[:n]


def _philox(seed: int, purpose: int, high: int, low: int) -> np.random.Generator:
    key = np.array([seed, purpose], np.uint64)
    counter = np.array([0, 0, low, high], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _dtype(name: str, rows: list[Any]) -> Any:
    """Returns an array's dtype in the slot; observations, actions and values keep their own."""
    fixed = {
        "rewards": "float32",
        "terminated": "bool",
        "truncated": "bool",
        "episode_returns": "float64",
        "training_returns": "float64",
        "episode_lengths": "int64",
    }
    return fixed.get(name) or (rows[0].dtype if rows else None)


def _parameters(checkpoint: Checkpoint) -> Arrays:
    prefix = "learner/params/"
    arrays = checkpoint.arrays.items()
    return {name.removeprefix(prefix): a for name, a in arrays if name.startswith(prefix)}


def _sha256(previous: str, slot: Arrays) -> str:
    """Returns h[j] = sha256(h[j-1] || slot j)."""
    names = (name for name in NAMES_WITH_MEMORY if name in slot)
    data = b"".join(np.ascontiguousarray(slot[name]).tobytes() for name in names)
    return hashlib.sha256(bytes.fromhex(previous) + data).hexdigest()


def _expect(where: str, stored: Array, replayed: Array) -> None:
    """Raises AuditError unless two arrays have the same bits."""
    for index in _differences(stored, replayed):
        raise AuditError(_message(f"{where} {index}", stored, replayed, index))


def _compare_slots(rollout: int, stored: Arrays, replayed: Arrays) -> None:
    """Raises AuditError if slots differ, naming the earliest time step and its first array."""
    found = []
    for order, name in enumerate(NAMES_WITH_MEMORY):
        for index in _differences(stored[name], replayed[name]) if name in stored else ():
            found.append((index[0], order, index))
            break
    if found:
        _, order, index = min(found)
        t, c, *rest = index
        name = NAMES_WITH_MEMORY[order]
        where = f"rollout {rollout}, {name} at step {t}, column {c}{f', {rest}' if rest else ''}"
        raise AuditError(_message(where, stored[name], replayed[name], index))


def _message(where: str, stored: Array, replayed: Array, index: tuple[int, ...]) -> str:
    return f"{where}: the run has {stored[index]!r}, the replay {replayed[index]!r}"


def _differences(stored: Array, replayed: Array) -> Iterator[tuple[int, ...]]:
    """Yields the indices of the entries whose bits differ, in order."""
    if (stored.shape, stored.dtype) != (replayed.shape, replayed.dtype):
        raise AuditError(
            f"the run has {stored.dtype} {stored.shape}, the replay {replayed.dtype} "
            f"{replayed.shape}"
        )
    bits = np.dtype(f"u{stored.dtype.itemsize}")
    differ = np.ascontiguousarray(stored).view(bits) != np.ascontiguousarray(replayed).view(bits)
    yield from (tuple(int(i) for i in index) for index in np.argwhere(differ))
