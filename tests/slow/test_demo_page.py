"""The demo project's page, in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.observers import PostgresObserver
from tests.support.serving import ask, serve
from tests.support.subprocesses import ROOT, environment
from tests.support.waiting import wait_until

DATABASE = "demo_page"
SALES = 2000
SOW = f"import django; django.setup(); from shop.seed import sow; sow({SALES})"
# By Django's own seam: a site that has no file for it.
APPLICATION = "django.core.wsgi:get_wsgi_application()"
WAIT = 10_000  # milliseconds


@pytest.fixture
def url(postgres: PostgresObserver) -> Iterator[str]:
    """A database of the page's own, with its tables and sales."""
    postgres.execute(f"CREATE DATABASE {DATABASE}")
    url = environment(None)["TEST_POSTGRES_URL"].rpartition("/")[0] + f"/{DATABASE}"
    for command in (["-m", "django", "migrate", "--verbosity=0"], ["-c", SOW]):
        subprocess.run(
            [sys.executable, *command],
            cwd=ROOT / "demo",
            env=variables(url),
            check=True,
            timeout=60,
        )
    yield url
    postgres.kill(DATABASE)
    postgres.execute(f"DROP DATABASE {DATABASE}")


def variables(url: str) -> dict[str, str]:
    return environment("settings") | {"DATABASE_URL": url}


@pytest.fixture
def browser_page() -> Iterator[Any]:
    """A page of a headless Chromium, of the system's own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("REQUIRE_ALL_SERVERS"):
            pytest.fail("no chromium")
        pytest.skip("no chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        yield page
        browser.close()


def test_the_page(url: str, browser_page: Any, postgres: PostgresObserver, tmp_path: Path) -> None:
    """The form starts a job; its progress, its connection and its result are shown; none is left."""
    from playwright.sync_api import expect

    said: list[str] = []
    browser_page.on("console", lambda message: said.append(message.text))
    browser_page.on("pageerror", lambda error: said.append(str(error)))
    log = tmp_path / "log"
    options = [APPLICATION, "--threads=4"]
    with (
        serve(
            log, "gunicorn", *options, bind="--bind=fd://", cwd=ROOT / "demo", variables=variables(url)
        ) as served,
        psycopg.connect(url) as mine,
    ):
        # The job waits for this row, which is of the last of its steps.
        mine.execute("SELECT 1 FROM shop_sale ORDER BY id DESC LIMIT 1 FOR UPDATE")
        (before,) = mine.execute("SELECT sum(quantity * price) FROM shop_sale").fetchone() or (None,)
        browser_page.goto(f"http://127.0.0.1:{served.port}/")
        expect(browser_page.locator("#units li")).to_have_count(5)
        browser_page.get_by_label("Percent").fill("10")
        browser_page.get_by_role("button", name="Raise all prices").click()
        expect(browser_page.locator("#rows")).to_have_text("1500 of 2000")
        expect(browser_page.get_by_role("progressbar")).to_have_attribute("max", "2000")
        connections = browser_page.locator("#connections li")
        expect(connections).to_have_text([re.compile(r"default: shop\.prices\.Rise\.run in default_\d")])
        assert len(postgres.backends(DATABASE)) == 2  # the worker's, and this test's own
        expect(browser_page.locator("#result")).to_have_text("not yet")

        mine.commit()
        expect(browser_page.locator("#rows")).to_have_text("2000 of 2000")
        expect(connections).to_have_text(["none"])
        (after,) = mine.execute("SELECT sum(quantity * price) FROM shop_sale").fetchone() or (None,)
        assert after > before
        expect(browser_page.locator("#result")).to_have_text(f"all sales come to {after:.2f}")
        mine.close()
        assert not postgres.left(DATABASE)

        browser_page.get_by_label("Percent").fill("1000")
        browser_page.get_by_label("Percent").evaluate("input => { input.form.noValidate = true }")
        browser_page.get_by_role("button", name="Raise all prices").click()
        expect(
            browser_page.get_by_text("Ensure this value is less than or equal to 100")
        ).to_be_visible()
    assert said == []
    assert "Traceback" not in log.read_text()


def test_make_site(tmp_path: Path) -> None:
    """What `make site` runs serves the page, from a server of its own, until Ctrl-C."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    without = {name: value for name, value in environment(None).items() if name != "DATABASE_URL"}
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "serve.py", f"127.0.0.1:{port}"],
            cwd=ROOT / "demo",
            env=without,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: "Quit the server" in log.read_text(), within=40)
        status, text = ask(port)
        assert (status, "Raise all prices" in text) == (200, True), log.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(20)
    assert code == 0, log.read_text()
