"""Batches of windows that are only cut out, on the CPU: made by threads here, without DALI's graph."""

from __future__ import annotations

from fastssl.errors import ShardError
from fastssl.faults import machine_error
from fastssl.loader.feed import Feed
from fastssl.loader.underway import Decoded


class CutOut:
    """An iterator of a domain's batches as a feed begins them.

    Args:
        feed: reads batches and begins on their images and targets.
        ahead: batches that are begun before one is asked for.

    Raises:
        ShardError: too many samples are damaged; or a batch fails, and by itself each of its samples is sound.
        MachineError: memory is short.
    """

    def __init__(self, feed: Feed, ahead: int) -> None:
        self._feed, self._ahead = feed, ahead
        self._is_over = False

    def __iter__(self) -> CutOut:
        return self

    def __next__(self) -> Decoded:
        """The next batch; raises StopIteration behind the last one."""
        try:
            self._begin()
            while self._feed.pending and self._feed.pending[0].error() is not None:
                self._make_again()
        except MemoryError as error:
            raise machine_error(error, "a batch could not be made") from error
        if not self._feed.pending:
            raise StopIteration
        fed = self._feed.pending.popleft()
        assert fed.images is not None  # the feed was given threads for them
        return Decoded(fed=fed, image=fed.images.result())

    def _begin(self) -> None:
        while not self._is_over and len(self._feed.pending) <= self._ahead:
            try:
                self._feed()
            except StopIteration:
                self._is_over = True

    def _make_again(self) -> None:
        """The oldest batch, with other samples in place of the damaged ones."""
        failed = self._feed.pending[0]
        error = failed.error()
        assert error is not None  # else it would not be made again
        again = self._feed.again()
        if again is None:
            raise ShardError(
                f"a batch failed to decode, and none of its samples does: {error.what}",
                where=f"one of {', '.join(failed.keys)}",
                seen=error.seen,
                expected=error.expected,
                hint="memory or storage may give other bytes from one time to the next; look with fastssl verify",
            )
        again()
        self._feed.pending.appendleft(again.pending.popleft())
