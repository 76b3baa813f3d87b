"""A sandbox controller in another process: a gRPC server of this test's, which lends the daemon's own sandboxes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from real_daemon import Archives, Daemon
from sandbox_wire import Wire

from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.ctr, pytest.mark.runtime]

SERVICE = pb.DESCRIPTOR.services_by_name["Controller"]


class Lender:
    """Serves the Controller service on `path`: what it is asked it notes, and asks the controller `shim`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wire: Wire
        self.calls: list[tuple[str, str, str]] = []
        """Method, name of the controller, namespace."""
        self.waiting = threading.Event()
        self._server: grpc.Server

    def start(self) -> None:
        handlers = {method.name: self._handler(method) for method in SERVICE.methods}
        self._server = grpc.server(ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _handler(self, method: Any) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            metadata = dict(context.invocation_metadata())
            self.calls.append((method.name, request.sandboxer, metadata["containerd-namespace"]))
            if method.name == "Wait":
                self.waiting.set()
            if method.name == "Metrics":
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not of this sandbox")
            request.sandboxer = "shim"
            try:
                return self.wire.call(SERVICE.full_name, method.name, request, GetMessageClass(method.output_type))
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        request_class = GetMessageClass(method.input_type)
        return grpc.unary_unary_rpc_method_handler(
            answer, request_class.FromString, GetMessageClass(method.output_type).SerializeToString
        )


@pytest.fixture
def lender(tmp_path: Path) -> Iterator[Lender]:
    made = Lender(tmp_path / "lender.sock")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def pods(make_daemon: Callable[..., Daemon], archives: Archives, lender: Lender, tmp_path: Path) -> Daemon:
    config = tmp_path / "config.toml"
    config.write_text(
        f'version = 4\n[proxy_plugins.lent]\ntype = "sandbox"\naddress = "{lender.path}"\ncapabilities = ["lends"]\n'
    )
    daemon = make_daemon("--config", str(config))
    daemon.ctr("images", "import", archives.oci)
    lender.wire = Wire(daemon)
    return daemon


def test_sandboxes_of_another_process_are_used_by_its_name(pods: Daemon, lender: Lender, name: str) -> None:
    wire = Wire(pods)
    (line,) = [line for line in pods.ctr("plugins", "ls").stdout.splitlines() if " lent " in line]
    assert line.split()[0] == "io.containerd.sandbox.controller.v1"
    assert line.split()[-1] == "ok"
    wire.create(name, sandboxer="lent")
    started = wire.controller("Start", name, sandboxer="lent")
    wire.put_in(pods, name, f"{name}-a", started.pid)
    container = wire.start_at(f"{name}-a", started.address, started.version)
    assert parent_of(container) == parent_of(started.pid)
    assert pods.ctr("tasks", "exec", "--exec-id", "e", f"{name}-a", "hostname").stdout == "pod\n"
    assert wire.controller("Status", name, sandboxer="lent").state == "SANDBOX_READY"
    assert wire.controller("Platform", name, sandboxer="lent").platform.os == "linux"
    wire.controller("Update", name, sandboxer="lent", sandbox={"sandbox_id": name}, fields=["labels"])
    with pytest.raises(grpc.RpcError) as refused:
        wire.controller("Metrics", name, sandboxer="lent")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == "not of this sandbox"
    wire.controller("Stop", name, sandboxer="lent")
    assert wire.controller("Wait", name, sandboxer="lent").exit_status == 137
    pods.ctr("tasks", "rm", "-f", f"{name}-a", check=False)
    pods.ctr("containers", "rm", f"{name}-a")
    wire.controller("Shutdown", name, sandboxer="lent")
    store = wire.call(
        "containerd.services.sandbox.v1.Store", "Get", pb.StoreGetRequest(sandbox_id=name), pb.StoreGetResponse
    )
    assert store.sandbox.sandboxer == "lent"
    asked = ["Create", "Start", "Status", "Platform", "Update", "Metrics", "Stop", "Wait", "Shutdown"]
    assert lender.calls == [(method, "lent", "default") for method in asked]


def test_a_wait_outlasts_the_process_that_serves_it(pods: Daemon, lender: Lender, name: str) -> None:
    wire = Wire(pods)
    wire.create(name, sandboxer="lent")
    wire.controller("Start", name, sandboxer="lent")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wire.controller, "Wait", name, sandboxer="lent")
        assert lender.waiting.wait(30)
        lender.stop()
        wire.controller("Stop", name)
        with pytest.raises(grpc.RpcError) as gone:
            wire.controller("Status", name, sandboxer="lent")
        assert gone.value.code() is grpc.StatusCode.UNAVAILABLE
        with contextlib.suppress(FileNotFoundError):
            lender.path.unlink()
        lender.start()
        assert waiting.result(60).exit_status == 137
    wire.controller("Shutdown", name)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
