"""A sequence whose values are computed when they are looked at, so that it takes no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T]):
    """The values `value(0)` ... `value(count - 1)`. A slice is a list."""

    def __init__(self, count: int, value: Callable[[int], T]) -> None:
        self._count, self._value = count, value

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return map(self._value, range(self._count))

    @overload
    def __getitem__(self, i: int) -> T: ...

    @overload
    def __getitem__(self, i: slice) -> list[T]: ...

    def __getitem__(self, i: int | slice) -> T | list[T]:
        place = range(self._count)[i]  # raises IndexError, and counts from the end where `i` is negative
        return self._value(place) if isinstance(place, int) else [self._value(j) for j in place]
