"""How often each page, or each state slot, is in use: a pool of numbers with reference counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class OutOfPages(RuntimeError):
    """Fewer numbers are free than were asked for."""


class IntegrityError(RuntimeError):
    """A pool's books do not agree with its users: a bug of the engine. The message names the page or slot."""


class PageAllocator:
    """Hands out numbers 0 .. total-1, lowest first after a start; free again when its last holder let go."""

    def __init__(self, total: int, what: str = "pages"):
        if total < 1:
            raise ValueError(f"number of {what} is {total}, expected at least 1")
        self.total = total
        self._what = what
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total

    @property
    def free(self) -> int:
        return len(self._free)

    def holders(self, number: int) -> int:
        """How many hold a number; 0 when it is free."""
        return self._holders[number]

    def allocate(self, count: int) -> list[int]:
        """`count` numbers with one holder each, or OutOfPages and none."""
        if count > len(self._free):
            raise OutOfPages(f"{count} {self._what} wanted, {len(self._free)} of {self.total} are free")
        taken = [self._free.pop() for _ in range(count)]
        for number in taken:
            self._holders[number] = 1
        return taken

    def share(self, number: int) -> None:
        """One more holder of a number that is in use; ValueError for a free one."""
        self._expect_held(number, "shared")
        self._holders[number] += 1

    def release(self, numbers: Sequence[int]) -> None:
        """One holder less of each; ValueError for a number that nobody holds (a double release)."""
        for number in numbers:
            self._expect_held(number, "released")
            self._holders[number] -= 1
            if not self._holders[number]:
                self._free.append(number)

    def check(self, held: Iterable[int]) -> None:
        """IntegrityError unless `held`, every holder's numbers together, is exactly what is on the books."""
        counted = [0] * self.total
        for number in held:
            if not 0 <= number < self.total:
                raise IntegrityError(f"{self._what} {number} is held, but the pool has 0 to {self.total - 1}")
            counted[number] += 1
        if counted != self._holders:
            number = next(n for n in range(self.total) if counted[n] != self._holders[n])
            raise IntegrityError(
                f"{self._what} {number} has {counted[number]} holders, the books say {self._holders[number]}"
            )
        if len(set(self._free)) != len(self._free) or len(self._free) != self._holders.count(0):
            raise IntegrityError(f"{self._what}: the free list {sorted(self._free)} is not the numbers without holders")

    def _expect_held(self, number: int, verb: str) -> None:
        if not 0 <= number < self.total or not self._holders[number]:
            raise ValueError(f"{self._what} {number} is {verb} but not owned by anyone")
