"""Restart policies as labels spell them."""

from __future__ import annotations

import pytest

from orlop.core.task import Process, Status
from orlop.errors import InvalidArgument
from orlop.runtime.restart import Policy

COUNT = "containerd.io/restart.count"
STOPPED = "containerd.io/restart.explicitly-stopped"


def ended(status: int) -> Process:
    return Process("c", "c", status=Status.STOPPED, exit_status=status)


@pytest.mark.parametrize(
    ("policy", "process", "labels", "wanted"),
    [
        ("", ended(0), {}, True),
        ("always", None, {STOPPED: "true"}, True),
        ("no", ended(1), {}, False),
        ("on-failure", ended(0), {}, False),
        ("on-failure", None, {}, False),
        ("on-failure", ended(1), {COUNT: "700"}, True),
        ("on-failure:3", ended(137), {COUNT: "2"}, True),
        ("on-failure:3", ended(137), {COUNT: "3"}, False),
        ("on-failure:3", ended(137), {COUNT: "what"}, True),
        ("unless-stopped", ended(0), {}, True),
        ("unless-stopped", ended(0), {STOPPED: "false"}, True),
        ("unless-stopped", ended(1), {STOPPED: "true"}, False),
    ],
)
def test_a_policy_says_whether_a_container_is_started_again(
    policy: str, process: Process | None, labels: dict[str, str], wanted: bool
) -> None:
    assert Policy.parse(policy).wants(process, labels) is wanted


@pytest.mark.parametrize("text", ["sometimes", "always:3", "on-failure:", "on-failure:x", "on-failure:-1", "Always"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Policy.parse(text)
