"""What can go wrong with stored bytes, and how errors of disks and networks become messages for people."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
MISPLACED = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}


class Unavailable(Exception):
    """A stored thing cannot be read; whoever needs it must compute it again. `digest` names it."""

    def __init__(self, digest: str, where: str) -> None:
        self.digest, self.where = digest, where
        super().__init__(digest, where)


class Missing(Unavailable):
    """No such object in the store."""

    def __str__(self) -> str:
        return f"object {self.digest} is not in {self.where}"


class Corrupt(Unavailable):
    """The object's bytes are not those that its name promises. It has been moved to `quarantine/`."""

    def __str__(self) -> str:
        return f"object {self.digest} in {self.where} does not have the content of its name; moved to quarantine/"


def refusal(error: OSError, where: str) -> InputError | None:
    """The message for an error that only a user can mend; None for any other error."""
    code = error.errno
    if code in FULL:
        return InputError(
            "The store is full",
            where=where,
            got=error,
            fix="free some space there (`bitsmith prune --keep-builds N --dry-run` lists what can go)",
        )
    if code in CLOSED or isinstance(error, PermissionError):
        return InputError(
            "The store cannot be written or read", where=where, got=error, fix="check permissions or credentials"
        )
    if code in MISPLACED or isinstance(error, NotADirectoryError):
        return InputError("The store's address is not a folder", where=where, got=error, wanted="a folder")
    return None


@contextmanager
def guard(where: str) -> Iterator[None]:
    """Turn errors that only a user can mend into InputError; let the others pass."""
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        told = refusal(error, where)
        if told is None:
            raise
        raise told from error


def lost(error: Unavailable) -> InputError:
    """The error for an input that the store no longer has."""
    return InputError(
        "something that is needed is no longer in the store",
        where=error.where,
        got=error.digest,
        fix="run the build's recipe again",
    )
