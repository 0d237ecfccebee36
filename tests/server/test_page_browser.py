"""The chat page, used as a person does, in a headless Chromium."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic_told import as_told, telling, told

from pyllm.config import SamplingParams
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.keys import Keys  # noqa: E402

HAS_BROWSER = bool(shutil.which("chromium") and shutil.which("chromedriver"))
pytestmark = [
    pytest.mark.skipif(not HAS_BROWSER, reason="chromium and chromedriver are not installed"),
    pytest.mark.slow,
]
pace = 0.0
"""Seconds that the model takes for a token."""
fails_at: bytes | None = None
"""The end of what is said at which the model fails."""


def _paced(tokens: Any, logits: Any) -> Any:
    time.sleep(pace)
    if fails_at is not None and bytes(token for token in tokens if token < 256).endswith(fails_at):
        raise RuntimeError("told to fail")
    return as_told(tokens, logits)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with telling(tmp_path_factory.mktemp("browser")) as rig:
        rig.house.models.loaded[0].llm.llm.sampling = SamplingParams(logits_processors=(_paced,))
        yield rig


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Person:
    """Who uses the page."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        self.url = url

    def one(self, selector: str) -> Any:
        """The first shown element; waits for it."""
        until(lambda: self.all(selector), 30)
        return self.all(selector)[0]

    def all(self, selector: str) -> list[Any]:
        return [e for e in self.driver.find_elements("css selector", selector) if e.is_displayed()]

    def texts(self, selector: str) -> list[str]:
        return self.run(f"return [...document.querySelectorAll({selector!r})].map(e => e.textContent)")  # type: ignore[no-any-return]

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def ask(self, text: str, answer: str = "", *, wait: bool = True) -> None:
        """Type a question and send it; the model answers as it is told."""
        if answer:
            told[:] = [answer.encode()]
        self.one("#question").send_keys(text, Keys.ENTER)
        if wait:
            self.done()

    def done(self) -> None:
        """Wait until the answer is complete."""
        until(lambda: not self.all(".message.live, #stop"), 60)

    def answers(self) -> list[str]:
        return self.texts(".assistant .body > .markdown")

    def questions(self) -> list[str]:
        return self.texts(".user .body")

    def errors(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]


@pytest.fixture
def person(driver: Any, rig: Rig) -> Iterator[Person]:
    global pace
    pace = 0.0
    told[:] = [b"Yes."]
    driver.set_window_size(1200, 850)
    driver.get(rig.url + "/")
    driver.execute_script("localStorage.clear(); sessionStorage.clear()")
    driver.get_log("browser")
    driver.get(rig.url + "/")
    person = Person(driver, rig.url)
    person.one("#model option")
    yield person
    pace = 0.0
    assert person.errors() == []


def test_a_question_and_its_answer(person: Person) -> None:
    global pace
    pace = 0.1
    person.ask("Is it?", "So it is, and *more* than that.", wait=False)
    until(lambda: "So it" in "".join(person.answers()))
    assert person.all("#stop")
    person.done()
    assert person.answers() == ["So it is, and more than that."]
    assert person.texts(".assistant em") == ["more"]
    assert person.questions() == ["Is it?"]
    assert "31 tokens" in person.texts(".figures")[0]
    assert "tokens/s" in person.texts(".figures")[0]
    assert person.driver.title == "Is it? – pyllm"


def test_shift_enter_begins_a_line(person: Person) -> None:
    person.one("#question").send_keys("a", Keys.SHIFT, Keys.ENTER, Keys.NULL, "b")
    assert person.questions() == []
    person.ask("", "Fine.")
    assert person.questions() == ["a\nb"]


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_and_go_on(person: Person, how: str) -> None:
    global pace
    pace = 0.3
    person.ask("Count.", "one two three four five six seven eight nine ten", wait=False)
    until(lambda: "one" in "".join(person.answers()))
    if how == "button":
        person.click("#stop")
    else:
        person.one("#question").send_keys(Keys.ESCAPE)
    person.done()
    (stopped,) = person.answers()
    assert "one" in stopped
    assert "ten" not in stopped
    assert "Stopped." in person.texts(".note")[0]
    pace = 0.0
    person.click(".note button")
    person.done()
    assert person.answers() == ["one two three four five six seven eight nine ten"]


