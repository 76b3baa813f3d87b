from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orlop.daemon import config, main, toml
from orlop.daemon.listeners import GrpcConfig
from orlop.daemon.migrate import migrate
from orlop.errors import InvalidArgument, Unknown

OLD: dict[str, Any] = {
    "version": 2,
    "disabled_plugins": ["io.containerd.snapshotter.v1.zfs"],
    "grpc": {"address": "/run/x.sock", "gid": 7, "tcp_address": "127.0.0.1:9", "max_recv_message_size": 5},
    "debug": {"level": "debug", "address": "/run/debug.sock", "uid": 1},
    "metrics": {"address": "127.0.0.1:1338", "grpc_histogram": True},
    "plugins": {
        "io.containerd.grpc.v1.cri": {
            "sandbox_image": "pause:1",
            "enable_selinux": True,
            "stream_server_port": "10010",
            "max_concurrent_downloads": 9,
            "cni": {"bin_dir": "/opt/x", "conf_dir": "/etc/x"},
            "containerd": {
                "snapshotter": "native",
                "default_runtime_name": "crun",
                "runtimes": {"crun": {"runtime_type": "io.containerd.runc.v2", "snapshotter": "overlayfs"}},
            },
        },
        "io.containerd.internal.v1.restart": {"interval": "5s"},
        "io.containerd.monitor.v1.cgroups": {"no_prometheus": True},
        "io.containerd.runtime.v2.task": {"platforms": ["linux/amd64"], "sched_core": True},
    },
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_version_2_is_migrated_as_containerd_does() -> None:
    plugins = migrate(OLD)["plugins"]
    assert plugins["io.containerd.server.v1.grpc"] == {
        "address": "/run/x.sock", "gid": 7, "max_recv_message_size": 5,
    }  # fmt: skip
    assert plugins["io.containerd.server.v1.ttrpc"] == {"address": "/run/x.sock.ttrpc", "gid": 7}
    assert plugins["io.containerd.server.v1.grpc-tcp"] == {"address": "127.0.0.1:9", "max_recv_message_size": 5}
    assert plugins["io.containerd.server.v1.debug"] == {"address": "/run/debug.sock", "uid": 1}
    assert plugins["io.containerd.server.v1.metrics"] == {"address": "127.0.0.1:1338"}
    assert plugins["io.containerd.metrics.v1.grpc-prometheus"] == {"grpc_histogram": True}
    assert plugins["io.containerd.grpc.v1.cri"] == {"stream_server_port": "10010"}
    images = plugins["io.containerd.cri.v1.images"]
    assert images["pinned_images"] == {"sandbox": "pause:1"}
    assert (images["max_concurrent_downloads"], images["snapshotter"]) == (9, "native")
    runtime = plugins["io.containerd.cri.v1.runtime"]
    assert runtime["enable_selinux"] is True
    assert runtime["cni"] == {"bin_dirs": ["/opt/x"], "conf_dir": "/etc/x"}
    assert runtime["containerd"]["default_runtime_name"] == "crun"
    assert "snapshotter" not in runtime["containerd"]
    assert plugins["io.containerd.monitor.container.v1.restart"] == {"interval": "5s"}
    assert plugins["io.containerd.monitor.task.v1.cgroups"] == {"no_prometheus": True}
    assert plugins["io.containerd.shim.v1.manager"] == {"env": ["SCHED_CORE=1"]}
    assert migrate(OLD)["debug"] == {"level": "debug"}


def test_version_1_names_plugins_shortly() -> None:
    document = {"disabled_plugins": ["cri", "diff-service"], "plugins": {"bolt": {"no_sync": True}, "strange": {}}}
    migrated = migrate(document)
    assert migrated["disabled_plugins"] == ["io.containerd.grpc.v1.cri", "io.containerd.service.v1.diff-service"]
    assert set(migrated["plugins"]) == {"io.containerd.metadata.v1.bolt", "io.containerd.grpc.v1.strange"}
    assert migrated["version"] == 4


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_migrating_twice_changes_nothing(version: int) -> None:
    once = migrate({**OLD, "version": version})
    assert migrate(once) == once
    assert tomllib.loads(toml.dumps(once)) == once


def test_migrating_leaves_its_argument_alone() -> None:
    before = msgspec.json.encode(OLD)
    migrate(OLD)
    assert msgspec.json.encode(OLD) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 9", "expected containerd config version equal to or less than `4`, got `9`"),
        ("version = '4'", "version: expected int, got string"),
        ("version = 4\nroot = 7", "root: expected str, got int"),
        ("version = 4\noom_score = 'a'", "oom_score: expected int, got str"),
        ("version = 4\nplugins = 3", "plugins: expected table, got int"),
        ("version = 4\nplugins.a = 3", "plugins.'a': expected table, got int"),
        ("version = 4\nimports = 'x'", "imports: expected array, got string"),
        ("version = 2\n[plugins.'io.containerd.grpc.v1.cri']\ncni = 1", "expected table, got int"),
        ("version = 4\ndisabled_plugins = ['x']", 'invalid disabled plugin URI "x" expect io.containerd.x.vx'),
        ("version = 4\nrequired_plugins = ['x']", 'invalid required plugin URI "x" expect io.containerd.x.vx'),
        ("version = 4\nroot = '/a'\nstate = '/a/../a'", "root and state must be different paths"),
        ("version = 4\n[timeouts]\nx = 'soon'", "timeouts.'x': invalid duration \"soon\""),
        ("version = 4\n[debug", "failed to unmarshal TOML"),
        ("a = " + "[" * 100_000, "failed to load TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "config.toml", text)
    with pytest.raises(InvalidArgument) as caught:
        config.load(path)
    assert message in str(caught.value)


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match=r"^open .*/none\.toml: no such file or directory$"):
        config.load(tmp_path / "none.toml")


def test_an_unknown_key_is_warned_of_with_the_nearest_there_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "c.toml", "version = 4\noom_scor = 1\n[debug]\nlevl = 'info'\n[proxy_plugins.x]\nadress=''")
    config.load(path)
    fields = [record.__dict__["fields"] for record in caplog.records]
    assert [(field["key"], field["nearest"]) for field in fields] == [
        ("oom_scor", "oom_score"), ("debug.levl", "level"), ("proxy_plugins.x.adress", "address"),
    ]  # fmt: skip
    assert {record.message for record in caplog.records} == {"Ignoring unknown key in TOML"}


