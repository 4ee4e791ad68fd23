"""Token choice as a plan: parameters of the rows are set from the host, running needs none of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wellhead.ops.checks import expect_rows
from wellhead.ops.host_copies import send
from wellhead.ops.sampling.configs import Config, choose_config, rows_of_each


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

    `set` copies the rows' parameters to the device, without waiting for it; `run` allocates nothing, does not
    synchronise and reads no device value: two launches if every row is greedy, else three, eight more with top-k and
    five with a nucleus. What the launches are is fixed by the plan, and `set` refuses a row that it has none for.
    """

    rows: int
    columns: int
    sampled: bool
    top_k: bool
    top_p: bool
    config: Config | None  # None: that of the rows that are run
    temperature: torch.Tensor  # fp32 [rows]
    k: torch.Tensor  # int32 [rows], 0 = all
    p: torch.Tensor  # fp32 [rows], 1 = all
    seed: torch.Tensor  # int64 [rows]
    best: torch.Tensor  # int64 [parts], of the logits; a row's parts are neighbours
    drawn: torch.Tensor  # int64 [rounds, parts]
    weights: torch.Tensor  # int64 [rounds, parts * 2]
    counts: torch.Tensor  # int32 [2, parts * 16], in turn
    state: torch.Tensor  # int64 [rows, 9, 2]

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
        config = self.config or choose_config(rows, self.columns)
        splits = config.splits
        row, limits = (logits, logits.stride(0)), (self.temperature, self.k, self.p)
        shape = {"SPLITS": splits, "BLOCK": config.block, "num_warps": config.num_warps}
        grid, top_k, counts, state = (splits, rows), {"TOP_K": self.top_k}, self.counts, self.state
        kernels.best_of_part[grid](*row, self.best, self.columns, **shape)
        for number in range(kernels.PASSES if self.top_k else 0):
            source, target = counts[1 - number % 2], counts[number % 2]
            kernels.count_digits[grid](
                *row, self.temperature, self.k, source, target, state, self.columns, PASS=number, **shape
            )
        noise, counted = (self.seed, position), (counts[1], state)
        for number, (drawn, weights) in enumerate(zip(self.drawn, self.weights, strict=True)):
            before, first = (self.drawn[max(number - 1, 0)], self.weights[max(number - 1, 0)]), {"FIRST": number == 0}
            kernels.draw_part[grid](
                *row, self.best, *limits, *noise, *counted, *before, drawn, self.columns, **top_k, **first, **shape
            )
            if self.top_p:
                kernels.weigh_part[grid](
                    *row, self.best, *limits, *counted, drawn, *before, weights, self.columns, **top_k, **first, **shape
                )
        last = (self.drawn[-1], self.weights[-1]) if self.sampled else (self.drawn, self.weights)
        kernels.pick_token[(rows,)](
            *row, self.best, *limits, *noise, *counted, *last, out, self.columns, SAMPLED=self.sampled,
            TOP_P=self.top_p, **top_k, **shape,
        )  # fmt: skip


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
    parts = max((some * choose_config(some, columns).splits for some in rows_of_each(rows, columns)), default=0)
    return Sampler(rows, columns, sampled, top_k, top_p, None, **_buffers(rows, parts, sampled, top_k, top_p, device))


def _buffers(
    rows: int, parts: int, sampled: bool, top_k: bool, top_p: bool, device: torch.device | str
) -> dict[str, torch.Tensor]:
    """A sampler's, for so many rows and parts of rows."""
    from wellhead.ops.sampling.kernels import ROUNDS

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    rounds = ROUNDS if top_p else int(sampled)
    return {
        "temperature": zeros(rows, dtype=torch.float32), "k": zeros(rows, dtype=torch.int32),
        "p": zeros(rows, dtype=torch.float32) + 1, "seed": zeros(rows), "best": zeros(parts),
        "drawn": zeros(rounds, parts), "weights": zeros(rounds, parts * 2 if top_p else 0),
        "counts": zeros(2, parts * 16 if top_k else 0, dtype=torch.int32), "state": zeros(rows, 9, 2),
    }  # fmt: skip
