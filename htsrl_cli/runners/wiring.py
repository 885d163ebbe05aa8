"""The wiring of a run: construction of its roles and of the objects that connect them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import AsyncRunnerConfig, TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.envs.probe import restores_exactly
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import ConfigError
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.device import resolve_device
from htsrl_cli.ranks.group import ALONE, Group
from htsrl_cli.runners.fit import check_fit
from htsrl_cli.runners.replay import load_schedule, schedule_path
from htsrl_cli.runners.roles import Roles
from htsrl_cli.runners.rollout_digest import RolloutDigest
from htsrl_cli.sampling.async_collector import AsyncCollector
from htsrl_cli.sampling.collector import Collector, InlineCollector, ProcessCollector
from htsrl_cli.sampling.inference import (
    InferenceSetup,
    activations_to_keep,
    has_free_rows,
    has_independent_rows,
)
from htsrl_cli.sampling.unrolls import UnrollQueue
from htsrl_cli.storage.memory import Array, ArrayType, NotEnoughMemoryError
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.ring import Ring

logger = logging.getLogger(__name__)

# Versions in the store of an asynchronous run: one that is written, one that is published, and one
# that an actor may still read.
_NUM_VERSIONS = 3


def connect(
    config: TrainConfig, checkpoint: Checkpoint | None, stack: ExitStack, group: Group = ALONE
) -> Roles:
    """Builds the roles of a run and connects them.

    Executors write observations and rewards into a slot of the ring. Actors read the store's
    parameters and write actions and values into the same slot. The learner reads a full slot and
    computes the next version of the parameters. The collector hosts the executors and actors.

    Args:
        checkpoint: the checkpoint to continue from; it is checked here and restored later.
        stack: the exit stack that closes the roles.
        group: the ranks that train the run; the roles are those of this rank.

    Raises:
        ConfigError: the environment, a device or the network is not available, or there is too
            little memory.
        CheckpointError: the checkpoint does not fit the environment or the network.
        RunError: the GPU's driver cannot lock the slots in memory.
    """
    plan, spec = RunPlan.of(config), probe(config.env)
    learner = _build_learner(config, plan, spec, group)
    stack.enter_context(closing(learner))
    if checkpoint is not None:
        check_fit(checkpoint, config, plan, spec, learner)
    ring: Ring | UnrollQueue
    collector: Collector
    parameters = learner.parameters()
    layout = {n: (a.shape, a.dtype.name) for n, a in parameters.items()}
    if isinstance(config.runner, AsyncRunnerConfig):
        inference = _suited(InferenceSetup.of(spec, config), parameters)
        ring, store, collector = _connect_freely(
            config, config.runner, spec, inference, layout, learner.memory_width
        )
    else:
        activations = activations_to_keep(spec, config)
        ring = build_ring(config, spec, plan, activations, group.size, learner.memory_width)
        store = ParameterStore(layout)
        inference = _suited(
            InferenceSetup.of(spec, config, keeps_activations=bool(activations)), parameters
        )
        host = InlineCollector if config.runner.schedule.inline else ProcessCollector
        own = config.actors.num_envs // group.size
        executors = min(config.actors.num_executors, own)
        actors = replace(config.actors, num_envs=own, num_executors=executors)
        hosted = replace(config, actors=actors)
        collector = host(hosted, inference, ring, store, group.rank * own)
        learner.pin(ring.slots)
    stack.push(lambda kind, error, trace: collector.close(gracefully=kind is None))
    num_shards = config.learner.num_shards // group.size
    rollouts = stack.enter_context(closing(RolloutDigest(config.log.rollouts_sha256, num_shards)))
    return Roles(config, plan, spec, learner, ring, store, inference, collector, group, rollouts)


def _build_learner(config: TrainConfig, plan: RunPlan, spec: EnvSpec, group: Group) -> Learner:
    return Learner(
        spec,
        config.network,
        config.algo,
        config.learner,
        resolve_device("learner.device", config.learner.device),
        plan.num_updates,
        plan.lag,
        config.seed,
        group,
        config.actors.inference_batch,
    )


def _connect_freely(
    config: TrainConfig,
    runner: AsyncRunnerConfig,
    spec: EnvSpec,
    inference: InferenceSetup,
    layout: Mapping[str, ArrayType],
    memory_width: int,
) -> tuple[UnrollQueue, ParameterStore, AsyncCollector]:
    """Builds the queue, the store and the collector of `runner=async`.

    The store of a replay also holds the old versions with which late environments must be served.
    """
    schedule = load_schedule(config)
    num_envs = config.actors.num_envs
    try:
        num_buffers = num_envs + runner.spare_unrolls
        queue = UnrollQueue(spec, runner.sync_interval, num_buffers, num_envs, memory_width)
    except NotEnoughMemoryError as error:
        raise ConfigError(
            "runner.spare_unrolls",
            runner.spare_unrolls,
            f"the queue needs {error.needed / 2**30:.1f} GiB of memory, but "
            f"{error.free / 2**30:.1f} GiB are free; lower it, actors.num_envs or "
            "runner.sync_interval",
        ) from error
    num_places = _NUM_VERSIONS if schedule is None else schedule.max_lag + 2
    store = ParameterStore(layout, max(_NUM_VERSIONS, num_places))
    return queue, store, AsyncCollector(config, inference, queue, store, schedule_path(config))


def _suited(inference: InferenceSetup, parameters: Mapping[str, Array]) -> InferenceSetup:
    """Returns the set-up, with fixed rows if results depend on a row's position or on other rows.

    Logs a warning if they depend on other rows, because fixed rows do not prevent this.
    """
    if has_free_rows(inference, parameters):
        return inference
    if has_independent_rows(inference, parameters):
        logger.debug(
            "the network rounds differently at different positions in a batch; to keep results "
            "reproducible, each environment always gets the same positions"
        )
    else:
        logger.warning(
            "network.name=%s: the output for one observation depends on the other observations in "
            "the batch, so results may depend on timing: change the network so that each output "
            "depends on its own observation only",
            inference.network.name,
        )
    return replace(inference, fixed_rows=True)


def probe(config: EnvConfig) -> EnvSpec:
    """Builds one environment, so that mistakes in its keys are found early, and returns its spec.

    Logs a warning if the environment's state cannot be restored exactly.

    Raises:
        ConfigError: the environment cannot be built.
    """
    with closing(make_env(config, index=-1)) as env:
        spec = env.env_spec
    if not config.restores_exactly and not restores_exactly(config):
        key = config.label_key
        logger.warning(
            "env.%s=%s: a test could not restore a saved state of the environment exactly, so "
            "resumes of this run will not be exact; if the environment draws random numbers from "
            "elsewhere than self.np_random, equal runs will differ, too",
            key,
            getattr(config, key),
        )
    return spec


def build_ring(
    config: TrainConfig,
    spec: EnvSpec,
    plan: RunPlan,
    activations: list[ArrayType],
    num_ranks: int = 1,
    memory_width: int = 0,
) -> Ring:
    """Builds the ring, whose two slots are in shared memory.

    Args:
        activations: for each activation array, shape and dtype of the activations of one column at
            one env step; see `Ring`.
        num_ranks: number of ranks, each of which has a ring for its own columns.
        memory_width: the numbers of a column's memory state; 0 if the policies have no memory.

    Raises:
        ConfigError: there is not enough memory.
    """
    try:
        width = plan.num_columns // num_ranks
        return Ring(spec, plan.sync_interval, width, activations, memory_width)
    except NotEnoughMemoryError as error:
        raise ConfigError(
            "actors.num_envs",
            config.actors.num_envs,
            f"two slots of runner.sync_interval={plan.sync_interval} env steps"
            f"{', with activations for the learner,' if activations else ''} need "
            f"{error.needed / 2**30:.1f} GiB of memory, but {error.free / 2**30:.1f} GiB are free; "
            "lower actors.num_envs or runner.sync_interval",
        ) from error
