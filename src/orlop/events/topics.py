"""What may be published: the rules for topics and namespaces of envelopes."""

from __future__ import annotations

from orlop.core import identifiers
from orlop.core.event import Envelope
from orlop.errors import InvalidArgument, OrlopError


def validate_topic(topic: str) -> None:
    """Raises InvalidArgument unless `topic` is `/component[/component...]`, each component an identifier."""
    prefix = f'envelope topic "{topic}"'
    if not topic:
        raise InvalidArgument(f"{prefix}: must not be empty")
    if not topic.startswith("/"):
        raise InvalidArgument(f"{prefix}: must start with '/'")
    if topic == "/":
        raise InvalidArgument(f"{prefix}: must have at least one component")
    for component in topic[1:].split("/"):
        try:
            identifiers.validate(component)
        except OrlopError as error:
            raise error.within(f'{prefix}: failed validation on component "{component}"') from None


def validate(envelope: Envelope) -> None:
    """Raises InvalidArgument if the namespace or the topic of `envelope` is malformed."""
    try:
        identifiers.validate(envelope.namespace)
    except OrlopError as error:
        raise error.within("event envelope has invalid namespace") from None
    validate_topic(envelope.topic)
