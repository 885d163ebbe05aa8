"""Tests of cores and memory under control groups, in folders that imitate /proc and /sys.

The formats are those of proc_pid_mountinfo(5), cgroups(7) and the kernel's admin-guide (cgroup-v2,
cgroup-v1/memory) and scheduler/sched-bwc.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from htsrl_cli import machine
from htsrl_cli.storage.memory import available_memory
from tests import harness

CORES = 64
GIB = 2**30
# A mount that is no control group, and one of a namespace, whose root is no path.
OTHER_MOUNTS = """\
22 28 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
23 28 0:4 net:[4026532256] /run/netns/one rw shared:13 - nsfs nsfs rw
"""


def mount(top: str, folder: str, kind: str = "cgroup2", options: str = "rw") -> str:
    """Returns a line of /proc/self/mountinfo."""
    return f"30 24 0:27 {top} {folder} rw,nosuid shared:9 master:1 - {kind} {kind} {options}\n"


V2 = mount("/", "/sys/fs/cgroup", options="rw,nsdelegate")
V1_CPU = mount("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
V1_CPUSET = mount("/", "/sys/fs/cgroup/cpuset", "cgroup", "rw,cpuset")
V1_MEMORY = mount("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory")
UNIFIED = mount("/", "/sys/fs/cgroup/unified", options="rw,nsdelegate")
DOCKER = mount("/docker/a1", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "ro,cpu,cpuacct")


def cfs(quota: int, period: int = 100_000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}


def cpu_max(text: str) -> dict[str, str]:
    return {"cpu.max": f"{text}\n"}


@dataclass
class Case:
    """A machine with control groups: /proc/self/cgroup, its mounts, and the groups' files."""

    groups: str
    mounts: str
    limits: dict[str, dict[str, str]] = field(default_factory=dict)
    cores: int = CORES

    def build(self, root: Path) -> None:
        files = {"proc/self/cgroup": self.groups, "proc/self/mountinfo": OTHER_MOUNTS + self.mounts}
        for group, limits in self.limits.items():
            files |= {f"sys/fs/cgroup/{group}/{name}": text for name, text in limits.items()}
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)


