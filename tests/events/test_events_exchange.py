from __future__ import annotations

import asyncio

import pytest

from orlop.api.events import container_pb2, task_pb2
from orlop.api.services.events.v1 import events_pb2
from orlop.core.event import Envelope
from orlop.core.typed import Typed
from orlop.core.wire.common import pack
from orlop.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unknown
from orlop.events.exchange import Bounds, Exchange, Subscription
from orlop.rpc.service import Call
from orlop.services.events import EventsService

START = task_pb2.TaskStart(container_id="redis", pid=7)


async def next_topics(subscription: Subscription, count: int) -> list[str]:
    return [(await anext(subscription)).topic for _ in range(count)]


async def test_a_subscriber_sees_events_of_all_namespaces_in_the_order_of_publishing() -> None:
    exchange = Exchange()
    with exchange.subscribe() as subscription:
        for number in range(100):
            exchange.publish(f"ns{number % 3}", f"/tasks/n{number}", START)
        assert await next_topics(subscription, 100) == [f"/tasks/n{number}" for number in range(100)]


async def test_only_events_after_the_subscription_are_seen() -> None:
    exchange = Exchange()
    exchange.publish("default", "/tasks/before", START)
    with exchange.subscribe() as subscription:
        exchange.publish("default", "/tasks/after", START)
        assert await next_topics(subscription, 1) == ["/tasks/after"]


async def test_payloads_have_bare_type_urls() -> None:
    exchange = Exchange()
    with exchange.subscribe() as subscription:
        exchange.publish("default", "/tasks/start", START)
        envelope = await anext(subscription)
    assert envelope.event.type_url == "containerd.events.TaskStart"
    assert envelope.timestamp > 0


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("namespace==k8s.io", ["/tasks/start"]),
        ('topic=="/containers/create"', ["/containers/create"]),
        ("namespace==moby,topic~=|^/tasks/|", ["/tasks/exit"]),
        ("event.container_id==redis", ["/tasks/start", "/tasks/exit"]),
        ("event.runtime.name==io.containerd.runc.v2", ["/containers/create"]),
        ("event.pid==9", ["/tasks/exit"]),
        ("event.unknown", []),
    ],
)
async def test_filters_choose_by_namespace_topic_and_fields_of_the_payload(
    expression: str, expected: list[str]
) -> None:
    exchange = Exchange()
    runtime = container_pb2.ContainerCreate.Runtime(name="io.containerd.runc.v2")
    with exchange.subscribe([expression]) as subscription:
        exchange.publish("k8s.io", "/tasks/start", START)
        exchange.publish("moby", "/tasks/exit", task_pb2.TaskExit(container_id="redis", pid=9))
        exchange.publish("moby", "/containers/create", container_pb2.ContainerCreate(id="x", runtime=runtime))
        subscribed = await next_topics(subscription, len(expected))
        assert subscribed == expected
        assert not subscription._queue


async def test_a_subscriber_that_falls_behind_is_cut_off_and_others_are_not() -> None:
    exchange = Exchange(Bounds(events=10))
    with exchange.subscribe() as slow, exchange.subscribe() as quick:
        for number in range(11):
            exchange.publish("default", f"/tasks/n{number}", START)
            assert await next_topics(quick, 1) == [f"/tasks/n{number}"]
        with pytest.raises(ResourceExhausted, match="more than 10 events"):
            await anext(slow)


async def test_large_payloads_count_by_their_bytes() -> None:
    exchange = Exchange(Bounds(bytes=10_000))
    with exchange.subscribe() as slow:
        exchange.publish_typed("default", "/big/one", Typed("x", bytes(20_000)))
        with pytest.raises(ResourceExhausted):
            await anext(slow)


async def test_publishing_from_a_thread_wakes_a_waiting_subscriber() -> None:
    exchange = Exchange()
    with exchange.subscribe() as subscription:
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.to_thread(exchange.publish, "default", "/tasks/start", START)
        assert (await waiting).topic == "/tasks/start"


async def test_closing_the_exchange_ends_every_subscription() -> None:
    exchange = Exchange()
    subscription = exchange.subscribe()
    exchange.close()
    assert [envelope async for envelope in subscription] == []
    assert exchange.subscribers == 0


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        ("", 'envelope topic "": must not be empty: invalid argument'),
        ("tasks", "envelope topic \"tasks\": must start with '/': invalid argument"),
        ("/", 'envelope topic "/": must have at least one component: invalid argument'),
        ("/a//b", 'failed validation on component "": identifier must not be empty'),
        ("/a/b\n", 'failed validation on component "b'),
    ],
)
async def test_malformed_topics_are_refused(topic: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Exchange().publish("default", topic, START)
    assert text in str(caught.value)


async def test_publishing_needs_a_namespace() -> None:
    service = EventsService(Exchange())
    with pytest.raises(FailedPrecondition) as caught:
        await service.Publish(events_pb2.PublishRequest(topic="/a"), Call())
    assert str(caught.value) == "failed publishing event: namespace is required: failed precondition"


async def test_forwarded_events_keep_their_namespace_time_and_bytes() -> None:
    exchange = Exchange()
    envelope = Envelope(0, "other", "/tasks/start", Typed("type.googleapis.com/a.B", b"\x01"))
    with exchange.subscribe() as subscription:
        exchange.forward(envelope)
        assert await anext(subscription) == envelope


async def test_forwarding_checks_the_namespace() -> None:
    with pytest.raises(InvalidArgument, match="event envelope has invalid namespace"):
        Exchange().forward(Envelope(0, "a b", "/x", pack(START)))
    with pytest.raises(InvalidArgument, match="envelope must be set"):
        await EventsService(Exchange()).Forward(events_pb2.ForwardRequest(), Call())


async def test_a_bad_filter_is_an_unknown_error_as_clients_know_it() -> None:
    stream = EventsService(Exchange()).Subscribe(events_pb2.SubscribeRequest(filters=["=="]), Call())
    with pytest.raises(
        Unknown, match=r"^subscription error: failed parsing subscription filters: filters: parse error"
    ):
        await anext(stream)


async def test_a_client_that_goes_leaves_no_subscription() -> None:
    exchange = Exchange()
    stream = EventsService(exchange).Subscribe(events_pb2.SubscribeRequest(), Call())
    first = asyncio.ensure_future(anext(stream))
    asyncio.get_running_loop().call_soon(exchange.publish, "default", "/tasks/start", START)
    assert (await first).topic == "/tasks/start"
    await stream.aclose()
    assert exchange.subscribers == 0
