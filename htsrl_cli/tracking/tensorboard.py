"""TensorBoard event files of a run."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2 as hp
from torch.utils.tensorboard import SummaryWriter

from htsrl_cli.config.identity import changes_no_result
from htsrl_cli.tracking.metric_names import EVAL_RETURN, FINAL_METRIC, RECENT_RETURN
from htsrl_cli.tracking.trackers import run_name

# The types of hyperparameters that TensorBoard accepts.
Plain = bool | int | float | str

# The charts of TensorBoard's "Custom scalars" page, by group.
LAYOUT = {
    "Score": {
        "training, mean of 100 episodes": ["Multiline", [RECENT_RETURN]],
        "evaluation": ["Multiline", [EVAL_RETURN, FINAL_METRIC]],
        "episode length": ["Multiline", ["episode/length_mean"]],
    },
    "Learning": {
        "entropy": ["Multiline", ["loss/entropy"]],
        "KL divergence and clipping": ["Multiline", ["loss/kl", "loss/clip_fraction"]],
        "explained variance": ["Multiline", ["loss/explained_variance"]],
        "gradient norm": ["Multiline", ["learner/grad_norm"]],
    },
    "Speed": {
        "env steps per second": ["Multiline", ["time/env_steps_per_second"]],
        "busy": [
            "Multiline",
            ["time/executors_busy", "time/actors_busy", "time/learner_busy"],
        ],
    },
}


class EventFiles:
    """The TensorBoard events of a run: scalars, histograms, GIFs, hyperparameters and a layout.

    The constructor writes hyperparameters and layout only if `env_steps` is 0 or the folder holds
    no event file yet.

    Args:
        run_dir: the run's folder; a resume adds a file to the earlier ones.
        hyperparameters: values by dotted name.
        metric: the tag by which TensorBoard compares runs.
        env_steps: env steps at the last training line of metrics that is kept; 0 if there is none.
            TensorBoard hides the events of earlier processes that have more env steps.
    """

    def __init__(
        self, run_dir: Path, hyperparameters: Mapping[str, Plain], metric: str, env_steps: int
    ) -> None:
        self._name = run_name(run_dir)
        is_first = env_steps == 0 or not any(run_dir.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(run_dir), purge_step=env_steps + 1)
        if is_first:
            self._writer.add_custom_scalars(LAYOUT)
            self._write_hyperparameters(hyperparameters, metric)

    def write(self, line: Mapping[str, float | None]) -> None:
        """Adds the scalars of a line of metrics, except None values, and flushes them to disk.

        Raises:
            OSError: the file cannot be written.
        """
        env_steps = line["env_steps"]
        for tag, value in line.items():
            if value is not None and tag != "env_steps":
                self._writer.add_scalar(tag, value, env_steps)
        self._writer.flush()

    def write_animation(self, gif: bytes, env_steps: int) -> None:
        """Adds an animated GIF of an evaluated game, for TensorBoard to play.

        Raises:
            OSError: the file cannot be written.
        """
        # Width and height (uint16) follow the six bytes "GIF89a".
        width, height = struct.unpack_from("<HH", gif, 6)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        summary = Summary(value=[Summary.Value(tag="eval/game", image=image)])
        self._writer.file_writer.add_summary(summary, env_steps)  # type: ignore[attr-defined]
        self._writer.flush()

    def write_lags(self, lags: Mapping[int, int], env_steps: int) -> None:
        """Adds the histogram "learner/lags": the number of rows for each policy lag.

        Raises:
            OSError: the file cannot be written.
        """
        values = range(max(lags) + 1)
        self._writer.add_histogram_raw(
            "learner/lags",
            min=min(lags),
            max=max(lags),
            num=sum(lags.values()),
            sum=sum(lag * count for lag, count in lags.items()),
            sum_squares=sum(lag**2 * count for lag, count in lags.items()),
            bucket_limits=[lag + 0.5 for lag in values],
            bucket_counts=[lags.get(lag, 0) for lag in values],
            global_step=env_steps,
        )
        self._writer.flush()

    def close(self, is_complete: bool) -> None:
        """Closes the event file and ends the writer's thread; `is_complete` has no effect."""
        self._writer.close()

    def _write_hyperparameters(self, values: Mapping[str, Plain], metric: str) -> None:
        rows = "".join(f"|{name}|{value}|\n" for name, value in values.items())
        self._writer.add_text("hyperparameters", f"|key|value|\n|-|-|\n{rows}", 0)
        # `SummaryWriter.add_hparams` would create a subfolder, which TensorBoard lists as a second
        # run.
        shown = [name for name in values if not changes_no_result(name)]
        experiment = hp.hparams_config_pb([hp.HParam(name) for name in shown], [hp.Metric(metric)])
        session = hp.hparams_pb({name: values[name] for name in shown}, self._name)
        for summary in (experiment, session):
            self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self._writer.flush()
