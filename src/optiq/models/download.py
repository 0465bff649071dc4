"""One large file from the hub into its cache, resumed where the last attempt stopped, in this run or an earlier one.

The hub library forgets a partial file when its process ends; a shard of several gigabytes deserves better. The bytes
grow beside their final place (`blobs/<etag>.optiq-partial`) under a lock, are checked against the hub's SHA-256 where
the hub gives one, and are renamed; the library then finds the blob and links it into the snapshot.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from optiq.errors import ResourceError
from optiq.files import sha256_file

_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Counted(io.FileIO):
    """A file that tells how many bytes it has been given."""

    def __init__(self, path: Path, told: Callable[[int], None]) -> None:
        super().__init__(path, "ab")
        self._told = told

    def write(self, data: object) -> int:
        written = super().write(data)  # type: ignore[arg-type]
        self._told(written)
        return written


def fetch(name: str, commit: str, file: str, told: Callable[[int], None], timeout_s: float) -> None:
    """Bring one file's blob into the hub cache.

    Args:
        name: hub id.
        commit: revision of the file.
        file: its path in the repository.
        told: called with each number of bytes that has arrived, those of an earlier attempt first.
        timeout_s: patience with the hub's answer about the file.

    Raises:
        ResourceError: another process downloads the same file, or the bytes are not what the hub promised.
        OSError: the disk, or (as the hub library's errors) the network.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(name, file, revision=commit)
    headers = build_hf_headers()
    metadata = get_hf_file_metadata(url, timeout=timeout_s)
    if metadata.etag is None or metadata.size is None:
        return  # nothing to resume by: the library downloads it in its own way
    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "blobs")
    blob = blobs / metadata.etag
    if blob.exists():
        told(metadata.size)
        return
    blobs.mkdir(parents=True, exist_ok=True)
    if urlparse(metadata.location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # a signed address elsewhere has no business with the token
    partial = blobs / f"{metadata.etag}.optiq-partial"
    with _Counted(partial, told) as target:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(f"another process is downloading {file} of {name}; wait for it") from None
        here = target.seek(0, os.SEEK_END)
        if here > metadata.size:
            here = target.truncate(0)
        told(here)
        http_get(metadata.location, target, resume_size=here, headers=headers, expected_size=metadata.size)
        os.fsync(target.fileno())
        _check(partial, metadata.size, metadata.etag, f"{file} of {name}")
        os.replace(partial, blob)


def _check(partial: Path, size: int, etag: str, what: str) -> None:
    """Compare with what the hub promised; the ETag of a large file is its SHA-256."""
    wrong_size = partial.stat().st_size != size
    if wrong_size or (_SHA256.fullmatch(etag) and sha256_file(partial) != etag):
        partial.unlink(missing_ok=True)
        raise ResourceError(f"{what} arrived damaged ({'size' if wrong_size else 'SHA-256'} differs); run again")
