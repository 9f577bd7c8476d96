"""Configurations, our own and those of other projects."""

from collections.abc import Iterator

from . import Case


def cases() -> Iterator[Case]:
    yield from ()
