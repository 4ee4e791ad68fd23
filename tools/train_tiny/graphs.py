"""Compiled parts of a training forward, and its steps as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .model import TrainModel


def compile_parts(model: TrainModel, *names: str) -> None:
    """Compile the methods `names`, each (x, weights, prefix, ...), and the hyper-connections of a model in place."""
    for name in names:
        setattr(model, name, compiled_with_local_names(getattr(model, name)))
    model.hyper_pre = torch.compile(model.hyper_pre, dynamic=False)  # type: ignore[method-assign]
    model.hyper_post = torch.compile(model.hyper_post, dynamic=False)  # type: ignore[method-assign]


def compiled_with_local_names(function):  # type: ignore[no-untyped-def]
    """Compile `function(x, weights, prefix, ...)` once per kind of layer: weights reach it under layer-free names."""
    compiled = torch.compile(function, dynamic=False)

    def call(x, w, prefix, *rest):  # type: ignore[no-untyped-def]
        local = {"p" + k[len(prefix) :]: t for k, t in w.items() if k.startswith(prefix + ".")}
        return compiled(x, local, "p", *rest)

    return call


def captured(
    forward_backward: Callable[[], None], update: Callable[[], None]
) -> tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph]:
    """Both as CUDA graphs over one pool, after a few steps that compile; these train, at whatever rate is set."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward_backward()
            update()
    torch.cuda.current_stream().wait_stream(stream)
    graph, update_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward_backward()
    with torch.cuda.graph(update_graph, pool=graph.pool()):
        update()
    return graph, update_graph
