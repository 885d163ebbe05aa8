"""One-thread rates of the three kinds of work that training consists of."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from htsrl_cli.actor import ActorSetup, Inference
from htsrl_cli.algorithms import build_algorithm
from htsrl_cli.compose import Composer, to_train_config
from htsrl_cli.config import RunPlan, TrainConfig
from htsrl_cli.envs import EnvSpec, make_env
from htsrl_cli.policy import build_policy, log_prob_entropy
from htsrl_cli.torch_setup import set_up_torch

CPU = torch.device("cpu")


def compose(words: Sequence[str]) -> TrainConfig:
    """The configuration of `htsrl train WORDS`."""
    return to_train_config(Composer("train").job(words))


def env_rate(config: TrainConfig, seconds: float) -> float:
    """Env steps per second of one environment under uniformly random actions."""
    rng = np.random.default_rng(0)
    with closing(make_env(config.env, 0)) as env:
        actions = env.env_spec.actions
        env.reset(seed=0)

        def step() -> int:
            _, _, terminated, truncated, _ = env.step(rng.integers(actions.sizes))
            if terminated or truncated:
                env.reset(seed=int(rng.integers(2**31)))
            return 1

        return _rate(step, seconds)


def inference_rate(config: TrainConfig, seconds: float) -> float:
    """Rows per second of the actor's forward pass and sampling, every row in use."""
    set_up_torch()
    actors = config.actors
    setup = ActorSetup(
        _spec(config), config.algo, actors.inference_batch, False, "cpu", actors.precision
    )
    inference = Inference(setup)

    def forward() -> int:
        inference.run(0)
        return setup.batch

    return _rate(forward, seconds)


def train_rate(config: TrainConfig, seconds: float) -> float:
    """Rows per second through forward and backward passes in micro-batches and the optimizer.

    An optimizer step follows as many micro-batches as make the run's minibatch. What else an
    update does (targets, gathering rows, clipping) is left out: this is a bound.
    """
    set_up_torch()
    spec, rows = _spec(config), config.learner.micro_batch
    algorithm = build_algorithm(config.algo)
    plan = RunPlan.of(config)
    num_rows = plan.sync_interval * plan.num_columns // plan.num_policies
    minibatch = len(next(iter(algorithm.minibatches(config.seed, 0, num_rows))))
    policy = build_policy(spec, config.algo, config.learner.precision, CPU)
    kept: list[Tensor] = list(build_policy(spec, config.algo, "fp32", CPU).parameters())
    optimizer = algorithm.build_optimizer(kept)
    parameters: list[Tensor] = list(policy.parameters())
    obs = _random_obs(spec, rows)
    actions = torch.zeros(rows, spec.actions.num_dims, dtype=torch.int64)

    def gradient() -> list[Tensor]:
        params, values = policy(obs)
        log_probs, entropy = log_prob_entropy(spec.actions, params, actions)
        loss = (log_probs + entropy + values).mean()
        return [g.float() for g in torch.autograd.grad(loss, parameters)]

    def optimizer_step() -> int:
        total = gradient()
        for _ in range(minibatch // rows - 1):
            torch._foreach_add_(total, gradient())
        for parameter, g in zip(kept, total, strict=True):
            parameter.grad = g
        optimizer.step()
        return max(minibatch, rows)

    return _rate(optimizer_step, seconds)


def sleep_overshoot_s(mean_s: float, repeats: int = 50) -> float:
    """How much longer than `mean_s` a sleep of that length takes, on average."""
    start = time.perf_counter()
    for _ in range(repeats):
        time.sleep(mean_s)
    return (time.perf_counter() - start) / repeats - mean_s


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Amount of work per second; a first call warms up."""
    work()
    amount, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        amount += work()
    return amount / elapsed


def _spec(config: TrainConfig) -> EnvSpec:
    with closing(make_env(config.env, 0)) as env:
        return env.env_spec


def _random_obs(spec: EnvSpec, rows: int) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (rows, *spec.obs_shape)).astype(spec.obs_dtype))
