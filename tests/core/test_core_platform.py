"""Platforms as people write them."""

from __future__ import annotations

import pytest

from orlop.core import platform
from orlop.core.platform import Platform
from orlop.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("Linux/AARCH64", Platform("linux", "arm64")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
        ("linux/armv7l", Platform("linux", "arm", "v7")),
        ("arm64", Platform("linux", "arm64")),
        ("x86_64", Platform("linux", "amd64")),
        ("s390x", Platform("linux", "s390x")),
        ("windows(10.0.17763)/amd64", Platform("windows", "amd64", os_version="10.0.17763")),
        ("linux(+erofs+x)/riscv64", Platform("linux", "riscv64", os_features=("erofs", "x"))),
        ("windows(10.0.1+f)/amd64", Platform("windows", "amd64", os_version="10.0.1", os_features=("f",))),
    ],
)
def test_a_platform_is_read(text: str, expected: Platform) -> None:
    assert platform.parse(text) == expected


def test_a_system_alone_is_of_this_processor() -> None:
    native = platform.host()
    assert platform.parse("linux") == native
    assert platform.parse("windows").architecture == native.architecture
    assert platform.parse(str(native)) == native


@pytest.mark.parametrize("text", ["", "/", "linux/", "linux//v7", "a/b/c/d", "linux/amd 64", "linux(/amd64", "ü"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="os/architecture"):
        platform.parse(text)