def test_regenerate_and_edit_make_versions(person: Person) -> None:
    person.ask("First?", "Red.")
    told[:] = [b"Green."]
    person.click(".assistant [aria-label=Regenerate]")
    person.done()
    assert person.answers() == ["Green."]
    person.click(".assistant [aria-label='Previous version']")
    assert person.answers() == ["Red."]
    person.ask("Second?", "Blue.")
    told[:] = [b"Black."]
    person.click(".user [aria-label=Edit]")
    field = person.one(".user.edited textarea")
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, "Else?", Keys.ENTER)
    person.done()
    assert person.questions() == ["Else?"]
    assert person.answers() == ["Black."]
    person.click(".user [aria-label='Previous version']")
    assert person.questions() == ["First?", "Second?"]
    assert person.answers() == ["Red.", "Blue."]


def test_conversations_are_kept(person: Person) -> None:
    person.ask("Apples?", "Crisp.")
    person.one("#question").send_keys(Keys.CONTROL, "k")
    until(lambda: not person.questions())
    person.ask("Pears?", "Soft.")
    person.driver.refresh()
    until(lambda: person.answers() == ["Soft."])
    assert person.texts("#conversations .name") == ["Pears?", "Apples?"]
    person.all("#conversations .name")[1].click()
    until(lambda: person.answers() == ["Crisp."])
    person.click("[aria-label='Rename: Apples?']")
    person.one("#conversations input").send_keys(Keys.CONTROL, "a", Keys.NULL, "Fruit", Keys.ENTER)
    assert person.texts("#conversations .name") == ["Pears?", "Fruit"]
    person.click("[aria-label='Delete: Fruit']")
    assert person.texts("#conversations .name") == ["Pears?"]
    assert person.questions() == []
    person.click("#toast button")
    assert person.texts("#conversations .name") == ["Pears?", "Fruit"]
    assert person.answers() == ["Crisp."]


def test_another_conversation_while_an_answer_comes(person: Person) -> None:
    global pace
    pace = 0.02
    person.ask("Long?", "one two three four five six seven", wait=False)
    until(lambda: person.answers() != [""])
    person.one("#question").send_keys(Keys.CONTROL, "k")
    assert person.answers() == []
    person.click("#conversations .name")
    person.done()
    assert person.answers() == ["one two three four five six seven"]


