"""Which ports something listens on, read from the kernel."""

from __future__ import annotations

import os
import socket

import pytest

from harness.probes.listening import described, listeners


@pytest.mark.files
def test_listeners_of_this_process() -> None:
    """IPv4 and IPv6 sockets are named with address and port; one that is only bound, or connected, is not."""
    with socket.create_server(("127.0.0.1", 0)) as four, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        found = listeners(os.getpid())
        assert f"127.0.0.1:{four.getsockname()[1]}" in found
        assert f"127.0.0.1:{bound.getsockname()[1]}" not in found
        if socket.has_ipv6:
            with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
                assert f"[::1]:{six.getsockname()[1]}" in listeners(os.getpid())


def test_as_a_part_of_a_sentence() -> None:
    """None, some, and more than a message should name."""
    assert described([]) == "nothing listens inside"
    assert described(["127.0.0.1:80"]) == "inside listen: 127.0.0.1:80"
    assert described([f"0.0.0.0:{n}" for n in range(20)]).endswith(" and 12 more")
    assert listeners(2**30) == []
