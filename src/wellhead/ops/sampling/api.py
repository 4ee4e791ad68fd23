"""Token choice as a plan: parameters of the rows are set from the host, running needs none of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wellhead.ops.checks import expect_rows
from wellhead.ops.host_copies import send
from wellhead.ops.sampling.configs import Config, choose_config


@dataclass(frozen=True)
class Sampler:
    """One token id for each row of logits, fp32 [rows, vocabulary].

    Temperature 0 takes the best logit, equal ones in order of id, NaN before everything. Otherwise a draw from
    softmax(logits / temperature) restricted to the top_k likeliest and, of those, to the shortest likeliest-first run
    whose probability reaches top_p (at least one token); equal logits are likelier in order of id. The token drawn is
    argmax of (logit - best) / temperature - log(e), e exponential noise from Philox4x32-10 with key `seed` and counter
    (id, position), so a request draws the same whatever batch it is in and whatever card: nothing but its row, seed
    and position enters. Weights are floor(2^40 exp) and their sums exact integers; the last token of a nucleus can
    differ from exact arithmetic where top_p falls within 2^-22 of a boundary.

    `set` copies the rows' parameters to the device; `run` allocates nothing, does not synchronise and reads no device
    value: two launches if every row is greedy, else three and eight for each restriction. What the launches are is
    fixed by the plan, and `set` refuses a row that the plan has no launches for.
    """

    rows: int
    columns: int
    sampled: bool
    top_k: bool
    top_p: bool
    config: Config
    temperature: torch.Tensor  # fp32 [rows]
    k: torch.Tensor  # int32 [rows], 0 = all
    p: torch.Tensor  # fp32 [rows], 1 = all
    seed: torch.Tensor  # int64 [rows]
    best: torch.Tensor  # int64 [2, rows, splits]: of the logits, of the draw
    sums: torch.Tensor  # int64 [5, rows, splits, 16]: two in turn for each phase, and the first of the mass
    state: torch.Tensor  # int64 [rows, 2, 9, 2]

    def set(
        self, temperature: Sequence[float], top_k: Sequence[int], top_p: Sequence[float], seed: Sequence[int]
    ) -> None:
        """Parameters of the first len(temperature) rows. ValueError names the row and the value."""
        rows = len(temperature)
        if rows > self.rows or not rows == len(top_k) == len(top_p) == len(seed):
            raise ValueError(
                f"{rows} temperatures, {len(top_k)} top_k, {len(top_p)} top_p, {len(seed)} seeds; expected one of each "
                f"for at most {self.rows} rows"
            )
        for i in range(rows):
            self._check(i, temperature[i], top_k[i], top_p[i], seed[i])
        for target, values in ((self.temperature, temperature), (self.k, top_k), (self.p, top_p), (self.seed, seed)):
            send(values, target[:rows])

    def _check(self, row: int, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        if not (math.isfinite(temperature) and (temperature == 0 or temperature >= 1e-6)):
            raise ValueError(f"row {row}: temperature={temperature}; expected 0 (greedy) or 1e-6 and more, finite")
        if not 0 <= top_k < 2**31:
            raise ValueError(f"row {row}: top_k={top_k}; expected 0 (all) or a positive number")
        if not 0 < top_p <= 1:
            raise ValueError(f"row {row}: top_p={top_p}; expected a number in (0, 1]")
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"row {row}: seed={seed}; expected 64 bits, signed")
        if temperature > 0:
            for asked, planned, name in (
                (True, self.sampled, "temperature"), (top_k > 0, self.top_k, "top_k"), (top_p < 1, self.top_p, "top_p"),
            ):  # fmt: skip
                if asked and not planned:
                    raise ValueError(f"row {row}: uses {name}, and the plan was made without; plan with {name}")

    def run(self, logits: torch.Tensor, position: torch.Tensor, out: torch.Tensor) -> None:
        """out int64 or int32 [rows] from logits fp32 [rows, vocabulary]; position int64 [rows] >= 0 counts draws."""
        from wellhead.ops.sampling import kernels

        rows = logits.shape[0]
        expect_rows("logits", logits, (rows, self.columns), torch.float32)
        expect_rows("position", position, (rows,), torch.int64)
        expect_rows("out", out, (rows,), torch.int64, torch.int32)
        if rows > self.rows:
            raise ValueError(f"logits has {rows} rows; the plan was made for at most {self.rows}")
        if rows == 0:
            return
        best, drawn = self.best
        count, mass, first = self.sums[0:2], self.sums[2:4], self.sums[4]
        grid, splits, warps = (self.config.splits, rows), self.config.splits, self.config.num_warps
        row = (logits, logits.stride(0), best)
        shape = {"SPLITS": splits, "BLOCK": self.config.block, "num_warps": warps}
        kernels.best_of_part[grid](*row, self.columns, **shape)
        limits = (self.temperature, self.k, self.p)
        for is_mass, planned, sums in ((0, self.top_k, count), (1, self.top_p, mass)):
            for number in range(kernels.PASSES if planned else 0):
                target = first if is_mass and number == 0 else sums[number % 2]
                source = first if is_mass and number == 1 else sums[1 - number % 2]
                kernels.sum_digits[grid](
                    *row, *limits, count[1], first, source, target, self.state, self.columns,
                    MASS=is_mass, TOP_K=self.top_k, PASS=number, **shape,
                )  # fmt: skip
        if self.sampled:
            kernels.draw_part[grid](
                *row, *limits, self.seed, position, count[1], first, mass[1], self.state, drawn, self.columns,
                TOP_K=self.top_k, TOP_P=self.top_p, **shape,
            )  # fmt: skip
        kernels.pick_token[(rows,)](
            best, drawn, self.temperature, out, SAMPLED=self.sampled, SPLITS=splits, num_warps=1
        )


def supports(rows: int, columns: int) -> str | None:
    """None, or why these sizes cannot run."""
    if not 0 <= rows <= 65535:
        return f"rows={rows}: 0 to 65535"
    if not 1 <= columns <= 1 << 22:
        return f"columns={columns}: 1 to 4194304"
    return None


def plan(
    rows: int, columns: int, *, sampled: bool, top_k: bool = False, top_p: bool = False, device: torch.device | str
) -> Sampler:
    """Allocate for at most `rows` rows; sampled, top_k and top_p say what a row may ever ask for."""
    why = supports(rows, columns)
    if why is not None:
        raise ValueError(f"sampling cannot be planned: {why}")
    if (top_k or top_p) and not sampled:
        raise ValueError("sampling cannot be planned: top_k or top_p without sampled; greedy rows have no use for them")
    config = choose_config(rows)

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return Sampler(
        rows, columns, sampled, top_k, top_p, config,
        temperature=zeros(rows, dtype=torch.float32), k=zeros(rows, dtype=torch.int32),
        p=zeros(rows, dtype=torch.float32) + 1, seed=zeros(rows),
        best=zeros(2, rows, config.splits), sums=zeros(5, rows, config.splits, 16), state=zeros(rows, 2, 9, 2),
    )  # fmt: skip
