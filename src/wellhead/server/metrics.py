"""What /metrics shows, in Prometheus's format; one registry a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from wellhead.engine.scheduler import Counters

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_PER_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)

_GAUGES = {
    "waiting": ("wellhead_requests_waiting", "choices that wait in the engine"),
    "running": ("wellhead_requests_running", "choices that run"),
}
_POOLS = {"": "wellhead_pages", "window_": "wellhead_window_pages"}
_COUNTERS = {
    "prompt_tokens": ("wellhead_prompt_tokens", "prompt tokens taken"),
    "prefix_hit_tokens": ("wellhead_prefix_hit_tokens", "prompt tokens found in the prefix cache"),
    "preemptions": ("wellhead_preemptions", "requests put back for want of pages"),
    "recomputed_tokens": ("wellhead_recomputed_tokens", "tokens computed again after that"),
    "drafted_tokens": ("wellhead_drafted_tokens", "draft tokens checked"),
    "accepted_tokens": ("wellhead_accepted_draft_tokens", "draft tokens accepted"),
}


class Metrics:
    """`counters` gives the engine's newest counters, None while there is none."""

    def __init__(self, counters: Callable[[], Counters | None], graph_misses: Callable[[], int | None]):
        self.registry = own = CollectorRegistry()
        self.first_token = Histogram(
            "wellhead_time_to_first_token_seconds", "arrival to first token, a choice", buckets=_SECONDS, registry=own
        )
        self.per_token = Histogram(
            "wellhead_time_per_output_token_seconds",
            "mean of a choice after its first token",
            buckets=_PER_TOKEN,
            registry=own,
        )
        self.duration = Histogram("wellhead_request_seconds", "arrival to last token", buckets=_SECONDS, registry=own)
        self.generated = Counter("wellhead_generated_tokens", "tokens generated", registry=own)
        self.finished = Counter("wellhead_finished", "choices that ended, by reason", ["reason"], registry=own)
        self.responses = Counter(
            "wellhead_http_responses", "answers by route and status", ["route", "status"], registry=own
        )
        self._counters, self._graph_misses = counters, graph_misses
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The engine's own numbers, when they are asked for."""
        found = self._counters()
        if found is None:
            return
        for name, (metric, what) in _GAUGES.items():
            yield GaugeMetricFamily(metric, what, value=getattr(found, name))
        for prefix, metric in _POOLS.items():
            family = GaugeMetricFamily(metric, "pages of 256 tokens, by what holds them", labels=["state"])
            for state in ("free", "cached", "used"):
                family.add_metric([state], getattr(found, f"{prefix}pages_{state}"))
            yield family
        for name, (metric, what) in _COUNTERS.items():
            yield CounterMetricFamily(metric, what, value=getattr(found, name))
        misses = self._graph_misses()
        if misses is not None:
            yield CounterMetricFamily("wellhead_graph_misses", "decode steps that ran without a graph", value=misses)
