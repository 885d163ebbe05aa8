"""The control groups of this process, whose limits count as well as the machine's size.

No library finds them all: psutil and `os.process_cpu_count` ignore control groups, and joblib's
loky reads only the files at the top of /sys/fs/cgroup, which are not those of a nested group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def group_folders(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yields the folders with the limits of this process's group and of the groups above it.

    Only groups that this process can see are included: not those outside its container. The result
    is empty on systems other than Linux.

    Args:
        controller: `cpu` or `memory`. It may be managed by version 1 or 2 of control groups.
        root: the folder that contains /proc and the mounted file systems.
    """
    group, kind = _own_group(controller, root)
    if group is None:
        return
    for top, folder in _mounts(kind, controller, root):
        if group.is_relative_to(top):
            inner = group.relative_to(top)
            yield from (folder / part for part in (inner, *inner.parents))
        elif set(top.parts[1:]) == {".."}:
            # The mounted groups begin above this process's namespace, where names are hidden.
            yield folder


def _own_group(controller: str, root: Path) -> tuple[PurePosixPath | None, str]:
    """Returns this process's group for a controller, and the type of file system that shows it.

    The group is None if there is none.
    """
    group = None
    for line in _lines(root / "proc/self/cgroup"):
        hierarchy, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return PurePosixPath(path), "cgroup"
        if hierarchy == "0":
            group = PurePosixPath(path)
    return group, "cgroup2"


def _mounts(kind: str, controller: str, root: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """Yields the topmost group and the folder of each mount that shows the controller's groups."""
    for line in _lines(root / "proc/self/mountinfo"):
        # mount id, parent, device, top, folder, options, ... - type, source, options
        mount, _, system = line.partition(" - ")
        top, folder = map(_unescaped, mount.split(" ")[3:5])
        found, _, *options = system.split(" ")
        if found == kind and (kind == "cgroup2" or controller in options[-1].split(",")):
            yield PurePosixPath(top), root / folder.lstrip("/")


def _unescaped(text: str) -> str:
    """Replaces the kernel's octal escapes, such as those of spaces."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
