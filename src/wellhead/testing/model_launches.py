"""Every kernel variant that a model's steps launch, without its memory and without a card: the steps run on "meta".

`compiled` shows the compiler a rank's own sizes before any card is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import triton
from triton.runtime import JITFunction

from wellhead.dispatch import capability
from wellhead.dispatch.spec import KernelBuild
from wellhead.model import device_model
from wellhead.model.batch import Batch, Chunk
from wellhead.model.config import ModelConfig
from wellhead.model.config_file import load_config
from wellhead.model.device_graphs import empty_inputs
from wellhead.model.device_layout import DeviceLayout
from wellhead.model.device_model import DeviceModel
from wellhead.model.device_mtp import DeviceMtp
from wellhead.model.device_speculative import SpeculativeSteps
from wellhead.model.device_step import StepInputs
from wellhead.model.numerics import Numerics
from wellhead.model.published import first_layers, published_config
from wellhead.model.split import Split
from wellhead.model.state import pages_for
from wellhead.ops import card as asked
from wellhead.ops.addends import Addends
from wellhead.testing.compile_column import Row, compile_row

DRAFTS = 3
LAYERS = 6  # of V4-Flash and V4-Pro: every kind of layer is among them
TYPES = {
    torch.bfloat16: "bf16", torch.float32: "fp32", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64",
    torch.float8_e4m3fn: "fp8e4nv", torch.int16: "i16", torch.bool: "i1", torch.float16: "fp16", torch.int8: "i8",
}  # fmt: skip


def build_of(kernel: Any, args: Sequence[Any], options: dict[str, Any]) -> KernelBuild:
    """The variant that Triton's launcher would compile for these arguments."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | options
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for parameter in kernel.params:
        name, value = parameter.name, given.get(parameter.name, parameter.default)
        one = type(value) is int and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or one:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            aligned = (value.storage_offset() * value.element_size()) % 16 == 0
            signature[name] = f"*{TYPES[value.dtype]}" + ("" if aligned else ":1")
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            signature[name] = kind + (":16" if value % 16 == 0 and not parameter.do_not_specialize else "")
        else:
            signature[name] = "fp32"
    sizes = ",".join(f"{k}={v}" for k, v in constants.items() if isinstance(v, int) and not isinstance(v, bool))
    warps, stages = options.get("num_warps", 4), options.get("num_stages", 3)
    return KernelBuild(f"{kernel.__name__}[{sizes}]", kernel, signature, constants, warps, stages)


@contextmanager
def recorded() -> Iterator[dict[str, KernelBuild]]:
    """The variants that launches inside want, by what tells them apart; nothing is compiled and nothing runs."""
    found: dict[str, KernelBuild] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        build = build_of(self, args, options)
        found.setdefault(f"{build.name} {build.signature} {build.num_warps} {build.num_stages}", build)

    before, JITFunction.run = JITFunction.run, run
    try:
        yield found
    finally:
        JITFunction.run = before


@contextmanager
def as_on(arch: str) -> Iterator[None]:
    """What models choose and ops ask of the card inside is answered for that architecture."""
    features = capability.features_of(capability.simulated(arch), triton.__version__)
    before = device_model.here, asked.has
    device_model.here, answered = lambda: features, lambda feature: features[feature].present
    setattr(asked, "has", answered)  # noqa: B010
    try:
        yield
    finally:
        device_model.here = before[0]
        setattr(asked, "has", before[1])  # noqa: B010


def meta_model(config: ModelConfig, split: Split, *, with_mtp: bool = False) -> DeviceModel:
    """One rank's model without bytes."""
    weights = DeviceLayout.of(config, split, "meta").allocate(with_mtp)

    def gather(part: torch.Tensor) -> torch.Tensor:
        return part.new_empty(part.shape[0], config.vocab_size)

    def reduce(partial: torch.Tensor, addends: Addends | None = None) -> None:
        if addends is not None:
            addends.add_up(partial)

    return DeviceModel(weights, config, Numerics.named("checkpoint"), reduce=reduce, gather=gather)


def launches(
    config: ModelConfig, split: Split, arch: str, context: int, *, decodes: Sequence[int] = (),
    prefills: Sequence[int] = (), verifies: Sequence[int] = (),
) -> list[KernelBuild]:  # fmt: skip
    """Of decodes of so many requests at that context, of prompt steps of so many tokens at its end, and of so many
    requests with DRAFTS drafts each, verified and drafted anew.
    """
    width = pages_for(context)
    with as_on(arch), recorded() as found:
        model = meta_model(config, split, with_mtp=bool(verifies))
        for size in decodes:
            state, best = model.allocate(size * width, size), torch.empty(size, dtype=torch.int64, device="meta")
            ws, inputs = model.workspace(size, context), empty_inputs(size, width, model.device)
            model.best(model.logits(model.forward(inputs, state, ws), ws), ws, best)
        for tokens in prefills:
            batch = Batch.build([Chunk([1] * tokens, context - tokens, range(width), 0, logits="last")])
            ws, inputs = model.workspace(tokens, context, chunked=True), StepInputs.of(batch, "meta", chunked=True)
            model.logits(model.forward(inputs, model.allocate(width, 1), ws)[-1:], ws)
        for size in verifies:
            state = model.allocate(size * width, size)
            steps = SpeculativeSteps(DeviceMtp(model), model, state, context, [size], DRAFTS, captured=False)
            step = steps.of(size, width)
            step.verify()
            step.draft()
    return list(found.values())


def compiled(name: str, world: int, archs: Sequence[str]) -> list[Row]:
    """A published model's variants on the last of so many ranks, compiled."""
    config = load_config(first_layers(published_config(name), LAYERS))
    split, sizes = Split(world - 1, world), {"decodes": (1, 8, 64), "prefills": (512,), "verifies": (1, 8)}
    return [
        compile_row("step", replace(build, mma={}), arch)
        for arch in archs
        for build in launches(config, split, arch, 4096, **sizes)
    ]
