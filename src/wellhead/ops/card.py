"""What ops ask of this process's card when they are planned or launched."""

from __future__ import annotations

import functools

EARLY = 2  # see `dependent_launch.after_producers`


@functools.cache
def has(feature: str) -> bool:
    """Whether the card has a feature of `dispatch.features`."""
    from wellhead.dispatch.capability import here

    return here()[feature].present


def launch(*, early: bool = False) -> dict[str, int]:
    """The arguments of a launch that may be a programmatic dependent one (`dependent_launch`): the kernel's constexpr
    PDL and Triton's option. `early` is for a few programs between two large launches.
    """
    pdl = has("pdl")
    return {"PDL": EARLY if pdl and early else pdl, "launch_pdl": pdl}
