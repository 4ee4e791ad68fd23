"""`wellhead plan`: what fits, what does not and what would, in words and in JSON, from a configuration alone."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from wellhead.cli import main
from wellhead.dispatch import cards
from wellhead.model.published import published_config

pytest.importorskip("triton")


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["plan", *words, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = asked(capsys, "v4-flash", "--gpu", "rtx-pro-6000", "--tp", "2", "--context", "32768")
    assert status == 0 and said["fits"] and said["runs"] and said["kind"] == "v4"
    parts = said["bytes_per_rank"]
    taken = sum(size for kind, size in parts.items() if kind != "available")
    assert 0 <= parts["available"] - taken < 20_000_000 and parts["experts"] == 69_256_347_648
    assert said["tokens"] >= said["largest_context"]["together"] == said["largest_context"]["alone"] > 32768
    assert said["smallest"] == {"tp": 2, "tokens": said["tokens"]}
    for what in ("decode", "prefill"):
        assert 0 < said[what]["tokens_s_predicted"] < said[what]["tokens_s_bound"]


def test_what_does_not_fit_is_answered_with_the_smallest_set(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = asked(capsys, "v4-flash", "--gpu", "h100")
    assert status == 1 and not said["fits"] and said["tokens"] == 0 and said["smallest"]["tp"] == 4
    again, more = asked(capsys, "v4-flash", "--gpu", "h100", "--tp", "4")
    assert again == 0 and more["tokens"] == said["smallest"]["tokens"]
    assert asked(capsys, "v4-flash", "--gpu", "h100", "--tp", "2")[0] == 1
    assert main(["plan", "v4-flash", "--gpu", "h100"]) == 1
    assert "what fits            4 x H100 80GB SXM: --tp 4, " in capsys.readouterr().out


def test_no_set_of_cards(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "v4-pro", "--gpu", "rtx-4090", "--tp", "8"]) == 1
    said = capsys.readouterr().out
    assert "no number of such cards: the model splits over 8 at most, where " in said
    assert "GB a card are missing; take cards with more memory" in said
    words = ["plan", "v4-flash", "--gpu", "rtx-5090", "--tp", "8", "--context", "1048576", "--concurrency", "64"]
    assert main(words) == 1
    assert "tokens fit; shorten --context or lower --concurrency" in capsys.readouterr().out


def test_experts_that_no_card_computes_yet(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = tmp_path / "config.json"
    base.write_text(json.dumps(published_config("v4-flash") | {"expert_dtype": "fp8"}), encoding="utf-8")
    status, said = asked(capsys, str(base), "--gpu", "h200", "--tp", "4")
    assert status == 1 and said["fits"] and not said["runs"] and said["kind"] == "v4-base"
    assert said["smallest"] is None
    assert any("does not run there yet: no kernel of moe fits. moe: fp8 experts" in note for note in said["notes"])
    assert said["bytes_per_rank"]["experts"] == 2 * 138_512_695_296 // 4


def test_more_requests_and_drafts_leave_less(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("v4-flash", "--gpu", "h200", "--tp", "2")
    one, eight, drafting = (
        asked(capsys, *words, *more)[1]
        for more in ((), ("--concurrency", "8"), ("--concurrency", "8", "--speculative-tokens", "3"))
    )
    assert one["tokens"] > eight["tokens"] > drafting["tokens"]
    assert drafting["bytes_per_rank"]["graphs"] > 1.2 * eight["bytes_per_rank"]["graphs"]  # the prompts' are the same
    assert eight["decode"]["tokens_s_predicted"] > one["decode"]["tokens_s_predicted"]


def test_every_way_to_name_a_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    config = tmp_path / "mine" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps(published_config("v4-flash")), encoding="utf-8")
    named = [
        asked(capsys, model, "--gpu", "h100", "--tp", "4")[1]
        for model in ("v4-flash", "V4-Flash", "deepseek-ai/DeepSeek-V4-Flash", str(config), str(config.parent))
    ]
    assert {said["tokens"] for said in named} == {named[0]["tokens"]}
    assert named[3]["model"] == named[4]["model"] == "mine"
    monkeypatch.delenv("WELLHEAD_MODEL", raising=False)
    assert asked(capsys, "--gpu", "h100")[1]["model"] == "tiny"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["v4-flash", "--gpu", "4080"], "no card '4080' is known; the nearest is rtx-4090"),
        (["nope", "--gpu", "h100"], "'nope': no such folder or config.json, not v4-flash or v4-pro"),
        (["v4-flash", "--gpu", "h100", "--tp", "3"], "cannot be split over 3 ranks: o_groups 8"),
        (["v4-flash", "--gpu", "h100", "--tp", "16"], "o_groups 8 is no multiple of 16; it can over 1, 2, 4, 8"),
        (["v4-flash", "--gpu", "h100", "--concurrency", "70000"], "--concurrency 70000 with --chunked-prefill-size"),
        (["v4-flash", "--gpu", "h100", "--tp", "0"], "--tp 0: expected at least 1"),
        (["v4-flash", "--gpu", "h100", "--context", "2000000"], "--context 2000000: expected at most 1048576"),
        (["v4-flash", "--gpu", "h100", "--mem-fraction", "1.5"], "--mem-fraction 1.5: expected"),
        (["v4-flash", "--gpu", "h100", "--speculative-tokens", "4"], "--speculative-tokens 4: expected 0 to 3"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("wellhead: error: ") and said in err and err.count("\n") == 1


def test_another_model_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}', encoding="utf-8")
    assert main(["plan", str(tmp_path), "--gpu", "h100"]) == 2
    assert "is V3 or R1: V3 or R1 is another architecture, not implemented; use the" in capsys.readouterr().err


def test_help_lists_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--help"])
    said = capsys.readouterr().out
    assert "examples:" in said and all(key in said for key in cards.KEYS)


def test_the_table_of_cards() -> None:
    from wellhead.dispatch import capability

    assert len(set(cards.KEYS)) == len(cards.CARDS)
    for card in cards.CARDS:
        assert card.arch in capability.ARCHITECTURES and card.source and card.memory > 8 << 30, card
        assert cards.find(card.key) is cards.find(card.name) is cards.find(f"NVIDIA {card.name}") is card
    assert cards.find("NVIDIA RTX PRO 6000 Blackwell Workstation Edition").key == "rtx-pro-6000"
    assert [card.key for card in cards.of_arch("sm121")] == ["dgx-spark"]
