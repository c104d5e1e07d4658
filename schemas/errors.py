"""The one exception for bad input: what, where, got, wanted, what to do. The CLI prints it and exits with code 2."""

from __future__ import annotations


class InputError(Exception):
    """Something that came from outside is unusable.

    `what` went wrong, `where` (file, field path, tensor, node), what was `got`, what is `wanted`, and `fix`, the next
    thing a user should do. Empty parts are left out of the message.
    """

    def __init__(self, what: str, *, where: str = "", got: object = "", wanted: object = "", fix: str = "") -> None:
        self.what, self.where, self.got, self.wanted, self.fix = what, where, str(got), str(wanted), fix
        super().__init__(what, where, self.got, self.wanted, fix)

    def __str__(self) -> str:
        parts = (("where", self.where), ("got", self.got), ("wanted", self.wanted), ("to do", self.fix))
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in parts if text)])

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.what, self.where, self.got, self.wanted, self.fix))


def _rebuild(what: str, where: str, got: str, wanted: str, fix: str) -> InputError:
    return InputError(what, where=where, got=got, wanted=wanted, fix=fix)
