"""Evaluation during training: a separate process plays whole games with the policy of a barrier.

    barrier          queue on disk                     evaluator
    θ[j] published   evaluations/policy_<steps>.ckpt   plays, answers with the scores
    a later barrier  the file is removed        ◄──    the scores are logged

A policy stays on disk until its scores are in `metrics.jsonl`: whatever is killed, no evaluation
is lost, and none changes what is learned. If the process hangs or dies, the policy is played again;
the third time ends the run. Policies are played in order, with resets and actions seeded by their
env steps, as by `htsrl eval ... seed=<env steps>`. With `eval.video_interval`, the first game of
some policies is filmed: `evaluations/videos/policy_<steps>.mp4`, its start in TensorBoard.
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
from htsrl_cli.config.sections import EvalConfig, PeriodicEvalConfig
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
# The lowest priority: training goes first where both want a core.
_NICE = 19
# A policy at which the process died or hung this many times ends the run.
_MOST_DEATHS = 3
_MORE_TIME = "raise env.step_timeout_s and actors.timeout_s"
# Policies sent to the process at a time: one to play, and one to continue with before the next
# barrier. A long queue could fill the pipe and make training wait.
_MOST_ASKED = 2
_WAIT_S = 1.0


class Timeouts(NamedTuple):
    """The seconds after which an operation counts as a hang.

    Attributes:
        env_s: for an env step, a reset, or building an environment.
        pass_s: for a forward pass.
    """

    env_s: float
    pass_s: float


class Evaluated(NamedTuple):
    """The scores of one policy.

    Attributes:
        env_steps: env steps that the policy was trained for.
        seconds: seconds of training before it was published.
        episodes: the games played, by number.
        animation: a GIF of the first game; None if it was not filmed.
    """

    env_steps: int
    seconds: float
    episodes: list[Episode]
    animation: bytes | None


class Evaluator:
    """The queue of policies to score, and the process that plays them.

    Stored policies that the run does not need are removed: those of later env steps than the
    run's, and those whose scores are in the log.

    Args:
        run_dir: the run's folder.
        config: gives the number of episodes.
        env_steps: env steps at which the run starts or resumes.
        logged: env steps of the policies whose scores are in the log.
        timeouts: limits for the process.
    """

    def __init__(
        self,
        run_dir: Path,
        config: PeriodicEvalConfig,
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
        """Adds a policy to the queue; a thread writes it to disk.

        Args:
            checkpoint: parameters that nothing writes to any more. Its `meta` holds what
                `htsrl eval` needs, `seconds` (of training) and `filmed` (True to film the first
                game).
        """
        path = self._path(env_steps)
        self._writing.append((env_steps, self._writer.submit(save_checkpoint, path, checkpoint)))

    def flush(self) -> None:
        """Blocks until all submitted policies are on disk.

        Called before a checkpoint: a run that resumes from it does not submit them again.
        """
        while self._writing:
            self._take_written()

    def finished(self) -> list[Evaluated]:
        """Returns the policies that have been scored and not yet forgotten, in order.

        Restarts the process if it has died or hangs.

        Raises:
            HtsrlError: an evaluation raised an error, or died or hung at every attempt.
        """
        while self._writing and self._writing[0][1].done():
            self._take_written()
        while self._queue and self._worker.control.poll():
            # Before the answer is read: the watcher must not wait for one that has arrived.
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
        """Blocks until `finished` may return something new, for at most a second."""
        self.flush()
        if self._queue:
            connection.wait([self._worker.control, self._watcher.failed], _WAIT_S)

    @property
    def waiting(self) -> list[int]:
        """The env steps of all policies not yet forgotten, in order."""
        played = (done.env_steps for done in self._played)
        return [*played, *self._queue, *(steps for steps, _ in self._writing)]

    def forget_first(self) -> None:
        """Removes the first policy of `finished`, once its scores are in the log."""
        self._path(self._played.popleft().env_steps).unlink(missing_ok=True)

    def close(self) -> None:
        """Stops the process and the thread; queued policies stay on disk."""
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
        """Sends the next policies to the process."""
        for env_steps in islice(self._queue, self._asked, _MOST_ASKED):
            self._worker.send("play", str(self._path(env_steps)))
            self._asked += 1

    def _restart(self, hang: WorkerError | None) -> None:
        """Restarts the process and sends it the policies that it has not answered.

        Args:
            hang: the watcher's error; None if the process died.

        Raises:
            WorkerError: it died or hung too often at the same policy.
        """
        self._deaths += 1
        cause = "the evaluator died" if hang is None else str(hang)
        if self._deaths == _MOST_DEATHS:
            raise WorkerError(
                f"the evaluator died or hung {_MOST_DEATHS} times at the policy of "
                f"{self._queue[0]:,} env steps; switch evaluation off with eval.interval=0, or "
                + ("lower eval.episodes" if hang is None else f"{_MORE_TIME}\n{hang}")
            )
        logger.warning("playing the policy of %d env steps again: %s", self._queue[0], cause)
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
    """Runs the evaluator process: plays the policies sent on `control`, in order.

    Args:
        episodes: number of games with each policy.
    """
    os.nice(_NICE)
    set_up_torch()
    marks = Marks(board)
    while True:
        _, path = control.recv()
        with marks.evaluation():
            result = _evaluate(Path(path), episodes, marks)
            control.send(("play", result))


def _evaluate(path: Path, episodes: int, marks: Marks) -> tuple[float, list[Episode], bytes | None]:
    """Plays a policy; returns the fields of `Evaluated` other than the env steps."""
    # Imported here, as training itself needs none of it.
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
            # Scores matter more than the video: play again without one, whatever failed.
            logger.error("%s: %s; this policy is not filmed", film, " ".join(str(error).split()))
    return seconds, evaluation.play(checkpoint, config, path, marks=marks), None
