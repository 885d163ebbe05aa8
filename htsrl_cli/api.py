"""The Python interface: train as `htsrl train` does, and act with a trained policy.

At the top level, this module imports only what is light; `train` loads no torch at all.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from htsrl_cli.errors import ConfigError, HtsrlError, RunError, UsageError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from htsrl_cli.cli.trainer import Answer
    from htsrl_cli.evaluation.policy import Policy

__all__ = ["TrainResult", "game_seed", "load_policy", "train"]


# Seconds to wait for the last lines of a run that has ended.
_COPY_S = 5.0


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        folder: the run folder, absolute.
        complete: True if the run has made all its env steps; False if a signal stopped it.
        env_steps: env steps that the run has made.
        score: the score by which runs are compared, called `metric` in `summary.json`; None if no
            episode has ended.
        params_sha256: hash of the policies' parameters.
        optimizer_sha256: hash of the optimizer's state.
        rollouts_sha256: hash of all experience; None if `log.rollouts_sha256` is false.
        summary: the content of `summary.json`.
    """

    folder: Path
    complete: bool
    env_steps: int
    score: float | None
    params_sha256: str
    optimizer_sha256: str
    rollouts_sha256: str | None
    summary: Mapping[str, Any]


def train(overrides: Sequence[str] | Mapping[str, Any]) -> TrainResult:
    """Trains one run, exactly as `htsrl train` does, and returns its result.

    The run has its own process, which works in the current directory. It changes no settings of
    this program, does not depend on them, and does not import this program's main module.

    Ctrl-C stops the run after the current rollout and saves it, a second Ctrl-C stops it at once.
    `KeyboardInterrupt` is raised when the run has ended. `train` may run in any thread, but Python
    raises `KeyboardInterrupt` in the main thread only. If this program ends, the run stops after
    the current rollout.

    Args:
        overrides: words as on the command line, such as `["env=gym", "env.id=CartPole-v1"]`, or
            values by key, such as `{"env": "gym", "env.id": "CartPole-v1"}`. A nested mapping
            stands for the keys of a section: `{"algo": {"gamma": 0.9}}` is `{"algo.gamma": 0.9}`.

    Raises:
        UsageError: a key or value is wrong, or the folder holds another run.
        RunError: the run failed, or its process died.
        KeyboardInterrupt: Ctrl-C was pressed, and the run has stopped.
    """
    from htsrl_cli.cli.trainer import start_trainer
    from htsrl_cli.tracking.summary import read_summary

    words = list(_words(overrides))
    # In a notebook, sys.stderr is not the standard error of the process.
    screen = None if sys.stderr is sys.__stderr__ else sys.stderr
    process, control = start_trainer(words, None if screen is None else subprocess.PIPE)
    copier = threading.Thread(target=_copy, args=(process.stderr, screen), daemon=True)
    copier.start()
    try:
        # Closing the connection stops the run if this program raises an exception meanwhile.
        with control:
            answer = _receive(process, control)
    finally:
        process.wait()
        # A process that the run left behind, such as a tracker's, may keep the pipe open.
        copier.join(_COPY_S)
    if isinstance(answer, HtsrlError):
        raise answer
    summary = read_summary(answer.folder)
    return TrainResult(
        folder=answer.folder,
        complete=answer.is_complete,
        env_steps=summary["env_steps"],
        score=summary["metric"],
        params_sha256=summary["params_sha256"],
        optimizer_sha256=summary["optimizer_sha256"],
        rollouts_sha256=summary["rollouts_sha256"],
        summary=summary,
    )


def load_policy(run: str | Path, seed: int = 0, *, trusted: bool = False) -> Policy:
    """Loads a trained policy, which acts with `policy.act(observation)`.

    Args:
        run: a run folder, whose newest intact checkpoint is loaded, or a checkpoint file.
        seed: seed of the sampled actions.
        trusted: import the modules that the checkpoint names as `MODULE:NAME` (`env.id` and
            `network.name`), which runs their code.

    Raises:
        CheckpointError: there is no intact checkpoint, or it does not fit the environment or this
            version of htsrl.
        ConfigError: the environment, the network or the device is not available here, or the
            checkpoint names a module and `trusted` is False.
        EnvError: the environment's own code raises an exception while the environment is built.
    """
    from htsrl_cli.evaluation.policy import Policy

    return Policy(Path(run), seed, trusted)


def game_seed(game: int, seed: int = 0) -> int:
    """Returns the seed of the first reset of a game of `htsrl eval`.

    After `env.reset(seed=game_seed(game, seed))`, the most likely actions give the game's score.

    Args:
        game: the game's number, from 0.
        seed: the value of the key `seed`.
    """
    from htsrl_cli.seeding import Purpose, reset_seed

    return reset_seed(seed, game, 0, Purpose.EVALUATION_RESETS)


def _words(overrides: Sequence[str] | Mapping[str, Any]) -> Iterator[str]:
    if isinstance(overrides, Mapping):
        yield from _assignments(overrides, "")
    elif isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        raise UsageError(f"train({overrides!r}): give a list of words KEY=VALUE, or a mapping")
    else:
        yield from overrides


def _assignments(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _assignments(value, f"{key}.")
        else:
            # The arguments in `kwargs` are the user's own: Hydra does not know them.
            mark = "++" if ".kwargs." in key and not key.startswith("+") else ""
            yield f"{mark}{key}={_literal(key, value)}"


def _literal(key: str, value: Any) -> str:
    """Returns a value in Hydra's syntax."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None:
        return "null"
    if hasattr(value, "tolist"):  # a number or array of NumPy
        value = value.tolist()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return QuotedString(str(value), Quote.single).with_quotes()
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(key, item) for item in value)}]"
    remedy = "must be a string, a number, a boolean, None, a list or a mapping"
    raise ConfigError(key, repr(value), remedy)


def _copy(lines: IO[str] | None, screen: Any) -> None:
    if lines is not None:
        with lines:
            for line in lines:
                screen.write(line)


def _receive(process: subprocess.Popen[str], control: Connection) -> Answer:
    """Waits for the end of a run; passes Ctrl-C on to it.

    Raises:
        RunError: the process ended without an answer.
        KeyboardInterrupt: Ctrl-C was pressed, and the run has stopped.
    """
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            control.poll(None)
            break
        except KeyboardInterrupt as error:
            interrupted = error
            # The terminal may have sent it to the run, too: the run takes both as one.
            process.send_signal(signal.SIGINT)
    try:
        answer: Answer = control.recv()
    except (EOFError, OSError):
        answer = RunError(
            f"the process of the run ended with exit status {process.wait()}; its last lines say "
            "why; train({'resume': FOLDER}) continues from the last checkpoint in the run's FOLDER"
        )
    if interrupted is not None:
        raise interrupted
    return answer
