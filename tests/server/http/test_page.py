"""The page at ``/`` in a real browser: what it shows, what can be done on it, and what must not happen there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from graftwork.adapters.access.keys import Role
from graftwork.adapters.feedback.feedback import FeedbackFilter
from tests.server.fakes import ADMIN_KEY
from tests.server.http.page_server import HOSTILE, MANY, PageServer, fill, serving

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import WebDriverException  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, CHROMEDRIVER = (
    shutil.which("chromium") or shutil.which("google-chrome"),
    shutil.which("chromedriver"),
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None,
    reason="there is no Chromium with its driver: apt-get install chromium chromium-driver",
)

WIDE, PHONE = (1280, 800), (390, 844)
VIEWS = (
    *("overview", "adapters", "adapters/support", "experiments", "experiments/shorter-answers", "learning"),
    *("jobs", "rounds", "interactions", "playground", "keys", "audit"),
)
SECONDS = 30
"""How long to wait for what must come, on a busy machine."""

UNNAMED = """return [...document.querySelectorAll("button, a, input, select, textarea, [role=region], svg.chart")]
    .filter((each) => !each.labels?.length && !each.ariaLabel && !each.textContent.trim())
    .map((each) => each.outerHTML)"""

T = TypeVar("T")


class Browser:
    """A browser on a server's page, asked in the words of those who look at it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.url = ""

    def look(self, size: tuple[int, int] = WIDE, scheme: str = "light") -> None:
        """Use a window of this size, and the user's choice of light or dark."""
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def open(self, view: str, *, heading: str | None = None) -> None:
        """Open the page anew at a view, and wait until it shows."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/#/{view}")
        if heading is None:
            self.until(lambda: self.run("return document.querySelector('main:not([aria-busy]) h1') !== null"))
        else:
            self.until(lambda: self.text("h1") == heading)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], T]) -> T:
        """Wait until a condition is true, and return what it returned."""

        def tried(_: Any) -> T | None:
            try:
                return condition()
            except WebDriverException:
                return None

        return WebDriverWait(self.driver, SECONDS, poll_frequency=0.05).until(tried)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str = "body") -> str:
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def named(self, name: str, tag: str = "*") -> WebElement:
        """The element with this accessible name."""

        def found() -> WebElement | None:
            for each in self.all("button, a, input, select, textarea"):
                if tag in ("*", each.tag_name) and each.is_displayed() and each.accessible_name.startswith(name):
                    return each
            return None

        return self.until(found)

    def click(self, name: str) -> None:
        self.named(name).click()

    def write(self, name: str, text: str) -> None:
        field = self.named(name)
        field.clear()
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def focused(self) -> WebElement:
        return self.driver.switch_to.active_element

    def tab_to(self, name: str) -> None:
        """Press the tabulator until the element with this name has the focus, which can be seen."""
        for _ in range(80):
            self.press(Keys.TAB)
            if self.focused.accessible_name.startswith(name):
                assert self.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
                return
        raise AssertionError(f"the keyboard does not reach {name!r}")

    def refresh(self) -> None:
        """What the page does every few seconds."""
        self.run("document.dispatchEvent(new Event('visibilitychange'))")

    def sign_in(self, key: str) -> None:
        self.write("API key", key)
        self.press(Keys.ENTER)

    def complaints(self) -> list[str]:
        """What the console was told since it was last asked: errors, warnings, violations of the policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-US"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A server without keys, with something of everything on it."""
    with serving(tmp_path_factory.mktemp("open")) as server:
        fill(server)
        yield server


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A server with a first admin key."""
    with serving(tmp_path_factory.mktemp("locked"), admin_key=ADMIN_KEY) as server:
        yield server


@pytest.fixture
def browser(driver: Any, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """A browser that knows nothing yet. In the end nobody complained."""
    browser = Browser(driver)
    browser.look()
    driver.get("about:blank")
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    browser.complaints()
    yield browser
    assert browser.complaints() == []


@pytest.fixture
def page(browser: Browser, server: PageServer) -> Browser:
    """The browser on the open server."""
    browser.url = server.url
    return browser


@pytest.fixture
def gate(browser: Browser, locked: PageServer) -> Browser:
    """The browser on the server with keys."""
    browser.url = locked.url
    return browser


# ---------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide-light", "phone-dark"])
def test_every_view_fits_and_has_its_words(
    page: Browser, server: PageServer, size: tuple[int, int], scheme: str
) -> None:
    page.look(size, scheme)
    ids = {
        "jobs": server.world.services.jobs.find(limit=1)[0].id,
        "rounds": server.world.services.rounds.find(limit=1)[0].id,
    }
    for view in VIEWS:
        page.open(f"{view}/{ids[view]}" if view in ids else view)
        assert page.text("#problem") == "", view
        assert page.run("return document.documentElement.scrollWidth <= innerWidth"), f"{view} is wider than the window"
        assert page.run("return document.title").endswith(" – Graftwork")
        assert page.run(UNNAMED) == [], f"{view}: a screen reader has no word for them"
    assert (sum(color(page, "body")) < 200) == (scheme == "dark")


def color(page: Browser, selector: str) -> list[int]:
    """Red, green and blue of an element's ground."""
    text = page.run(f"return getComputedStyle(document.querySelector('{selector}')).backgroundColor")
    return [int(number) for number in re.findall(r"\d+", text)[:3]]


