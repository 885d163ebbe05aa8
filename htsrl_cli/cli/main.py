"""The command `htsrl`: its verbs, and the exit codes of errors.

Every spawned worker imports this module again as its main module, so the top imports only the
standard library and the exceptions.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from htsrl_cli.errors import HtsrlError, RunError, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

Task = Callable[["DictConfig"], float | None]

USAGE = """\
htsrl: high-throughput synchronous deep reinforcement learning

  htsrl train [KEY=VALUE ...]                train a policy
  htsrl eval checkpoint=RUN [KEY=VALUE ...]  play episodes with a trained policy

  htsrl bench [KEY=VALUE ...]                measure the training throughput on this machine
  htsrl list [GROUP ...]                     list the options of env, algo, experiment ...
  htsrl report RUN [RUN ...] [--output DIR]  compare runs: table, learning curves, HTML page

  htsrl VERB --help                 groups, keys and examples
  htsrl VERB --cfg job              the composed configuration
  htsrl --version
  eval "$(htsrl -sc install=bash)"  tab completion
"""
_EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code.

    Args:
        argv: words after `htsrl`; those of this process if None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        _dispatch(words)
    except HtsrlError as error:
        return _report(error)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    return 0


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Ends the process at a signal while no run is active.

    There is nothing to save, and an exception during an import would print a traceback or get lost.
    Workers end with this process.
    """
    os._exit(128 + signum)


def _unwind(signum: int, frame: FrameType | None) -> NoReturn:
    """Ends the process by an exception, so that the processes it started are ended first."""
    raise SystemExit(128 + signum)


def _dispatch(words: list[str]) -> None:
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        print(USAGE, end="")
    elif "--version" in words:
        from htsrl_cli import __version__

        print(f"htsrl {__version__}")
    elif first in ("-sc", "--shell-completion"):
        _complete(words)
    elif first in TASKS:
        _run_verb(first, words[1:])
    elif first in TOOLS:
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
    """Prints an error, on one line if it is a user's mistake, and returns its exit code."""
    text = str(error)
    if isinstance(error, UsageError):
        text = " ".join(text.split())
    print(f"htsrl: error: {text}", file=sys.stderr)
    return error.exit_code


