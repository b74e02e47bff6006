"""This module does something in another mount namespace without becoming a process of it.

A thread joins the namespace, acts there and ends; the program around it stays where it is. Joining wants a thread that
shares neither working directory nor root with others, so it stops sharing them first (setns(2), CLONE_NEWNS).
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, TypeVar

from harness.kernel import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_FS = 0x200

T = TypeVar("T")


def in_mounts_of(pid: int, action: Callable[[], T]) -> T:
    """Runs ``action`` in a thread in the mount namespace of ``pid``, and returns or raises what it does."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            syscalls.unshare(_CLONE_FS)
            namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(namespace, syscalls.CLONE_NEWNS)
            finally:
                os.close(namespace)
            result.append(action())
        except BaseException as error:  # it belongs to whoever asked
            failure.append(error)

    thread = threading.Thread(target=run, name="other-mounts")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
