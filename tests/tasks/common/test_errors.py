"""Errors of the operating system: those that the user can mend are sentences."""

from __future__ import annotations

import errno
import os

import pytest

from tasks.common.errors import in_words


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence(number: int) -> None:
    assert in_words(OSError(number, os.strerror(number), "a.bin")) == (
        "The disk is full (a.bin); make room and run again; finished work is kept."
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.EEXIST, errno.ENOTDIR, errno.ELOOP])
def test_what_is_wrong_with_a_file_is_a_sentence_that_names_it(number: int) -> None:
    assert in_words(OSError(number, os.strerror(number), "a.bin")) == f"a.bin cannot be used: {os.strerror(number)}."


def test_too_many_open_files_say_what_to_raise() -> None:
    assert "ulimit -n" in str(in_words(OSError(errno.EMFILE, os.strerror(errno.EMFILE))))


def test_other_errors_are_faults_of_the_program() -> None:
    for error in (
        FileNotFoundError(errno.ENOENT, "no such file", "a.bin"),
        OSError("AF_UNIX"),
        OSError(errno.EACCES, "x"),
    ):
        assert in_words(error) is None
