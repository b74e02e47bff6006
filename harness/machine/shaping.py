"""This module makes and shapes the links of the simulated network, through rtnetlink (pyroute2).

Bandwidth is a token bucket filter (tc-tbf(8)) at the sending end of each direction. Where a vendor's network has a
bucket of its own, two filters are nested: the outer holds the burst rate, the inner the sustained rate with the
vendor's bucket. Round-trip time is netem (half of it each way) where the kernel has it.
"""

from __future__ import annotations

import contextlib
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import MachineError
from harness.machine import addresses
from harness.model.bound import burst_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.machine.records import Record
    from harness.model.shape import Network

INNER_INTERFACE = "eth0"

_QUEUE_S = 0.020
_MIN_QUEUE_BYTES = 192 << 10
_MAX_TBF_S = 250.0
"""tbf holds its bucket as time at its rate, in 32 bits of 64 ns: 274 s at most."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Describes one token bucket: bytes per second, and bytes that may pass at once."""

    rate_bytes_s: int
    burst_bytes: int
    limit_bytes: int


def filters(network: Network, cap_bytes_s: int | None = None) -> list[Filter]:
    """Returns the token buckets for a network, outermost first; ``cap_bytes_s`` lowers the rate (the way to the
    registry).
    """
    sustained = network.rate_bits_s // 8
    peak = network.peak_bits_s // 8
    if cap_bytes_s is not None:
        peak = min(peak, cap_bytes_s)
    plain = _plain(peak)
    if network.bucket_bytes is None or sustained >= peak:
        return [plain]
    bucket = min(network.bucket_bytes, int(sustained * _MAX_TBF_S))
    return [plain, Filter(sustained, max(bucket, plain.burst_bytes), plain.limit_bytes)]


def cap_filters(cap_bytes_s: int) -> list[Filter]:
    """Returns the token bucket where only the way to the registry is limited."""
    return [_plain(cap_bytes_s)]


def _plain(rate_bytes_s: int) -> Filter:
    # Below one GSO packet tbf would cut packets up, at the machine's or the registry's expense.
    burst = burst_bytes(rate_bytes_s)
    return Filter(rate_bytes_s, burst, burst + max(_MIN_QUEUE_BYTES, int(rate_bytes_s * _QUEUE_S)))


@contextlib.contextmanager
def _netlink(namespace: str | None = None) -> Iterator[Any]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    ipr = IPRoute(netns=namespace) if namespace else IPRoute()
    try:
        yield ipr
    except NetlinkError as error:
        raise MachineError(f"the kernel refused to set up the simulated network: {error}") from error
    finally:
        ipr.close()


def used_addresses() -> list[str]:
    """Returns every IPv4 address of this host's own network namespace."""
    with _netlink() as ipr:
        return [address for entry in ipr.get_addr(family=2) if (address := entry.get("address"))]


def make_link(record: Record, namespace_pid: int, block: addresses.Block) -> None:
    """Makes a veth pair between this namespace and that of a process, gives it addresses and sets it up."""
    outer = record.interface("h")
    with _netlink() as ipr:
        ipr.link("add", ifname=outer, kind="veth", peer={"ifname": INNER_INTERFACE, "net_ns_pid": namespace_pid})
        index = ipr.link_lookup(ifname=outer)[0]
        ipr.link("set", index=index, ifalias=record.name)
        ipr.addr("add", index=index, address=block.host, prefixlen=addresses.PREFIX_LENGTH)
        ipr.link("set", index=index, state="up")
    with _netlink(f"/proc/{namespace_pid}/ns/net") as inside:
        loopback = inside.link_lookup(ifname="lo")[0]
        inside.link("set", index=loopback, state="up")
        index = inside.link_lookup(ifname=INNER_INTERFACE)[0]
        inside.addr("add", index=index, address=block.machine, prefixlen=addresses.PREFIX_LENGTH)
        inside.link("set", index=index, state="up")


def add_routes(namespace_pid: int, hosts: Sequence[str], gateway: str) -> None:
    """Adds ways to these hosts through the link. There is no other: a connection to anywhere else fails at once."""
    with _netlink(f"/proc/{namespace_pid}/ns/net") as inside:
        for host in dict.fromkeys(hosts):
            if host != gateway:
                inside.route("add", dst=f"{host}/32", gateway=gateway)


