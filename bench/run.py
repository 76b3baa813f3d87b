"""Measures orlop beside containerd, in one run: everything that the modules beside this one measure. See README.md."""

from __future__ import annotations

import calls
import depth
import pull
import tasks
from peers import measure

import layers

if __name__ == "__main__":
    measure(tasks.BENCHMARKS | calls.BENCHMARKS | layers.BENCHMARKS | depth.BENCHMARKS | pull.BENCHMARKS, __doc__)
