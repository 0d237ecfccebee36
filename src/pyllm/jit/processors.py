"""How many processors there are for this process."""

from __future__ import annotations

import os
from pathlib import Path

from pyllm import env


def default_threads() -> int:
    """`PYLLM_THREADS`, else one per physical core that this process may use (affinity and cgroup quota count)."""
    if n := env.n_threads():
        return n
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
        n = len({_siblings(cpu) for cpu in cpus})
    else:
        n = _physical_cores()
    quota = _cgroup_quota()
    return max(1, min(n, int(quota + 0.5)) if quota else n)


def _siblings(cpu: int) -> str:
    """The hardware threads of the core that `cpu` is on, as the kernel names them; else `cpu` alone."""
    return _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _cgroup_quota() -> float | None:
    """Processors' worth of time that the process's control group grants, or None where it sets no limit."""
    if limit := _read("/sys/fs/cgroup/cpu.max").split():  # version 2: "200000 100000" or "max 100000"
        return int(limit[0]) / int(limit[1]) if len(limit) == 2 and limit[0].isdigit() else None
    quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) > 0 else None


def _physical_cores() -> int:
    """Physical cores where the system keeps no affinity: macOS says so, elsewhere hardware threads are counted."""
    import sys

    if sys.platform == "darwin":
        for key in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
            if (found := sysctl(key)).isdigit():
                return int(found)
    return os.cpu_count() or 1


def sysctl(key: str) -> str:
    """A value of macOS's kernel state, or "" where it has none of that name."""
    import subprocess

    program = env.find_program("sysctl") or "/usr/sbin/sysctl"
    try:
        done = subprocess.run(
            [program, "-n", key], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=10, check=True, env=env.for_child(),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