def shape_link(record: Record, namespace_pid: int, chain: list[Filter], delay_us: int = 0) -> None:
    """Shapes both directions: the host's end sends what the machine receives, the machine's end what it sends."""
    with _netlink() as ipr:
        _shape(ipr, ipr.link_lookup(ifname=record.interface("h"))[0], chain, delay_us)
    with _netlink(f"/proc/{namespace_pid}/ns/net") as inside:
        _shape(inside, inside.link_lookup(ifname=INNER_INTERFACE)[0], chain, delay_us)


def _shape(ipr: Any, index: int, chain: list[Filter], delay_us: int) -> None:
    parent = 0xFFFFFFFF  # TC_H_ROOT
    handle = 0x10000
    if delay_us:
        ipr.tc("add", "netem", index, handle=handle, parent=parent, delay=delay_us, limit=100_000)
        parent, handle = handle + 1, handle + 0x10000
    for bucket in chain:
        ipr.tc(
            "add", "tbf", index, handle=handle, parent=parent,
            rate=bucket.rate_bytes_s, burst=bucket.burst_bytes, limit=bucket.limit_bytes,
        )  # fmt: skip
        parent, handle = handle + 1, handle + 0x10000


def read_rates(record: Record, namespace_pid: int) -> tuple[list[int], list[int]]:
    """Reads the rates in force in bytes/s, outermost first: towards the machine, and from it."""
    with _netlink() as ipr:
        towards = _rates(ipr, ipr.link_lookup(ifname=record.interface("h"))[0])
    with _netlink(f"/proc/{namespace_pid}/ns/net") as inside:
        return towards, _rates(inside, inside.link_lookup(ifname=INNER_INTERFACE)[0])


def _rates(ipr: Any, index: int) -> list[int]:
    found = []
    for entry in ipr.get_qdiscs(index=index):
        if entry.get_attr("TCA_KIND") == "tbf":
            found.append((entry["handle"], entry.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["rate"]))
    return [rate for _handle, rate in sorted(found)]


def remove_interface(name: str) -> None:
    """Removes an interface of this namespace, if it is there."""
    with _netlink() as ipr:
        for index in ipr.link_lookup(ifname=name):
            ipr.link("del", index=index)


def add_loopback_address(address: str, label: str) -> None:
    """Gives this host one more address, on the loopback interface, which every kernel has."""
    with _netlink() as ipr:
        ipr.addr("add", index=ipr.link_lookup(ifname="lo")[0], address=address, prefixlen=32, label=f"lo:{label}")


def loopback_addresses() -> dict[str, str]:
    """Returns labelled addresses of the loopback interface: address to label."""
    with _netlink() as ipr:
        index = ipr.link_lookup(ifname="lo")[0]
        return {
            entry.get("address"): label.partition(":")[2]
            for entry in ipr.get_addr(family=2, index=index)
            if (label := entry.get("label") or "").startswith("lo:")
        }


def remove_loopback_address(address: str) -> None:
    """Takes such an address away, if it is there."""
    with _netlink() as ipr:
        index = ipr.link_lookup(ifname="lo")[0]
        if any(entry.get("address") == address for entry in ipr.get_addr(family=2, index=index)):
            ipr.addr("del", index=index, address=address, prefixlen=32)


def interfaces() -> list[str]:
    """Returns the names of all interfaces of this namespace."""
    return sorted(path.name for path in Path("/sys/class/net").iterdir())


def has_netem() -> bool:
    """Says whether this kernel delays packets."""
    return _takes("netem", delay=1000, limit=10)


def has_tbf() -> bool:
    """Says whether this kernel limits a link's rate."""
    return _takes("tbf", rate=1_000_000, burst=1 << 17, limit=1 << 18)


def _takes(kind: str, **parameters: int) -> bool:
    """Says whether a queueing discipline can be had; it is tried on a pair made for that."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    from harness.machine.records import Record

    record = Record.new("probe", f"does the kernel have {kind}")
    record.save()
    name = record.interface("t")
    with IPRoute() as ipr:
        try:
            ipr.link("add", ifname=name, kind="veth", peer={"ifname": record.interface("u")})
            index = ipr.link_lookup(ifname=name)[0]
            ipr.tc("add", kind, index, handle=0x10000, parent=0xFFFFFFFF, **parameters)
        except NetlinkError as error:
            if error.code in (errno.ENOENT, errno.EOPNOTSUPP):
                return False
            raise
        finally:
            for index in ipr.link_lookup(ifname=name):
                ipr.link("del", index=index)
            record.remove()
    return True
