"""Measures orlop beside containerd, in one run: everything that the modules beside this one measure. See README.md."""

from __future__ import annotations

import calls
import depth
import lives
import pull
import reads
import tasks
from peers import measure

import content
import layers

if __name__ == "__main__":
    modules = (tasks, lives, calls, content, layers, depth, reads, pull)
    measure({name: one for module in modules for name, one in module.BENCHMARKS.items()}, __doc__)
