"""Process groups of workers: what an environment started ends with its worker.

Each worker process leads a process group, to which the processes that it starts belong. A guard,
one small process, is told which groups exist, and kills them when the main process ends for any
reason, SIGKILL included. A process that leaves its group, as a daemon does, is not killed.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
from contextlib import suppress

# A shell needs little memory and starts at once. Its standard input is a pipe that only the main
# process holds, so `read` fails when the main process ends.
_SCRIPT = """
groups=' '
while read -r word pid; do
  case $word in
    begun) groups="$groups$pid " ;;
    ended) groups="${groups%% $pid *} ${groups#* $pid }" ;;
  esac
done
for pid in $groups; do kill -s KILL -- "-$pid"; done
"""


class Guard:
    """The guard of this process's workers; it starts with the first worker."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None

    def watch(self, pid: int) -> None:
        """Lets the guard kill the group of worker process `pid` when this process ends."""
        if self._shell is None or self._shell.poll() is not None:
            # In a session of its own, the guard outlives what kills the group of this process.
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "htsrl-guard"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
            atexit.register(_end, self._shell)
        self._tell("begun", pid)

    def end(self, pid: int) -> None:
        """Kills what is left of the group of worker process `pid`, which has ended."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        self._tell("ended", pid)

    def _tell(self, word: str, pid: int) -> None:
        with suppress(OSError):  # The guard was killed.
            if self._shell is not None and self._shell.stdin is not None:
                self._shell.stdin.write(f"{word} {pid}\n".encode())


GUARD = Guard()


def lead_group() -> None:
    """Makes this process the leader of a new process group."""
    os.setpgid(0, 0)


def _end(shell: subprocess.Popen[bytes]) -> None:
    """Lets a guard kill what is left, and waits for its end."""
    assert shell.stdin is not None
    shell.stdin.close()
    shell.wait()
