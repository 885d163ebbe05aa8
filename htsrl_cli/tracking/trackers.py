"""Experiment trackers that receive a run's lines of metrics: Weights & Biases and MLflow.

The packages' own environment variables, such as WANDB_MODE and MLFLOW_TRACKING_URI, set the server,
folder and user. A resumed run continues its entry, which is the tracker's record of the run. A
resumed run may send some lines a second time; only their values in `time/` can differ.
"""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from htsrl_cli.config.sections import LogConfig
from htsrl_cli.durable import write_durably
from htsrl_cli.errors import ConfigError

# Files in the run's folder that store the trackers' run ids.
WANDB_FILE = "wandb_run_id"
MLFLOW_FILE = "mlflow_run_id"
_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


class Tracker(Protocol):
    """A service that receives a run's lines of metrics. Its methods may raise any exception."""

    def write(self, line: Mapping[str, float | None]) -> None:
        """Sends the values of a line, except None, with the line's `env_steps` as the step."""

    def close(self, is_complete: bool) -> None:
        """Marks the run's entry as finished if `is_complete` is True, otherwise as interrupted."""


class WandbTracker:
    """A Weights & Biases run.

    Args:
        project: the name of the W&B project.
        run_dir: the run's folder, which holds W&B's local files. The W&B run is named after it.
        hyperparameters: values by name, possibly nested.
    """

    def __init__(self, project: str, run_dir: Path, hyperparameters: Mapping[str, object]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=project,
            id=_stored(run_dir / WANDB_FILE, lambda: uuid.uuid4().hex),
            resume="allow",
            name=run_name(run_dir),
            dir=str(run_dir.resolve()),
            config=dict(hyperparameters),
            settings=wandb.Settings(console="off", silent=True),
        )
        # W&B's own step cannot decrease, but the line of an evaluated policy may follow lines with
        # more env steps.
        self._run.define_metric("*", step_metric="env_steps")

    def write(self, line: Mapping[str, float | None]) -> None:
        self._run.log({name: value for name, value in line.items() if value is not None})

    def close(self, is_complete: bool) -> None:
        self._run.finish(exit_code=0 if is_complete else 1)


class MlflowTracker:
    """An MLflow run; MLflow's own threads send the values.

    Args:
        experiment: the name of the MLflow experiment; created if it does not exist.
        run_dir: the run's folder, after which the MLflow run is named.
        hyperparameters: values by dotted name.
    """

    def __init__(
        self, experiment: str, run_dir: Path, hyperparameters: Mapping[str, object]
    ) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        self._run_id = _stored(
            run_dir / MLFLOW_FILE, lambda: self._create_run(experiment, run_dir, hyperparameters)
        )
        self._client.update_run(self._run_id, status="RUNNING")

    def write(self, line: Mapping[str, float | None]) -> None:
        from mlflow.entities import Metric

        now_ms, env_steps = int(1000 * time.time()), line["env_steps"]
        assert env_steps is not None
        metrics = [
            Metric(name, value, now_ms, int(env_steps))
            for name, value in line.items()
            if value is not None and name != "env_steps"
        ]
        self._client.log_batch(self._run_id, metrics, synchronous=False)

    def close(self, is_complete: bool) -> None:
        from mlflow import flush_async_logging

        flush_async_logging()
        self._client.set_terminated(self._run_id, "FINISHED" if is_complete else "KILLED")

    def _create_run(
        self, experiment: str, run_dir: Path, hyperparameters: Mapping[str, object]
    ) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(self._experiment_id(experiment), run_name=run_name(run_dir))
        params = [Param(name, str(value)) for name, value in hyperparameters.items()]
        self._client.log_batch(run.info.run_id, params=params)
        run_id: str = run.info.run_id
        return run_id

    def _experiment_id(self, name: str) -> str:
        """Returns the experiment's id; creates the experiment if it does not exist.

        If another job of a sweep creates it at the same time, that experiment's id is returned.
        """
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


def _stored(path: Path, make: Callable[[], str]) -> str:
    """Returns the text of the file; a missing file is first created with the text from `make()`."""
    if not path.exists():
        identifier = make().encode()
        write_durably(path, lambda file: file.write(identifier))
    return path.read_text(encoding="utf-8")


def run_name(run_dir: Path) -> str:
    """Returns the last three parts of the folder's path, which tell a sweep's runs apart."""
    return "/".join(run_dir.resolve().parts[-3:])


def check_packages(config: LogConfig) -> None:
    """Checks that the packages of the configured trackers are installed.

    Raises:
        ConfigError: a package is missing.
    """
    for name, package in _PACKAGES.items():
        value = getattr(config, name)
        if value is not None and importlib.util.find_spec(name) is None:
            remedy = f"needs the package {package}: pip install 'htsrl[{name}]'"
            raise ConfigError(f"log.{name}", value, remedy)
