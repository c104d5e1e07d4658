"""Uploads to S3 whose writer died: invisible, but paid for until someone aborts them."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def abort_uploads(filesystem: Any, root: str, older_than: float) -> int:
    """Abort unfinished multipart uploads below `root` that began before that time. Returns how many."""
    if not hasattr(filesystem, "list_multipart_uploads"):
        return 0
    bucket, _, prefix = root.lstrip("/").partition("/")
    aborted = 0
    for upload in filesystem.list_multipart_uploads(bucket):
        begun = upload.get("Initiated")
        if isinstance(begun, datetime) and begun.timestamp() < older_than and upload["Key"].startswith(prefix):
            filesystem.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            aborted += 1
    return aborted
