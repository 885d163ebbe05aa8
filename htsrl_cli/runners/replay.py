"""The schedule that a run with `runner.replay` repeats: where it is, and whether it fits."""

from __future__ import annotations

from pathlib import Path

from htsrl_cli.config.identity import config_sha256
from htsrl_cli.config.plan import RunPlan
from htsrl_cli.config.sections import AsyncRunnerConfig, TrainConfig
from htsrl_cli.errors import ConfigError
from htsrl_cli.sampling.schedule import SCHEDULE_FILE, Schedule


def header(config: TrainConfig) -> dict[str, str | int]:
    """Returns the first line of a schedule: what must be equal for a replay."""
    return {"version": 1, "config_sha256": config_sha256(config)}


def load_schedule(config: TrainConfig) -> Schedule | None:
    """Returns the schedule that a run replays; None if it runs freely.

    Raises:
        ConfigError: `runner.replay` names no schedule of a run with the same configuration, or the
            schedule is damaged or too short.
    """
    path = schedule_path(config)
    if path is None:
        return None
    folder, plan = path.parent, RunPlan.of(config)

    def refuse(why: str) -> ConfigError:
        return ConfigError("runner.replay", str(folder), why)

    try:
        schedule = Schedule.load(path)
    except FileNotFoundError:
        raise refuse(
            f"the folder has no {SCHEDULE_FILE}: record the run with runner.record=true"
        ) from None
    except OSError as error:
        raise refuse(f"{SCHEDULE_FILE} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise refuse(f"{SCHEDULE_FILE} is damaged: {error}") from error
    if schedule.header != header(config):
        raise refuse(
            "its run had other settings: repeat its command, with runner.replay in addition"
        )
    try:
        schedule.check(
            config.actors.num_envs,
            plan.num_columns // config.env.num_columns,
            plan.sync_interval,
            config.env.num_columns,
        )
    except (ValueError, TypeError) as error:
        raise refuse(f"{SCHEDULE_FILE} is damaged: {error}") from error
    needed = plan.num_updates
    if len(schedule.updates) < needed:
        raise refuse(
            f"the recorded run has made {len(schedule.updates)} updates, but total_steps="
            f"{config.total_steps} needs {needed}: let it run to its end first"
        )
    return schedule


def schedule_path(config: TrainConfig) -> Path | None:
    """Returns the path of the schedule that a run replays; None if it runs freely."""
    runner = config.runner
    if not isinstance(runner, AsyncRunnerConfig) or runner.replay is None:
        return None
    return Path(runner.replay) / SCHEDULE_FILE
