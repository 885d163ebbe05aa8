"""`htsrl` in a process forked after its imports, for commands that end soon."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm", "htsrl_cli.cli.preflight", "hydra.main"])


def run(words: tuple[str, ...], cwd: Path, outputs: Path) -> subprocess.CompletedProcess[str]:
    """Runs `htsrl WORDS ...` in `cwd`, a third of a second faster than a new interpreter.

    Standard output and standard error go to files in the existing folder `outputs`.
    """
    files = (outputs / "stdout", outputs / "stderr")
    process = _CONTEXT.Process(target=_command, args=(words, cwd, files))
    process.start()
    process.join()
    assert process.exitcode is not None
    stdout, stderr = (file.read_text() for file in files)
    return subprocess.CompletedProcess(words, process.exitcode, stdout, stderr)


def _command(words: tuple[str, ...], cwd: Path, files: tuple[Path, Path]) -> None:
    for fd, file in enumerate(files, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, fd)
        os.close(opened)
    os.chdir(cwd)
    sys.argv = ["htsrl", *words]

    from htsrl_cli.cli.main import main

    sys.exit(main())
