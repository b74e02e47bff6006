"""This module lists the referrers of a manifest: by the referrers API, else by the fallback tag (distribution spec
1.1).

Registries without the API answer in many ways: with 404 and 405, with a page for people, with a redirect to a host that
answers 403, 429 or 500. None of it says anything of the image, so it means "none known this way", said once. The tag
``sha256-…`` may be somebody's own: GitLab's dependency proxy has the image itself under it.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING

from harness.errors import AuthError, ImageNotFound, RegistryError
from harness.oci.aside import Aside
from harness.oci.descriptor import INDEX_TYPES, OCI_INDEX, Descriptor, digest_bytes
from harness.oci.image import MAX_MANIFEST_BYTES, media_type_of, parse_json
from harness.oci.registry.curl_pool import TransferError
from harness.oci.store import referrers_tag

if TYPE_CHECKING:
    from harness.oci.registry.client import RegistryClient
    from harness.oci.registry.curl_pool import Response

_MAX_PAGES = 16
_PATIENCE_S = 0.02
"""Says for how long the first of all requests is waited for before the other way is asked beside it."""
_NO_API = frozenset({200, 400, 404, 405, 406, 410, 415, 501})
"""Registries that do not know the API answer so; 200 with something else than an index is one of these answers."""


class Referrers:
    """Lists the referrers of one repository; remembers which of the two ways its registry has."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._has_api: bool | None = None

    def find(self, digest: str, artifact_type: str | None) -> list[Descriptor]:
        """Finds the referrers of ``digest``. Far from a registry of which the way is not known, both are asked at once;
        so they are, nearly, where nothing has been answered yet that says how far it is.
        """
        link, api, fallback = self._client.link, None, None
        if self._has_api is None and link.is_unknown:
            api = Aside(lambda: self._by_api(digest, artifact_type))
        if self._has_api is None and (link.perhaps_far if api is None else not api.has_ended(_PATIENCE_S)):
            fallback = Aside(lambda: self.by_tag(digest))
        entries = None
        if self._has_api is not False:
            entries = self._by_api(digest, artifact_type) if api is None else api.result()
            self._has_api = entries is not None
        if entries is None:
            entries = self.by_tag(digest) if fallback is None else fallback.result()
        return [entry for entry in entries if artifact_type in {None, entry.artifact_type}]

    def by_tag(self, digest: str) -> list[Descriptor]:
        """Returns what the fallback tag lists; nothing when it is absent, denied, or the image itself."""
        try:
            data, stated = self._client.manifest(referrers_tag(digest))
        except ImageNotFound:
            return []
        except AuthError as error:
            self._remark(str(error))
            return []
        document = parse_json(data, self._client.where)
        if media_type_of(document, stated) not in INDEX_TYPES or digest_bytes(data) == digest:
            return []
        return Descriptor.list_from_json(document.get("manifests"), f"{self._client.where}: referrers")

    def _by_api(self, digest: str, artifact_type: str | None) -> list[Descriptor] | None:
        """Returns what the API lists, all its pages; None when the registry does not have it."""
        client = self._client
        query = f"?artifactType={urllib.parse.quote(artifact_type, safe='')}" if artifact_type else ""
        url = f"{client.repository_url}/referrers/{digest}{query}"
        response = client.get(url, limit=MAX_MANIFEST_BYTES, follow=False)
        if response.is_redirect:
            elsewhere = self._once(url, response)
            if elsewhere is None:
                return None
            response = elsewhere
        if response.status == 403:
            self._remark(f"{client.where}: access denied")
            return None
        if response.status in _NO_API and (response.status != 200 or not _is_index(response)):
            return None
        if response.status != 200:
            raise client.failure(response, f"{client.where}: referrers of {digest}")
        entries: list[Descriptor] = []
        for _ in range(_MAX_PAGES):
            where = f"{client.where}: referrers"
            entries += Descriptor.list_from_json(parse_json(response.body, where).get("manifests"), where)
            more = re.match(r'\s*<([^>]+)>.*rel="?next\b', response.header("Link"))
            if more is None:
                return entries
            url = urllib.parse.urljoin(url, more[1])
            # An absolute URL with another scheme or port would be another host's, and gets nothing from us.
            if not client.is_ours(url):
                break
            response = client.get(url, limit=MAX_MANIFEST_BYTES)
            if response.status != 200 or not _is_index(response):
                break
        self._remark(f"{client.where}: the list of referrers does not end as it should; it is used as far as it came")
        return entries

    def _once(self, url: str, response: Response) -> Response | None:
        """Returns what the place answers that the API redirects to, asked without patience; None where it is of no
        use.
        """
        client = self._client
        for _ in range(3):
            try:
                url = client.redirect_target(url, response)
                response = client.pool.get(url, (), limit=MAX_MANIFEST_BYTES)
            except (RegistryError, TransferError) as error:
                self._remark(f"{client.where}: {error}")
                return None
            if not response.is_redirect:
                break
        if response.status == 200:
            return response if _is_index(response) else None
        if response.status not in _NO_API:
            self._remark(f"{client.where}: {url.split('?')[0]} answers {response.status}")
        return None

    def _remark(self, reason: str) -> None:
        text = f"{reason}; indexes and other artefacts about the image, if there are any, are not seen"
        if text not in self._client.remarks:
            self._client.remarks.append(text)


def _is_index(response: Response) -> bool:
    return response.header("Content-Type").startswith(OCI_INDEX)
