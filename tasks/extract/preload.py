"""What a worker process of the stage needs, for the process from which workers are forked (see `tasks.common.pool`)."""

from contextlib import suppress

with suppress(OSError):  # a library of the system that mediapipe misses: a worker meets it again, and can say so
    import tasks.extract.extractor  # noqa: F401
