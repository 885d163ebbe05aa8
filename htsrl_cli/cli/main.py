"""The command `htsrl`: its verbs, and the exit codes of errors.

Every spawned worker imports this module again as its main module. At the top level, this module
therefore imports only modules that load no package.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from htsrl_cli.cli import system
from htsrl_cli.errors import HtsrlError, Stopped, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

Task = Callable[["DictConfig"], float | None]

USAGE = """\
htsrl: high-throughput synchronous deep reinforcement learning

  htsrl train [KEY=VALUE ...]                train a policy
  htsrl eval checkpoint=RUN [KEY=VALUE ...]  play whole games with a trained policy

  htsrl bench [KEY=VALUE ...]                measure the training throughput on this machine
  htsrl list [GROUP ...]                     list the options of env, algo, experiment ...
  htsrl report RUN [RUN ...] [--output DIR]  compare runs: table, learning curves, HTML page

  htsrl VERB --help                 show how to use a verb, for example its keys
  htsrl train --cfg job             show the composed configuration (also eval, bench)
  htsrl --version                   show the version
  eval "$(htsrl -sc install=bash)"  turn on tab completion
"""
_EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        argv: words after `htsrl`; if None, the arguments of this process.
    """
    system.open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    handle_signals(leave)
    try:
        _dispatch(words)
    except HtsrlError as error:
        return _report(error)
    except OSError as error:
        if known := system.explained(error):
            return _report(known)
        raise
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return 0


