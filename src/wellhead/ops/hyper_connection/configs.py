"""Shapes of the hyper-connection kernels: what they can run, and the constants of each build. Pure functions."""

from __future__ import annotations

STREAMS = 4
TILE = 16  # tokens of one tensor-core product
CHANNELS = 64  # channels (of each stream) that one program projects
PRE_ROWS = STREAMS * (STREAMS + 2)
MAX_TILES = 8  # tiles of 16 tokens that one program walks through, so that it reads its part of fn once


def why_not(d: int, n: int) -> str | None:
    """Why the kernels cannot run n streams of width d, naming what they can; None if they can."""
    if n != STREAMS:
        return f"{n} streams; the kernels mix {STREAMS}"
    if d % CHANNELS or not CHANNELS <= d <= 8192:
        return f"width {d}; the kernels take multiples of {CHANNELS} up to 8192"
    return None


def next_power_of_2(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def project_constants(d: int, m: int, mixes: bool, places: int = 0) -> dict[str, int | bool]:
    """Constants of the projection; the same for every number of tokens. places: rows that y is the sum of."""
    return {
        "D": d, "M": m, "POST": mixes, "PLACES": places, "TILE": TILE, "BLOCK": CHANNELS, "COLUMNS": columns(m)
    }  # fmt: skip


def mixing_constants(d: int, m: int) -> dict[str, int | bool]:
    """Constants of post and comb, and of every kernel that reads the projections."""
    splits = d // CHANNELS
    return {"D": d, "M": m, "COLUMNS": columns(m), "SPLITS": splits, "SPLITS_PADDED": next_power_of_2(splits)}


def contract_constants(d: int, m: int, norm: bool) -> dict[str, int | bool]:
    """Constants of the contraction."""
    return mixing_constants(d, m) | {"NORM": norm, "BLOCK_D": next_power_of_2(d)}


def post_constants(d: int) -> dict[str, int]:
    """Constants of the lone post: one token by up to 1,024 channels, so that a single token fills several programs."""
    return {"D": d, "TILE": 1, "BLOCK": min(1024, next_power_of_2(d))}


def columns(m: int) -> int:
    """Width of a partial row: m projections and the sum of squares, padded for the tensor core."""
    return 32 if m == PRE_ROWS else 16


def tiles_a_program(tokens: int) -> int:
    """Tiles of 16 tokens that one program takes: one until there are programs enough to fill a card."""
    return min(MAX_TILES, -(-tokens // (16 * TILE)))


def project_stages(tiles: int) -> int:
    """Tiles of the streams in flight; a program's only tile goes to registers without a stop in shared memory."""
    return 1 if tiles == 1 else 3


def contract_warps(d: int) -> int:
    """Warps that hold one token's row: at most 16 values of each stream a thread."""
    return max(1, min(16, next_power_of_2(d) // 512))
