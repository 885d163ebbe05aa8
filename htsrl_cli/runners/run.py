"""The runner: wires the roles and holds the barrier between intervals.

    interval      0        1            2            3
    collect     D0(θ0)   D1(θ1=θ0)    D2(θ2)       D3(θ3)
    learn         -      D0 → θ2      D1 → θ3      D2 → θ4

`hts` collects and learns at the same time, `serial` by turns in one thread with the same result,
`sync` learns each slot before it collects the next. Slots swap, parameters are published, metrics
are written, checkpoints are taken and signals are obeyed at the barrier only.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from htsrl_cli.checkpoints.file import Checkpoint, CheckpointStore, load_checkpoint
from htsrl_cli.config.plain import config_sha256, to_plain
from htsrl_cli.config.sections import EnvConfig, GymConfig, RunPlan, TrainConfig
from htsrl_cli.envs.base import EnvSpec, make_env
from htsrl_cli.envs.state import state_packages
from htsrl_cli.errors import CheckpointError, ConfigError, RunError
from htsrl_cli.evaluation.evaluator import Evaluator, Timeouts
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.device import resolve_device, set_up_torch
from htsrl_cli.networks.policy import flatten_parameters
from htsrl_cli.sampling.actor import Actor, ActorSetup, activations_to_keep, free_rows
from htsrl_cli.sampling.collector import Collector, InlineCollector, ProcessCollector
from htsrl_cli.sampling.executor import EnvState
from htsrl_cli.seeding import action_noise
from htsrl_cli.storage.memory import Array, NotEnoughMemoryError
from htsrl_cli.storage.storage import Board, ParameterStore, Ring, Slot
from htsrl_cli.tracking.run_log import RunLog
from htsrl_cli.workers.stopping import StopSignals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        metric: see `RunLog.metric`.
        signum: the signal that stopped it early; None when it is complete.
    """

    metric: float | None
    signum: int | None


def train(config: TrainConfig, run_dir: Path, checkpoint: Path | None = None) -> Outcome:
    """Trains in `run_dir`, from the start or from a checkpoint file.

    Raises:
        ConfigError: the environment, a device or the memory cannot be had.
        CheckpointError: the checkpoint does not fit.
        RunError: a worker failed, or a loss is not finite; the last checkpoint is usable.
    """
    set_up_torch()
    run = Run(config, run_dir, None if checkpoint is None else load_checkpoint(checkpoint))
    logger.info(
        "%d executors, %d actors (%s), %d learner threads (%s)",
        config.actors.num_executors,
        config.actors.num_actors,
        config.actors.precision,
        config.learner.num_threads,
        config.learner.precision,
    )
    try:
        # Before the first interval there is nothing to save: signals end the start at once.
        with StopSignals(config.runner.stop_grace_s) as signals:
            run.advance(signals)
    except BaseException:
        run.close(gracefully=False)
        raise
    run.close(gracefully=True)
    return Outcome(run.log.metric, signals.signum)


