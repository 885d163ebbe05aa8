"""The check at the start of a run that all its ranks compute with the same bits."""

from __future__ import annotations

import platform

import numpy as np
import torch

from htsrl_cli.algorithms.base import OldPolicy, Targets
from htsrl_cli.algorithms.registry import build_algorithm
from htsrl_cli.checkpoints.state import digest
from htsrl_cli.envs.squash import TANH
from htsrl_cli.errors import UsageError
from htsrl_cli.learning.batch import Batch
from htsrl_cli.learning.gradient import engine_for
from htsrl_cli.learning.sequences import Sequences
from htsrl_cli.machine import processor
from htsrl_cli.networks.device import resolve_device
from htsrl_cli.runners.roles import Roles
from htsrl_cli.sampling.inference import Inference, random_obs
from htsrl_cli.storage.memory import Array


def check_computation(roles: Roles) -> None:
    """Checks that all ranks compute the same actions and the same gradient from random rows.

    Raises:
        UsageError: a rank computes with other bits than rank 0.
    """
    group = roles.group
    if group.size == 1:
        return
    place = f"{platform.node()}, {processor()}"
    error = None
    found = group.gather((digest(_computed(roles)), place))
    for rank, (computed, where) in enumerate(found):
        if computed != found[0][0]:
            error = UsageError(
                f"rank {rank} ({where}) computes with other bits than rank 0 ({place}): start all "
                "ranks on equal processors or GPUs, with equal environment variables"
            )
    if error := group.broadcast(error):
        raise error


def _computed(roles: Roles) -> dict[str, Array]:
    """Returns a forward pass of the actors, and a gradient that the learner computes from it."""
    config, policies = roles.config, roles.learner.policies
    inference = Inference(roles.inference)
    inference.load(roles.learner.parameters())
    rng = np.random.default_rng(0)
    _fill(inference, rng)
    actions, log_probs, values = (result.clone() for result in inference.run(0))
    num_rows, num_policies = len(values), len(policies)
    advantages, returns = torch.from_numpy(
        rng.standard_normal((2, num_rows), dtype=np.float32)
    ).unbind()
    device = resolve_device("learner.device", config.learner.device)
    algorithm = build_algorithm(config.algo)
    engine = engine_for(device)(
        roles.spec, config.network, config.algo, algorithm, config.learner, device, 1
    )
    engine.load(list(policies.state_dict().values()))

    def of_all_policies(rows: torch.Tensor) -> torch.Tensor:
        return rows.repeat_interleave(num_policies, dim=0).to(device)

    batch = Batch(
        of_all_policies(torch.from_numpy(inference.obs)),
        of_all_policies(actions),
        None if inference.masks is None else of_all_policies(torch.from_numpy(inference.masks)),
        of_all_policies(torch.from_numpy(inference.noise)) if config.algo.squash == TANH else None,
        OldPolicy(of_all_policies(log_probs), of_all_policies(values)),
        Targets(*(of_all_policies(t) for t in (advantages, returns, torch.ones(num_rows)))),
        [],
        num_rows,
        None
        if inference.memories is None
        else Sequences.of_one_step(of_all_policies(torch.from_numpy(inference.memories))),
    )
    gradient = engine.gradient(
        engine.hold(batch),
        torch.arange(num_rows, device=device)[None],
        advantages.to(device).expand(num_policies, 1, -1),
        num_rows,
        1.0,
    )
    flat = [g.cpu().numpy() for of_policy in gradient.of_policies for g in of_policy]
    engine.close()
    computed = {"actions": actions, "log_probs": log_probs, "values": values}
    arrays = {name: tensor.numpy() for name, tensor in computed.items()}
    arrays["fixed_rows"] = np.array(roles.inference.fixed_rows)
    return arrays | {f"gradient/{i}": array for i, array in enumerate(flat)}


def _fill(inference: Inference, rng: np.random.Generator) -> None:
    """Fills the inputs of a forward pass with random numbers."""
    inference.obs[:] = random_obs(rng, inference.obs)
    inference.noise[:] = rng.random(inference.noise.shape, dtype=np.float32)
    if inference.memories is not None:
        inference.memories[:] = random_obs(rng, inference.memories)
