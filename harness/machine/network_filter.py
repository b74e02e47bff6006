"""This module limits what a machine's processes reach through their link to addresses and ports of registry and relays.

The filter is at the host's end of the link, where nobody inside can change it. It is a BPF program on the interface's
ingress hook (tc-bpf(8), clsact), which goes with the interface; where the kernel has none, an nftables chain on the
same hook, through the program ``nft``. Whatever is neither ARP nor TCP to one of the places is dropped: other ports,
other protocols, IPv6, fragments without a header.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import HostUnfit
from harness.kernel import bpf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.machine.records import Record

Place = tuple[str, int]
"""This is an IPv4 address and a TCP port."""

Way = Literal["BPF", "nftables"]

_PASS, _DROP = 0, 2
"""These are TC_ACT_OK and TC_ACT_SHOT."""

_INGRESS = 0xFFFFFFF2
_CUT_PRIORITY = 1
"""This filter comes before the one that is always there, which has the kernel's default priority (49152)."""

_ARP, _IPV4, _TCP = 0x0806, 0x0800, 6
_ETHERNET_BYTES = 14
_TABLE = "coldbench_"


def program(places: Sequence[Place]) -> bytes:
    """Writes the classifier. A packet too short for a look ends it, and is let through: no protocol takes it."""
    code = bpf.copy(6, 1)
    code += bpf.load_packet(2, 12) + bpf.when([bpf.Test(0, _ARP)], bpf.give(_PASS))
    code += bpf.unless(bpf.Test(0, _IPV4), bpf.give(_DROP))
    code += bpf.load_packet(2, _ETHERNET_BYTES + 6) + bpf.mask(0, 0x1FFF)
    code += bpf.unless(bpf.Test(0, 0), bpf.give(_DROP))  # not a datagram's first fragment
    code += bpf.load_packet(1, _ETHERNET_BYTES + 9) + bpf.unless(bpf.Test(0, _TCP), bpf.give(_DROP))
    code += bpf.load_packet(4, _ETHERNET_BYTES + 16) + bpf.copy(7, 0)
    code += bpf.load_packet(1, _ETHERNET_BYTES) + bpf.mask(0, 0x0F) + bpf.shift_left(0, 2) + bpf.copy(8, 0)
    code += bpf.load_packet(2, _ETHERNET_BYTES + 2, 8) + bpf.copy(9, 0)
    for address, port in places:
        tests = [bpf.Test(7, int(ipaddress.IPv4Address(address))), bpf.Test(9, port)]
        code += bpf.when(tests, bpf.give(_PASS))
    return code + bpf.give(_DROP)


def attach(record: Record, places: Sequence[Place]) -> Way:
    """Filters what comes out of a machine's link; says how. Raises ``HostUnfit`` where the kernel has neither way."""
    interface = record.interface("h")
    try:
        _attach_program(interface, places)
        return "BPF"
    except OSError as error:
        refused = str(error)
    try:
        _run_nft(f"""
            table netdev {_table(record)} {{
                chain out {{
                    type filter hook ingress device "{interface}" priority 0; policy drop;
                    ether type arp accept
                    {"".join(f"ip daddr {address} tcp dport {port} accept;" for address, port in places)}
                }}
            }}""")
    except OSError as error:
        raise HostUnfit(
            f"containers would reach this host's services: no BPF on a link ({refused}), and no nftables ({error}); "
            "load sch_ingress and cls_bpf, or install nftables"
        ) from error
    return "nftables"


def cut(record: Record) -> None:
    """Drops whatever comes out of a machine's link, without a word, until ``mend``. Raises OSError."""
    if _table(record).removeprefix(_TABLE) in tables():
        _run_nft(f"insert rule netdev {_table(record)} out ether type ip drop")
        return
    _attach_program(record.interface("h"), (), {"prio": _CUT_PRIORITY})


def mend(record: Record, places: Sequence[Place]) -> None:
    """Undoes ``cut``: these places are reached again. Raises OSError."""
    from pyroute2 import IPRoute

    if _table(record).removeprefix(_TABLE) in tables():
        detach(record)
        attach(record, places)
        return
    with IPRoute() as ipr:
        index = ipr.link_lookup(ifname=record.interface("h"))[0]
        ipr.tc("del-filter", "bpf", index, ":1", parent=_INGRESS, prio=_CUT_PRIORITY)


def _attach_program(interface: str, places: Sequence[Place], further: dict[str, Any] | None = None) -> None:
    """Attaches the BPF program to the interface. Raises OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    loaded = bpf.load_program(bpf.SCHED_CLS, program(places), "coldbench_net")
    try:
        with IPRoute() as ipr:
            index = ipr.link_lookup(ifname=interface)[0]
            if further is None:
                ipr.tc("add", "clsact", index)
            arguments: dict[str, Any] = {"fd": loaded, "name": "coldbench", "parent": _INGRESS, "direct_action": True}
            arguments |= further or {}
            ipr.tc("add-filter", "bpf", index, ":1", **arguments)
    except NetlinkError as error:
        raise OSError(error.code, f"{os.strerror(error.code)}, the kernel lacks clsact or cls_bpf") from error
    finally:
        os.close(loaded)


def way() -> Way:
    """Says how this host's kernel filters: it is tried on a pair made for that. Raises
    ``HostUnfit`` where it cannot.
    """
    from pyroute2 import IPRoute

    from harness.machine.records import Record

    record = Record.new("probe", "how does the kernel filter a link")
    record.save()
    with IPRoute() as ipr:
        try:
            ipr.link("add", ifname=record.interface("h"), kind="veth", peer={"ifname": record.interface("t")})
            return attach(record, [("198.18.0.1", 1)])
        finally:
            for index in ipr.link_lookup(ifname=record.interface("h")):
                ipr.link("del", index=index)
            detach(record)
            record.remove()


def detach(record: Record) -> None:
    """Removes the nftables table, if there is one; a BPF program goes with its interface."""
    if _table(record).removeprefix(_TABLE) in tables():
        _run_nft(f"delete table netdev {_table(record)}")


def tables() -> list[str]:
    """Returns the IDs of the runs whose tables this host has."""
    if shutil.which("nft") is None:
        return []
    try:
        said = _run_nft("list tables netdev")
    except OSError:  # a kernel without nftables has no table of ours
        return []
    names = [line.split()[-1] for line in said.splitlines() if line.startswith("table netdev ")]
    return [name.removeprefix(_TABLE) for name in names if name.startswith(_TABLE)]


def _table(record: Record) -> str:
    return f"{_TABLE}{record.id}"


def _run_nft(commands: str) -> str:
    """Returns what nft prints. Raises OSError with its first line."""
    done = subprocess.run(["nft", "-f", "-"], input=commands, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.returncode, (done.stderr.strip().splitlines() or ["nft says nothing"])[0])
    return done.stdout
