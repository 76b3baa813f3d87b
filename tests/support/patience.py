"""How long tests wait for what has to come: `ORLOP_TEST_SLOW=10` makes it ten times as long, for emulated machines.

The daemon's own time limits grow with it.
"""

from __future__ import annotations

import os

_FACTOR = float(os.environ.get("ORLOP_TEST_SLOW", "1"))
_TIMEOUTS = {"shim.load": 5, "shim.cleanup": 5, "shim.shutdown": 3, "task.state": 2, "metrics.shimstats": 2}


def patient(seconds: float) -> float:
    """These seconds, as this machine counts them."""
    return seconds * _FACTOR


def configuration() -> str:
    """What a daemon's configuration needs for it; empty where machines are as fast as usual."""
    if _FACTOR == 1:
        return ""
    limits = (f'"io.containerd.timeout.{name}" = "{patient(seconds)}s"\n' for name, seconds in _TIMEOUTS.items())
    return "[timeouts]\n" + "".join(limits)
