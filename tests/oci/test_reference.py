"""Image names."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.oci.reference import parse_reference
from harness.oci.registry.client import plain_http

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("docker://h:5000/a/b:c", ("docker", "h:5000", "a/b", "", "c", "")),
        ("docker://h.example/a", ("docker", "h.example", "a", "", "latest", "")),
        (f"docker://h:1/a@{DIGEST}", ("docker", "h:1", "a", "", "", DIGEST)),
        (f"docker://h:1/a:t@{DIGEST}", ("docker", "h:1", "a", "", "t", DIGEST)),
        ("docker://[::1]:5000/a:b", ("docker", "[::1]:5000", "a", "", "b", "")),
        ("docker://debian", ("docker", "docker.io", "library/debian", "", "latest", "")),
        ("docker://me/app:1", ("docker", "docker.io", "me/app", "", "1", "")),
        ("docker://localhost/a", ("docker", "localhost", "a", "", "latest", "")),
        ("oci:/d/e", ("oci", "", "", "/d/e", "", "")),
        ("oci:d:tag", ("oci", "", "", "d", "tag", "")),
        (f"oci:d:@{DIGEST}", ("oci", "", "", "d", "", DIGEST)),
        ("oci-archive:f.tar", ("oci-archive", "", "", "f.tar", "", "")),
        ("docker-archive:f.tar:h/a:t", ("docker-archive", "", "", "f.tar", "h/a:t", "")),
    ],
)
def test_forms(text: str, expected: tuple[str, ...]) -> None:
    """Every form that skopeo takes is parsed into its parts, and printed back to something that parses the same."""
    reference = parse_reference(text)
    parts = (
        reference.transport,
        reference.host,
        reference.repository,
        reference.path,
        reference.tag,
        reference.digest,
    )
    assert parts == expected
    assert parse_reference(str(reference)) == reference


def test_scenario() -> None:
    """A scenario's own image has a name of its own."""
    assert parse_reference("scenario:python-data").name == "python-data"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "debian",
        "debian:12",
        "ftp://a/b",
        "docker:/a/b",
        "docker://",
        "docker://h:x/a",
        "docker://h:1/A",
        "docker://h:1/a:-t",
        "docker://h:1/a@sha256:12",
        "docker://h:1/../a",
        "oci:",
        "oci-archive:",
        "scenario:",
        "scenario:../x",
    ],
)
def test_wrong_names(text: str) -> None:
    """Anything else is a UsageError that quotes the name and shows a form that works."""
    with pytest.raises(UsageError, match=r"expected|is not") as caught:
        parse_reference(text)
    assert repr(text) in str(caught.value)
    assert caught.value.exit_code == 2


def test_bare_registry_names_get_a_hint() -> None:
    """A name as docker pull takes it is answered with the form to use."""
    with pytest.raises(UsageError, match=r"did you mean docker://h\.example/a:b"):
        parse_reference("h.example/a:b")


def test_plain_http_is_for_loopback_and_simulated_networks() -> None:
    """TLS is left out on loopback and 198.18.0.0/15 only."""
    for host in ("127.0.0.1:5000", "localhost", "localhost:5000", "[::1]:5000", "198.18.0.1:80", "198.19.255.1"):
        assert plain_http(host), host
    for host in ("198.20.0.1", "registry.example", "10.0.0.1:5000", "docker.io", "localhost.example"):
        assert not plain_http(host), host