V1_GROUPS = "5:memory:/run\n4:cpuset:/\n3:cpu,cpuacct:/user/run\n1:name=systemd:/user/run\n"
CASES = {
    "no control groups": Case("", ""),
    "v2, no quota": Case("0::/user/run\n", V2, {"user/run": cpu_max("max 100000")}),
    "v2, own quota": Case("0::/user/run\n", V2, {"user/run": cpu_max("300000 100000")}, 3),
    "v2, quota above": Case(
        "0::/user/run\n",
        V2,
        {"user": cpu_max("200000 50000"), "user/run": cpu_max("max 100000")},
        4,
    ),
    "v2, smaller quota above": Case(
        "0::/user/run\n", V2, {"user": cpu_max("2000 1000"), "user/run": cpu_max("9000 1000")}, 2
    ),
    "v2, smaller quota below": Case(
        "0::/user/run\n", V2, {"user": cpu_max("9000 1000"), "user/run": cpu_max("2000 1000")}, 2
    ),
    "v2, quota of another group": Case("0::/user/run\n", V2, {"user/other": cpu_max("1000 1000")}),
    "v2, colon and space": Case(
        "0::/a:b c\n", mount("/a:b\\040c", "/sys/fs/cgroup/x\\040y"), {"x y": cpu_max("7 1")}, 7
    ),
    "v2, container": Case("0::/\n", V2, {"": cpu_max("250000 100000")}, 2),
    "v2, container, nested group": Case(
        "0::/init\n", V2, {"": cpu_max("250000 100000"), "init": cpu_max("max 100000")}, 2
    ),
    "v2, container without a namespace": Case(
        "0::/docker/a1\n", mount("/docker/a1", "/sys/fs/cgroup"), {"": cpu_max("5000 1000")}, 5
    ),
    "v2, mount from outside the namespace": Case(
        "0::/\n", mount("/../..", "/sys/fs/cgroup"), {"": cpu_max("6000 1000")}, 6
    ),
    "v2, less than a core": Case("0::/\n", V2, {"": cpu_max("50000 100000")}, 1),
    "v2, one core and a half": Case("0::/\n", V2, {"": cpu_max("150000 100000")}, 1),
    "v2, almost three cores": Case("0::/\n", V2, {"": cpu_max("299999 100000")}, 2),
    "v2, more than the machine has": Case("0::/\n", V2, {"": cpu_max("9900000 100000")}),
    "v1, no quota": Case(V1_GROUPS, V1_CPUSET + V1_CPU, {"cpu,cpuacct/user/run": cfs(-1)}),
    "v1, own quota": Case(V1_GROUPS, V1_CPUSET + V1_CPU, {"cpu,cpuacct/user/run": cfs(350000)}, 3),
    "v1, quota above": Case(
        V1_GROUPS,
        V1_CPUSET + V1_CPU,
        {
            "cpu,cpuacct": cfs(-1),
            "cpu,cpuacct/user": cfs(2000, 500),
            "cpu,cpuacct/user/run": cfs(-1),
        },
        4,
    ),
    "v1, container": Case("3:cpu,cpuacct:/docker/a1\n", DOCKER, {"cpu,cpuacct": cfs(200000)}, 2),
    "v1, container with a namespace": Case(
        "3:cpu,cpuacct:/\n", V1_CPU, {"cpu,cpuacct": cfs(50000)}, 1
    ),
    "hybrid": Case(
        f"{V1_GROUPS}0::/user/run\n",
        UNIFIED + V1_CPU,
        {"cpu,cpuacct/user/run": cfs(300000), "unified/user/run": {"cgroup.procs": "1\n"}},
        3,
    ),
    "hybrid, controller in v2": Case(
        "1:name=systemd:/user\n0::/user/run\n",
        mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd") + UNIFIED,
        {"unified/user": cpu_max("300000 100000")},
        3,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cores_of_the_quota(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)
    case.build(tmp_path)
    assert machine.num_cores(tmp_path) == case.cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity")
def test_cores_of_the_affinity() -> None:
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from htsrl_cli.machine import num_cores; print(num_cores())"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(
        words, env=harness.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


def memory_v2(limit: str, used: int, cached: int = 0) -> dict[str, str]:
    stat = f"anon {used - cached}\nfile {cached}\ninactive_file {cached}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}


def memory_v1(limit: int, used: int, cached: int = 0) -> dict[str, str]:
    stat = f"cache 0\ninactive_file 0\ntotal_inactive_file {cached}\n"
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": stat,
    }


# The value of memory.limit_in_bytes without a limit.
V1_NO_LIMIT = 9223372036854771712
MEMORY = {
    "no control groups": (Case("", ""), 32),
    "v2, no limit": (Case("0::/run\n", V2, {"run": memory_v2("max", 5 * GIB)}), 32),
    "v2, own limit": (Case("0::/run\n", V2, {"run": memory_v2(f"{8 * GIB}", 5 * GIB)}), 3),
    "v2, cached files": (Case("0::/run\n", V2, {"run": memory_v2(f"{8 * GIB}", 8 * GIB, GIB)}), 1),
    "v2, limit above": (
        Case("0::/a/run\n", V2, {"a": memory_v2(f"{4 * GIB}", 0), "a/run": memory_v2("max", 0)}),
        4,
    ),
    "v2, nothing is left": (Case("0::/\n", V2, {"": memory_v2(f"{GIB}", 2 * GIB)}), 0),
    "v2, more than the machine has": (Case("0::/\n", V2, {"": memory_v2(f"{64 * GIB}", 0)}), 32),
    "v1, no limit": (
        Case(V1_GROUPS, V1_MEMORY, {"memory/run": memory_v1(V1_NO_LIMIT, 5 * GIB)}),
        32,
    ),
    "v1, own limit": (
        Case(
            V1_GROUPS,
            V1_MEMORY,
            {
                "memory": memory_v1(V1_NO_LIMIT, 9 * GIB),
                "memory/run": memory_v1(8 * GIB, 5 * GIB, GIB),
            },
        ),
        4,
    ),
    "hybrid": (
        Case(
            f"{V1_GROUPS}0::/run\n",
            V1_MEMORY + UNIFIED,
            {"memory/run": memory_v1(2 * GIB, 0), "unified/run": {"cgroup.procs": "1\n"}},
        ),
        2,
    ),
}


@pytest.mark.parametrize(("case", "free_gib"), MEMORY.values(), ids=MEMORY)
def test_memory_within_the_limits(case: Case, free_gib: int, tmp_path: Path) -> None:
    case.build(tmp_path)
    (tmp_path / "proc" / "meminfo").write_text(
        f"MemTotal:       {48 * GIB // 1024} kB\nMemAvailable:   {32 * GIB // 1024} kB\n"
    )
    assert available_memory(tmp_path) == free_gib * GIB
