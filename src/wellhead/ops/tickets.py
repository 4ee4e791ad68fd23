"""The last of several programs does what all of them have to be done for: a launch less."""

import triton
import triton.language as tl


@triton.jit
def last_of(ticket, members):
    """Whether this program is the last of so many to draw a ticket (i32, 0 before the first and again behind the last).

    What the others stored before they drew is visible to the last one. Which program that is changes from run to run;
    it must change no result.
    """
    tl.debug_barrier()  # the stores of all its threads come before the one thread that draws
    last = tl.atomic_add(ticket, 1, sem="acq_rel") == members - 1
    if last:
        tl.store(ticket, 0)
    return last