def test_an_unknown_key_of_a_plugin_is_warned_of_and_a_wrong_type_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = config.Config(plugins={"a.b": {"adress": "/x"}, "a.c": {"uid": "root"}})
    loaded.section("a.b", GrpcConfig)
    assert caplog.records[0].__dict__["fields"] == {"plugin": "a.b", "key": "adress", "nearest": "address"}
    with pytest.raises(InvalidArgument, match=r"the configuration: plugins\.'a\.c'\.uid: expected int, got str"):
        loaded.section("a.c", GrpcConfig)


def test_a_wrong_type_in_a_plugins_section_is_told_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "version = 4\n[plugins.'a.b']\nuid = 'root'")
    with pytest.raises(InvalidArgument) as caught:
        config.load(path).section("a.b", GrpcConfig)
    assert str(caught.value) == f"failed to load TOML from {path}: plugins.'a.b'.uid: expected int, got str"


def test_old_keys_are_no_unknown_ones_in_an_old_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "c.toml", "version = 3\n[grpc]\naddress = '/x'\nadress = '/y'")
    with caplog.at_level(logging.WARNING):
        loaded = config.load(path)
    assert loaded.plugins["io.containerd.server.v1.ttrpc"] == {"address": "/x.ttrpc"}
    assert [record.__dict__["fields"].get("key") for record in caplog.records] == ["grpc.adress", None]


