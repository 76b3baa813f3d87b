"""One step settles what many have changed before it began."""

from __future__ import annotations

import threading

from orlop.core.settling import Settling


class Step:
    """Waits in its first turn until it is let go."""

    def __init__(self) -> None:
        self.turns = 0
        self.begun = threading.Event()
        self.go = threading.Event()
        self.error: OSError | None = None

    def __call__(self) -> None:
        self.turns += 1
        self.begun.set()
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error


def settling(names: Settling, changes: list[int], failures: list[Exception]) -> list[threading.Thread]:
    def settle(change: int) -> None:
        try:
            names.settle(change)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=settle, args=(change,)) for change in changes]
    for thread in threads:
        thread.start()
    return threads


def test_those_that_wait_while_a_step_is_taken_share_the_next_one() -> None:
    step = Step()
    names = Settling(step)
    first = settling(names, [names.changed()], [])
    assert step.begun.wait(30)
    others = settling(names, [names.changed() for _ in range(5)], [])
    step.go.set()
    for thread in first + others:
        thread.join()
    assert step.turns == 2


def test_what_was_settled_with_others_needs_no_step() -> None:
    step = Step()
    step.go.set()
    names = Settling(step)
    early, late = names.changed(), names.changed()
    names.settle(late)
    names.settle(early)
    assert step.turns == 1
    names.settle(names.changed())
    assert step.turns == 2


def test_a_step_that_fails_fails_all_that_it_was_for_and_no_others() -> None:
    step = Step()
    step.error = OSError("disk")
    names = Settling(step)
    failures: list[Exception] = []
    threads = settling(names, [names.changed(), names.changed()], failures)
    assert step.begun.wait(30)
    later = names.changed()
    step.go.set()
    for thread in threads:
        thread.join()
    assert (step.turns, len(failures)) == (1, 2)
    step.error = None
    names.settle(later)
    assert step.turns == 2
