"""Evaluation during training: a separate process plays whole games with policies of the run.

    main process                     file in evaluations/          evaluator process
    barrier: publishes θ[j]     ──►  policy_<env steps>.ckpt  ──►  plays games with θ[j]
    later barrier: logs scores       is deleted               ◄──  sends the scores

A policy's file is kept until its scores are in `metrics.jsonl`, so no evaluation is lost if a
process is killed. Evaluation does not change what is learned. If the evaluator process hangs or
dies, it is restarted and plays the policy again. The run fails after the third failure with the
same policy.

Policies are played in order of their env steps, with sampled actions. The number of env steps for
which a policy was trained is the seed of the resets and actions in its games, as in
`htsrl eval ... greedy=false seed=<env steps>`. If `eval.video_interval` is not 0, the first game of
some policies is filmed. The video is `evaluations/videos/policy_<env steps>.mp4`; TensorBoard shows
the beginning of this video.
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
# The lowest priority: the evaluator uses a core only if training does not need it.
_NICE = 19
# The run fails after this number of deaths and hangs with the same policy.
_MOST_DEATHS = 3
_MORE_TIME = "raise env.step_timeout_s and actors.timeout_s"
# Maximum number of policies that the process has received but not answered: the policy that it
# plays and the next policy. More messages could fill the pipe and block training.
_MOST_ASKED = 2
_WAIT_S = 1.0


class Timeouts(NamedTuple):
    """The seconds after which an operation counts as a hang.

    Attributes:
        env_s: limit for an env step, a reset, or the construction of an environment.
        pass_s: limit for choosing the next action of every game, in one or more forward passes.
    """

    env_s: float
    pass_s: float


class Evaluated(NamedTuple):
    """The scores of one policy.

    Attributes:
        env_steps: env steps for which the policy was trained.
        seconds: seconds of training before the policy was published.
        episodes: results of the games, in order of the games' numbers.
        animation: the beginning of the first game as a GIF; None if the game was not filmed.
    """

    env_steps: int
    seconds: float
    episodes: list[Episode]
    animation: bytes | None


class Evaluator:
    """The queue of policies to evaluate, and the process that plays games with them.

    The constructor looks for policies that an earlier process of this run stored. It deletes those
    with more env steps than `env_steps` and those whose scores are in the log, queues the rest, and
    starts the process.

    Args:
        run_dir: the run's folder.
        config: section `eval`, which sets the number of games for each policy.
        env_steps: env steps at which the run starts or resumes.
        logged: env steps of the policies whose scores are in the log.
        timeouts: limits for the operations of the process.
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
        """Starts writing a policy to disk in another thread; a written policy joins the queue.

        Args:
            env_steps: env steps for which the policy was trained.
            checkpoint: the policy's parameters, in arrays that must not change after this call. Its
                `meta` has the entries that `htsrl eval` needs, and also `seconds` (seconds of
                training) and `filmed` (True to film the first game).
        """
        path = self._path(env_steps)
        self._writing.append((env_steps, self._writer.submit(save_checkpoint, path, checkpoint)))

    def flush(self) -> None:
        """Blocks until no policy is being written; logs an error if a policy could not be written.

        Call it before saving a checkpoint. A run that resumes from the checkpoint does not submit
        earlier policies again, so a policy that had not been written would not be evaluated.
        """
        while self._writing:
            self._take_written()

    def finished(self) -> list[Evaluated]:
        """Returns the scores of played policies that `forget_first` has not removed, oldest first.

        Restarts the process if it has died or hangs.

        Raises:
            HtsrlError: an evaluation raised an error, or the process died or hung three times
                with the same policy.
        """
        while self._writing and self._writing[0][1].done():
            self._take_written()
        while self._queue and self._worker.control.poll():
            # `owes` is cleared before the answer is read. Otherwise, the watcher could see that the
            # worker owes an answer and that the pipe is empty, and report a stall.
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
        """Waits until no policy is being written, then up to 1 s for an answer or a failure."""
        self.flush()
        if self._queue:
            connection.wait([self._worker.control, self._watcher.failed], _WAIT_S)

    @property
    def waiting(self) -> list[int]:
        """The env steps of each policy whose scores are still to be logged, oldest first."""
        played = (done.env_steps for done in self._played)
        return [*played, *self._queue, *(steps for steps, _ in self._writing)]

    def forget_first(self) -> None:
        """Removes the first entry of `finished` and deletes the policy's file.

        Call this method after logging the scores. If the file cannot be deleted, an error is
        logged; a resume then deletes it.
        """
        path = self._path(self._played.popleft().env_steps)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("cannot delete %s: %s", path, error.strerror)

    def close(self) -> None:
        """Stops the process and the writer thread; queued policies stay on disk."""
        self._writer.shutdown()
        self._stop()

    def _start(self) -> None:
        board = Board(NUM_LINES)
        self._worker = start_process(
            "evaluator", OTHER, START_TIMEOUT_S, run_evaluator, self._config, board
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
        """Sends queued policies to the process until `_MOST_ASKED` of them await an answer."""
        for env_steps in islice(self._queue, self._asked, _MOST_ASKED):
            self._worker.send("play", str(self._path(env_steps)))
            self._asked += 1

    def _restart(self, hang: WorkerError | None) -> None:
        """Logs a warning, restarts the process and sends it the unanswered policies again.

        Args:
            hang: the watcher's error; None if the process died.

        Raises:
            WorkerError: the process died or hung `_MOST_DEATHS` times with the same policy.
        """
        self._deaths += 1
        cause = "its process died" if hang is None else str(hang)
        if self._deaths == _MOST_DEATHS:
            raise WorkerError(
                f"the evaluator died or hung {_MOST_DEATHS} times with the policy from env step "
                f"{self._queue[0]:,}; switch evaluation off with eval.interval=0, or "
                + ("lower eval.episodes" if hang is None else f"{_MORE_TIME}\n{hang}")
            )
        logger.warning(
            "the evaluator failed; evaluating the policy from env step %d again; cause: %s",
            self._queue[0],
            cause,
        )
        self._stop()
        self._start()
        self._asked = 0
        self._ask()

    def _path(self, env_steps: int) -> Path:
        return self._folder / f"policy_{env_steps:012d}.ckpt"

    def _stored(self) -> list[int]:
        files = [path.name for path in self._folder.iterdir() if path.is_file()]
        return [int(match[1]) for name in files if (match := _NAME.fullmatch(name))]


def _as_error(words: HtsrlError | str, env_steps: int) -> HtsrlError:
    if isinstance(words, HtsrlError):
        return words
    return WorkerError(
        f"the evaluator failed while playing the policy from env step {env_steps:,}:\n"
        f"{words.strip()}"
    )


def run_evaluator(control: Connection, _: int, config: PeriodicEvalConfig, board: Board) -> None:
    """Runs the evaluator process: plays the policies sent on `control`, sends back their scores.

    Args:
        control: the connection for commands and answers.
        config: section `eval`.
        board: the board on which the process marks its current operation.
    """
    os.nice(_NICE)
    set_up_torch()
    marks = Marks(board)
    while True:
        _, path = control.recv()
        with marks.evaluation():
            result = _evaluate(Path(path), config, marks)
            control.send(("play", result))


def _evaluate(
    path: Path, periodic: PeriodicEvalConfig, marks: Marks
) -> tuple[float, list[Episode], bytes | None]:
    """Plays the policy stored at `path`; returns the fields of `Evaluated` except `env_steps`."""
    # Imported here, because the main process imports this module but needs neither of these.
    from htsrl_cli.evaluation import play as evaluation
    from htsrl_cli.evaluation.video import VideoFolder

    checkpoint = load_checkpoint(path)
    env_steps, seconds = checkpoint.meta["env_steps"], checkpoint.meta["seconds"]
    config = EvalConfig(
        str(path),
        periodic.episodes,
        periodic.max_episode_steps,
        seed=env_steps,
        greedy=False,
        video=False,
        renderer=None,
        trusted=True,
    )
    if checkpoint.meta["filmed"]:
        film = film_path(path.parent.parent, env_steps)
        try:
            with VideoFolder(film.parent, film.name, most=1) as videos:
                played = evaluation.play(checkpoint, config, path, videos=videos, marks=marks)
            return seconds, played, animation(film)
        except Exception as error:
            # Scores matter more than the video: whatever failed, the games are played again
            # without a video.
            logger.error("%s: %s; this policy is not filmed", film, " ".join(str(error).split()))
    return seconds, evaluation.play(checkpoint, config, path, marks=marks), None
