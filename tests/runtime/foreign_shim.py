"""A shim binary that does what a test orders. It follows the contract except where told not to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from orlop.api.runtime.task.v3 import shim_pb2

_PROGRAM = """#!{python} -I
import json, os, sys, time
order = json.loads({order!r})
action = sys.argv[-1]
with open({seen!r}, "a") as file:
    told = {{name: os.environ.get(name, "") for name in order["names"]}}
    file.write(json.dumps([sys.argv[1:], os.getcwd(), told, len(sys.stdin.buffer.read())]) + "\\n")
does = order[action.strip("-")]
sys.stdout.buffer.write(bytes.fromhex(does["says"]))
sys.stdout.flush()
sys.stderr.write(does["complains"])
sys.stderr.flush()
while does["hangs"]:
    time.sleep(3600)
sys.exit(does["status"])
"""

VARIABLES = ("TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION", "GOMAXPROCS")


def does(says: bytes = b"", complains: str = "", *, hangs: bool = False, status: int = 0) -> dict[str, object]:
    """What one action of the binary does: prints, and hangs or ends."""
    return {"says": says.hex(), "complains": complains, "hangs": hangs, "status": status}


DELETED = shim_pb2.DeleteResponse(pid=7, exit_status=137).SerializeToString()


def script(path: Path, **actions: dict[str, object]) -> Path:
    """Writes the binary to `path`. What it is called with goes to `calls(path)`."""
    order = {"start": does(), "delete": does(DELETED), "info": does(), "names": VARIABLES} | actions
    seen = str(path.with_suffix(".calls"))
    path.write_text(_PROGRAM.format(python=sys.executable, order=json.dumps(order), seen=seen))
    path.chmod(0o755)
    return path


def calls(path: Path) -> list[tuple[list[str], str, dict[str, str], int]]:
    """Arguments, directory, environment and length of the input of each call of the binary at `path`."""
    return [tuple(json.loads(line)) for line in path.with_suffix(".calls").read_text().splitlines()]
