"""The chat page, in headless Chromium at a phone's width."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from tests.server.conftest import load

from fakes import chromium
from fakes.server import RunningServer
from wellhead.server.app import PAGE

ABSENT = "no Chromium here: install the package chromium to test the chat page"


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
        pytest.skip(ABSENT)
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


@pytest.mark.parametrize("credentials", ["me:s3cret@", ""])
def test_the_key_is_the_password(credentials: str) -> None:
    program = chromium.find()
    if program is None:
        pytest.skip(ABSENT)
    running, browser = RunningServer(load, key="s3cret"), chromium.Chromium(program, 360, 640)
    try:
        browser.open(running.url.replace("//", "//me:s3cret@") + "/")
        browser.open(running.url.replace("//", f"//{credentials}") + "/")
        browser.wait("document.getElementById('model').textContent === 'tiny'")
        browser.run("document.getElementById('temperature').value = 0")
        say(browser, "What is the capital of France?")
        browser.wait("!!document.querySelector('.assistant')?.dataset.done")
        assert browser.run("document.querySelector('.assistant > .text').textContent") == "Paris"
    finally:
        browser.close()
        running.close()


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


def in_sight(page: chromium.Chromium, selector: str) -> bool:
    """Whether the last of these elements lies inside the visible part of the conversation."""
    return bool(
        page.run(
            f"(() => {{ const one = [...document.querySelectorAll({selector!r})].at(-1).getBoundingClientRect(), "
            "log = document.getElementById('log').getBoundingClientRect(); "
            "return one.height > 0 && one.top >= log.top - 1 && one.bottom <= log.bottom + 1; })()"
        )
    )


def test_what_is_new_is_in_sight(page: chromium.Chromium) -> None:
    say(page, "Tell me everything, " * 40)
    page.wait("/tokens/.test(document.querySelector('.numbers')?.textContent)")
    assert in_sight(page, ".numbers")
    page.run("document.getElementById('stop').click()")
    page.wait("!!document.querySelector('.assistant')?.dataset.done")  # stopped, unless its drawn end came first
    say(page, "x" * 9000)
    page.wait("!!document.querySelector('.error')")
    assert in_sight(page, ".error")
    assert "4095 at most" in page.run("document.querySelector('.error').textContent")
    assert "waiting" not in page.run("document.getElementById('log').textContent")


def test_a_new_chat_forgets_an_answer_that_was_running(page: chromium.Chromium) -> None:
    say(page, "Tell me everything, " * 40)
    page.wait("/tokens/.test(document.querySelector('.numbers')?.textContent)")
    page.run("document.getElementById('fresh').click()")
    page.wait("document.getElementById('send').hidden === false")
    say(page, "hello")
    page.wait("document.querySelector('.assistant')?.dataset.done === 'yes'")
    sent = [
        json.loads(event["params"]["request"]["postData"])["messages"]
        for event in page.events
        if event.get("method") == "Network.requestWillBeSent" and event["params"]["request"]["method"] == "POST"
    ]
    assert sent[-1] == [{"role": "user", "content": "hello"}]
