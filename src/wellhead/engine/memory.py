"""What requests hold: logical pages, window pages, a state slot; and what the prefix cache keeps of them.

Decided from integers the host knows; no tensor is read. Evicted pages may still be read by a step in flight: the
next owner's writes come later in the same stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wellhead.engine.pages import PageAllocator
from wellhead.engine.prefix import Node, PrefixCache, chain
from wellhead.engine.request import Request
from wellhead.model.state import PAGE_TOKENS, pages_for

DECODE_WINDOW_PAGES = 2  # a window reaches over one page boundary at most


class Memory:
    """The pools of one model.

    window_pages: None for as many as logical pages. A window of `window` tokens (the token itself included) must not
    reach over more than one page boundary. prefix_caching False keeps nothing of a request that has ended.
    """

    def __init__(
        self,
        num_pages: int,
        num_slots: int,
        window_pages: int | None = None,
        *,
        window: int = 128,
        prefix_caching: bool = True,
    ):
        if window > PAGE_TOKENS + 1:
            raise NotImplementedError(f"a window of {window} tokens; at most {PAGE_TOKENS + 1} are supported")
        self.pages = PageAllocator(num_pages)
        least = min(num_pages, DECODE_WINDOW_PAGES)
        if window_pages is not None and window_pages < least:
            raise ValueError(f"window_pages is {window_pages}, expected at least {least}")
        self.window_pages = PageAllocator(num_pages if window_pages is None else window_pages, "window pages")
        self.slots = PageAllocator(num_slots, "state slots")
        self.prefix = PrefixCache(self.pages, self.window_pages)
        self.prefix_caching = prefix_caching
        self._window = window

    @property
    def available(self) -> int:
        """Pages that are free, or cached and unused."""
        return self.pages.free + self.prefix.unused

    @property
    def available_window(self) -> int:
        """The same of window pages."""
        return self.window_pages.free + self.prefix.unused_tails

    @property
    def whole(self) -> bool:
        """Whether no page, window page or slot is held by a request, counted from the books alone."""
        left = self.available, self.available_window, self.slots.free
        return left == (self.pages.total, self.window_pages.total, self.slots.total)

    def admit(self, request: Request, running: Sequence[Request]) -> int | None:
        """Give a request its state slot and what the prefix cache has of it: the window page whose tail must be
        restored first, -1 for none. None, and nothing given, while there is no slot, or while the pages of all its
        tokens are not left over by the requests that run, the next page of each included.
        """
        path = self._match(request)
        most = (request.known - 1) // PAGE_TOKENS  # one token at least must be computed
        resumed = max((i + 1 for i, node in enumerate(path[:most]) if node.window_page >= 0), default=0)
        held = path[:resumed]
        left = self.available - sum(self.prefix.evictable(node) for node in held)
        left -= sum(_outstanding(other) for other in running)
        left_window = self.available_window - sum(_outstanding_window(other) for other in running)
        enough = left >= pages_for(request.known) - resumed
        if not self.slots.free or not enough or left_window < min(DECODE_WINDOW_PAGES, pages_for(request.known)):
            return None
        (request.state_slot,) = self.slots.allocate(1)
        request.branch = len(path) * PAGE_TOKENS if len(path) > resumed else 0
        request.pages = [self.prefix.hold(node) for node in held]
        request.computed, request.shared = resumed * PAGE_TOKENS, resumed
        if not held:
            return -1
        tail = self.prefix.hold_tail(held[-1])
        request.behind = resumed - 1
        request.window_pages = [-1] * request.behind + [tail]
        return tail

    def fitting(self, request: Request, tokens: int) -> int:
        """How many of the request's next `tokens` tokens have room, what can be evicted counted as room."""
        room = min(len(request.pages) + self.available, len(request.window_pages) + self.available_window)
        return max(0, min(tokens, room * PAGE_TOKENS - request.computed))

    def grow(self, request: Request, tokens: int) -> None:
        """Pages for the next `tokens` tokens, which fit."""
        count = pages_for(request.computed + tokens)
        while self.pages.free < count - len(request.pages):
            self.prefix.evict()
        while self.window_pages.free < count - len(request.window_pages):
            self.prefix.evict_tail()
        request.pages += self.pages.allocate(max(0, count - len(request.pages)))
        request.window_pages += self.window_pages.allocate(max(0, count - len(request.window_pages)))

    def tail_wanted(self, request: Request, tokens: int) -> int:
        """The window page whose tail must be saved when the next `tokens` tokens are computed, -1 for none."""
        end = request.computed + tokens
        if not self.prefix_caching or end % PAGE_TOKENS:
            return -1
        if end > request.known:  # a token that nobody has read yet: the page may be kept already, which does no harm
            return request.window_pages[end // PAGE_TOKENS - 1]
        node = self.prefix.find(self._keys(request, end // PAGE_TOKENS)[-1])
        return -1 if node is not None and node.window_page >= 0 else request.window_pages[end // PAGE_TOKENS - 1]

    def advance(self, request: Request, tokens: int, saved: bool) -> None:
        """`tokens` tokens are in the caches: keep them as a prefix if a tail was saved, drop what the window passed."""
        request.computed += tokens
        if saved:
            self._keep(request, request.computed // PAGE_TOKENS)
        passed = max(0, request.computed - (self._window - 1)) // PAGE_TOKENS
        for index in range(request.behind, passed):
            self.prefix.let_go_window(request.window_pages[index])
            request.window_pages[index] = -1
        request.behind = max(request.behind, passed)

    def release(self, request: Request) -> None:
        """Take all that a request holds; its tokens are no longer computed."""
        for window_page in request.window_pages[request.behind :]:
            self.prefix.let_go_window(window_page)
        for page in reversed(request.pages):
            self.prefix.let_go(page)
        if request.state_slot is not None:
            self.slots.release([request.state_slot])
        request.pages, request.window_pages, request.state_slot = [], [], None
        request.computed = request.behind = request.shared = request.branch = 0

    def check(self, requests: Iterable[Request]) -> None:
        """IntegrityError, naming the page, unless every page, window page and slot is free or held exactly by
        `requests` and the prefix cache.
        """
        held = list(requests)
        self.pages.check([*self.prefix.pages(), *(page for request in held for page in request.pages)])
        self.window_pages.check(
            [*self.prefix.window_pages(), *(page for r in held for page in r.window_pages[r.behind :])]
        )
        self.slots.check([request.state_slot for request in held if request.state_slot is not None])
        self.prefix.check()

    def _keep(self, request: Request, count: int) -> None:
        """Put the request's first `count` pages, all full, into the prefix cache, the last one with its tail. Where
        another request was faster, the request goes on with the other's page, which holds the same.
        """
        keys = self._keys(request, count)
        parent = self.prefix.find(keys[request.shared - 1]) if request.shared else None
        for index in range(request.shared, count):
            node, page = self.prefix.find(keys[index]), request.pages[index]
            if node is None:
                node = self.prefix.insert(keys[index], parent, page)
            else:
                request.pages[index] = self.prefix.hold(node)
                self.prefix.let_go(page)
            parent = node
        request.shared = count
        if parent is not None and parent.window_page < 0:
            self.prefix.add_tail(parent, request.window_pages[count - 1])

    def _match(self, request: Request) -> list[Node]:
        if not self.prefix_caching:
            return []
        return self.prefix.match(self._keys(request, request.known // PAGE_TOKENS))

    def _keys(self, request: Request, count: int) -> list[bytes]:
        """Keys of the request's first `count` pages, computed once."""
        for page in range(len(request.keys), count):
            previous = request.keys[-1] if request.keys else b""
            request.keys.append(chain(previous, request.tokens(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)))
        return request.keys[:count]


def _outstanding(request: Request) -> int:
    """Pages that a running request still needs for its known tokens, and one if it may then outgrow them."""
    known = pages_for(request.known)
    return max(0, known - len(request.pages)) + (pages_for(request.cached_tokens) > known)


def _outstanding_window(request: Request) -> int:
    held = len(request.window_pages) - request.behind
    return max(0, min(DECODE_WINDOW_PAGES, pages_for(request.cached_tokens)) - held)
