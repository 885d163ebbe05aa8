"""The parts of a run, which `htsrl_cli.runners.wiring` builds and connects."""

from __future__ import annotations

from dataclasses import dataclass

from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.learning.learner import Learner
from htsrl_cli.ranks.group import Group
from htsrl_cli.runners.rollout_digest import RolloutDigest
from htsrl_cli.sampling.collector import Collector
from htsrl_cli.sampling.inference import InferenceSetup
from htsrl_cli.sampling.unrolls import UnrollQueue
from htsrl_cli.storage.parameters import ParameterStore
from htsrl_cli.storage.ring import Ring


@dataclass(frozen=True)
class Roles:
    """The learner, the collector, and the objects that they share."""

    config: TrainConfig
    plan: RunPlan
    spec: EnvSpec
    learner: Learner
    ring: Ring | UnrollQueue
    store: ParameterStore
    inference: InferenceSetup
    collector: Collector
    group: Group
    rollouts: RolloutDigest
