"""choose(): order, kept reasons, forced choices, and what a desktop Blackwell card can never be given."""

from __future__ import annotations

import pytest

from wellhead.dispatch import capability
from wellhead.dispatch.choose import NoImplementation, choose, parse_forced
from wellhead.dispatch.features import MEANING, Evidence, Feature, Features
from wellhead.dispatch.spec import REFERENCE, ErrorBudget, Impl, KernelBuild, OpSpec, Sizes

EXACT = ErrorBudget(0, 0, "integers")


def op(*impls: Impl) -> OpSpec:
    return OpSpec("thing", "a thing", (*impls, Impl(REFERENCE)), (), EXACT, True, "rows are independent")


def on(arch: str, triton: str = "3.9.0") -> Features:
    return capability.features_of(capability.simulated(arch), triton)


NATIVE = Impl("block_scaled", needs=("kernels", "block_scaled_mma"))
PLAIN = Impl("plain", needs=("kernels",))


def test_the_first_that_fits_and_every_reason_kept() -> None:
    found = choose(op(Impl("tmem", needs=("kernels", "tcgen05")), NATIVE, PLAIN), on("sm120"), {})
    assert found.impl == "block_scaled"
    assert (
        found.reason
        == "first that fits on some sm120 card (sm120, simulated); kernels assumed, block_scaled_mma compiled"
    )
    assert found.rejected == (("tmem", "needs tcgen05 absent (assumed: sm120 does not have it (PTX ISA))"),)


def test_sm121_with_an_older_triton_takes_the_plain_one_and_says_what_brings_the_other() -> None:
    found = choose(op(NATIVE, PLAIN), on("sm121", "3.7.1"), {})
    assert found.impl == "plain"
    assert found.rejected == (
        (
            "block_scaled",
            "needs block_scaled_mma absent (compiled: lowered to mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32; "
            "Triton 3.9 brings it (Triton 3.7, sm121))",
        ),
    )
    assert choose(op(NATIVE, PLAIN), on("sm121", "3.9.0"), {}).impl == "block_scaled"


@pytest.mark.parametrize("triton", ["3.6.0", "3.7.1", "3.8.0", "3.9.0", "4.0.0"])
@pytest.mark.parametrize("arch", ["sm120", "sm121"])
@pytest.mark.parametrize(
    "impl",
    [
        Impl("big", needs=("kernels",), shared_bytes=101377),
        Impl("first_port_topk", needs=("kernels",), shared_bytes=131072),
        *(Impl(unit, needs=("kernels", unit)) for unit in ("tcgen05", "wgmma", "cluster_shared")),
    ],
    ids=lambda impl: impl.name if isinstance(impl, Impl) else None,
)
def test_what_desktop_blackwell_lacks_is_never_chosen(arch: str, triton: str, impl: Impl) -> None:
    features = on(arch, triton)
    assert choose(op(impl, PLAIN), features, {}).impl == "plain"
    with pytest.raises(NoImplementation, match="cannot run on some sm12"):
        choose(op(impl, PLAIN), features, {}, forced=impl.name)
    assert choose(op(Impl("exact", needs=("kernels",), shared_bytes=101376)), features, {}).impl == "exact"


def test_a_card_whose_kernels_all_refuse_is_an_error_with_every_reason() -> None:
    def even(sizes: Sizes) -> str | None:
        return None if sizes["k"] % 2 == 0 else f"k={sizes['k']}: even k only"

    spec = op(Impl("tmem", needs=("tcgen05",)), Impl("even", needs=("kernels",), supports=even))
    assert choose(spec, on("sm120"), {"k": 4}).impl == "even"
    with pytest.raises(NoImplementation) as error:
        choose(spec, on("sm120"), {"k": 3})
    assert str(error.value) == (
        "op 'thing': no kernel fits sizes {'k': 3} on some sm120 card (sm120, simulated): tmem: needs tcgen05 absent "
        "(assumed: sm120 does not have it (PTX ISA)); even: k=3: even k only. To run it in plain torch all the same, "
        "ask for thing=reference."
    )
    assert choose(spec, on("sm120"), {"k": 3}, forced=REFERENCE).reason == "asked for by name"


