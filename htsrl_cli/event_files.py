"""TensorBoard event files of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# The charts of TensorBoard's page "Custom scalars", by group.
LAYOUT = {
    "Score": {
        "training, mean of 100 episodes": ["Multiline", ["episode/return_mean_100"]],
        "evaluation": ["Multiline", ["eval/return_mean", "eval/final_metric"]],
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
    """Writes scalars, and once the hyperparameters and the layout of the charts that matter.

    Args:
        run_dir: the run's folder; a resume adds a file beside the earlier ones.
        hyperparameters: plain values, nested or not.
        metric: the tag by which TensorBoard compares runs.
        env_steps: TensorBoard hides what earlier processes wrote after this.
    """

    def __init__(
        self, run_dir: Path, hyperparameters: Mapping[str, object], metric: str, env_steps: int
    ) -> None:
        self._writer = SummaryWriter(str(run_dir), purge_step=env_steps + 1)
        if env_steps == 0:
            self._write_hyperparameters(dict(_flat(hyperparameters)), metric)
            self._writer.add_custom_scalars(LAYOUT)

    def write(self, line: Mapping[str, float | None]) -> None:
        """Adds the line's scalars and puts them on the disk.

        Raises:
            OSError: they could not be written.
        """
        env_steps = line["env_steps"]
        for tag, value in line.items():
            if value is not None and tag != "env_steps":
                self._writer.add_scalar(tag, value, env_steps)
        self._writer.flush()

    def close(self) -> None:
        """Ends the writer's thread."""
        self._writer.close()

    def _write_hyperparameters(
        self, values: dict[str, bool | int | float | str], metric: str
    ) -> None:
        rows = "".join(f"|{name}|{value}|\n" for name, value in values.items())
        self._writer.add_text("hyperparameters", f"|key|value|\n|-|-|\n{rows}", 0)
        # `SummaryWriter.add_hparams` would open a folder of its own, a second run to TensorBoard.
        for summary in hparams(values, {metric: 0.0}):  # type: ignore[no-untyped-call]
            self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self._writer.flush()


def _flat(
    values: Mapping[str, object], prefix: str = ""
) -> Iterator[tuple[str, bool | int | float | str]]:
    """Dotted names, and values of the types that TensorBoard takes."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            known = isinstance(value, bool | int | float | str)
            yield f"{prefix}{name}", value if known else str(value)  # type: ignore[misc]
