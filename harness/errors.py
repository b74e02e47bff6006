"""This module holds one class for each kind of thing that can go wrong, with the exit code the command line ends in.

::

    ColdbenchError                      5  a trial or the infrastructure failed
    ├── UsageError                      2  the user's input is wrong
    │   └── ScenarioError               2  a scenario file is wrong (file, key path, what was expected)
    ├── HostUnfit                       4  this host cannot do what was asked
    │   ├── NotRoot                     4
    │   └── MissingTool                 4
    ├── RegistryError                   5  unreachable, refused, or not speaking the distribution protocol
    │   ├── ImageNotFound               5
    │   └── AuthError                   5
    ├── ContentError                    5  bytes that are not what they claim to be
    │   ├── DigestMismatch              5
    │   ├── UnsupportedMediaType        5
    │   └── FormatError                 5  a parser met bytes it must not accept (where, what)
    │       └── UnsafePath              5  an entry that would leave its root
    ├── WorkloadError                   5  the container did not do what the scenario expects
    │   ├── WorkloadExited              5
    │   └── NotReady                    5  the readiness condition was not met in time
    ├── MachineError                    5  the simulated machine could not be made, or ran out of something
    │   ├── OutOfMemory                 5
    │   └── DiskFull                    5
    ├── NothingToCompare                6
    └── Interrupted                   130

Every message is one line that says what is wrong and how to mend it. A traceback that reaches a user is a bug.
"""

from __future__ import annotations

import re


class ColdbenchError(Exception):
    """This is the base of all errors a user can meet; ``exit_code`` is what the command line ends in."""

    exit_code = 5

    @property
    def kind(self) -> str:
        """Returns the stable machine-readable name that is stored as the failure kind of an observation."""
        return type(self).__name__


class UsageError(ColdbenchError):
    exit_code = 2


class ScenarioError(UsageError):
    pass


class HostUnfit(ColdbenchError):
    exit_code = 4


class NotRoot(HostUnfit):
    pass


class MissingTool(HostUnfit):
    pass


class RegistryError(ColdbenchError):
    pass


class ImageNotFound(RegistryError):
    pass


class AuthError(RegistryError):
    pass


class ContentError(ColdbenchError):
    pass


_CHANGED = "the content was changed or cut on the way"
_MISMATCH = re.compile(rf"(?P<what>.*): digest is (?P<actual>.*), expected (?P<expected>.*?); {_CHANGED}", re.DOTALL)


class DigestMismatch(ContentError):
    """These bytes have another digest than the promised one."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(f"{what}: digest is {actual}, expected {expected}; {_CHANGED}")
        self.what = what
        self.expected = expected
        self.actual = actual


class UnsupportedMediaType(ContentError):
    pass


class FormatError(ContentError):
    """These bytes break their format: ``where`` names the structure and offset, ``what`` the rule that was broken."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


class UnsafePath(FormatError):
    pass


class WorkloadError(ColdbenchError):
    pass


class RehearsalFailed(WorkloadError):
    """The workload fails by itself: on a machine without limits, before any trial."""


class WorkloadExited(WorkloadError):
    pass


class NotReady(WorkloadError):
    pass


class MachineError(ColdbenchError):
    pass


class OutOfMemory(MachineError):
    pass


class DiskFull(MachineError):
    pass


class NothingToCompare(ColdbenchError):
    exit_code = 6


class Interrupted(ColdbenchError):
    exit_code = 130


BY_KIND: dict[str, type[ColdbenchError]] = {
    cls.__name__: cls
    for cls in (
        ColdbenchError, UsageError, ScenarioError, HostUnfit, NotRoot, MissingTool, RegistryError, ImageNotFound,
        AuthError, ContentError, UnsupportedMediaType, WorkloadError, WorkloadExited, NotReady, MachineError,
        OutOfMemory, DiskFull, NothingToCompare, Interrupted,
    )
}  # fmt: skip
"""These classes can be rebuilt from a stored ``kind`` and one message (an agent's reply crosses a socket that way)."""


def from_kind(kind: str, message: str) -> ColdbenchError:
    """Rebuilds an error that crossed a process boundary as its kind and message."""
    if kind in {"FormatError", "UnsafePath"}:
        where, _, what = message.partition(": ")
        return (UnsafePath if kind == "UnsafePath" else FormatError)(where, what)
    if kind == "DigestMismatch":
        said = _MISMATCH.fullmatch(message)
        return DigestMismatch(said["what"], said["expected"], said["actual"]) if said else ContentError(message)
    return BY_KIND.get(kind, ColdbenchError)(message)