def test_the_reference_is_taken_where_kernels_cannot_run_and_says_so() -> None:
    cpu = capability.features_of(None, "3.7.1")
    found = choose(op(PLAIN), cpu, {})
    assert (found.impl, found.reason) == (REFERENCE, "kernels cannot run: no CUDA card")
    assert found.rejected == (("plain", "needs kernels absent (queried: no CUDA card)"),)
    broken = capability.features_of(capability.simulated("sm120"), None)
    assert choose(op(PLAIN), broken, {}).reason == "kernels cannot run: Triton is missing or broken"
    assert choose(op(), on("sm120"), {}).reason == "the op has no kernels yet"


def test_a_check_that_raises_propagates() -> None:
    def typo(sizes: Sizes) -> str | None:
        return str(sizes["no such size"])

    with pytest.raises(KeyError, match="no such size"):
        choose(op(Impl("buggy", needs=("kernels",), supports=typo), PLAIN), on("sm120"), {})


def test_an_unknown_name_is_an_error_and_not_an_absence() -> None:
    with pytest.raises(ValueError, match="feature 'block_scaled' is not one of"):
        choose(op(Impl("x", needs=("block_scaled",))), on("sm120"), {})
    with pytest.raises(ValueError, match="no implementation 'tritn'; there are plain, reference"):
        choose(op(PLAIN), on("sm120"), {}, forced="tritn")
    with pytest.raises(ValueError, match="feature 'mxfp8' is not one of"):
        Feature("mxfp8", True, Evidence.ASSUMED, "")
    with pytest.raises(ValueError, match="missing"):
        Features("nowhere", (Feature("kernels", True, Evidence.ASSUMED, ""),))


def test_forced_options_are_parsed_or_refused() -> None:
    specs = [op(PLAIN)]
    assert parse_forced(["thing=plain", "thing=plain"], specs) == {"thing": "plain"}
    for option, reason in (
        ("thing", "expected OP=NAME"),
        ("thing=", "expected OP=NAME"),
        ("thinh=plain", "no op 'thinh'; the nearest is thing"),
        ("thing=plane", "no implementation 'plane'"),
    ):
        with pytest.raises(ValueError, match=reason):
            parse_forced([option], specs)
    with pytest.raises(ValueError, match="both 'plain' and 'reference'"):
        parse_forced(["thing=plain", "thing=reference"], specs)


def test_records_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="'reference' last"):
        OpSpec("thing", "", (Impl(REFERENCE), PLAIN), (), EXACT, True, "")
    with pytest.raises(ValueError, match="distinct"):
        OpSpec("thing", "", (PLAIN, PLAIN, Impl(REFERENCE)), (), EXACT, True, "")
    with pytest.raises(ValueError, match="give every constexpr one value"):
        KernelBuild("b", None, {"x": "*fp32", "N": "constexpr"}, {"M": 1})


def test_every_arch_states_every_feature() -> None:
    for arch in capability.ARCHITECTURES:
        for triton in ("3.6.0", "3.7.1", "3.9.0"):
            features = on(arch, triton)
            assert set(features) == set(MEANING)
            assert all(feature.detail for feature in features.values())


def test_what_is_not_known_is_absent_with_a_reason() -> None:
    unknown = capability.features_of(capability.Card("new card", capability.arch_of((13, 0))), "3.9.0")
    assert [name for name in unknown if unknown[name].present] == ["kernels", "shared_bytes"]
    assert unknown["fp8_mma"].detail == "sm130 has no profile; unknown is absent"
    assert unknown["shared_bytes"].value == 49152
    later = on("sm120", "3.10.0")
    assert str(later["fp8_mma"]) == "fp8_mma absent (assumed: not probed with Triton 3.10.0; unknown is absent)"
    with pytest.raises(ValueError, match="no profile of 'sm75'"):
        capability.simulated("sm75")