class Run:
    """A run: its roles, and how far it has come.

    Args:
        checkpoint: to go on from; None starts anew.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, checkpoint: Checkpoint | None) -> None:
        self._config = config
        self._run_dir = run_dir
        self._plan = RunPlan.of(config)
        self._spec = _probe_env(config.env)
        self._learner = self._build_learner()
        if checkpoint is not None:
            _check_fit(checkpoint, self._spec, self._learner)
            _check_packages(checkpoint, config.env)
        self._ring = _build_ring(config, self._spec, self._plan)
        self._store = ParameterStore(len(flatten_parameters(self._learner.policies)))
        self._collector = self._build_collector()
        # Hashes a slot while the learner learns from it (hashlib releases the GIL).
        self._hasher = ThreadPoolExecutor(1, "hasher")
        try:
            self._learner.pin(self._ring.slots)
            self._begin(checkpoint)
        except BaseException:
            self._collector.close(gracefully=False)
            self._learner.close()
            raise

    def _build_learner(self) -> Learner:
        config = self._config
        return Learner(
            self._spec,
            config.algo,
            config.learner,
            resolve_device("learner.device", config.learner.device),
            self._plan.num_updates,
            self._plan.lag,
            config.seed,
        )

    def _build_collector(self) -> Collector:
        config = self._config
        setup = ActorSetup(
            spec=self._spec,
            algo=config.algo,
            batch=config.actors.inference_batch,
            fixed_rows=False,
            device=str(resolve_device("actors.device", config.actors.device)),
            precision=config.actors.precision,
            keeps_activations=bool(self._ring.activations(0)),
        )
        if not free_rows(setup, flatten_parameters(self._learner.policies)):
            logger.info("a row's bits depend on its place in the batch here: columns keep theirs")
            setup = replace(setup, fixed_rows=True)
        self._actor_setup = setup
        host = InlineCollector if config.runner.name == "serial" else ProcessCollector
        return host(config, setup, self._ring, self._store)

    def _begin(self, checkpoint: Checkpoint | None) -> None:
        """Resets the environments, or restores everything; then opens the log."""
        self._rollouts_sha256 = ""
        self._barrier_began = time.monotonic()
        if checkpoint is None:
            self._write_parameters(0)
            self._open_interval(0, self._collector.reset())
        else:
            self._restore(checkpoint)
        env_steps = self._env_steps
        self._checkpoints = CheckpointStore(self._run_dir, self._config.checkpoint.keep)
        self._checkpoints.discard_after(env_steps)
        self.log = RunLog(
            self._run_dir,
            self._config.log,
            to_plain(self._config),
            self._plan.num_intervals * self._plan.steps_per_interval,
            env_steps,
            evaluation=self._config.eval,
        )
        self._evaluator = self._build_evaluator()
        self._saved_at = self._interval if checkpoint else -1
        if checkpoint is None:
            self._save_checkpoint()
        else:
            self.log.load_state(checkpoint.meta["log"])

    def _build_evaluator(self) -> Evaluator | None:
        """None where policies are not evaluated."""
        if self._config.eval.interval == 0:
            return None
        self._checkpoints.unrate()
        config = self._config
        timeouts = Timeouts(config.env.step_timeout_s, config.actors.timeout_s)
        evaluated = self.log.evaluated
        return Evaluator(self._run_dir, config.eval, self._env_steps, evaluated, timeouts)

    @property
    def _env_steps(self) -> int:
        return self._interval * self._plan.steps_per_interval

    # The loop

    def advance(self, signals: StopSignals) -> None:
        """Runs intervals to the end, or to the first barrier after a stop signal."""

        def check() -> None:
            self._collector.check()
            signals.check()

        while self._interval < self._plan.num_intervals and signals.signum is None:
            self._run_interval(check)
            self._log_interval()
            self._evaluate()
            if self._is_due(self._config.checkpoint.interval):
                self._save_checkpoint()
        if self._saved_at != self._interval:
            self._save_checkpoint()
        if self._interval == self._plan.num_intervals:
            # After the checkpoint: an extended run writes its lines as if there had been no end.
            self.log.finish()
            if self._evaluator:
                self._finish_evaluations(self._evaluator, signals)
        self._end()

    def _end(self) -> None:
        """Writes the summary.

        Raises:
            RunError: that failed, or the last checkpoint did: what the run came to is lost.
        """
        try:
            self.log.write_summary(self._summary())
        except OSError as error:
            raise RunError(f"the summary could not be written: {error.strerror}") from error
        if self._saved_at != self._interval:
            raise RunError("the last checkpoint could not be written; resume from the one before")

    def _run_interval(self, check: Callable[[], None]) -> None:
        """Collects an interval and learns; ends at the barrier with the next interval open."""
        slot = self._ring.slot(self._interval)
        watch = _StopWatch(self._collector.board)
        barrier_s = watch.started_at - self._barrier_began
        self._logged: dict[str, float] = {}
        self._collector.begin()
        if self._plan.lag and self._interval > 0:
            self._learn(self._interval - 1, check)
        if self._plan.lag:
            self._write_parameters(self._interval + 1)
        learner_s = watch.seconds()
        self._collector.finish(check)
        if not self._plan.lag:
            learner_s = -watch.seconds()
            self._learn(self._interval, check)
            self._write_parameters(self._interval + 1)
            learner_s += watch.seconds()
        self._barrier_began = time.monotonic()
        self._seconds = watch.shares(self._config, learner_s) | {"barrier": barrier_s}
        self._open_interval(self._interval + 1, slot.obs[-1])

    def _learn(self, interval: int, check: Callable[[], None]) -> None:
        """One update from the full slot of `interval`."""
        slot = self._ring.slot(interval)
        versions = np.unique(slot.versions)
        lag = self._store.version - int(versions[0])
        if len(versions) > 1 or lag != self._plan.lag:
            raise AssertionError(f"slot of versions {versions}, learner at {self._store.version}")
        slot.check_filled()
        digest = self._hash(slot)
        logged = self._learner.update(slot, check, self._ring.activations(interval))
        self._logged = logged | {"learner/lag": float(lag)}
        self._rollouts_sha256 = digest.result()

    def _hash(self, slot: Slot) -> Future[str]:
        """The chain's next link, h[j] = sha256(h[j-1], slot j); empty when switched off."""
        if not self._config.log.rollouts_sha256:
            return self._hasher.submit(str)
        return self._hasher.submit(slot.sha256, self._rollouts_sha256)

    def _write_parameters(self, version: int) -> None:
        """Puts the learner's parameters where `version` is published from."""
        flatten_parameters(self._learner.policies, torch.from_numpy(self._store.half(version)))

    def _open_interval(self, interval: int, obs: Array) -> None:
        """Publishes the parameters as version `interval` and opens its slot."""
        self._interval = interval
        self._store.publish(interval)
        shape = (*self._ring.slot(interval).noise.shape,)
        noise = action_noise(self._config.seed, interval, shape, self._spec.actions.kind)
        self._ring.begin(interval, obs, noise)

    def _log_interval(self) -> None:
        slot = self._ring.slot(self._interval - 1)
        self.log.interval(self._env_steps, self._logged, list(slot.episodes()), self._seconds)

    def close(self, gracefully: bool) -> None:
        """Ends files, workers and threads."""
        # First what restores the terminal: a further signal ends the process at once.
        self.log.close()
        if self._evaluator:
            self._evaluator.close()
        self._collector.close(gracefully)
        self._learner.close()
        self._hasher.shutdown(cancel_futures=True)

    def _is_due(self, interval: int) -> bool:
        """Whether this barrier is the first at or after a multiple of `interval` env steps."""
        before = self._env_steps - self._plan.steps_per_interval
        return self._env_steps // interval > before // interval

    # Evaluation

    def _evaluate(self) -> None:
        """Hands over the policy published at this barrier where it is due; logs what is done."""
        if self._evaluator is None:
            return
        if self._is_due(self._config.eval.interval):
            # Written while the learner goes on.
            parameters = self._learner.parameters().items()
            arrays = {f"params/{name}": array.copy() for name, array in parameters}
            meta = {
                "env_steps": self._env_steps,
                "seconds": self.log.seconds,
                "filmed": self._is_filmed(),
            }
            self._evaluator.submit(self._env_steps, Checkpoint(arrays, meta | self._identity()))
        self._log_evaluations(self._evaluator)

    def _is_filmed(self) -> bool:
        """Whether `eval.video_interval` has passed a multiple since the policy before."""
        config, steps = self._config.eval, self._plan.steps_per_interval
        if config.video_interval == 0:
            return False
        # That one came at the barrier that first reached the last multiple of `eval.interval`.
        multiple = (self._env_steps - steps) // config.interval * config.interval
        previous = -(-multiple // steps) * steps
        return self._env_steps // config.video_interval > previous // config.video_interval

    def _log_evaluations(self, evaluator: Evaluator) -> bool:
        """Logs the scores that are in and rates checkpoints; whether there was space for all."""
        played = evaluator.finished()
        num_logged = 0
        for done in played:
            if not self.log.evaluation(*done):
                break
            evaluator.forget_first()
            num_logged += 1
        waiting = evaluator.waiting
        for env_steps in self._checkpoints.unrated:
            if not waiting or env_steps < waiting[0]:
                self._checkpoints.rate(env_steps, self.log.final_metric_at(env_steps))
        return num_logged == len(played)

    def _finish_evaluations(self, evaluator: Evaluator, signals: StopSignals) -> None:
        """At the end of the training, waits for what is still to be played.

        Raises:
            RunError: scores could not be written.
        """
        told = 0
        while (number := len(evaluator.waiting)) and signals.signum is None:
            if number != told:
                logger.info("the training is complete; policies to evaluate: %d", number)
                told = number
            evaluator.wait()
            if not self._log_evaluations(evaluator):
                raise RunError("scores could not be written; resume when there is space")

    def _identity(self) -> dict[str, object]:
        """What `htsrl eval` must know of a file of parameters."""
        return {"env_spec": asdict(self._spec), "config": to_plain(self._config)}

    # Checkpoints

    def _save_checkpoint(self) -> None:
        """Everything that going on exactly from this barrier needs."""
        states = self._collector.get_states()
        arrays = self._learner.state() | {"obs": self._ring.slot(self._interval).obs[0]}
        if self._has_unlearned_slot:
            slot = self._ring.slot(self._interval - 1)
            arrays |= {f"slot/{name}": array for name, array in slot.arrays().items()}
        for i, state in enumerate(states):
            arrays[f"env/{i}"] = np.frombuffer(state.data, np.uint8)
        meta = {
            "interval": self._interval,
            "num_updates": self._learner.num_updates_done,
            "num_episodes": [state.num_episodes for state in states],
            "training_returns": [state.training_return for state in states],
            "rollouts_sha256": self._rollouts_sha256,
            "packages": state_packages(self._config.env),
            "log": self.log.state(),
        }
        checkpoint = Checkpoint(arrays, meta | self._identity())
        is_rated = self._evaluator is None
        if self._evaluator:
            self._evaluator.flush()
        if self._checkpoints.save(self._env_steps, self.log.metric, checkpoint, is_rated):
            self._saved_at = self._interval

    def _restore(self, checkpoint: Checkpoint) -> None:
        arrays, meta = checkpoint.arrays, checkpoint.meta
        self._rollouts_sha256 = meta["rollouts_sha256"]
        self._learner.load_state(arrays, meta["num_updates"])
        self._interval = meta["interval"]
        self._write_parameters(self._interval)
        if self._has_unlearned_slot:
            self._restore_slot(arrays)
        counted = zip(meta["num_episodes"], meta["training_returns"], strict=True)
        states = [EnvState(arrays[f"env/{i}"].tobytes(), *of) for i, of in enumerate(counted)]
        obs = self._collector.set_states(states)
        if not np.array_equal(obs, arrays["obs"]):
            logger.warning("the environment did not restore exactly: this run differs from here on")
        self._open_interval(self._interval, obs)
        logger.info("resumed at %d env steps", self._env_steps)

    def _restore_slot(self, arrays: dict[str, Array]) -> None:
        """The slot not yet learned from, of a checkpoint; activations are made anew."""
        slot = self._ring.slot(self._interval - 1)
        stored = {name: arrays[f"slot/{name}"] for name in slot.arrays()}
        for name, array in slot.arrays().items():
            array[:] = stored[name]
        if not self._actor_setup.keeps_activations:
            return
        self._serve_again(arrays)
        if any(a.tobytes() != stored[name].tobytes() for name, a in slot.arrays().items()):
            logger.warning("actors did not repeat exactly: this run differs from here on")
            for name, array in slot.arrays().items():
                array[:] = stored[name]

    def _serve_again(self, arrays: dict[str, Array]) -> None:
        """Has an actor serve all requests of the interval before once more."""
        interval = self._interval - 1
        slot = self._ring.slot(interval)
        previous = [arrays[f"previous/{name}"].ravel() for name in self._learner.parameters()]
        self._store.half(interval)[:] = np.concatenate(previous)
        self._store.publish(interval)
        self._ring.begin(interval, slot.obs[0], slot.noise)
        actor = Actor(self._actor_setup, self._ring, self._store, Board(1), 0)
        for t in range(self._ring.num_steps):
            actor.serve([(c, t) for c in range(self._ring.num_columns)])

    @property
    def _has_unlearned_slot(self) -> bool:
        return bool(self._plan.lag) and self._interval > 0

    # The summary

    def _summary(self) -> dict[str, object]:
        rollouts = self._rollouts_sha256
        if self._has_unlearned_slot:
            rollouts = self._hash(self._ring.slot(self._interval - 1)).result()
        return {
            "env_steps": self._env_steps,
            "seconds": self.log.seconds,
            "env_steps_per_second": self._env_steps / self.log.seconds,
            "updates": self._learner.num_updates_done,
            "episodes": self.log.num_episodes,
            "metric": self.log.metric,
            **self._evaluation_summary(),
            "params_sha256": _sha256(self._learner.parameters()),
            "optimizer_sha256": _sha256(self._learner.optimizer_state()),
            "rollouts_sha256": rollouts or None,
            "config_sha256": config_sha256(self._config),
        }

    def _evaluation_summary(self) -> dict[str, object]:
        if self._evaluator is None:
            return {}
        reached = self.log.final_metric.reached.items()
        return {
            "evaluations": len(self.log.evaluated),
            "final_metric": self.log.final_metric.value,
            "env_steps_to": {f"{target:g}": when[0] if when else None for target, when in reached},
            "seconds_to": {f"{target:g}": when[1] if when else None for target, when in reached},
        }


class _StopWatch:
    """What the roles do from the moment it is made."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.started_at = time.monotonic()
        self._busy_s = board.busy_s()
        self._num_passes = board.num_passes()

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started_at

    def shares(self, config: TrainConfig, learner_s: float) -> dict[str, float]:
        """Seconds that each role was busy and waiting, on average over its workers.

        Besides, how long it took to fill the slot, and the number of forward passes.
        """
        wall_s = self.seconds()
        done_s = self._board.busy_s() - self._busy_s
        serial = config.runner.name == "serial"
        split = 1 if serial else config.actors.num_executors
        busy = {
            "executors": float(done_s[:split].mean()),
            "actors": float(done_s[split:].mean()),
            "learner": learner_s,
        }
        return {
            **{f"{role}_busy": busy_s for role, busy_s in busy.items()},
            **{f"{role}_waiting": wall_s - busy_s for role, busy_s in busy.items()},
            "collecting": float(self._board.left_at()[:split].max()) - self.started_at,
            "inference_passes_per_second": self._board.num_passes() - self._num_passes,
        }


def _probe_env(config: EnvConfig) -> EnvSpec:
    """What the environment looks like; it is built here once, so that mistakes show early."""
    env = make_env(config, index=-1)
    env.close()
    if isinstance(config, GymConfig):
        _warn_if_inexact(config)
    return env.env_spec


def _warn_if_inexact(config: GymConfig) -> None:
    from htsrl_cli.envs.gym.environment import probe_restore

    if not probe_restore(config):
        logger.warning(
            "env.id=%s does not replay exactly from a reset's seed and its actions: "
            "resumes of this run will not be exact",
            config.id,
        )


def _build_ring(config: TrainConfig, spec: EnvSpec, plan: RunPlan) -> Ring:
    activations = activations_to_keep(spec, config.algo, config.actors, config.learner)
    try:
        return Ring(spec, plan.sync_interval, plan.num_columns, activations)
    except NotEnoughMemoryError as error:
        raise ConfigError(
            "actors.num_envs",
            config.actors.num_envs,
            f"its two slots of runner.sync_interval={plan.sync_interval} steps"
            f"{', with activations for the learner,' if activations else ''} need "
            f"{error.needed / 2**30:.1f} GiB of memory and {error.free / 2**30:.1f} GiB are free; "
            "lower one of the two",
        ) from error


def _check_fit(checkpoint: Checkpoint, spec: EnvSpec, learner: Learner) -> None:
    """Raises CheckpointError when a checkpoint was made with other spaces or another network."""
    stored = checkpoint.meta["env_spec"]
    if stored != json.loads(json.dumps(asdict(spec))):
        raise CheckpointError(
            f"the checkpoint is of an environment with {stored}, this one has {asdict(spec)}: "
            "resume with the environment it was made with"
        )
    for name, array in learner.parameters().items():
        found = checkpoint.arrays.get(f"params/{name}")
        if found is None or found.shape != array.shape:
            raise CheckpointError(f"the checkpoint has no parameter {name} of shape {array.shape}")


def _check_packages(checkpoint: Checkpoint, config: EnvConfig) -> None:
    """Raises CheckpointError when another version of a package saved the environments' states.

    Checkpoints of before do not say which version did.
    """
    installed = state_packages(config)
    for name, version in checkpoint.meta.get("packages", {}).items():
        if installed.get(name) != version:
            raise CheckpointError(
                f"the checkpoint's environment states are of {name} {version}, and "
                f"{installed.get(name, 'none')} is installed: pip install {name}=={version}"
            )


def _sha256(arrays: dict[str, Array]) -> str:
    """Of the arrays' bytes in order of name."""
    digest = hashlib.sha256()
    for _, array in sorted(arrays.items()):
        digest.update(array.tobytes())
    return digest.hexdigest()