def test_an_overview_says_how_the_server_is(page: Browser) -> None:
    page.open("overview", heading="Overview")
    page.until(lambda: page.text("#state") == "ready")
    shown = page.text("main")
    for words in ("tiny-base", "Tokens per second", "First token", "p99", "shorter-answers", "75 %", "round 1"):
        assert words in shown


def test_texts_of_users_stay_texts(page: Browser, server: PageServer) -> None:
    page.open("interactions?adapter=intents", heading="Interactions")
    assert "<img src=x" in page.text("main table")
    page.run("document.querySelector('main tbody a').click()")
    page.until(lambda: "Conversation" in page.text("main"))
    shown = page.text("main")
    assert shown.count(HOSTILE) == 3, "the prompt, the correction and the comment"
    assert page.all("main img, main script") == []


def test_the_curves_of_a_job_and_the_intervals_of_an_experiment_are_drawn(page: Browser, server: PageServer) -> None:
    job = next(job for job in server.world.services.jobs.find(limit=10) if job.status == "running")
    page.open(f"jobs/{job.id}", heading=job.id)
    (chart,) = page.all("svg.chart")
    assert chart.accessible_name == "Loss by step"
    assert len(page.all("polyline.line")) == 2
    page.open("experiments/shorter-answers", heading="shorter-answers")
    assert [chart.accessible_name for chart in page.all("svg.chart")] == [
        "Difference of thumb to the control over time",
        "Means of thumb by arm over time",
    ]
    assert len(page.all("polygon.band")) == 3
    assert "3, each for 60 min" in page.text("main"), "who waits"


# -------------------------------------------------------------------------------------------------------- changes


def test_a_version_is_promoted_and_rolled_back_with_the_keyboard_alone(page: Browser, server: PageServer) -> None:
    registry = server.world.services.registry
    page.open("adapters", heading="Adapters")
    page.tab_to("intents")
    page.press(Keys.ENTER)
    page.until(lambda: page.text("h1") == "intents")
    page.tab_to("Promote @3 to live")
    page.press(Keys.ENTER)
    page.until(lambda: page.text("dialog h2") == "Promote intents@3 to live?")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all("dialog"))
    assert registry.adapter("intents").aliases["live"] == 1, "it was asked, and not done"
    assert page.focused.accessible_name == "Promote @3 to live…"
    page.press(Keys.ENTER)
    page.tab_to("Reason")
    page.press("answers better", Keys.ENTER)
    page.until(lambda: "live @3" in page.text("main .head"))
    assert registry.adapter("intents").aliases["live"] == 3
    assert registry.history("intents", limit=1)[0].reason == "answers better"
    page.tab_to("Roll back")
    page.press(Keys.ENTER)
    page.until(lambda: page.text("dialog h2") == "Roll intents back?")
    page.tab_to("Roll back")
    page.press(Keys.ENTER)
    page.until(lambda: "live @1" in page.text("main .head"))
    assert registry.adapter("intents").aliases["live"] == 1


