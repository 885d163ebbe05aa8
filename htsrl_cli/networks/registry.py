"""The registry of networks, and builders of a run's policies.

Each kind of network has a folder with its keys (a subclass of `NetworkConfig`) and the network
itself. An entry point of the group `htsrl.networks` names the kind's `Kind` object, which names the
factory. The factory is called as `factory(config, spec)`. It returns one trunk that policy and
value share, or a pair of trunks: the policy's and the value's. `ActorCritic` defines what a
trunk is.

`network.name=module:name` names a factory directly, for example a class. This factory needs no
entry point, and its `config` is an `OwnNetworkConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from htsrl_cli.config.kinds import AlgoConfig, NetworkConfig
from htsrl_cli.config.plain import find_kind
from htsrl_cli.config.plan import num_policies
from htsrl_cli.envs.base import EnvSpec
from htsrl_cli.errors import ConfigError
from htsrl_cli.networks.activations import CachingLayers, layout_of
from htsrl_cli.networks.actor_critic import ActorCritic, initialize
from htsrl_cli.networks.recurrent import build_memory
from htsrl_cli.seeding import Purpose, generator
from htsrl_cli.storage.memory import ArrayType

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_network(config: NetworkConfig) -> Callable[..., Any]:
    """Imports the factory of a network.

    Raises:
        ConfigError: the module or the name in it does not exist, or a package is missing.
    """
    kind = find_kind("network", config.name)
    module, _, name = kind.factory.partition(":")
    try:
        return kind.load()
    except ModuleNotFoundError as error:
        remedy = f"there is no module {module}: install it, or run in the folder that holds it"
        if not f"{module}.".startswith(f"{error.name}."):
            remedy = f"module {module} needs the package {error.name}: pip install {error.name}"
        raise ConfigError("network.name", config.name, remedy) from error
    except AttributeError as error:
        remedy = f"module {module} has no {name}: give the name of a class or function in it"
        raise ConfigError("network.name", config.name, remedy) from error


def build_policy(
    spec: EnvSpec, network: NetworkConfig, precision: str, device: torch.device
) -> ActorCritic:
    """Builds a policy with trunks in `precision`; the caller must load or initialize parameters.

    The policy is in evaluation mode. In training mode, dropout would draw random numbers, and batch
    normalization would make a row's results depend on the other rows.

    Args:
        precision: `fp32` or `bf16`.

    Raises:
        ConfigError: the network cannot be imported, does not fit the environment, or does not
            return trunks.
    """
    network.check(spec.obs_shape)
    made = load_network(network)(network, spec)
    trunks = made if isinstance(made, tuple) else (made,)
    for trunk in trunks:
        if not (
            isinstance(trunk, nn.Module) and isinstance(getattr(trunk, "num_features", None), int)
        ):
            remedy = (
                "it must return a torch.nn.Module with an integer num_features, or a pair of such "
                "modules"
            )
            raise ConfigError("network.name", network.name, remedy)
    nums_features: list[Any] = [trunk.num_features for trunk in trunks]
    memory = build_memory(network, nums_features)
    policy = ActorCritic(spec, *trunks, memory=memory).to(device)
    for trunk in trunks:
        trunk.to(PRECISIONS[precision])
    return policy.eval()


def build_policies(
    spec: EnvSpec, network: NetworkConfig, algo: AlgoConfig, precision: str, device: torch.device
) -> nn.ModuleList:
    """Builds the policies of a run: one for all players or one for each player (`algo.policies`).

    Raises:
        ConfigError: see `build_policy`.
    """
    count = num_policies(algo, spec.num_players)
    return nn.ModuleList(build_policy(spec, network, precision, device) for _ in range(count))


def initial_policies(
    spec: EnvSpec, network: NetworkConfig, algo: AlgoConfig, seed: int
) -> nn.ModuleList:
    """Builds a run's policies, with initial parameters (version 0) that `seed` determines.

    The policies are in float32 and on the CPU.

    Raises:
        ConfigError: see `build_policy`.
    """
    policies = nn.ModuleList()
    for index in range(num_policies(algo, spec.num_players)):
        numbers = generator(seed, Purpose.PARAMETERS, index)
        rng = torch.Generator().manual_seed(int(numbers.integers(2**63)))
        # Layers that `initialize` does not set get their parameters from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(numbers.integers(2**63)))
            policy = build_policy(spec, network, "fp32", torch.device("cpu"))
        initialize(policy, rng)
        policies.append(policy)
    return policies


@torch.no_grad()
def activation_layout(spec: EnvSpec, network: NetworkConfig, precision: str) -> list[ArrayType]:
    """Returns, for each layer output that actors can keep, the shape and dtype of one of its rows.

    The list is empty if no trunk has a `computes_by_layer` that is True, and with a memory: the
    learner then computes the activations again.
    """
    if network.memory != "none":
        return []
    policy = build_policy(spec, network, precision, torch.device("cpu"))
    layers = CachingLayers()
    policy(torch.zeros(1, *spec.obs_shape, dtype=getattr(torch, spec.obs_dtype)), layers)
    return layout_of(layers.outputs)
