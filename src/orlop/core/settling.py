"""A step that makes good what several threads have changed: it is taken once for all who wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Settling:
    """`step` settles what was changed before it began, as a sync of a directory does with the names in it."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._counting = threading.Lock()
        self._stepping = threading.Lock()
        self._changes = 0
        self._settled = 0
        self._failed = 0
        self._failure: Exception | None = None

    def changed(self) -> int:
        """Something was changed just now; the number is for `settle`."""
        with self._counting:
            self._changes += 1
            return self._changes

    def settle(self, change: int) -> None:
        """The change is settled on return. Raises what `step` raises, if it was the one that should have done it."""
        with self._stepping:
            if self._settled >= change:
                return
            if self._failure is not None and self._failed >= change:
                raise self._failure  # a second try would only seem to succeed
            begun = self._changes
            try:
                self._step()
            except Exception as error:
                self._failed, self._failure = begun, error
                raise
            self._settled = begun