def _reported(task: Task) -> Task:
    """Wraps a task so that its errors become exit codes.

    In a multirun the error is raised instead: Hydra runs the other jobs, then raises it again.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> float | None:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from htsrl_cli.workers.process import leave_launcher

        try:
            return task(cfg)
        except HtsrlError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise SystemExit(_report(error)) from error
        except SystemExit as error:
            leave_launcher(int(error.code or 0))
            raise

    return run


@_reported
def train(cfg: DictConfig) -> float | None:
    """Runs one job of `htsrl train`; returns the metric that a sweeper optimizes."""
    from hydra.core.hydra_config import HydraConfig

    from htsrl_cli.cli.compose import typed_words
    from htsrl_cli.cli.job import hold_folder, plan_job, write_config
    from htsrl_cli.runners import run as runner
    from htsrl_cli.workers.process import settle_in_launcher

    hydra = HydraConfig.get()
    typed = typed_words(hydra, "task")
    # Otherwise a log file that cannot be written (disk full) fills the terminal with tracebacks.
    logging.raiseExceptions = False
    settle_in_launcher()
    plan = functools.partial(
        plan_job, cfg, typed, Path(hydra.runtime.output_dir), Path(hydra.runtime.cwd)
    )
    job = plan()
    with hold_folder(job.run_dir, job.config.runner.stop_grace_s):
        # Another process may have trained there until now.
        job = plan()
        write_config(job.config, job.run_dir)
        outcome = runner.train(job.config, job.run_dir, job.checkpoint)
    if outcome.signum is not None:
        raise SystemExit(128 + outcome.signum)
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
    """Runs one job of `htsrl bench`; returns the env steps per second of the first runner."""
    from hydra.core.hydra_config import HydraConfig

    from htsrl_cli.bench import benchmark
    from htsrl_cli.cli.compose import to_bench_config, to_train_config, typed_words

    hydra = HydraConfig.get()
    words = benchmark.train_words(typed_words(hydra, "task"))
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            words.append(f"--config-dir={source.path}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _unwind)
    folder = Path(hydra.runtime.output_dir)
    return benchmark.run_benchmark(to_bench_config(cfg), to_train_config(cfg), words, folder)


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
    for group in args.groups or listing.groups(args.config_dir):
        print(f"{group}:", *listing.lines(group, args.config_dir), sep="\n  ")


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    """Returns the argument parser of a verb; it reports mistakes as `UsageError`."""

    def fail(message: str) -> NoReturn:
        raise UsageError(f"{verb}: {message} (see htsrl {verb} --help)")

    parser = argparse.ArgumentParser(prog=f"htsrl {verb}", description=description)
    parser.error = fail  # type: ignore[method-assign]
    return parser


def _report_runs(words: list[str]) -> None:
    """Runs `htsrl report`."""
    from htsrl_cli.report import report

    parser = _parser(
        "report",
        "Compares runs: a table, learning curves against env steps and time, and one HTML page. "
        "Runs that differ only in the seed form a group.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder, or a folder of runs"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), help="the folder to write (default: report)"
    )
    args = parser.parse_args(words)
    report.write_report(args.runs, args.output)


# Verbs without a configuration.
TOOLS: dict[str, Callable[[list[str]], None]] = {"list": _list, "report": _report_runs}
VERBS = (*TASKS, *TOOLS)


def _run_verb(verb: str, words: list[str]) -> None:
    """Checks everything that can be checked in advance, then starts Hydra."""
    from concurrent.futures.process import BrokenProcessPool

    import hydra
    from hydra.errors import HydraException

    from htsrl_cli.cli import compose, preflight

    # Drops the warnings of the checks: each job repeats them once logging is configured.
    logging.getLogger("htsrl_cli").addHandler(logging.NullHandler())
    args, flags = _parse_flags(words)
    added: list[str] = []
    if not (args.hydra_help or args.shell_completion):
        composer = compose.Composer(args.config_name or verb, args.config_dir)
        if args.help or args.cfg or args.info:
            # The reader may stop early (`| head`).
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            composer.job(args.overrides)
        else:
            added = preflight.CHECKS[verb](composer, args.overrides, args.multirun)
    sys.argv = [sys.argv[0], *flags, *args.overrides, *added]
    # Otherwise Hydra prints a job's exception itself and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    configs = str(compose.configs_dir())
    decorate = hydra.main(version_base=compose.VERSION_BASE, config_path=configs, config_name=verb)
    try:
        decorate(TASKS[verb])()
    except HydraException as error:
        raise UsageError(str(error)) from error
    except BrokenProcessPool as error:
        raise RunError(
            f"a job's process died, which ended the sweep {_sweep_dir()}: to resume it, run the "
            f"same command with resume=auto hydra.sweep.dir={_sweep_dir()}"
        ) from error
    except Exception as error:
        if not _has_no_best_trial(error):
            raise
        raise RunError(
            f"no trial of {_sweep_dir()} gave a metric: see the warnings above and train.log in "
            "its folders"
        ) from error


def _has_no_best_trial(error: Exception) -> bool:
    """Returns True if Optuna raised `error` because no trial of the search gave a metric.

    The study is the `self` of a call in the traceback. All of its trials have ended, none of them
    with a value.
    """
    if "optuna" not in sys.modules:
        return False
    from optuna.study import Study
    from optuna.trial import TrialState

    callers = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    states = [t.state for study in callers if isinstance(study, Study) for t in study.trials]
    ended = all(state.is_finished() for state in states)
    return bool(states) and ended and TrialState.COMPLETE not in states


def _sweep_dir() -> str:
    """Returns the folder of the sweep that has just ended."""
    from hydra.core.hydra_config import HydraConfig

    return str(HydraConfig.get().sweep.dir)


def _parse_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses Hydra's flags; overrides may stand before, between and after them.

    Returns:
        The parsed words, and those of them that are flags.

    Raises:
        UsageError: a flag does not exist, is not supported, or excludes another one.
    """
    from hydra._internal.utils import get_args_parser

    def fail(message: str) -> NoReturn:
        raise UsageError(f"{message} (see --hydra-help)")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(words)
    chosen = [args.run, args.cfg, args.multirun, args.shell_completion, args.info]
    if sum(map(bool, chosen)) > 1:
        fail("give only one of --run, --multirun, --cfg, --info and --shell-completion")
    if args.resolve and not (args.cfg or args.help):
        fail("--resolve needs --cfg or --help")
    if args.config_path or args.experimental_rerun:
        fail("--config-path and --experimental-rerun are not supported, use --config-dir")
    overrides, flags = list(args.overrides), []
    for word in words:
        if overrides and word == overrides[0]:
            del overrides[0]
        else:
            flags.append(word)
    return args, flags


def _config_dir(words: Sequence[str]) -> str | None:
    """Returns the folder that `--config-dir` names, or None if there is no such flag or folder."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            folder = value if equals else following
            return folder if Path(folder).is_dir() else None
    return None


def _complete(words: list[str]) -> None:
    """Prints the completions of a command line; leaves most words after the verb to Hydra.

    The shell calls `htsrl -sc query=SHELL` with the line so far in COMP_LINE.
    """
    line = os.environ.get("COMP_LINE", "")
    program, _, rest = line.partition(" ")
    verb, space, overrides = rest.lstrip().partition(" ")
    querying = any(word.startswith("query=") for word in words)
    separator = "\n" if "query=fish" in words else " "
    if querying and not (space and verb in VERBS):
        print(separator.join(name for name in VERBS if name.startswith(verb)))
        return
    if not querying:
        _run_verb("train", words)
        return
    from htsrl_cli.cli import listing

    *before, last = overrides.split(" ")
    found = listing.completions(verb, last, _config_dir(before))
    if found or verb in TOOLS or last.startswith("-"):
        print(separator.join(found))
        return
    # For flags, sweeps and words that are no overrides, Hydra would print errors into the prompt.
    known = [word for word in before if listing.is_fixed(word)]
    os.environ["COMP_LINE"] = " ".join([program, *known, last])
    with suppress(Exception):
        _run_verb(verb, words)
