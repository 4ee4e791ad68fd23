"""Routing as a plan: experts and weights of each token, and the tokens of each expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wellhead.ops import scratch
from wellhead.ops.card import launch
from wellhead.ops.checks import expect, expect_rows
from wellhead.ops.routing.configs import Config, choose_config, wide_step

MOST_EXPERTS = 512
CHUNK = 1024  # ids that a program of the lists looks at together
CHOOSE_T = 8  # tokens whose choice is made together: their keys fit the registers


@dataclass(frozen=True)
class Router:
    """Affinity s = sqrt(softplus(x gate^T)) in fp32, K experts of each token, weights s / (sum s + 1e-20) * scale.

    choose: the top K of s + bias, best first, equal ones in order of expert, NaN before everything; weights come from
    s without the bias. choose_by_token: table[token id], where a token id outside the table or an expert that does
    not exist is id -1 with weight 0. With owners int64 [T] a token whose owner is negative is padding: its ids are -1.

    x bf16 [T, d] with rows at any stride, gate bf16 [E, d] contiguous, bias fp32 [E], table int32 [vocabulary, K],
    token_ids int32 or int64 [T]; ids int32 [T, K], weights fp32 [T, K]. T may be 0. Products are exact in fp32 and
    summed in fp32 over d in order. One launch each; neither allocates, synchronises or reads a device value. `lists`
    are filled from the ids: by a launch more, or in a plan for one token in the same one, then without counts, offsets
    and order of experts.
    """

    tokens: int
    width: int
    experts: int
    top_k: int
    scale: float
    config: Config
    scores: torch.Tensor  # fp32 [tokens, E]; holds the affinities after `choose`
    arrived: torch.Tensor  # int32 [blocks of tokens], zero between runs

    def choose(
        self, x: torch.Tensor, gate: torch.Tensor, bias: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
        owners: torch.Tensor | None = None, lists: ExpertLists | None = None,
    ) -> None:  # fmt: skip
        from wellhead.ops.routing.kernels import route

        tokens = self._check(x, gate, ids, weights, owners)
        expect("bias", bias, (self.experts,), torch.float32)
        if tokens == 0:
            if lists is not None:
                lists.run(ids)
            return
        c = self.config
        route[(-(-self.experts // c.block_e), -(-tokens // c.block_t))](
            x, x.stride(0), gate, bias, owners, self.scores, self.arrived, ids, weights, *self._direct(lists), tokens,
            self.scale,
            D=self.width, E=self.experts, E_PAD=power_of_two(self.experts), K=self.top_k,
            K_PAD=power_of_two(self.top_k), BLOCK_T=c.block_t, BLOCK_E=c.block_e, BLOCK_D=c.block_d,
            CHOOSE_T=min(CHOOSE_T, c.block_t), num_warps=c.num_warps, num_stages=c.num_stages, **launch(),
        )  # fmt: skip
        self._list(lists, ids)

    def choose_by_token(
        self, x: torch.Tensor, gate: torch.Tensor, table: torch.Tensor, token_ids: torch.Tensor,
        ids: torch.Tensor, weights: torch.Tensor, owners: torch.Tensor | None = None,
        lists: ExpertLists | None = None,
    ) -> None:  # fmt: skip
        from wellhead.ops.routing.kernels import route_by_token

        tokens = self._check(x, gate, ids, weights, owners)
        expect("table", table, (table.shape[0], self.top_k), torch.int32)
        expect("token_ids", token_ids, (tokens,), torch.int32, torch.int64)
        if tokens == 0:
            if lists is not None:
                lists.run(ids)
            return
        route_by_token[(tokens,)](
            x, x.stride(0), gate, table, token_ids, owners, ids, weights, *self._direct(lists), table.shape[0],
            self.scale,
            D=self.width, E=self.experts, K=self.top_k, K_PAD=power_of_two(self.top_k),
            BLOCK_D=wide_step(self.width), num_warps=4, **launch(),
        )  # fmt: skip
        self._list(lists, ids)

    def _direct(self, lists: ExpertLists | None) -> tuple[torch.Tensor | None, torch.Tensor | None, int, int]:
        """What a launch needs to write the lists itself: a plan for one token, and lists of one token's ids."""
        if lists is None or self.tokens > 1 or lists.block > 1 or lists.numel != self.top_k:
            return None, None, 0, 0
        return lists.slots, lists.block_expert, lists.first_expert, lists.experts

    def _list(self, lists: ExpertLists | None, ids: torch.Tensor) -> None:
        """The lists that no launch has written."""
        if lists is not None and self._direct(lists)[0] is None:
            lists.run(ids)

    def _check(
        self, x: torch.Tensor, gate: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
        owners: torch.Tensor | None,
    ) -> int:  # fmt: skip
        tokens = x.shape[0]
        if tokens > self.tokens:
            raise ValueError(f"x has {tokens} tokens; the plan was made for at most {self.tokens}")
        expect_rows("x", x, (tokens, self.width), torch.bfloat16)
        expect("gate", gate, (self.experts, self.width), torch.bfloat16)
        expect("ids", ids, (tokens, self.top_k), torch.int32)
        expect("weights", weights, (tokens, self.top_k), torch.float32)
        if owners is not None:
            expect("owners", owners, (tokens,), torch.int64)
        return tokens


