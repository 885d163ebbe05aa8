"""The versions and the machine of a run, which `summary.json` stores."""

from __future__ import annotations

import platform

import torch

from htsrl_cli import __version__
from htsrl_cli.config.sections import TrainConfig
from htsrl_cli.envs.state import state_packages
from htsrl_cli.machine import num_cores, package_versions, processor
from htsrl_cli.networks.device import resolve_device

_PACKAGES = ("torch", "numpy", "gymnasium")


def versions(config: TrainConfig) -> dict[str, str]:
    """Returns the versions of htsrl, Python and the packages that compute a run's results.

    The package that implements the environments is included if the environment's kind names it.
    """
    return {
        "htsrl": __version__,
        "python": platform.python_version(),
        **package_versions(*_PACKAGES),
        **state_packages(config.env),
    }


def machine(config: TrainConfig) -> dict[str, str | int | None]:
    """Returns the processor, the number of usable cores, the GPU and the system of this machine.

    The GPU is that of the learner, or else of the actors; None if neither uses a GPU.
    """
    devices = [
        resolve_device("learner.device", config.learner.device),
        resolve_device("actors.device", config.actors.device),
    ]
    gpus = [torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"]
    return {
        "processor": processor(),
        "cores": num_cores(),
        "gpu": gpus[0] if gpus else None,
        "platform": platform.platform(),
    }
