"""Messages between processes: frozen dataclasses come out as they went in, or not at all."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading

import pytest

from harness.engines.embedded.messages import FROM_AGENT, TO_AGENT, Created, Deploy, Exited, RootfsDetails
from harness.engines.protocol import DeployRequest, Process
from harness.errors import FormatError
from harness.lazyfs import channel
from harness.lazyfs.channel import Channel, Lines, Received, encode
from harness.lazyfs.counters import PackCounters
from harness.lazyfs.messages import (
    ANSWERS,
    REQUESTS,
    LazyLayer,
    MarkReady,
    MountTree,
    PackUsage,
    Serving,
    StoreAddress,
    Touch,
    Touches,
    Usage,
)
from harness.model import observation
from harness.model.details import EngineDetails
from harness.model.observation import LazyUsage

SERVING = Serving(
    "soci", "tuned", StoreAddress(registry="r:5000", repository="a", credentials={"user": "u"}, routes=("x=y",)),
    "/scratch", {"background": False, "merge_gap": 4, "prefetch_wait_s": 1.0}, ("/a", "/b\udcff"), 0.25, True, 7, 1,
)  # fmt: skip
MESSAGES = [
    MountTree(SERVING, (LazyLayer(0, "ztoc", "sha256:a", 1, "sha256:b", 2, "sha256:c", 3),)),
    Touches((Touch("/b\udcff", 0, 1, 2, 0.5),)),
    MarkReady(),
    Deploy(DeployRequest("r", "a", "t", "soci", "tuned", Process(args=("x",), env={"A": "b"})), "/scratch", 1),
    Created(1, "/root", RootfsDetails(agent_requests=3, whole_layers=(1, 2))),
]


def test_descriptors_come_with_their_message() -> None:
    """Open descriptors arrive with the message they were sent with, and with no other, whatever was sent around it; an
    end that expects none gets the messages alone."""
    for wanted in (2, 0):
        left, right = socket.socketpair()
        with left, right:
            ours, theirs = Channel(left, ()), Channel(right, FROM_AGENT, descriptors=wanted)
            reader, writer = os.pipe()
            assert ours.send(Exited(1))
            assert ours.send(Exited(2), descriptors=(reader, writer))
            assert ours.send(Exited(3))
            os.close(reader)
            os.close(writer)
            received = [theirs.receive(5.0) for _ in range(3)]
            assert [r.message for r in received if r] == [Exited(1), Exited(2), Exited(3)]
            assert [len(r.descriptors) for r in received if r] == [0, wanted, 0]
            if wanted:
                assert received[1] is not None
                reader, writer = received[1].descriptors
                assert not os.get_inheritable(reader)
                os.write(writer, b"x")
                assert os.read(reader, 2) == b"x"
                os.close(reader)
                os.close(writer)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_out_as_they_went_in(message: object) -> None:
    """Every value keeps its type, names that are no UTF-8 included, and the number comes along."""
    lines = Lines([*REQUESTS, *ANSWERS, *TO_AGENT, *FROM_AGENT])
    data = encode(message, 5)
    assert lines.feed(data[:7]) == []
    assert lines.feed(data[7:]) == [Received(5, message)]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"say":"MarkReady"}',
        b'{"say":"Nonsense","id":1,"body":{}}',
        b'{"say":"AwaitBackground","id":1,"body":{"wait_s":"soon"}}',
        b'{"say":"UseDevices","id":1,"body":{"paths":["/dev/loop0"]}}',
        b'{"say":"Touches","id":1,"body":{"touches":[]}}',
    ],
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    """A line that is no JSON, of no known class, with a field missing or of another type is an error in words."""
    with pytest.raises(FormatError, match="control socket"):
        Lines(REQUESTS).feed(line + b"\n")


def test_a_line_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends a line without an end is not listened to for ever."""
    monkeypatch.setattr(channel, "MAX_LINE_BYTES", 1000)
    lines = Lines(REQUESTS)
    lines.feed(bytes(1000))
    with pytest.raises(FormatError, match="longer than 1000 bytes"):
        lines.feed(b" ")


def test_channel_between_two_processes() -> None:
    """Messages of any size arrive whole and in order; the end of the other side is None; waiting has a limit."""
    left, right = socket.socketpair()
    ours, theirs = Channel(left, ANSWERS), Channel(right, ANSWERS)
    touches = Touches(tuple(Touch("/" + "x" * 1000, 0, n, 1, 0.0) for n in range(300)))

    def send() -> None:
        for number in range(1, 4):
            assert ours.send(touches, number)

    sender = threading.Thread(target=send)
    sender.start()
    assert [theirs.receive(10) for _ in range(3)] == [Received(number, touches) for number in (1, 2, 3)]
    sender.join()
    with pytest.raises(TimeoutError):
        theirs.receive(0.01)
    ours.close()
    assert theirs.receive(10) is None
    assert not theirs.send(touches)
    theirs.close()


def test_what_the_daemon_counts_is_what_an_observation_stores() -> None:
    """Both lists of counters have the same names, so that none is lost on the way."""
    assert {field.name for field in dataclasses.fields(Usage)} == set(LazyUsage.model_fields)
    assert {field.name for field in dataclasses.fields(PackUsage)} == set(observation.PackUsage.model_fields)
    assert dataclasses.asdict(PackCounters(frames=2, failure="gone").usage()) == {
        **observation.PackUsage().model_dump(),
        "frames": 2,
        "failure": "gone",
    }


def test_facts_of_a_root_file_system_are_stored_where_there_are_any() -> None:
    """A mode's details hold what that mode knows, and nothing of the others."""
    assert RootfsDetails(agent_requests=0, erofs="loop", whole_layers=()).known() == {
        "agent_requests": 0,
        "erofs": "loop",
        "whole_layers": [],
    }
    assert {field.name for field in dataclasses.fields(RootfsDetails)} <= EngineDetails.model_fields.keys()