def test_imports_are_relative_may_be_globs_and_may_go_in_circles(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    main_file = write(
        tmp_path / "config.toml",
        "version = 4\noom_score = 1\nimports = ['d/*.toml']\ndisabled_plugins = ['a.a', 'a.b']\n"
        "[plugins.'x.y']\na = 1\nb = ['1']\n[timeouts]\n'io.containerd.timeout.shim.load' = '9s'",
    )
    write(
        tmp_path / "d/1.toml",
        "version = 4\noom_score = 2\nimports = ['../config.toml']\ndisabled_plugins = ['a.b', 'a.c']",
    )
    write(tmp_path / "d/2.toml", "version = 2\n[plugins.'x.y']\nb = ['2']\nc = 3\n[grpc]\naddress = '/z'")
    loaded = config.load(main_file)
    assert loaded.oom_score == 2
    assert loaded.disabled_plugins == ["a.a", "a.b", "a.c"]
    assert loaded.plugins["x.y"] == {"a": 1, "b": ["2"], "c": 3}
    assert loaded.plugins["io.containerd.server.v1.grpc"] == {"address": "/z"}
    assert loaded.timeouts_in_seconds()["io.containerd.timeout.shim.load"] == 9.0
    assert loaded.timeouts_in_seconds()["io.containerd.timeout.task.state"] == 2.0


def test_a_named_import_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match=r"gone\.toml: no such file"):
        config.load(write(tmp_path / "c.toml", "version = 4\nimports = ['gone.toml']"))


def test_later_proxy_plugins_replace_earlier_ones_by_key(tmp_path: Path) -> None:
    write(tmp_path / "2.toml", "version = 4\n[proxy_plugins.a]\naddress = '/2'")
    first = "version = 4\nimports = ['2.toml']\n[proxy_plugins.a]\ntype = 'snapshot'\n[proxy_plugins.b]\ntype = 'diff'"
    loaded = config.load(write(tmp_path / "1.toml", first))
    assert loaded.proxy_plugins == {"a": config.ProxyPlugin(address="/2"), "b": config.ProxyPlugin(type="diff")}


def test_the_default_configuration_is_valid_and_dumps_to_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["config", "default"]) == 0
    text = capsys.readouterr().out
    document = tomllib.loads(text)
    assert document["version"] == 4
    assert document["imports"] == ["/etc/orlop/conf.d/*.toml"]
    assert document["plugins"]["io.containerd.server.v1.grpc"]["max_recv_message_size"] == 16777216
    assert main.main(["-c", str(write(tmp_path / "c.toml", text)), "config", "dump"]) == 0
    assert tomllib.loads(capsys.readouterr().out) == document


def test_flags_win_over_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.toml", "version = 2\nroot = '/a'\n[grpc]\nuid = 3")
    assert main.main(["-c", str(path), "--root", "/b", "-a", "/s", "-l", "debug", "config", "dump"]) == 0
    document = tomllib.loads(capsys.readouterr().out)
    assert (document["root"], document["debug"]["level"]) == ("/b", "debug")
    assert document["plugins"]["io.containerd.server.v1.ttrpc"]["address"] == "/s.ttrpc"
    assert document["plugins"]["io.containerd.server.v1.ttrpc"]["uid"] == 3


def test_migrate_prints_the_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "c.toml", "version = 2\nimports = ['gone.toml']\n[grpc]\naddress = '/x'")
    assert main.main(["-c", str(path), "config", "migrate"]) == 0
    document = tomllib.loads(capsys.readouterr().out)
    assert document["imports"] == ["gone.toml"]
    assert document["plugins"]["io.containerd.server.v1.grpc"] == {"address": "/x"}


@pytest.mark.parametrize(
    "value", ["", "a'b", 'a"b', "a\nb\t", "\x00\x7f", "é\u2028", "back\\slash", [1, 2.5, True, "x"], [], {"a.b": {}}]
)
def test_written_toml_reads_back(value: Any) -> None:
    assert tomllib.loads(toml.dumps({"k k": value, "t": {"x": value}})) == {"k k": value, "t": {"x": value}}
