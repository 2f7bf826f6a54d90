"""Errors that the user can fix: one clear sentence and an exit code instead of a traceback."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)  # the error numbers of a full disk and of an exhausted quota
# Those of what the user can change: permissions, read-only and damaged disks, names, limits, something else in the place.
OUTSIDE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ELOOP,
    errno.EEXIST, errno.ENOTDIR, errno.ESTALE,
)  # fmt: skip


class UserError(Exception):
    """Something in the user's files or parameters stops the run.

    The command line prints the sentence and exits with `code` (2: parameters or command line, 3: data).
    """

    def __init__(self, sentence: str, code: int = 2) -> None:
        super().__init__(sentence)
        self.code = code


class DataError(UserError):
    """The data are missing, damaged or insufficient for the stage; exit code 3."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, code=3)


def in_words(error: OSError) -> str | None:
    """The sentence for an error of the operating system that the user can mend; None if it is a fault of the program."""
    if error.errno in FULL:
        where = f" ({error.filename})" if error.filename else ""
        return f"The disk is full{where}; make room and run again; finished work is kept."
    if error.errno in OUTSIDE and error.filename:
        return f"{error.filename} cannot be used: {error.strerror}."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: raise the limit of open files (`ulimit -n`)."
    return None