def test_what_the_server_refuses_is_said_where_it_was_asked(page: Browser, server: PageServer) -> None:
    page.open("adapters/support", heading="support")
    page.click("Promote @2 to live")
    page.until(lambda: page.all("dialog"))
    page.click("Promote")
    page.until(lambda: "experiment" in page.text("dialog [role=alert]"))
    page.press(Keys.ESCAPE)
    assert server.world.services.registry.adapter("support").aliases["live"] == 1
    assert len(page.complaints()) == 1, "the browser itself notes the 409"


def test_an_experiment_is_started_and_stopped(page: Browser, server: PageServer) -> None:
    page.open("experiments?adapter=intents", heading="Experiments")
    page.write("Name", "second-try")
    page.click("Start")
    page.until(lambda: page.text("h1") == "second-try")
    assert server.world.services.experiments.get("second-try").running
    page.click("Stop")
    page.until(lambda: page.all("dialog"))
    page.write("Reason", "was a trial")
    page.named("Stop", "button")
    page.all("dialog button[type=submit]")[0].click()
    page.until(lambda: "was a trial" in page.text("main"))
    assert not server.world.services.experiments.get("second-try").running


def test_two_versions_are_asked_at_once_and_the_better_one_is_recorded(page: Browser, server: PageServer) -> None:
    page.open("playground?left=intents@1&right=intents@2", heading="Playground")
    page.write("Prompt", "Where is my card?")
    page.click("Blind")
    page.click("Ask both")
    page.until(lambda: [each.text for each in page.all(".answers pre")] == ["Where is my card?"] * 2)
    assert [each.text for each in page.all(".answers h2")] == ["Answer A", "Answer B"]
    page.until(lambda: page.named("Answer B is better").is_enabled())
    page.click("Answer B is better")
    page.until(lambda: "is preferred" in page.text("main"))
    _, better = [each.text for each in page.all(".answers h2")]
    (said,) = server.world.services.records.feedback.find(FeedbackFilter(kind="preferred_over"), limit=10)
    assert said.adapter == better in ("intents@1", "intents@2")
    assert said.comment == "chosen blind"


# ----------------------------------------------------------------------------------------------------- many, and gone


def test_thousands_of_adapters_are_shown_at_once_and_stay_where_one_reads(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path, many=True) as server:
        browser.url = server.url
        read_many(browser)


def read_many(page: Browser) -> None:
    page.open("adapters", heading="Adapters")
    page.until(lambda: page.text("main .head [role=status]") == f"{MANY:,}")
    page.refresh()
    page.until(lambda: page.run("return performance.getEntriesByName('show adapters').length") > 2)
    took = page.run("return performance.getEntriesByName('show adapters').map(({ duration }) => duration)")
    assert min(took) < 200, took
    page.click("Show")
    page.until(lambda: len(page.all("main tbody tr")) == 250)
    page.run(
        "const row = document.querySelectorAll('main tbody tr')[120]; row.scrollIntoView({ block: 'center' });"
        "row.querySelector('a').focus(); getSelection().selectAllChildren(row.cells[1]);"
    )
    state = "return [document.activeElement.textContent, Math.round(scrollY), String(getSelection())]"
    before = page.run(state)
    measured = page.run("return performance.getEntriesByName('show adapters').length")
    page.refresh()
    page.until(lambda: page.run("return performance.getEntriesByName('show adapters').length") > measured)
    assert page.run(state) == before
    assert before[0] == "tenant-0120"
    page.write("Search adapters", "tenant-1999")
    page.until(lambda: page.text("main .head [role=status]") == f"1 of {MANY:,}")
    assert page.focused.accessible_name == "Search adapters"
    page.focused.send_keys(Keys.CONTROL + "a" + Keys.NULL + Keys.DELETE)
    page.until(lambda: page.text("main .head [role=status]") == f"{MANY:,}")
    page.all("th button")[0].click()
    page.until(lambda: page.all("th[aria-sort=descending]"))
    assert page.text("main tbody td") == "tenant-1999"
    page.driver.get("about:blank")


