"""The filter language of lists and subscriptions.

A filter is selectors joined with `,`, all of which must match; a list of filters matches where one does, and an empty
list always does. See `parse`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Adaptor = Callable[[Sequence[str]], tuple[str, bool]]
"""How an object answers: a field path to its value and whether it is present."""

Filter = Callable[[Adaptor], bool]


def parse(filters: Sequence[str]) -> Filter:
    """The filter that matches where one of `filters` does.

    Raises InvalidArgument whose text starts `filters: parse error: `, as containerd words it.
    """
    raise NotImplementedError


def labels_field(path: Sequence[str], labels: dict[str, str]) -> tuple[str, bool]:
    """The value of `labels.<path>`: the parts behind `labels`, joined by dots, are the key."""
    key = ".".join(path)
    return labels.get(key, ""), key in labels
