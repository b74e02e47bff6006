"""What the registry tests share: a certificate for 127.0.0.1."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Tls:
    """A server's context, and the file of the CA that vouches for it."""

    context: ssl.SSLContext
    ca: str


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate for 127.0.0.1 that is its own CA."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, no certificate can be made")
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = "openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=test -days 2"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return Tls(context, str(certificate))