def test_the_pill_is_red_when_the_server_is_gone(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        browser.url = server.url
        browser.open("overview", heading="Overview")
        browser.until(lambda: browser.text("#state") == "ready")
        server.stop()
        browser.until(lambda: browser.text("#state") == "server gone")
        red, green, _ = color(browser, "#state")
        assert red > 2 * green
        assert "Overview" in browser.text("main"), "what was read last is still there"
        browser.refresh()
        browser.until(lambda: "may be old" in browser.text("#problem"))
        browser.driver.get("about:blank")
        assert all("ERR_CONNECTION_REFUSED" in complaint for complaint in browser.complaints())


# ------------------------------------------------------------------------------------------------------- sessions


def test_signing_in_and_out(gate: Browser, locked: PageServer) -> None:
    gate.open("overview", heading="Sign in")
    gate.sign_in("gw_not_a_key")
    gate.until(lambda: "unknown, was revoked" in gate.text("main [role=alert]"))
    assert len(gate.complaints()) == 1, "the browser itself notes the 401"
    gate.sign_in(ADMIN_KEY)
    gate.until(lambda: gate.text("h1") == "Overview")
    (cookie,) = gate.driver.get_cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    stored = gate.run("return document.cookie + JSON.stringify({ ...localStorage, ...sessionStorage }) + location.href")
    assert ADMIN_KEY not in stored
    assert cookie["value"] not in stored
    gate.open("keys", heading="Keys")
    gate.run("window.kept = 'what was asked'")
    gate.click("Sign out")
    gate.until(lambda: gate.text("h1") == "Sign in")
    assert gate.run("return window.kept ?? null") is None, "nothing is there for the next one"
    assert gate.driver.get_cookies() == []
    assert gate.all("nav a") == []


def test_a_key_is_made_shown_once_limited_and_revoked(gate: Browser, locked: PageServer) -> None:
    gate.open("overview", heading="Sign in")
    gate.sign_in(ADMIN_KEY)
    gate.until(lambda: gate.text("h1") == "Overview")
    gate.open("keys", heading="Keys")
    gate.write("Name", "desk")
    gate.all("main summary")[0].click()
    gate.write("Tokens a day", "20000")
    gate.click("Make a key")
    secret = gate.until(lambda: gate.text("dialog .secret"))
    key = locked.world.keys.authenticate(secret)
    assert key is not None
    assert (key.name, key.role, key.limits.tokens_per_day) == ("desk", Role.APP, 20000)
    gate.click("Close")
    gate.until(lambda: "desk" in gate.text("main tbody"))
    assert secret not in gate.run("return document.documentElement.outerHTML")
    gate.click("Limit desk")
    gate.until(lambda: gate.all("dialog"))
    (field,) = gate.all("dialog [name=concurrent]")
    field.send_keys("4", Keys.ENTER)
    gate.until(lambda: "requests at once: 4, tokens a day: 20,000" in gate.text("main tbody"))
    gate.click("Revoke desk")
    gate.until(lambda: gate.all("dialog"))
    gate.all("dialog button[type=submit]")[0].click()
    gate.until(lambda: "revoked" in gate.text("main tbody"))
    assert locked.world.keys.authenticate(secret) is None
    gate.open("audit?action=revoke_key", heading="Audit")
    newest = [cell.text for cell in gate.all("main tbody tr:first-child td")]
    assert newest[1:5] == ["first admin key", "revoke key", f"keys/{key.id}", "done"]


def test_the_playground_opens_to_a_key_that_sees_no_model(gate: Browser, locked: PageServer) -> None:
    secret, _ = locked.world.keys.create("early", Role.APP, scope=frozenset({"not-there-yet"}))
    gate.open("playground", heading="Sign in")
    gate.sign_in(secret)
    gate.until(lambda: gate.text("h1") == "Playground")
    assert [field.get_property("value") for field in gate.all("main [list=models]")] == ["", ""]


def test_who_has_an_app_key_is_offered_what_it_may_until_it_is_revoked(gate: Browser, locked: PageServer) -> None:
    secret, key = locked.world.keys.create("shop", Role.APP)
    gate.open("adapters", heading="Sign in")
    gate.sign_in(secret)
    gate.until(lambda: gate.text("h1") == "Adapters")
    assert [link.text for link in gate.all("nav a")] == ["Overview", "Adapters", "Playground"]
    gate.open("keys", heading="Not with this key")
    gate.open("overview", heading="Overview")
    locked.world.keys.revoke(key.id)
    gate.refresh()
    gate.until(lambda: gate.text("h1") == "Sign in")
    assert all("401" in complaint for complaint in gate.complaints()), "the browser itself notes it"
