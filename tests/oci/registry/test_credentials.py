"""Where logins come from."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import AuthError
from harness.oci.registry.auth import parse_challenges
from harness.oci.registry.logins import Credentials, find_credentials

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.files


def write(directory: Path, config: Any) -> str:
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(directory)


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = directory / "docker-credential-test"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")


def test_no_config(tmp_path: Path) -> None:
    """Without a config.json there is no login, and that is no error."""
    assert find_credentials("h", "", str(tmp_path)) is None


@pytest.mark.parametrize("key", ["h:5000", "https://h:5000", "https://h:5000/v2/"])
def test_plain_auth(tmp_path: Path, key: str) -> None:
    """base64 of user:password, under the host however docker login wrote it."""
    auth = base64.b64encode(b"me:pa:ss").decode()
    directory = write(tmp_path, {"auths": {key: {"auth": auth}}})
    assert find_credentials("h:5000", "", directory) == Credentials("me", "pa:ss")
    assert find_credentials("other", "", directory) is None


def test_docker_hub_and_identity_token(tmp_path: Path) -> None:
    """docker.io's login stands under its old index address; an identity token is told apart from a password."""
    directory = write(tmp_path, {"auths": {"https://index.docker.io/v1/": {"identitytoken": "tok"}}})
    assert find_credentials("docker.io", "", directory) == Credentials("", "tok", identity=True)


def test_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """credHelpers of the host come first, then auths, then credsStore; the helper is asked by server."""
    helper(tmp_path, monkeypatch, 'read server; echo "{\\"Username\\": \\"u\\", \\"Secret\\": \\"$server\\"}"')
    directory = write(tmp_path, {"credHelpers": {"h": "test"}})
    assert find_credentials("h", "", directory) == Credentials("u", "h")
    directory = write(tmp_path, {"credsStore": "test", "auths": {"k": {"username": "a", "password": "b"}}})
    assert find_credentials("k", "", directory) == Credentials("a", "b")
    assert find_credentials("h", "", directory) == Credentials("u", "h")


def test_helper_without_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that knows no login is no error."""
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    assert find_credentials("h", "", write(tmp_path, {"credsStore": "test"})) is None


def test_broken_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged config.json, a missing helper and one that fails are AuthErrors that name the culprit."""
    with pytest.raises(AuthError, match=r"config\.json"):
        find_credentials("h", "", write(tmp_path, "{"))
    with pytest.raises(AuthError, match="base64"):
        find_credentials("h", "", write(tmp_path, {"auths": {"h": {"auth": "?"}}}))
    with pytest.raises(AuthError, match=r"docker-credential-none: .*not installed"):
        find_credentials("h", "", write(tmp_path, {"credsStore": "none"}))
    helper(tmp_path, monkeypatch, "echo locked >&2; exit 2")
    with pytest.raises(AuthError, match="locked"):
        find_credentials("h", "", write(tmp_path, {"credsStore": "test"}))


def test_secrets_are_not_shown() -> None:
    """Printing a login shows the user only."""
    assert "pass" not in repr(Credentials("me", "pass"))


def test_challenges() -> None:
    """Several schemes, quoted commas and escapes are read as RFC 9110 writes them."""
    header = 'Bearer realm="https://a/t?x=1,2",service="s",scope="repository:a:pull,push"'
    found = parse_challenges([header, 'Basic realm="a \\"b\\""'])
    assert found["bearer"] == {"realm": "https://a/t?x=1,2", "service": "s", "scope": "repository:a:pull,push"}
    assert found["basic"] == {"realm": 'a "b"'}