@dataclass(frozen=True)
class ExpertLists:
    """Which positions of ids [T, K] belong to each expert, for a grouped product in blocks of `block` rows.

    After run(ids int32 [T, K]): slots int32 [capacity] holds t * K + j in order of expert and, within one expert, of
    position; each expert's run is filled with -1 up to a multiple of block. counts int32 [E] (without fill), offsets
    int32 [E + 1] (with it: run e is offsets[e] .. offsets[e + 1]), block_expert int32 [capacity / block] names the
    expert of each block, -1 past the last. Experts are numbered from first_expert; an id outside that range, -1
    included, is in no list. One launch, no atomics: the same ids give the same lists.
    """

    numel: int
    experts: int
    first_expert: int
    block: int
    slots: torch.Tensor
    counts: torch.Tensor
    offsets: torch.Tensor
    block_expert: torch.Tensor

    def run(self, ids: torch.Tensor) -> None:
        from wellhead.ops.routing.list_kernels import list_tokens

        expect("ids", ids, tuple(ids.shape), torch.int32)
        if ids.numel() > self.numel:
            raise ValueError(f"ids has {ids.numel()} elements; the plan was made for at most {self.numel}")
        list_tokens[(self.experts,)](
            ids, self.slots, self.counts, self.offsets, self.block_expert, ids.numel(), self.slots.shape[0],
            self.first_expert, E=self.experts, E_PAD=power_of_two(self.experts), BLOCK=self.block, CHUNK=CHUNK,
            num_warps=4, **launch(),
        )  # fmt: skip


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def supports(tokens: int, width: int, experts: int, top_k: int) -> str | None:
    """None, or why these sizes cannot run."""
    if not 0 <= tokens <= 1 << 20:
        return f"tokens={tokens}: 0 to 1048576"
    if width < 256 or width % 256:
        return f"width={width}: a multiple of 256"
    if not 1 <= experts <= MOST_EXPERTS:
        return f"experts={experts}: 1 to {MOST_EXPERTS}"
    if not 1 <= top_k <= min(experts, 16):
        return f"top_k={top_k}: 1 to {min(experts, 16)} of {experts} experts"
    return None


def plan(tokens: int, width: int, experts: int, top_k: int, scale: float, *, device: torch.device | str) -> Router:
    """Allocate for at most `tokens` tokens. ValueError names the limits."""
    why = supports(tokens, width, experts, top_k)
    if why is not None:
        raise ValueError(f"routing cannot be planned: {why}")
    config = choose_config(tokens, width)
    scores = scratch.empty(tokens, experts, dtype=torch.float32, device=device)
    arrived = torch.zeros(-(-tokens // config.block_t), dtype=torch.int32, device=device)
    return Router(tokens, width, experts, top_k, scale, config, scores, arrived)


def plan_lists(
    tokens: int, top_k: int, experts: int, block: int, *, first_expert: int = 0, device: torch.device | str
) -> ExpertLists:
    """Allocate for at most tokens x top_k ids, whichever experts they name. ValueError names the limits."""
    if not 1 <= experts <= MOST_EXPERTS:
        raise ValueError(f"lists cannot be planned: experts={experts}: 1 to {MOST_EXPERTS}")
    if not 1 <= block <= 256 or block & (block - 1):
        raise ValueError(f"lists cannot be planned: block={block}: a power of two from 1 to 256")
    numel = tokens * top_k
    if not 0 <= numel < 1 << 28:
        raise ValueError(f"lists cannot be planned: {tokens} tokens x {top_k} = {numel} ids: below 2^28")
    capacity = numel + min(experts, numel) * (block - 1)
    capacity += -capacity % block

    def empty(n: int) -> torch.Tensor:
        return scratch.empty(n, dtype=torch.int32, device=device)

    blocks = empty(capacity // block)
    return ExpertLists(numel, experts, first_expert, block, empty(capacity), empty(experts), empty(experts + 1), blocks)