def handle_signals(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    """Calls `handler` for signals that end a command; ignores SIGHUP if it was ignored (nohup)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Ends the process at once if a signal arrives while no run is active.

    There is nothing to save. If this function raised an exception, an import in progress could
    print a traceback or suppress the exception. Workers end when this process ends.
    """
    os._exit(128 + signum)


def _unwind(signum: int, frame: FrameType | None) -> NoReturn:
    """Raises `Stopped`, so that cleanup code ends the child processes before this one exits."""
    raise Stopped(128 + signum)


def _dispatch(words: list[str]) -> None:
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        print(USAGE, end="")
    elif "--version" in words:
        from htsrl_cli import __version__

        print(f"htsrl {__version__}")
    elif first in ("-sc", "--shell-completion"):
        _complete(words)
    elif first in VERBS:
        system.check_current_folder()
        if first in TASKS:
            run_verb(first, words[1:], TASKS[first])
        else:
            TOOLS[first](words[1:])
    else:
        raise _unknown_verb(first)


def _unknown_verb(word: str) -> UsageError:
    from htsrl_cli.config.wording import did_you_mean

    if not word:
        return UsageError(f"a verb is needed: {' or '.join(VERBS)} (see htsrl --help)")
    hint = did_you_mean(word, VERBS) or f" ({', '.join(VERBS)})"
    return UsageError(f"{word}: there is no such verb{hint}")


def _report(error: HtsrlError) -> int:
    """Prints an error (on one line if it is a user's mistake) and returns its exit code."""
    text = " ".join(str(error).split()) if isinstance(error, UsageError) else str(error)
    # Nobody reads a standard error that is full or a terminal that has gone.
    with suppress(OSError):
        print(f"htsrl: error: {text}", file=sys.stderr)
    return error.exit_code


def _explained(task: Task, cfg: DictConfig) -> float | None:
    """Runs a task; raises `HtsrlError` if it reaches a limit of the system, or if code exits."""
    try:
        with system.exits_as_errors():
            return task(cfg)
    except OSError as error:
        raise system.explained(error) or error from error


def _reported(task: Task) -> Task:
    """Wraps a task so that its errors become exit codes.

    In a multirun the wrapped task raises its error instead. Hydra then runs the other jobs and
    raises the error again at the end.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from htsrl_cli.workers.process import leave_launcher

        try:
            return _explained(task, cfg)
        except HtsrlError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise Stopped(_report(error)) from error
        except Stopped as error:
            leave_launcher(error.status)
            raise

    return run


@_reported
def train(cfg: DictConfig) -> float | None:
    """Runs one job of `htsrl train`; returns the metric that a sweeper optimizes."""
    from htsrl_cli.cli.job import run_job
    from htsrl_cli.cli.ranks import follows_in_job
    from htsrl_cli.workers.process import settle_in_launcher
    from htsrl_cli.workers.stopping import end_with_launcher

    # Without this line, a failed write to the log file (disk full) would print a traceback.
    logging.raiseExceptions = False
    settle_in_launcher()
    end_with_launcher()
    if follows_in_job():
        return None
    _, outcome = run_job(cfg)
    if outcome.signum is not None:
        raise Stopped(128 + outcome.signum)
    return outcome.metric


@_reported
def evaluate(cfg: DictConfig) -> float | None:
    """Runs one job of `htsrl eval`."""
    from htsrl_cli.cli.compose import to_eval_config
    from htsrl_cli.evaluation import play as evaluation

    evaluation.evaluate(to_eval_config(cfg))
    return None


@_reported
def bench(cfg: DictConfig) -> float | None:
    """Runs one job of `htsrl bench`; returns the first runner's env steps per second."""
    from htsrl_cli.cli import benched

    handle_signals(_unwind)
    return benched.run_job(cfg)


TASKS: dict[str, Task] = {"train": train, "eval": evaluate, "bench": bench}


def _list(words: list[str]) -> None:
    """Prints the options of the named groups, or of all groups."""
    from htsrl_cli.cli import listing

    parser = _parser("list", "Lists the options of configuration groups.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="env, algo ... (default: all)")
    parser.add_argument("--config-dir", help="an additional folder of YAML files")
    args = parser.parse_args(words)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if len(args.groups) == 1:
        print("\n".join(listing.lines(args.groups[0], args.config_dir)))
        return
    groups = args.groups or listing.groups(args.config_dir)
    # All lines are read before the first one is printed, because a file may be malformed.
    found = {group: listing.lines(group, args.config_dir) for group in groups}
    for group, lines in found.items():
        print(f"{group}:", *lines, sep="\n  ")


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Returns the argument parser of a verb; the parser raises `UsageError` for mistakes."""

    def fail(message: str) -> NoReturn:
        raise UsageError(f"{verb}: {message} (see htsrl {verb} --help)")

    parser = argparse.ArgumentParser(prog=f"htsrl {verb}", description=description)
    parser.error = fail  # type: ignore[method-assign]
    return parser


def _report_runs(words: list[str]) -> None:
    """Runs `htsrl report`."""
    parser = _parser(
        "report",
        "Prints a table that compares runs, and writes an HTML page with their learning curves "
        "against env steps and against time, their configurations and their videos. Runs that "
        "differ only in the seed form a group.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or a folder of runs"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="the output folder (default: report)"
    )
    args = parser.parse_args(words)
    # This import loads scipy, which neither help nor an error in the command line needs.
    from htsrl_cli.report import report

    report.write_report(args.runs, args.output)


# Verbs that take no configuration.
TOOLS: dict[str, Callable[[list[str]], None]] = {"list": _list, "report": _report_runs}
VERBS = (*TASKS, *TOOLS)


def run_verb(verb: str, words: list[str], task: Task) -> None:
    """Prints the help of a verb, or checks the command and has Hydra run `task` for each job.

    Raises:
        HtsrlError: the command cannot run as typed.
    """
    from htsrl_cli.cli import compose, ranks, tuned

    if ranks.follows(verb):
        return
    # Discards the warnings of the checks: each job logs them again once logging is configured.
    logging.getLogger("htsrl_cli").addHandler(logging.NullHandler())
    args, flags = _parse_flags(verb, words)
    added: list[str] = []
    if verb == "train" and any(word.startswith("resume=") for word in args.overrides):
        from htsrl_cli.cli import resumed

        args.overrides = resumed.fit_overrides(args.overrides)
    if not (args.hydra_help or args.shell_completion):
        composer = compose.Composer(args.config_name or verb, args.config_dir)
        if args.help or args.cfg or args.info:
            # The program that reads the output may stop early (`| head`).
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            cfg = composer.job(args.overrides)
            if args.help:
                from htsrl_cli.cli import help

                print(help.text(cfg, args.config_dir, args.resolve))
                return
            added = tuned.words(cfg)
        else:
            multirun = args.multirun or composer.is_multirun(args.overrides)
            # This import is slow, and a mistake in the overrides has been found without it.
            from htsrl_cli.cli import preflight

            with system.exits_as_errors():
                added = preflight.check(verb, composer, args.overrides, multirun)
    _run_hydra(verb, [*flags, *args.overrides, *added], task)


def _run_hydra(verb: str, words: Sequence[str], task: Task) -> None:
    """Starts Hydra, which runs the jobs of a verb or prints what a flag asks for."""
    import hydra
    from hydra.errors import HydraException

    from htsrl_cli.cli import compose, files, sweep

    sys.argv = [sys.argv[0], *words]
    # Without this setting, Hydra would print a job's exception itself and exit.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    configs = str(files.configs_dir())
    decorate = hydra.main(version_base=compose.VERSION_BASE, config_path=configs, config_name=verb)
    try:
        decorate(task)()
    except HydraException as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        failure = sweep.failure(error)
        if failure is None:
            raise
        raise failure from error


def _parse_flags(verb: str, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses Hydra's flags; overrides may come before, between and after the flags.

    Returns:
        The parsed arguments, and the words that are not overrides: flags and their values.

    Raises:
        UsageError: a flag does not exist, is not supported, or conflicts with another flag.
    """
    from hydra._internal.utils import get_args_parser

    def fail(message: str) -> NoReturn:
        raise UsageError(f"{_key_of_flag(verb, message, words) or message} (see --hydra-help)")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(words)
    chosen = [args.run, args.cfg, args.multirun, args.shell_completion, args.info]
    if sum(map(bool, chosen)) > 1:
        fail("give only one of --run, --multirun, --cfg, --info and --shell-completion")
    if args.resolve and not (args.cfg or args.help):
        fail("--resolve needs --cfg or --help")
    if args.config_path or args.experimental_rerun:
        fail("--config-path and --experimental-rerun are not supported: use --config-dir")
    overrides, flags = list(args.overrides), []
    for word in words:
        if overrides and word == overrides[0]:
            del overrides[0]
        else:
            flags.append(word)
    return args, flags


def _key_of_flag(verb: str, message: str, words: list[str]) -> str | None:
    """Returns the error for a key that was typed as a flag (`--seed 1`), else None.

    Args:
        message: the message of the parser of flags.
        words: the words after the verb.
    """
    from htsrl_cli.cli import compose, explain

    unknown = re.search(r"unrecognized arguments: (--\S+)", message)
    if unknown is None or unknown[1] not in words:
        return None
    following = [*words, ""][words.index(unknown[1]) + 1]
    known = explain.own_keys(compose.Composer(verb).job([]))
    override = explain.flag_as_override(unknown[1], following, known)
    return f"{unknown[1]}: keys are no flags: write {override}" if override else None


def _complete(words: list[str]) -> None:
    """Prints the completions of a command line, or a script that turns completion on or off.

    For completions, the shell calls `htsrl -sc query=SHELL`. Hydra writes the script.
    """
    if any(word.startswith("query=") for word in words):
        from htsrl_cli.cli import completion

        print(completion.answer(words, VERBS, TASKS, run_verb))
    else:
        run_verb("train", words, train)
