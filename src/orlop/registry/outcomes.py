"""What came of asking several hosts for one thing: the gravest answer says what is wrong, the others are told too."""

from __future__ import annotations

from enum import IntEnum

from orlop.errors import KINDS, NotFound, OrlopError
from orlop.registry.failures import Broken, Denied, GivenUp, Unreachable


class Gravity(IntEnum):
    """How far a host came with the question."""

    NO_CONNECTION = 1
    NOT_FOUND = 2
    REFUSED = 3


class Outcome:
    """The failures of hosts so far."""

    def __init__(self) -> None:
        self._failures: list[tuple[Gravity, OrlopError]] = []
        self._hosts: dict[str, None] = {}

    def add(self, error: OrlopError, host: str) -> None:
        """`host` (`name[:port]`) has failed with `error`."""
        self._failures.append((_gravity(error), error))
        self._hosts[host] = None

    @property
    def is_not_found(self) -> bool:
        """Whether every host said that it has no such thing."""
        return all(gravity is Gravity.NOT_FOUND for gravity, _ in self._failures)

    def error(self, prefix: str) -> OrlopError:
        """All failures as one error of the gravest one's kind."""
        if not self._failures or self.is_not_found:
            others = [host for host in self._hosts if not prefix.startswith(f"{host}/")]
            asked = f" (asked {', '.join(others)})" if others else ""
            return NotFound.verbatim(f"{prefix}: not found{asked}")
        ordered = [error for _, error in sorted(self._failures, key=lambda failure: -failure[0])]
        texts = list(dict.fromkeys(str(error) for error in ordered))
        more = f"; and {len(texts) - 4} other failures" if len(texts) > 4 else ""
        return KINDS[ordered[0].code].verbatim(f"{prefix}: {'; '.join(texts[:4])}{more}")


def _gravity(error: OrlopError) -> Gravity:
    if isinstance(error, Unreachable | Broken | GivenUp):
        return Gravity.NO_CONNECTION
    if isinstance(error, NotFound) and not isinstance(error, Denied):
        return Gravity.NOT_FOUND
    return Gravity.REFUSED
