"""What a model or a page writes is shown as text, whatever it is: nothing of it runs, and nothing of it hides."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from actors.driver import Driver
from actors.grader import Grader
from actors.runtime.actor import Actor, Context
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import read_run_file, write_run_file
from actors.tool import Tool
from asearch.tools.base import ToolSet
from schemas.commands import Generate
from schemas.events import AnswerKeyStored, EpisodeRequested
from schemas.records import AnswerKey, Document, Task, ToolResult
from tests.actors.acting import ActingEngine
from tests.page.conftest import NewReader, Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

RUNS = "window.__pwned = true"
SCRIPT = f"<script>{RUNS}</script>"
IMAGE = f'<img src=x onerror="{RUNS}">'
HANDLER = f'"><b onmouseover="{RUNS}" style="position:fixed;inset:0" autofocus onfocus="{RUNS}">'
ADDRESS = f"javascript:{RUNS}//"
TURNED = "\u202egnp.exe\u2066 \u200fabc\u0000\u001b[31m"
LONG = "All work and no play. " * (1_000_000 // 22 + 1)
QUESTION = f"{SCRIPT} Which {TURNED} colour? {IMAGE}"
WANTED = f"{IMAGE}{SCRIPT}red"
EPISODE = "hostile-0"


class HostileTool:
    """Returns what nobody should trust; one argument fails with a message of that kind."""

    name = "search"
    parameter = "query"

    async def call(self, arguments: Mapping[str, str], *, deadline_s: float) -> ToolResult:
        """One call."""
        if "fail" in arguments[self.parameter]:
            return ToolResult(error="permanent", message=f"{SCRIPT}{TURNED} could not be reached {IMAGE}")
        return ToolResult(
            documents=[
                Document(url=ADDRESS, title=f"{SCRIPT}title{TURNED}", text=f"{SCRIPT}{IMAGE}{HANDLER} short"),
                Document(url=f"https://x/{HANDLER}", title="long", text=f"{IMAGE}{LONG}{SCRIPT}"),
                Document(url="x", title=HANDLER, text=TURNED),
            ]
        )


async def write(engine: ActingEngine, command: Generate) -> None:
    """Thoughts, queries and an answer that are markup."""
    texts = (
        f" {SCRIPT}{IMAGE} thought {HANDLER} </think> <search> {IMAGE} first </search>",
        f" {TURNED} </think> <search> fail {SCRIPT} </search>",
        f" so {HANDLER} </think> <answer> {WANTED} </answer>",
    )
    await engine.say(command, engine.ids(texts[min(len(engine.asked), len(texts)) - 1]))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hostile(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A run with one episode, by a real driver, tool and grader."""
    held = await serve(tmp_path_factory.mktemp("hostile"), "hostile", live=True)
    content = read_run_file(held.folder)
    agent = msgspec.structs.replace(content.settings.agent, max_context_tokens=2_000_000, max_new_tokens=4000)
    content = msgspec.structs.replace(content, settings=msgspec.structs.replace(content.settings, agent=agent))
    write_run_file(held.folder, content)
    buses = [
        await connect(held.broker.url, held.run, name, SystemPlatform())
        for name in ("engine-0", "driver-1", "tool-0", "grader-0")
    ]

    def context(number: int, name: str) -> Context:
        return Context(held.run, held.folder, content.settings, buses[number], SystemPlatform(), name)

    try:
        driver = Driver(context(1, "driver-1"), content.model_dir)
        engine = await ActingEngine(buses[0], "engine-0", driver._agent._tokenizer, write).start()
        actors: list[Actor] = [
            driver,
            Tool(context(2, "tool-0"), "", tools=ToolSet(HostileTool())),
            Grader(context(3, "grader-0")),
        ]
        living = [asyncio.create_task(actor.run(1.0)) for actor in actors]
        task = Task(id="<b>task</b>", question=QUESTION, meta={"hops": "1"})
        await held.bus.append(AnswerKeyStored(id="k", key=AnswerKey(task=task.id, answers=["red", SCRIPT])), "task")
        await held.bus.append(
            EpisodeRequested(
                id="r",
                at_ns=1,
                episode=EPISODE,
                group="g",
                member=0,
                members=1,
                slot=0,
                purpose="train",
                task=task,
                seed=1,
                progress=0,
                recipe_hash="h",
            ),
            EPISODE,
        )
        async with asyncio.timeout(20.0):
            while not await held.bus.last_sequence("outcomes"):  # noqa: ASYNC110 -- a stream has no event here
                await asyncio.sleep(0.05)
        engine.stop_beating()
        for actor in actors:
            actor.stop()
        await asyncio.gather(*living)
        await held.start_viewer()
        yield held
    finally:
        for bus in buses:
            await bus.close()
        await held.close()


async def is_harmless(page: Page) -> None:
    """Nothing ran, and no element stands there that only the texts could have made."""
    await page.mouse.move(300, 300)
    await page.wait_for_timeout(100)
    assert await page.evaluate("window.__pwned") is None
    assert (
        await page.locator("main script, main img, main iframe, main [onmouseover], main [onerror], main b[style]").count() == 0
    )
    hrefs = await page.eval_on_selector_all("main a", "links => links.map((link) => link.getAttribute('href'))")
    assert all(href.startswith("/") and not href.startswith("//") for href in hrefs)
    text = await page.inner_text("main")
    assert not set(text) & set("\u202e\u2066\u200f\x00\x1b")


async def test_an_episode_of_markup_is_text(hostile: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(hostile.at("episodes", EPISODE))
    await expect(page.locator(".turn")).to_have_count(3)
    await is_harmless(page)
    question = await page.inner_text("h1")
    assert SCRIPT in question and IMAGE in question and "RLO" in question and "LRI" in question and "NUL" in question
    assert SCRIPT in await page.inner_text(".turn >> nth=0")
    assert ADDRESS in await page.inner_text(".document .url >> nth=0")
    assert "RLO" in await page.inner_text(".document .title >> nth=0")
    assert SCRIPT in await page.inner_text(".call-error")
    assert IMAGE in await page.inner_text(".answer-box")


async def test_a_megabyte_is_shown_in_part_and_on_demand_in_full(hostile: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(hostile.at("episodes", EPISODE))
    long = page.locator(".document").nth(1)
    n = len(IMAGE + LONG + SCRIPT)
    await expect(long.get_by_role("button")).to_have_text(f"show all {n:,} characters")
    assert len(await long.locator(".long-part").inner_text()) <= 2001
    await long.get_by_role("button").click()
    assert await long.locator(".long-full").evaluate("box => box.textContent.length") == n
    assert await long.locator(".long-full").evaluate(
        "box => box.textContent.endsWith('</script>') && box.querySelector('script') === null"
    )
    height = await long.locator(".long-full").evaluate("box => box.clientHeight")
    assert height < 700
    await is_harmless(page)


@pytest.mark.parametrize("parts", [("episodes",), ("episodes", EPISODE, "tokens"), ("groups", "g"), ()])
async def test_the_other_views_of_it_are_text_too(hostile: Served, new_reader: NewReader, parts: tuple[str, ...]) -> None:
    page = await (await new_reader(390)).open(hostile.at(*parts))
    await expect(page.locator("main").locator("canvas, .row[data-name], .token, .member, .figures dt").first).to_be_visible()
    await is_harmless(page)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if parts:
        assert "script" in await page.inner_text("main")
