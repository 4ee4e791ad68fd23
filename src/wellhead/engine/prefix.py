"""Prefixes kept for requests that begin alike: a tree of pages by the hash of all tokens up to their end, least
recently used out first.

A prefix is cut at the end of a page (256 tokens). To go on behind a cut a request needs three things:
* the logical pages before it: their compressed records and index keys. They are shared and never written again.
* the last 127 window records, all in the window page before the cut, shared too;
* the ratio-4 compressor rows of the last four tokens, which `ModelState.save_tail` keeps with that window page. The
  ratio-128 block is empty there.
The last two are a node's tail. At V4-Flash's sizes a tail is 6.4 MB of window records and 0.4 MB of rows, a logical
page 1 MB, so most nodes have none: a tail is made where a step ends at a page's end, and the scheduler ends one at a
prompt's last page and where a prompt parts from the tree. Recomputing the last tokens instead would need a forward
pass whose writes are switched off, since they would change shared pages.

A node that nobody runs on is evictable, and so is a tail of which only the tree holds the window page; both are kept
in order of last use. A request holds a run of nodes from the root on and lets go of the last one first, so the
oldest evictable node is always a leaf. A leaf without a tail is of no use to anyone and goes as soon as it is unused.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from wellhead.engine.pages import IntegrityError, PageAllocator


def chain(previous: bytes, page_tokens: Sequence[int]) -> bytes:
    """Key of a page: the SHA-256 of the key before it (b"" for the first page) and the page's token ids."""
    return hashlib.sha256(previous + array("q", page_tokens).tobytes()).digest()


@dataclass(eq=False)
class Node:
    """A cached page; `window_page` is that of its tail, -1 without one."""

    key: bytes
    parent: Node | None
    page: int
    window_page: int = -1
    children: int = 0


class PrefixCache:
    """Holds every node's page and every tail's window page once in their allocators."""

    def __init__(self, pages: PageAllocator, window_pages: PageAllocator):
        self._pages, self._window_pages = pages, window_pages
        self._nodes: dict[bytes, Node] = {}
        self._of_page: dict[int, Node] = {}
        self._of_window_page: dict[int, Node] = {}
        self._unused: OrderedDict[int, Node] = OrderedDict()  # by page
        self._unused_tails: OrderedDict[int, Node] = OrderedDict()  # by window page

    @property
    def unused(self) -> int:
        """Pages that only the tree holds; all of them can be evicted."""
        return len(self._unused)

    @property
    def unused_tails(self) -> int:
        """The same of window pages."""
        return len(self._unused_tails)

    def find(self, key: bytes) -> Node | None:
        return self._nodes.get(key)

    def match(self, keys: Sequence[bytes]) -> list[Node]:
        """The longest run of nodes with these keys, from the root on; with tails or without."""
        found: list[Node] = []
        for key in keys:
            node = self._nodes.get(key)
            if node is None:
                break
            found.append(node)
        return found

    def evictable(self, node: Node) -> bool:
        return node.page in self._unused

    def hold(self, node: Node) -> int:
        """One more holder of a node's page."""
        self._pages.share(node.page)
        self._unused.pop(node.page, None)
        return node.page

    def hold_tail(self, node: Node) -> int:
        """One more holder of the window page of a node's tail."""
        self._window_pages.share(node.window_page)
        self._unused_tails.pop(node.window_page, None)
        return node.window_page

    def let_go(self, page: int) -> None:
        """One holder less of a page, cached or not."""
        self._pages.release([page])
        node = self._of_page.get(page)
        if node is not None and self._pages.holders(page) == 1:
            self._unused[page] = node
            self._prune(node)

    def let_go_window(self, window_page: int) -> None:
        """One holder less of a window page, a tail's or not."""
        self._window_pages.release([window_page])
        node = self._of_window_page.get(window_page)
        if node is not None and self._window_pages.holders(window_page) == 1:
            self._unused_tails[window_page] = node

    def insert(self, key: bytes, parent: Node | None, page: int) -> Node:
        """A new node over a page that its caller holds."""
        node = Node(key, parent, page)
        self._pages.share(page)
        self._nodes[key] = self._of_page[page] = node
        if parent is not None:
            parent.children += 1
        return node

    def add_tail(self, node: Node, window_page: int) -> None:
        """Keep a window page that its caller holds as the tail of a node without one."""
        self._window_pages.share(window_page)
        node.window_page = window_page
        self._of_window_page[window_page] = node

    def evict(self) -> None:
        """Free the least recently used page of the unused ones."""
        node = next(iter(self._unused.values()))
        self._forget(node)
        self._prune(node.parent)

    def evict_tail(self) -> None:
        """Free the window page of the least recently used tail."""
        node = next(iter(self._unused_tails.values()))
        self._drop_tail(node)
        self._prune(node)

    def clear(self) -> None:
        """Forget all that nobody runs on."""
        while self._unused_tails:
            self.evict_tail()
        while self._unused:
            self.evict()

    def pages(self) -> list[int]:
        """The pages that the tree holds."""
        return list(self._of_page)

    def window_pages(self) -> list[int]:
        return list(self._of_window_page)

    def check(self) -> None:
        """IntegrityError unless the tree, its lists and the allocators agree."""
        children = dict.fromkeys(self._nodes, 0)
        for node in self._nodes.values():
            if node.parent is not None:
                children[node.parent.key] += 1
        for node in self._nodes.values():
            page, window_page = node.page, node.window_page
            unused = self._pages.holders(page) == 1
            if self._of_page.get(page) is not node or unused != (page in self._unused):
                raise IntegrityError(f"pages {page}: cached, unused is {unused}, but the list of unused pages differs")
            if children[node.key] != node.children or (unused and not node.children and window_page < 0):
                raise IntegrityError(
                    f"pages {page}: cached with {node.children} children (counted {children[node.key]}) and "
                    f"window page {window_page}"
                )
            if window_page >= 0:
                unused = self._window_pages.holders(window_page) == 1
                if self._of_window_page.get(window_page) is not node or unused != (window_page in self._unused_tails):
                    raise IntegrityError(
                        f"window pages {window_page}: a tail, unused is {unused}, but the list of unused tails differs"
                    )
        tails = sum(node.window_page >= 0 for node in self._nodes.values())
        if len(self._of_page) != len(self._nodes) or len(self._of_window_page) != tails:
            raise IntegrityError(f"{len(self._of_page)} cached pages for {len(self._nodes)} nodes, {tails} tails")

    def _prune(self, node: Node | None) -> None:
        """Forget an unused leaf without a tail, and its parents for as long as they become such leaves."""
        while node is not None and node.page in self._unused and not node.children and node.window_page < 0:
            self._forget(node)
            node = node.parent

    def _forget(self, node: Node) -> None:
        """Forget an unused leaf."""
        del self._nodes[node.key], self._of_page[node.page], self._unused[node.page]
        self._pages.release([node.page])
        if node.window_page >= 0:
            self._drop_tail(node)
        if node.parent is not None:
            node.parent.children -= 1

    def _drop_tail(self, node: Node) -> None:
        del self._of_window_page[node.window_page], self._unused_tails[node.window_page]
        self._window_pages.release([node.window_page])
        node.window_page = -1
