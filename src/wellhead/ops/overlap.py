"""Whether kernels are launched by programmatic dependent launch (`dependent_launch`): the host's half."""

from __future__ import annotations

import functools


@functools.cache
def pdl() -> bool:
    """Whether this process launches so: the feature of its card."""
    import triton

    from wellhead.dispatch.capability import detect, features_of

    return features_of(detect(), triton.__version__, bool(triton.knobs.runtime.interpret))["pdl"].present


def launch() -> dict[str, bool]:
    """The arguments of a launch: the kernel's constexpr PDL and Triton's option."""
    return {"PDL": pdl(), "launch_pdl": pdl()}
