"""This module runs the CNCF distribution registry as a child process: started, health-checked, and gone with us in any
case.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HostUnfit, MissingTool, RegistryError
from harness.oci.cache import Cache
from harness.oci.registry.curl_pool import CurlPool, Timeouts, TransferError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_PROGRAMS = ("docker-registry", "registry")
_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1
_REQUEST = re.compile(r'"(GET|HEAD|PUT|POST|PATCH|DELETE) (\S+) HTTP/[\d.]+" (\d{3}) (\d+)')

_CONFIG = """\
version: 0.1
log:
  level: error
  accesslog:
    disabled: false
storage:
  filesystem:
    rootdirectory: {storage}
    maxthreads: 100
  cache:
    blobdescriptor: inmemory
  delete:
    enabled: true
  redirect:
    disable: true
  maintenance:
    uploadpurging:
      enabled: false
    readonly:
      enabled: {read_only}
http:
  addr: {address}
  relativeurls: true
  draintimeout: 1s
"""
# Relative URLs: machines reach the registry through a relay, under an address the registry does not know.


class RegistryServer:
    """Runs a registry on ``address:port`` while the context is open; port 0 takes a free one.

    ``storage`` is kept between runs (the cache's ``registry`` directory by default), so that images are pushed once.
    With ``read_only`` it answers GET and HEAD only (405 to the rest). Configuration and log are below ``scratch``. The
    process dies with the thread that started it (PR_SET_PDEATHSIG), so start it from one that lasts. Raises
    MissingTool without the program, RegistryError when it does not come up (with its own words).
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        storage: Path | None = None,
        log: Path | None = None,
        scratch: Path | None = None,
        read_only: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self.port = port
        self.storage = storage or Cache.default().registry
        self.read_only = read_only
        self._log = log
        self._parent = scratch
        self._clock = clock
        self._sleep = sleep
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None

    @property
    def host(self) -> str:
        """Returns ``address:port`` as image references name it."""
        return f"{self.address}:{self.port}"

    @property
    def running(self) -> bool:
        """Says whether it was started and not stopped."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Returns the process's pid; RegistryError when it does not run."""
        if self._process is None:
            raise RegistryError("the registry does not run")
        return self._process.pid

    @property
    def log(self) -> Path:
        """Returns the file with what the registry printed, its access log included."""
        if self._log is None:
            raise RegistryError("the registry has not been started, there is no log")
        return self._log

    def __enter__(self) -> RegistryServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until ``/v2/`` answers."""
        program = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
        if program is None:
            raise MissingTool("docker-registry is not installed; install it with: apt-get install docker-registry")
        try:
            self.storage.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HostUnfit(f"{self.storage}: cannot be created ({error.strerror}); set COLDBENCH_CACHE") from None
        self.port = self._claim_port()
        self._scratch = Path(tempfile.mkdtemp(prefix="coldbench-registry-", dir=self._parent))
        config = self._scratch / "config.yml"
        config.write_text(
            _CONFIG.format(storage=self.storage, address=self.host, read_only=str(self.read_only).lower())
        )
        if self._log is None:
            self._log = self._scratch / "registry.log"
        libc = ctypes.CDLL(None, use_errno=True)
        parent = os.getpid()

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        environment = {key: value for key, value in os.environ.items() if not key.startswith("REGISTRY_")}
        try:
            with open(self._log, "ab") as log:
                self._process = subprocess.Popen(
                    [program, "serve", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment | {"OTEL_TRACES_EXPORTER": "none"},
                    # No session of its own: Ctrl-C in a terminal would reach it and end it before our own tear-down.
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl, nothing that takes a lock
                )
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the process (again is harmless) and removes its configuration; the storage stays."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            if self._log is not None and self._log.is_relative_to(self._scratch):
                self._log = None
            self._scratch = None

    def requests(self) -> collections.Counter[str]:
        """Counts the requests answered so far, by kind: manifest, blob (whole), range, head, push, other."""
        counts: collections.Counter[str] = collections.Counter()
        with contextlib.suppress(FileNotFoundError), open(self.log, errors="replace") as file:
            for line in file:
                match = _REQUEST.search(line)
                if match:
                    counts[_kind(match[1], match[2], int(match[3]))] += 1
        return counts

    def _claim_port(self) -> int:
        """Returns the port, checked to be free: another server there would answer the health check in ours' place."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.address, self.port))
            except OSError as error:
                raise RegistryError(f"the registry cannot listen on {self.host}: {error.strerror}") from None
            return int(probe.getsockname()[1])

    def _wait_until_healthy(self) -> None:
        process = self._process
        assert process is not None
        pool = CurlPool(Timeouts(connect_s=1.0, stall_s=2.0))
        deadline = self._clock() + _START_TIMEOUT_S
        try:
            while self._clock() < deadline:
                if process.poll() is not None:
                    raise RegistryError(f"the registry on {self.host} ended at once: {self._last_words()}")
                try:
                    if pool.get(f"http://{self.host}/v2/", limit=1 << 16).status == 200:
                        return
                except TransferError:
                    pass
                self._sleep(_POLL_S)
        finally:
            pool.close()
        raise RegistryError(f"the registry on {self.host} does not answer within {_START_TIMEOUT_S:.0f} s")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        words = lines[-1] if lines else "it said nothing"
        match = re.search(r'msg="((?:[^"\\]|\\.)*)"', words)
        return (match[1] if match else words)[:300]


def _kind(method: str, path: str, status: int) -> str:
    if method == "HEAD":
        return "head"
    if method != "GET":
        return "push"
    if "/manifests/" in path:
        return "manifest"
    if "/blobs/" in path:
        return "range" if status == 206 else "blob"
    return "other"
