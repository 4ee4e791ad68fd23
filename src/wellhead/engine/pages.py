"""Who owns which page, and which state slot: a pool of numbers."""

from __future__ import annotations


class OutOfPages(RuntimeError):
    """Fewer numbers are free than were asked for."""


class PageAllocator:
    """Hands out numbers 0 .. total-1, lowest first after a start, each to one owner at a time."""

    def __init__(self, total: int, what: str = "pages"):
        if total < 1:
            raise ValueError(f"number of {what} is {total}, expected at least 1")
        self.total = total
        self._what = what
        self._free = list(range(total - 1, -1, -1))
        self._owned: set[int] = set()

    @property
    def free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """`count` numbers, or OutOfPages and none."""
        if count > len(self._free):
            raise OutOfPages(f"{count} {self._what} wanted, {len(self._free)} of {self.total} are free")
        taken = [self._free.pop() for _ in range(count)]
        self._owned.update(taken)
        return taken

    def release(self, numbers: list[int]) -> None:
        """Give numbers back; ValueError for one that is not out (a double release)."""
        for number in numbers:
            if number not in self._owned:
                raise ValueError(f"{self._what} {number} is released but not owned by anyone")
            self._owned.remove(number)
            self._free.append(number)
