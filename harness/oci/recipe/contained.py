"""This program runs one command of a recipe's build contained; it imports nothing of ours.

python contained.py '{"command": […], …}'

Package managers run scripts of the packages they install, as root. ``where`` the command runs decides how far it is
kept apart; in each case it has process, IPC and host name spaces of its own, and no network unless that is asked for.

- ``tree``: inside the tree that is built. Nothing else of the host's file system is there, ``/dev`` has six harmless
  nodes, ``/proc`` cannot be written, and of root's capabilities those are left that installing files needs (``KEPT``).
- ``users``: a tool of the host that makes a tree (``mmdebstrap``), in a user name space whose root is nobody on the
  host. The host is read-only; ``room``, which belongs to that root, is at ``ROOM``, and ``/dev`` is the small one.
- ``host``: a tool of the host that runs nothing of what it installs (``npm --ignore-scripts``), with the tree mounted.

Everything dies with the process that started it. Sources: namespaces(7), capabilities(7), pivot_root(2),
mount_setattr(2), user_namespaces(7).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import sys
import warnings  # noqa: F401  os.execvp imports it, when the host's library is out of reach

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_MOUNT_SETATTR = 442
AT_RECURSIVE, AT_FDCWD = 0x8000, -100
MOUNT_ATTR_RDONLY = 1
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
LAST_CAPABILITY = 63
CAPABILITY_VERSION_3 = 0x20080522

FIRST_USER, USERS = 1 << 30, 1 << 16
"""These are users that no host has, as container runtimes take them."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
KEPT = {
    "chown": 0,
    "dac_override": 1,
    "fowner": 3,
    "fsetid": 4,
    "kill": 5,
    "setgid": 6,
    "setuid": 7,
    "sys_chroot": 18,
    "audit_write": 29,
    "setfcap": 31,
}
"""Docker gives a container these, without making devices (mknod), raw sockets and low ports."""

