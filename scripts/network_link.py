r"""A link between two network namespaces, which stand for two machines; Linux and root only.

A relay in this process carries the packets of two TUN devices, one in each namespace, with a delay
and at a limited rate. (The kernel's own means for this, `tc netem`, is missing on many machines.)

    python -m scripts.network_link --delay-ms 10 --megabits 1000 -- \
        train env=atari/pong algo=ppo learner.num_shards=2 hydra.run.dir=/tmp/two

trains with one rank in each namespace, and prints the output of both. The words may also begin with
`bench`.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from scripts.interruption import exit_on_sigterm

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_DEVICE = "relay"
_MTU = 65520


class Link:
    """A link between the namespaces `names`; use it as a context manager.

    Args:
        delay_s: seconds that a packet takes.
        bits_per_s: rate of each direction.

    Attributes:
        names: names of the two namespaces.
        addresses: their addresses on the link.
        is_up: set it to False to lose every packet.
    """

    def __init__(self, delay_s: float, bits_per_s: float) -> None:
        self.names = tuple(f"htsrl-{os.getpid()}-{side}" for side in "ab")
        self.addresses = ("10.77.0.1", "10.77.0.2")
        self.is_up = True
        self._delay_s = delay_s
        self._bits_per_s = bits_per_s
        self._ended = threading.Event()
        self._relay = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Link:
        for name in self.names:
            _ip("netns", "add", name)
        self._devices = [self._device(name) for name in self.names]
        for name, address in zip(self.names, self.addresses, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", _DEVICE)
            _ip("-n", name, "link", "set", "dev", _DEVICE, "mtu", str(_MTU), "up")
            _ip("-n", name, "link", "set", "dev", "lo", "up")
        self._relay.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._relay.join()
        for device in self._devices:
            os.close(device)
        for name in self.names:
            _ip("netns", "del", name)

    def command(self, side: int, command: Sequence[str]) -> list[str]:
        """Returns the command line that runs `command` in a namespace.

        Args:
            side: 0 or 1.
        """
        # Gloo would take the address of the host's name, which the namespace does not have.
        variables = [f"GLOO_SOCKET_IFNAME={_DEVICE}", "OMP_NUM_THREADS=1"]
        return ["ip", "netns", "exec", self.names[side], "env", *variables, *command]

    def torchrun(self, side: int, words: Sequence[str], *more: str) -> list[str]:
        """Returns the command line of one of two `torchrun`, with one rank each.

        Args:
            side: 0 or 1.
            words: arguments of `htsrl`.
            more: more options of `torchrun`.
        """
        options = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={side}"]
        options += [f"--master-addr={self.addresses[0]}", "--master-port=29500"]
        program = [sys.executable, "-m", "torch.distributed.run"]
        return self.command(side, [*program, *options, *more, "-m", "htsrl_cli", *words])

    def _device(self, name: str) -> int:
        with _inside(name):
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN_NO_PI))
        return device

    def _run(self) -> None:
        """Carries packets until the link is closed."""
        poll = select.poll()
        for device in self._devices:
            poll.register(device, select.POLLIN)
        others = dict(zip(self._devices, reversed(self._devices), strict=True))
        free_at = dict.fromkeys(self._devices, 0.0)
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self._ended.is_set():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, device, packet = heapq.heappop(waiting)
                # A full device drops packets, as a full queue of a real link does.
                with suppress(OSError):
                    os.write(device, packet)
            patience_s = min(0.1, waiting[0][0] - now) if waiting else 0.1
            for device, _ in poll.poll(max(0.0, 1000 * patience_s)):
                packet = os.read(device, _MTU)
                if not self.is_up:
                    continue
                now = time.monotonic()
                free_at[device] = max(now, free_at[device]) + 8 * len(packet) / self._bits_per_s
                number += 1
                entry = (free_at[device] + self._delay_s, number, others[device], packet)
                heapq.heappush(waiting, entry)


@contextmanager
def _inside(name: str) -> Iterator[None]:
    """Moves this thread to a network namespace for the `with` block."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path: str) -> None:
        with open(path) as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)

    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    enter(f"/run/netns/{name}")
    try:
        yield
    finally:
        enter(f"/proc/self/fd/{own}")
        os.close(own)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--delay-ms", type=float, default=10.0)
    parser.add_argument("--megabits", type=float, default=1000.0)
    parser.add_argument("words", nargs="+", help="arguments of htsrl")
    args = parser.parse_args()
    exit_on_sigterm()
    with Link(args.delay_ms / 1000, args.megabits * 1e6) as link:
        ranks = [subprocess.Popen(link.torchrun(side, args.words)) for side in (0, 1)]
        try:
            codes = [rank.wait() for rank in ranks]
        finally:
            for rank in ranks:
                rank.terminate()
                rank.wait()
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
