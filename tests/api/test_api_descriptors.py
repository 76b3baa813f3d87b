"""The wire contracts against written facts, name by name and number by number, in both directions.

`facts/` has a text file for each `.proto` file of the peers we are compatible with: its services, messages and enums
as the protocol defines them. Whatever is missing, renamed, renumbered, retyped or extra here would break a client.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

import orlop.api

FACTS = Path(__file__).parent / "facts"
API = Path(orlop.api.__file__).parent
OURS_ALONE = {"grpc_health/v1/health.proto", "services/integrity/v1/integrity.proto"}
"""Contracts that no fact file describes: gRPC's own health check, and those that containerd has not."""

Blocks = dict[str, list[str]]

_TYPES = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in FieldDescriptorProto.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}


def facts() -> list[str]:
    return sorted(str(path.relative_to(FACTS)) for path in FACTS.rglob("*.txt"))


@pytest.mark.parametrize("fact", facts())
def test_a_contract_is_what_the_facts_say(fact: str) -> None:
    written = parse((FACTS / fact).read_text())
    proto = FileDescriptorProto()
    module = importlib.import_module("orlop.api." + fact.removesuffix(".txt").replace("/", ".") + "_pb2")
    module.DESCRIPTOR.CopyToProto(proto)
    assert proto.syntax == "proto3"
    ours = render(proto, "file " + fact.removesuffix(".txt") + ".proto")
    assert set(ours) == set(written)
    for heading, lines in written.items():
        assert ours[heading] == lines, heading


def test_every_contract_has_its_facts_and_every_fact_its_contract() -> None:
    contracts = {str(path.relative_to(API)) for path in API.rglob("*.proto")} - OURS_ALONE
    assert contracts == {fact.removesuffix(".txt") + ".proto" for fact in facts()}


def test_the_facts_are_many() -> None:
    assert len(facts()) == 49
    assert sum(len(parse((FACTS / fact).read_text())) for fact in facts()) > 500


def test_the_generated_code_is_what_the_contracts_give() -> None:
    done = subprocess.run(
        ["sh", str(API / "generate.sh"), "--check"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def parse(text: str) -> Blocks:
    """The blocks of a fact file: a heading at the margin, its lines indented, in order of their numbers."""
    blocks: Blocks = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line and not line.startswith(" "):
            assert line not in blocks, line
            lines = blocks[line] = []
        elif line.strip():
            lines.append(" ".join(line.split()))
    return {heading: sorted(found) for heading, found in blocks.items()}


def render(proto: FileDescriptorProto, heading: str) -> Blocks:
    """What the facts of `proto` would be."""
    blocks: Blocks = {heading: [], f"package {proto.package}": []}
    for service in proto.service:
        blocks[f"service {proto.package}.{service.name}"] = _service(service)
    for enum in proto.enum_type:
        blocks[f"enum {enum.name}"] = _enum(enum)
    for message in proto.message_type:
        _message(message, message.name, blocks)
    return {name: sorted(lines) for name, lines in blocks.items()}


def _service(service: ServiceDescriptorProto) -> list[str]:
    return [
        f"{method.name}({'stream ' * method.client_streaming}{method.input_type[1:]})"
        f" -> {'stream ' * method.server_streaming}{method.output_type[1:]}"
        for method in service.method
    ]


def _enum(enum: EnumDescriptorProto) -> list[str]:
    return [f"{value.number} {value.name}{_deprecated(value.options.deprecated)}" for value in enum.value] + [
        f"reserved {span.start}..{span.end}" for span in enum.reserved_range
    ]


def _message(message: DescriptorProto, name: str, blocks: Blocks) -> None:
    maps = {entry.name: entry for entry in message.nested_type if entry.options.map_entry}
    blocks[f"message {name}"] = [
        *(_field(field, maps, message) for field in message.field),
        *(f"reserved {span.start}..{span.end - 1}" for span in message.reserved_range),
        *(f"reserved {name}" for name in message.reserved_name),
    ]
    for enum in message.enum_type:
        blocks[f"enum {name}.{enum.name}"] = _enum(enum)
    for nested in message.nested_type:
        if not nested.options.map_entry:
            _message(nested, f"{name}.{nested.name}", blocks)


def _field(field: FieldDescriptorProto, maps: dict[str, DescriptorProto], message: DescriptorProto) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2]) if field.type_name else None
    if entry is not None:
        key, value = entry.field
        kind = f"map<{_type(key)}, {_type(value)}>"
    else:
        kind = _type(field)
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            kind = f"repeated {kind}"
        elif field.proto3_optional:
            kind = f"optional {kind}"
        elif field.HasField("oneof_index"):
            kind = f"oneof {message.oneof_decl[field.oneof_index].name} {kind}"
    return f"{field.number} {field.name} {kind}{_deprecated(field.options.deprecated)}"


def _type(field: FieldDescriptorProto) -> str:
    return field.type_name[1:] or _TYPES[field.type]


def _deprecated(flag: bool) -> str:
    return " [deprecated]" if flag else ""