ROOM = "/mnt"
READ_ONLY_PROC = ("sys", "sysrq-trigger", "irq", "bus", "fs")
HIDDEN_PROC = ("kcore", "keys", "timer_list")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = (
        source.encode(),
        target.encode(),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    check(libc.mount(*arguments), f"mount on {target}")


def set_read_only(target: str, *, read_only: bool) -> None:
    """Makes all mounts at and below ``target`` read-only, or writable again."""
    attributes = (ctypes.c_uint64 * 4)(*((MOUNT_ATTR_RDONLY, 0) if read_only else (0, MOUNT_ATTR_RDONLY)), 0, 0)
    result = libc.syscall(
        SYS_MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, ctypes.byref(attributes), ctypes.sizeof(attributes)
    )
    check(result, f"mount_setattr of {target}")


def small_dev(target: str, made_in: str) -> None:
    """Puts a ``/dev`` of the harmless nodes at ``target``, whatever was there; it is put together at ``made_in``."""
    os.makedirs(made_in, exist_ok=True)
    mount("tmpfs", made_in, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=1m")
    for name in DEVICES:
        os.close(os.open(f"{made_in}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        mount(f"/dev/{name}", f"{made_in}/{name}", flags=MS_BIND)
    for name, to in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{to}", f"{made_in}/{name}")
    for name in ("shm", "pts"):
        os.mkdir(f"{made_in}/{name}")
    mount("tmpfs", f"{made_in}/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=64m")
    if target != made_in:
        mount(made_in, target, flags=MS_BIND | MS_REC)


def enter_tree(tree: str) -> None:
    """Makes ``tree`` the root, and lets go of the host's file systems."""
    mount("proc", f"{tree}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in READ_ONLY_PROC:
        path = f"{tree}/proc/{name}"
        if os.path.exists(path):
            mount(path, path, flags=MS_BIND | MS_REC)
            set_read_only(path, read_only=True)
    for name in HIDDEN_PROC:
        if os.path.exists(f"{tree}/proc/{name}"):
            mount("/dev/null", f"{tree}/proc/{name}", flags=MS_BIND)
    os.chdir(tree)
    check(libc.syscall(SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount of the host's root")
    os.chdir("/")


def drop_capabilities() -> None:
    for number in range(LAST_CAPABILITY + 1):
        if number not in KEPT.values():
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # EINVAL for those that this kernel does not have
    mask = sum(1 << number for number in KEPT.values())
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)
    check(libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def die_with_parent() -> None:
    check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")


def status_of(pid: int) -> int:
    """Waits for ``pid`` as the first process of a name space does: everybody's orphans are its own."""
    while True:
        found, status = os.wait()
        if found == pid:
            return os.waitstatus_to_exitcode(status)


def fork(run: object, *arguments: object) -> int:
    """Calls ``run`` in a child and returns its exit code. A child that fails says why and ends with 125."""
    alive, parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 125
        try:
            os.close(parent)
            die_with_parent()
            if select.select([alive], [], [], 0)[0]:  # its parent was gone before it could ask to die with it
                os._exit(code)
            os.close(alive)
            code = run(*arguments)  # type: ignore[operator]
        except BaseException as error:
            sys.stderr.write(f"error: containing the build failed: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(code if 0 <= code < 256 else 128 - code)
    os.close(alive)
    code = status_of(pid)
    os.close(parent)
    return code if code >= 0 else 128 - code


def own_users() -> None:
    """Enters a user name space whose users, root among them, are nobody on the host."""
    asked, answered = os.pipe(), os.pipe()
    outside = os.getpid()
    helper = os.fork()
    if helper == 0:
        try:
            os.read(asked[0], 1)
            for kind in ("uid_map", "gid_map"):
                with open(f"/proc/{outside}/{kind}", "w") as file:
                    file.write(f"0 {FIRST_USER} {USERS}")
            os.write(answered[1], b"1")
        finally:
            os._exit(0)
    unshare(NEWUSER)
    os.write(asked[1], b"1")
    os.close(answered[1])
    mapped = os.read(answered[0], 1)
    os.waitpid(helper, 0)
    if not mapped:
        raise OSError(1, "the user name space could not be set up")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def in_tree(request: dict[str, object]) -> int:
    """Runs the command inside the tree."""
    tree = mount_tree(request)
    if request["network"]:
        # A copy in the upper directory, which cleaning takes away again: no image keeps this host's.
        try:
            os.unlink(f"{tree}/etc/resolv.conf")
        except FileNotFoundError:
            pass
        if os.path.exists("/etc/resolv.conf"):
            shutil.copyfile("/etc/resolv.conf", f"{tree}/etc/resolv.conf")
    small_dev(f"{tree}/dev", f"{tree}/dev")
    mount("tmpfs", f"{tree}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    unshare(NEWPID | (0 if request["network"] else NEWNET))
    return fork(first_in_tree, request)


def first_in_tree(request: dict[str, object]) -> int:
    enter_tree(str(request["tree"]))
    drop_capabilities()
    return fork(execute, request)


def in_users(request: dict[str, object]) -> int:
    """Runs the command of the host as a root that is nobody there; all but its room is read-only."""
    mount(str(request["room"]), ROOM, flags=MS_BIND | MS_REC)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    small_dev("/dev", "/tmp/dev")
    set_read_only("/", read_only=True)
    for path in (ROOM, "/tmp", "/dev", "/proc"):
        set_read_only(path, read_only=False)
    own_users()
    unshare(NEWNS | NEWPID | NEWIPC | NEWUTS | (0 if request["network"] else NEWNET))
    return fork(first_of_others, request)


def on_host(request: dict[str, object]) -> int:
    """Runs the command of the host beside the mounted tree."""
    mount_tree(request)
    unshare(NEWPID | (0 if request["network"] else NEWNET))
    return fork(first_of_others, request)


def first_of_others(request: dict[str, object]) -> int:
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    return fork(execute, request)


def mount_tree(request: dict[str, object]) -> str:
    tree = str(request["tree"])
    mount("overlay", tree, "overlay", 0, str(request["overlay"]))
    return tree


def execute(request: dict[str, object]) -> int:
    command = list(request["command"])  # type: ignore[call-overload]
    os.execvp(command[0], command)


def main() -> int:
    request = json.loads(sys.argv[1])
    die_with_parent()
    if os.getppid() != request["parent"]:
        return 125
    unshare(NEWNS | NEWIPC | NEWUTS)
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    return {"tree": in_tree, "users": in_users, "host": on_host}[request["where"]](request)


if __name__ == "__main__":
    sys.exit(main())
