"""Wires the roles of a run to each other and to what they share."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing
from dataclasses import replace

from htsrl_cli.checkpoints.file import Checkpoint
from htsrl_cli.config.kinds import EnvConfig
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.envs.probe import restores_exactly
from htsrl_cli.envs.registry import make_env
from htsrl_cli.errors import ConfigError
from htsrl_cli.learning.learner import Learner
from htsrl_cli.networks.device import resolve_device
from htsrl_cli.runners.roles import Roles
from htsrl_cli.runners.rollout_digest import RolloutDigest
from htsrl_cli.runners.snapshot import check_fit
from htsrl_cli.sampling.collector import InlineCollector, ProcessCollector
from htsrl_cli.sampling.inference import InferenceSetup, activations_to_keep, has_free_rows
from htsrl_cli.storage.memory import ArrayType, NotEnoughMemoryError
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.ring import Ring

logger = logging.getLogger(__name__)


def connect(config: TrainConfig, checkpoint: Checkpoint | None, stack: ExitStack) -> Roles:
    """Builds the roles of a run and wires them to each other; `stack` closes what is open.

    Executors write observations and rewards into the ring, actors read the store's parameters and
    write actions and values beside them, the learner reads the other slot and makes the store's
    next version. Requests between executors and actors are the collector's own affair.

    Args:
        checkpoint: to go on from; it is compared, not yet restored.

    Raises:
        ConfigError: the environment, a device, the network or the memory cannot be had.
        CheckpointError: the checkpoint does not fit.
    """
    plan, spec = RunPlan.of(config), probe(config.env)
    learner = Learner(
        spec,
        config.network,
        config.algo,
        config.learner,
        resolve_device("learner.device", config.learner.device),
        plan.num_updates,
        plan.lag,
        config.seed,
    )
    stack.enter_context(closing(learner))
    if checkpoint is not None:
        check_fit(checkpoint, config.env, spec, learner)
    activations = activations_to_keep(spec, config)
    ring = build_ring(config, spec, plan, activations)
    parameters = learner.parameters()
    store = ParameterStore({n: (a.shape, a.dtype.name) for n, a in parameters.items()})
    inference = InferenceSetup.of(spec, config, keeps_activations=bool(activations))
    if not has_free_rows(inference, parameters):
        logger.info("a row's bits depend on its place in the batch here: columns keep theirs")
        inference = replace(inference, fixed_rows=True)
    host = InlineCollector if config.runner.schedule.inline else ProcessCollector
    collector = host(config, inference, ring, store)
    stack.push(lambda kind, error, trace: collector.close(gracefully=kind is None))
    rollouts = stack.enter_context(closing(RolloutDigest(config.log.rollouts_sha256)))
    learner.pin(ring.slots)
    return Roles(config, plan, spec, learner, ring, store, inference, collector, rollouts)


def probe(config: EnvConfig) -> EnvSpec:
    """Returns what the environment looks like; building it once shows mistakes early."""
    with closing(make_env(config, index=-1)) as env:
        spec = env.env_spec
    if not config.restores_exactly and not restores_exactly(config):
        key = config.label_key
        logger.warning(
            "env.%s=%s does not replay exactly from a reset's seed and its actions: "
            "resumes of this run will not be exact",
            key,
            getattr(config, key),
        )
    return spec


def build_ring(
    config: TrainConfig, spec: EnvSpec, plan: RunPlan, activations: list[ArrayType]
) -> Ring:
    """Reserves the memory of the two slots.

    Raises:
        ConfigError: there is not enough.
    """
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
