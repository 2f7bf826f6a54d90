"""Imports what worker processes of the stage need, in the process that they are forked from (see `tasks.common.pool`)."""

from contextlib import suppress

# If mediapipe misses a system library, the worker fails with the same error and can report it.
with suppress(OSError):
    import tasks.extract.extractor  # noqa: F401
