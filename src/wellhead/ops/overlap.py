"""Whether kernels are launched by programmatic dependent launch (`dependent_launch`): the host's half."""

from __future__ import annotations

import functools


@functools.cache
def pdl() -> bool:
    """Whether this process launches so: the feature of its card."""
    from wellhead.dispatch.capability import here

    return here()["pdl"].present


def launch() -> dict[str, bool]:
    """The arguments of a launch: the kernel's constexpr PDL and Triton's option."""
    return {"PDL": pdl(), "launch_pdl": pdl()}