NASTY = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>\n\n[a](javascript:window.hit=1) ![b](http://x.test/b.png)'


def test_what_a_model_says_is_never_html(person: Person) -> None:
    person.ask("<b>Be bad</b>", NASTY)
    assert person.answers()[0].startswith('<img src=x onerror="window.hit=1"><script>window.hit=1</script>')
    assert person.questions() == ["<b>Be bad</b>"]
    assert person.texts("#conversations .name") == ["<b>Be bad</b>"]
    assert person.run("return document.querySelectorAll('#messages img, #messages script, #messages b').length") == 0
    links = "return [...document.querySelectorAll('#messages a')].map(a => [a.href, a.rel, a.textContent])"
    assert person.run(links) == [["http://x.test/b.png", "noopener noreferrer", "b"]]
    assert person.run("return window.hit ?? null") is None


MARKDOWN = """\
## Title

1. one
   - in
2. **two**

| a | b |
|---|--:|
| 1 | `x|y` |

> said

```python
print('<b>')
```"""


def test_markdown(person: Person) -> None:
    person.ask("Show.", MARKDOWN)
    assert person.texts(".markdown h3") == ["Title"]
    assert person.texts(".markdown ol > li") == ["onein", "two"]
    assert person.texts(".markdown li li") == ["in"]
    assert person.texts(".markdown strong") == ["two"]
    assert person.texts(".markdown th") == ["a", "b"]
    assert person.texts(".markdown td") == ["1", "x|y"]
    assert person.texts(".markdown blockquote") == ["said"]
    assert person.texts(".code pre") == ["print('<b>')"]
    assert person.texts(".code-top span") == ["python"]
    assert person.all(".code [aria-label='Copy the code']")


def test_reasoning_is_folded(person: Person) -> None:
    person.ask("Think.", "<think>Hard to say.</think>Nine.")
    assert person.answers() == ["Nine."]
    assert person.texts(".fold .markdown") == ["Hard to say."]
    assert not person.all(".fold .markdown")
    person.click(".fold summary")
    assert person.all(".fold .markdown")


PARAMETERS = '{"type": "object", "properties": {"city": {"type": "string"}}}'
TOOLS = f'[{{"type": "function", "function": {{"name": "weather", "parameters": {PARAMETERS}}}}}]'


def test_calls_are_shown_and_take_a_result(person: Person) -> None:
    person.click("#settings-open")
    person.click("#settings details summary")
    person.one("#set-tools").send_keys(TOOLS)
    person.click("#settings .main")
    person.ask("Weather?", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>')
    assert person.texts(".call summary code") == ["weather"]
    assert "Paris" in person.texts(".call pre")[0]
    told[:] = [b"Sunny."]
    person.one(".call textarea").send_keys("20 degrees")
    person.click(".call .main")
    until(lambda: person.answers()[-1] == "Sunny.")


def test_settings_reach_the_model(person: Person, rig: Rig) -> None:
    person.click("#settings-open")
    person.one("#set-system").send_keys("Be brief.")
    person.one("[name=max_tokens]").send_keys("3")
    person.click("#settings .main")
    person.ask("How?", "So and so.")
    assert person.answers() == ["So"]
    assert "limit of tokens" in person.texts(".note")[0]
    person.driver.refresh()
    person.click("#settings-open")
    assert person.one("#set-system").get_attribute("value") == "Be brief."
    person.one("#set-system").send_keys(Keys.ESCAPE)


def test_an_error_is_said_and_can_be_tried_again(person: Person) -> None:
    person.ask("x" * 1500)
    assert "1024" in person.texts(".problem")[0]
    assert person.all(".message .problem button")
    assert person.errors()  # the browser's own line on the status
    person.run("localStorage.clear(); sessionStorage.clear()")


def test_an_answer_that_fails_midway_can_be_tried_again(person: Person) -> None:
    global fails_at
    fails_at = b"half"
    try:
        person.ask("Both?", "One half and another.")
        assert person.answers()[0].startswith("One")
        assert person.all(".message .problem")
    finally:
        fails_at = None
    person.click(".problem button")
    person.done()
    assert person.answers() == ["One half and another."]
    assert not person.all(".message .problem")


def test_dark_and_light(person: Person) -> None:
    def ground() -> str:
        return person.run("return getComputedStyle(document.body).backgroundColor")  # type: ignore[no-any-return]

    person.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    dark = ground()
    person.click("#theme")
    light = ground()
    assert light != dark
    person.driver.refresh()
    assert ground() == light
    person.click("#theme")
    assert ground() == dark
    person.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_phone(person: Person) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    person.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        person.driver.refresh()
        until(lambda: not person.all("#side"))
        person.one("#question").send_keys("Hello")
        person.click("#send")
        person.done()
        assert person.run("return document.documentElement.scrollWidth <= innerWidth")
        person.click("#side-open")
        person.one("#conversations .name")
        person.one("#question").send_keys(Keys.ESCAPE)
        until(lambda: not person.all("#side"))
    finally:
        person.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_who_scrolls_up_is_left_there(person: Person) -> None:
    global pace
    person.driver.set_window_size(900, 500)
    pace = 0.02
    person.ask("Many lines.", "a\n\n" * 100, wait=False)
    top = "return document.getElementById('scroll').scrollTop"
    until(lambda: person.run(top) > 200)
    person.run("document.getElementById('scroll').scrollTop = 50")
    before = len(person.texts(".markdown p"))
    until(lambda: len(person.texts(".markdown p")) > before + 2)
    assert person.run(top) == 50
    person.click("#to-end")
    until(lambda: person.run(top) > 200)
    person.click("#stop")
    person.done()


def test_a_server_with_a_key(driver: Any, tmp_path: Any) -> None:
    with running(write_tiny_gguf(tmp_path / "tiny.gguf"), api_keys=("secret",)) as rig:
        driver.get(rig.url + "/")
        person = Person(driver, rig.url)
        person.one("#key-field").send_keys("wrong", Keys.ENTER)
        until(lambda: person.all("#key-problem"))
        person.one("#key-field").send_keys("secret", Keys.ENTER)
        person.one("#model option")
        person.driver.refresh()
        person.one("#model option")
        assert not person.all("#key")
    driver.get_log("browser")
