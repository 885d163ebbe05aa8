"""Evaluation during training: a process of its own plays whole games with a barrier's policy.

    barrier          queue on the disk                 evaluator
    θ[j] published   evaluations/policy_<steps>.ckpt   plays, answers with the scores
    a later barrier  the file is removed        ◄──    the scores are logged

A policy at which the process hangs or dies is played again, and ends the run the third time. A
policy stays on the disk until its scores are in `metrics.jsonl`: whatever is killed, no
evaluation is lost, and none changes what is learned. Policies are played in order, with resets and
actions seeded by their env steps, as `htsrl eval ... seed=<env steps>` would. Now and then
the first game is filmed: `evaluations/videos/policy_<steps>.mp4`, its beginning in TensorBoard.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from htsrl_cli.checkpoints.file import Checkpoint, load_checkpoint, save_checkpoint
from htsrl_cli.config.sections import EvalConfig, EvaluationConfig
from htsrl_cli.durable import remove_leftovers, sync_folder
from htsrl_cli.errors import HtsrlError, WorkerError
from htsrl_cli.evaluation.marks import ENV, NUM_LINES, OTHER, PASS, Marks
from htsrl_cli.networks.device import set_up_torch
from htsrl_cli.storage.slot import Episode
from htsrl_cli.tracking.film import EVALUATIONS_FOLDER, animation, film_path
from htsrl_cli.workers.board import Board
from htsrl_cli.workers.process import start_process, stop_workers
from htsrl_cli.workers.watcher import START_TIMEOUT_S, Watcher

logger = logging.getLogger(__name__)

_NAME = re.compile(r"policy_(\d{12})\.ckpt")
# The training goes first where both want a core.
_NICE = 19
# A policy at which the process died or hung so often ends the run.
_MOST_DEATHS = 3
_MORE_TIME = "raise env.step_timeout_s and actors.timeout_s"
# Policies that the process is told of: one to play, and one to go on with until the next barrier.
# All of them might fill the pipe, and the training would wait.
_MOST_ASKED = 2
_WAIT_S = 1.0


class Timeouts(NamedTuple):
    """The seconds that something may take before it is a hang.

    Attributes:
        env_s: an env step, a reset, or the making of an environment.
        pass_s: a forward pass.
    """

    env_s: float
    pass_s: float


class Evaluated(NamedTuple):
    """The result of a policy.

    Attributes:
        env_steps: that it was trained for.
        seconds: of training before it was published.
        episodes: in order of number.
        animation: a GIF of the first of them where it was filmed.
    """

    env_steps: int
    seconds: float
    episodes: list[Episode]
    animation: bytes | None


class Evaluator:
    """The queue of policies, and the process that plays them.

    Args:
        run_dir: the run's folder.
        config: how many episodes.
        env_steps: where the run begins or goes on; policies of a later time are removed.
        logged: env steps of the policies whose scores are in the log; theirs are removed, too.
        timeouts: of the process.
    """

    def __init__(
        self,
        run_dir: Path,
        config: EvaluationConfig,
        env_steps: int,
        logged: Collection[int],
        timeouts: Timeouts,
    ) -> None:
        self._folder = run_dir / EVALUATIONS_FOLDER
        self._config = config
        self._timeouts = timeouts
        self._folder.mkdir(exist_ok=True)
        sync_folder(run_dir)
        remove_leftovers(self._folder)
        self._played: deque[Evaluated] = deque()
        self._queue: deque[int] = deque()
        for steps in sorted(self._stored()):
            if steps > env_steps or steps in logged:
                self._path(steps).unlink()
            else:
                self._queue.append(steps)
        self._writer = ThreadPoolExecutor(1, "policy-writer")
        self._writing: deque[tuple[int, Future[None]]] = deque()
        self._asked = self._deaths = 0
        self._start()
        self._ask()

    def submit(self, env_steps: int, checkpoint: Checkpoint) -> None:
        """Adds a policy to the queue.

        Args:
            checkpoint: parameters that nobody writes to, and what `htsrl eval` needs in `meta`,
                besides `seconds` of training and whether the first game is `filmed`.
        """
        path = self._path(env_steps)
        self._writing.append((env_steps, self._writer.submit(save_checkpoint, path, checkpoint)))

    def flush(self) -> None:
        """Waits until all policies are on the disk, before a checkpoint that counts on them."""
        while self._writing:
            self._take_written()

    def finished(self) -> list[Evaluated]:
        """Policies that have been played and not been forgotten, in order.

        Raises:
            HtsrlError: the evaluation fails, or dies or hangs each time it is tried.
        """
        while self._writing and self._writing[0][1].done():
            self._take_written()
        while self._queue and self._worker.control.poll():
            # The watcher must not take an answer that has just been read for one that is owed.
            self._worker.owes = False
            try:
                answer, value = self._worker.control.recv()
            except (EOFError, OSError):
                self._restart(None)
                break
            if answer == "error":
                raise _as_error(value, self._queue[0])
            self._deaths = 0
            self._played.append(Evaluated(self._queue.popleft(), *value))
            self._asked -= 1
            self._worker.owes = self._asked > 0
            self._ask()
        if self._queue and self._watcher.hang:
            self._restart(self._watcher.hang)
        return list(self._played)

    def wait(self) -> None:
        """Returns once there is something for `finished` to say, or after a second."""
        self.flush()
        if self._queue:
            connection.wait([self._worker.control, self._watcher.failed], _WAIT_S)

    @property
    def waiting(self) -> list[int]:
        """Env steps of the policies that have not been forgotten, in order."""
        played = (done.env_steps for done in self._played)
        return [*played, *self._queue, *(steps for steps, _ in self._writing)]

    def forget_first(self) -> None:
        """Removes the first policy: its scores are in the log."""
        self._path(self._played.popleft().env_steps).unlink(missing_ok=True)

    def close(self) -> None:
        """Ends process and thread; what is in the queue stays on the disk."""
        self._writer.shutdown()
        self._stop()

    def _start(self) -> None:
        board = Board(NUM_LINES)
        self._worker = start_process(
            "evaluator", OTHER, START_TIMEOUT_S, run_evaluator, self._config.episodes, board
        )
        lines = [
            self._worker,
            replace(self._worker, index=ENV, timeout_s=self._timeouts.env_s),
            replace(self._worker, index=PASS, timeout_s=self._timeouts.pass_s),
        ]
        self._watcher = Watcher(lines, board, stand_back=True)

    def _stop(self) -> None:
        self._watcher.stop()
        stop_workers([self._worker], gracefully=False)

    def _take_written(self) -> None:
        env_steps, written = self._writing.popleft()
        try:
            written.result()
        except OSError as error:
            path = self._path(env_steps)
            logger.error("%s: %s; this policy is not evaluated", path, error.strerror)
            return
        self._queue.append(env_steps)
        self._ask()

    def _ask(self) -> None:
        """Tells the process of the next policies."""
        for env_steps in islice(self._queue, self._asked, _MOST_ASKED):
            self._worker.send("play", str(self._path(env_steps)))
            self._asked += 1

    def _restart(self, hang: WorkerError | None) -> None:
        """Starts the process anew, with what it has not answered.

        Args:
            hang: what the watcher says of it; None where it died.
        """
        self._deaths += 1
        cause = "the evaluator died" if hang is None else str(hang)
        if self._deaths == _MOST_DEATHS:
            raise WorkerError(
                f"the evaluator died or hung {_MOST_DEATHS} times at the policy of "
                f"{self._queue[0]:,} env steps; switch evaluation off with eval.interval=0, or "
                + ("lower eval.episodes" if hang is None else f"{_MORE_TIME}\n{hang}")
            )
        logger.warning("the policy of %d env steps is played again: %s", self._queue[0], cause)
        self._stop()
        self._start()
        self._asked = 0
        self._ask()

    def _path(self, env_steps: int) -> Path:
        return self._folder / f"policy_{env_steps:012d}.ckpt"

    def _stored(self) -> list[int]:
        names = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        return [int(match[1]) for match in names if match]


def _as_error(words: HtsrlError | str, env_steps: int) -> HtsrlError:
    if isinstance(words, HtsrlError):
        return words
    return WorkerError(f"evaluator, policy of {env_steps:,} env steps, raised\n{words.strip()}")


def run_evaluator(control: Connection, _: int, episodes: int, board: Board) -> None:
    """Runs the evaluator: plays the policies that it is told to, in order."""
    os.nice(_NICE)
    set_up_torch()
    marks = Marks(board)
    while True:
        _, path = control.recv()
        with marks.evaluation():
            result = _evaluate(Path(path), episodes, marks)
            control.send(("play", result))


def _evaluate(path: Path, episodes: int, marks: Marks) -> tuple[float, list[Episode], bytes | None]:
    """Plays a policy; returns what `Evaluated` holds but for the env steps."""
    # Loads what the training has no use for.
    from htsrl_cli.evaluation import play as evaluation
    from htsrl_cli.evaluation.video import VideoFolder

    checkpoint = load_checkpoint(path)
    env_steps, seconds = checkpoint.meta["env_steps"], checkpoint.meta["seconds"]
    config = EvalConfig(
        str(path), episodes, seed=env_steps, greedy=False, video=False, renderer=None
    )
    if checkpoint.meta["filmed"]:
        film = film_path(path.parent.parent, env_steps)
        try:
            with VideoFolder(film.parent, film.name, most=1) as videos:
                played = evaluation.play(checkpoint, config, path, videos=videos, marks=marks)
            return seconds, played, animation(film)
        except Exception as error:
            # Whatever renders, fails or lacks disk, the scores count.
            logger.error("%s: %s; this policy is not filmed", film, " ".join(str(error).split()))
    return seconds, evaluation.play(checkpoint, config, path, marks=marks), None
