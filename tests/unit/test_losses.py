"""Tests of advantages, returns and losses: numbers computed by hand, and definitions in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from htsrl_cli.algorithms.base import OldPolicy, Prediction, Targets
from htsrl_cli.algorithms.policy_gradient import policy_gradient_loss
from htsrl_cli.algorithms.ppo.loss import ppo_loss
from htsrl_cli.algorithms.returns import Rollout, bootstrapped_returns, gae, next_values, vtrace
from htsrl_cli.storage.memory import Array


def column(
    rewards: list[float],
    values: list[float],
    terminated: list[int] | None = None,
    truncated: list[int] | None = None,
    final_values: list[float] | None = None,
    ratios: list[float] | None = None,
) -> Rollout:
    """Returns a rollout of one column; `values` has one entry more than the others."""
    none = [0] * len(rewards)

    def tensor(numbers: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(numbers, dtype=dtype).unsqueeze(1)

    return Rollout(
        tensor(rewards, torch.float32),
        tensor(terminated or none, torch.bool),
        tensor(truncated or none, torch.bool),
        tensor(values, torch.float32),
        tensor(final_values or none, torch.float32),
        tensor(ratios or [1.0] * len(rewards), torch.float32),
    )


def listed(tensor: Tensor) -> list[float]:
    numbers: list[float] = tensor.squeeze(1).tolist()
    return numbers


# Two rewards of 1, gamma 1/2, lambda 1/2, values (2, 4, 8)
PLAIN = column([1, 1], [2, 4, 8])


def test_gae_by_hand() -> None:
    # Delta = (1 + 2 - 2, 1 + 4 - 4) = (1, 1); A = (1 + 1/4 * 1, 1).
    assert listed(gae(PLAIN, 0.5, 0.5)) == [1.25, 1.0]


def test_returns_by_hand() -> None:
    # R1 = 1 + 8/2 = 5; R0 = 1 + 5/2.
    assert listed(bootstrapped_returns(PLAIN, 0.5)) == [3.5, 5.0]


@pytest.mark.parametrize(
    ("ends", "advantages", "returns"),
    [
        # The episode terminates: nothing follows step 0.
        ({"terminated": [1, 0]}, [1 - 2, 1.0], [1.0, 5.0]),
        # Truncated at a state of value 6, which counts instead of the next episode's 4.
        ({"truncated": [1, 0], "final_values": [6, 0]}, [1 + 3 - 2, 1.0], [4.0, 5.0]),
        # The same at the end of the slot: the final values 6 and 0 replace 8.
        ({"truncated": [0, 1], "final_values": [0, 6]}, [1 + 0.25 * 0, 0.0], [3.0, 4.0]),
        ({"terminated": [0, 1]}, [1 + 0.25 * -3, -3.0], [1.5, 1.0]),
        # An episode that is terminated and truncated counts as terminated.
        ({"terminated": [1, 0], "truncated": [1, 0]}, [1 - 2, 1.0], [1.0, 5.0]),
    ],
    ids=["terminated", "truncated", "truncated-last", "terminated-last", "both"],
)
def test_ends_by_hand(
    ends: dict[str, list[int]], advantages: list[float], returns: list[float]
) -> None:
    rollout = column([1, 1], [2, 4, 8], **ends)  # type: ignore[arg-type]
    assert listed(gae(rollout, 0.5, 0.5)) == advantages
    assert listed(bootstrapped_returns(rollout, 0.5)) == returns


def test_next_values_by_hand() -> None:
    rollout = column([0, 0, 0], [1, 2, 3, 4], [0, 1, 0], [0, 0, 1], [0, 0, 9])
    assert listed(next_values(rollout)) == [2, 0, 9]


def test_values_of_an_ended_episode_reach_nothing_before_it() -> None:
    rollout = column([1, 1], [2, 1e30, 8], [1, 0])
    assert listed(gae(rollout, 0.5, 0.5))[0] == -1
    assert listed(bootstrapped_returns(rollout, 0.5))[0] == 1


def random_rollout(num_steps: int, num_columns: int, seed: int) -> Rollout:
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_columns)
    terminated = rng.random(shape) < 0.15
    truncated = rng.random(shape) < 0.15
    arrays = (
        rng.standard_normal(shape, np.float32),
        terminated,
        truncated,
        rng.standard_normal((num_steps + 1, num_columns), np.float32),
        rng.standard_normal(shape, np.float32) * truncated,
        np.exp(rng.normal(0, 0.5, shape)).astype(np.float32),
    )
    return Rollout(*(torch.from_numpy(array) for array in arrays))


def slow_targets(
    rollout: Rollout, t: int, c: int, gamma: float, gae_lambda: float
) -> tuple[float, float]:
    """Returns advantage and return of one cell, as sums over the rest of its episode."""
    rewards, terminated, truncated, values, finals, _ = (x[:, c].tolist() for x in rollout)
    advantage = total = 0.0
    for k in range(t, len(rewards)):
        following = finals[k] if truncated[k] else values[k + 1]
        following = 0.0 if terminated[k] else following
        delta = rewards[k] + gamma * following - values[k]
        advantage += (gamma * gae_lambda) ** (k - t) * delta
        total += gamma ** (k - t) * rewards[k]
        if terminated[k] or truncated[k] or k == len(rewards) - 1:
            total += gamma ** (k + 1 - t) * following
            break
    return advantage, total


@pytest.mark.parametrize("num_steps", [1, 2, 33])
@pytest.mark.parametrize(
    ("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)]
)
def test_targets_equal_their_definitions(num_steps: int, gamma: float, gae_lambda: float) -> None:
    rollout = random_rollout(num_steps, 7, seed=num_steps)
    advantages = gae(rollout, gamma, gae_lambda)
    returns = bootstrapped_returns(rollout, gamma)
    for t in range(num_steps):
        for c in range(7):
            advantage, total = slow_targets(rollout, t, c, gamma, gae_lambda)
            assert float(advantages[t, c]) == pytest.approx(advantage, abs=1e-4)
            assert float(returns[t, c]) == pytest.approx(total, abs=1e-4)


def test_gae_with_lambda_one_is_the_return_less_the_value() -> None:
    rollout = random_rollout(20, 5, seed=0)
    difference = bootstrapped_returns(rollout, 0.9) - rollout.values[:-1]
    torch.testing.assert_close(gae(rollout, 0.9, 1.0), difference, atol=1e-5, rtol=0)


def slow_vtrace(rollout: Rollout, gamma: float, lam: float, slip: str = "") -> tuple[Array, Array]:
    """Returns advantages and returns by V-trace in float64, as sums of products (limits 1.2, 0.9).

    Args:
        slip: a deliberate mistake.
    """
    arrays = (x.numpy().astype(np.float64) for x in rollout)
    rewards, terminated, truncated, values, finals, ratios = arrays
    num_steps, num_columns = rewards.shape
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for c in range(num_columns):
        for t in range(num_steps):
            for k in range(t, num_steps):
                following = finals[k, c] if truncated[k, c] else values[k + 1, c]
                if terminated[k, c] and slip != "bootstrap after a termination":
                    following = 0.0
                sign = -1 if slip == "sign" else 1
                term = rewards[k, c] + gamma * following - sign * values[k, c]
                if slip != "no rho":
                    term *= min(1.2, ratios[k, c])
                shift = slip == "c one step late"
                own = 1.0
                for i in range(t, k):
                    factor = min(0.9, ratios[i + shift, c]) if slip != "no c" else 1.0
                    factor *= gamma * (1.0 if slip == "no lambda" else lam)
                    if i > t:
                        own *= factor
                    else:
                        own *= gamma * lam
                    term *= factor
                returns[t, c] += term
                if k == t:
                    advantages[t, c] += term / min(1.2, ratios[k, c])
                else:
                    rest = rewards[k, c] + gamma * following - values[k, c]
                    advantages[t, c] += own * min(1.2, ratios[k, c]) * rest
                if (terminated[k, c] or truncated[k, c]) and slip != "beyond the end":
                    break
            returns[t, c] += values[t, c]
    return advantages, returns


@pytest.mark.parametrize("num_steps", [1, 2, 33])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_vtrace_equals_its_definition(num_steps: int, gamma: float, lam: float) -> None:
    rollout = random_rollout(num_steps, 7, seed=num_steps)
    found = vtrace(rollout, gamma, lam, 1.2, 0.9)
    for computed, expected in zip(found, slow_vtrace(rollout, gamma, lam), strict=True):
        np.testing.assert_allclose(computed.numpy(), expected, atol=2e-5)


SLIPS = [
    "sign",
    "no rho",
    "no c",
    "no lambda",
    "c one step late",
    "beyond the end",
    "bootstrap after a termination",
]


@pytest.mark.parametrize("slip", SLIPS)
def test_the_vtrace_comparison_feels_every_slip(slip: str) -> None:
    rollout = random_rollout(33, 7, seed=0)
    _, returns = vtrace(rollout, 0.9, 0.8, 1.2, 0.9)
    wrong = slow_vtrace(rollout, 0.9, 0.8, slip)[1]
    assert np.abs(returns.numpy() - wrong).max() > 1e-2


def test_vtrace_by_hand() -> None:
    # Deltas are (1, 1); gamma lambda is 1/4. D1 = 1 * 1/2, D0 = 1 * 1 + 1/4 * 1 * D1; the
    # advantage of step 0 is 1 + 1/4 * D1.
    rollout = column([1, 1], [2, 4, 8], ratios=[3.0, 0.5])
    advantages, returns = vtrace(rollout, 0.5, 0.5, 1.0, 1.0)
    assert listed(advantages) == [1.125, 1.0]
    assert listed(returns) == [2 + 1.125, 4 + 0.5]


@pytest.mark.parametrize("gae_lambda", [0.95, 1.0])
def test_vtrace_with_ratios_of_one_has_the_bits_of_gae(gae_lambda: float) -> None:
    rollout = random_rollout(33, 7, seed=1)
    rollout = rollout._replace(ratios=torch.ones_like(rollout.ratios))
    advantages, returns = vtrace(rollout, 0.99, gae_lambda, 1.0, 1.0)
    expected = gae(rollout, 0.99, gae_lambda)
    assert torch.equal(advantages, expected)
    assert torch.equal(returns, expected + rollout.values[:-1])
    if gae_lambda == 1:
        discounted = bootstrapped_returns(rollout, 0.99)
        torch.testing.assert_close(returns, discounted, atol=1e-5, rtol=0)


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


def test_a2c_loss_by_hand() -> None:
    # Policy -(-1 * 2 + -2 * 1) / 2 = 2, value (1 + 4) / 2, entropy (0.5 + 0.7) / 2.
    loss, parts = policy_gradient_loss(
        Prediction(log_probs=vector(-1, -2), entropy=vector(0.5, 0.7), values=vector(1, 3)),
        Targets(advantages=vector(2, 1), returns=vector(2, 5), weights=vector(1, 1)),
        entropy_coef=0.1,
        value_coef=0.5,
        num_rows=2,
    )
    assert {n: float(p) for n, p in parts.items()} == pytest.approx(
        {"policy": 2.0, "value": 2.5, "entropy": 0.6}
    )
    assert float(loss) == pytest.approx(2.0 + 0.5 * 2.5 - 0.1 * 0.6)


def ppo(
    ratio: float,
    advantage: float,
    value: float = 0.0,
    clip_value_loss: bool = True,
    weight: float = 1.0,
) -> tuple[float, dict[str, float]]:
    """Returns the loss of one row with clip range 0.2, old value 0, return 1 and entropy 0.7."""
    loss, parts = ppo_loss(
        Prediction(vector(math.log(0.5 * ratio)), entropy=vector(0.7), values=vector(value)),
        OldPolicy(vector(math.log(0.5)), values=vector(0.0)),
        Targets(vector(advantage), returns=vector(1.0), weights=vector(weight)),
        clip_coef=0.2,
        clip_value_loss=clip_value_loss,
        entropy_coef=0.1,
        value_coef=0.5,
        num_rows=1,
    )
    return float(loss), {name: float(part) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "policy_loss"),
    [
        (1.1, 3.0, -3.3),
        # Outside the clip range, better actions gain no more, while worse ones still lose.
        (1.5, 3.0, -3.6),
        (1.5, -3.0, 4.5),
        (0.5, 3.0, -1.5),
        (0.5, -3.0, 2.4),
        (0.9, -3.0, 2.7),
    ],
)
def test_ppo_policy_loss_by_hand(ratio: float, advantage: float, policy_loss: float) -> None:
    loss, parts = ppo(ratio, advantage)
    assert parts["policy"] == pytest.approx(policy_loss, rel=1e-5)
    # Value 0 and return 1 give a value loss of 1/2.
    assert loss == pytest.approx(policy_loss + 0.5 * 0.5 - 0.1 * 0.7, rel=1e-5)
    assert parts["kl"] == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)
    assert parts["clip_fraction"] == (abs(ratio - 1) > 0.2)


def test_the_weight_multiplies_the_policy_part_alone() -> None:
    (loss, plain), (weighted_loss, weighted) = ppo(1.1, 3.0), ppo(1.1, 3.0, weight=0.5)
    assert weighted["policy"] == pytest.approx(0.5 * plain["policy"])
    assert {**weighted, "policy": plain["policy"]} == plain
    assert weighted_loss == pytest.approx(loss - 0.5 * plain["policy"])


@pytest.mark.parametrize(
    ("value", "clipped", "plain"),
    [
        (0.1, 0.5 * 0.9**2, 0.5 * 0.9**2),
        # The value moved out of the range towards the return: the larger error, at 0.2, counts.
        (0.7, 0.5 * 0.8**2, 0.5 * 0.3**2),
        # The value moved away from the return: its full error counts.
        (-0.7, 0.5 * 1.7**2, 0.5 * 1.7**2),
    ],
)
def test_ppo_value_loss_by_hand(value: float, clipped: float, plain: float) -> None:
    assert ppo(1.0, 0.0, value)[1]["value"] == pytest.approx(clipped, rel=1e-5)
    assert ppo(1.0, 0.0, value, clip_value_loss=False)[1]["value"] == pytest.approx(plain, rel=1e-5)


def test_no_gradient_where_the_ratio_is_clipped() -> None:
    old = torch.zeros(4)
    log_probs = vector(0.5, 0.5, -0.5, -0.5).requires_grad_()
    now, targets = Prediction(log_probs, old, old), Targets(vector(1, -1, 1, -1), old, old + 1)
    loss, _ = ppo_loss(now, OldPolicy(old, old), targets, 0.2, False, 0.0, 0.0, 4)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert (gradient != 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_micro_batches_add_up(algorithm: str) -> None:
    # The losses and parts of the pieces of a minibatch sum to those of the minibatch.
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randn(10, generator=rng) for _ in range(8)]

    def loss(inputs: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        now, old, targets = Prediction(*inputs[:3]), OldPolicy(*inputs[3:5]), Targets(*inputs[5:])
        if algorithm == "a2c":
            return policy_gradient_loss(now, targets, 0.1, 0.5, 10)
        return ppo_loss(
            now,
            old,
            targets,
            clip_coef=0.2,
            clip_value_loss=True,
            entropy_coef=0.1,
            value_coef=0.5,
            num_rows=10,
        )

    whole, parts = loss(rows)
    pieces = [loss([row[start : start + 4] for row in rows]) for start in (0, 4, 8)]
    torch.testing.assert_close(whole, sum((p[0] for p in pieces), torch.zeros(())))
    for name, part in parts.items():
        torch.testing.assert_close(part, sum((p[1][name] for p in pieces), torch.zeros(())))
