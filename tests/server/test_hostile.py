"""A few hundred hostile requests beside good clients; `python -m tools.hostile` sends thousands."""

from __future__ import annotations

import asyncio

from tools.hostile_attack import attack

from fakes.server import RunningServer


def test_good_clients_do_not_notice_bad_ones(server: RunningServer) -> None:
    port = int(server.url.rpartition(":")[2])
    report = asyncio.run(attack("127.0.0.1", port, requests=250, clients=3, seed=1, at_once=8))
    assert not report.wrong, "\n".join(report.wrong[:5])
    assert report.answers >= 3 and not report.differing
    assert sum(report.statuses.values()) == 250 and len({name for name, _ in report.statuses}) > 12
    server.idle()
