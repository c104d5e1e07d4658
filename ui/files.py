"""Files that leave the store: only those that an artifact lists, only from where the store keeps its objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from store.open import Store

CHUNK = 1 << 20


def stored_file(store: Store, digest: str, name: str, size: int) -> Response:
    """An object under a name of ours. The store verifies it against its digest before a byte is sent.

    No part of a request is ever joined to a path: a digest was looked up in a manifest, and the place that the store
    gives must be a plain file within its own folders. A link in the store leads nowhere.
    """
    path = store.blobs.local_path(digest)
    roots = [r.resolve() for r in (store.folder.root, store.cache.root if store.cache else None) if r is not None]
    if path.is_symlink() or not any(path.resolve().is_relative_to(root) for root in roots):
        raise PermissionError(f"not a file of this store: {digest}")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(Path(name).name)}",
    }
    return StreamingResponse(_chunks(handle), media_type="application/octet-stream", headers=headers)


def _chunks(handle: int) -> Iterator[bytes]:
    with os.fdopen(handle, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def attachment(content: str, name: str, media_type: str) -> Response:
    """Text to be saved."""
    return Response(
        content, media_type=media_type, headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
    )
