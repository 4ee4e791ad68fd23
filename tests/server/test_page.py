"""The chat page, in headless Chromium at a phone's width."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from fakes import chromium
from fakes.server import RunningServer
from wellhead.server.app import PAGE


def test_the_page_asks_nobody_else(server: RunningServer) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"(https?:)?//[a-z]", text) and "innerHTML" not in text
    answer = server.client.get("/")
    assert answer.text == text and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.fixture
def page(server: RunningServer) -> Iterator[chromium.Chromium]:
    program = chromium.find()
    if program is None:
        pytest.skip("no Chromium here: install the package chromium to test the chat page")
    browser = chromium.Chromium(program, 360, 640)
    try:
        browser.open(server.url + "/")
        yield browser
        browser.run("0")  # whatever it still had to say
        asked = [
            event["params"]["request"]["url"]
            for event in browser.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        assert asked and all(url.startswith((server.url, "data:")) for url in asked), asked
        said = [
            event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
        ]
        said = [event for event in said if "400 (Bad Request)" not in str(event)]  # a test asks for one
        assert not said, said
    finally:
        browser.close()
    server.idle()


def say(page: chromium.Chromium, text: str) -> None:
    page.run(f"document.getElementById('input').value = {text!r}; document.getElementById('form').requestSubmit()")


def test_a_conversation(page: chromium.Chromium) -> None:
    page.wait("document.getElementById('model').textContent === 'tiny'")
    page.run("document.getElementById('temperature').value = 0")
    say(page, "What is the capital of France?")
    page.wait("document.querySelector('.assistant')?.dataset.done === 'yes'")
    assert page.run("document.querySelector('.assistant > .text').textContent") == "Paris"
    numbers = page.run("document.querySelector('.numbers').textContent")
    assert re.search(r"first token \d+\.\d\d s · \d+\.\d tokens/s · 3 tokens", numbers), numbers
    assert not page.run("document.querySelector('details')")
    page.run("document.getElementById('think').checked = true; document.getElementById('fresh').click()")
    say(page, "What is the capital of France?")
    page.wait("document.querySelector('.assistant')?.dataset.done === 'yes'")
    assert page.run("document.querySelector('.assistant > .text').textContent") == "Paris"
    assert page.run("document.querySelector('details > .text').textContent") == "France: Paris"
    assert page.run("document.querySelector('details').open") is False
    # nothing is wider than the phone
    assert page.run("document.documentElement.scrollWidth <= innerWidth && innerWidth") == 360
    assert page.run("[...document.querySelectorAll('button')].every(b => b.hidden || b.offsetHeight >= 40)")


def test_stopping(page: chromium.Chromium, server: RunningServer) -> None:
    say(page, "Tell me everything, " * 40)
    page.wait("document.getElementById('stop').hidden === false")
    page.run("document.getElementById('stop').click()")
    page.wait("document.querySelector('.assistant')?.dataset.done === 'no'")
    assert "stopped" in page.run("document.querySelector('.numbers').textContent")
    assert page.run("document.getElementById('send').hidden") is False
    server.idle()


def test_an_error_is_shown(page: chromium.Chromium) -> None:
    say(page, "x" * 9000)
    page.wait("!!document.querySelector('.error')")
    assert "4095 at most" in page.run("document.querySelector('.error').textContent")
