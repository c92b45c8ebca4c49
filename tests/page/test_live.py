"""The page while a run goes on: how soon a turn is seen, what outages leave behind, and ten thousand episodes."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from asearch.errors import BusError, ConflictError
from schemas.events import EpisodeRequested, TokensGenerated
from tests.page.conftest import NewReader, Reader, Served, serve
from tests.page.recorded import Recorded, episodes, of_stream

pytestmark = pytest.mark.asyncio(loop_scope="session")

N_TURNS = 200
LATEST_S = 1.0
N_OPEN = 6
"""Episodes that are open in tabs of their own; together they have N_TURNS turns."""
OPENS_S, FILTERS_S = 2.0, 0.3
WATCH = """
    window.__seen = {};
    new MutationObserver(() => {
        const now = performance.timeOrigin + performance.now();
        for (const element of document.querySelectorAll("[data-items]")) {
            for (const id of element.dataset.items.split(" ")) window.__seen[id] ??= now;
        }
    }).observe(document, {childList: true, subtree: true, attributes: true, attributeFilter: ["data-items"]});
"""


@pytest_asyncio.fixture(loop_scope="session")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A run that goes on, with nothing in its streams yet."""
    held = await serve(tmp_path_factory.mktemp("live"), "live", live=True)
    try:
        await held.start_viewer()
        yield held
    finally:
        await held.close()


# --- a feed at the rate of the recorded run ---


def plan_of(names: Iterable[str]) -> list[Recorded]:
    """The requests and answer keys of episodes."""
    wanted = set(names)
    return [each for each in of_stream("plan") if not isinstance(each.event, EpisodeRequested) or each.event.episode in wanted]


def longest(n: int) -> list[str]:
    """The episodes with the most turns."""
    return sorted(episodes(), key=lambda name: -sum(isinstance(each.event, TokensGenerated) for each in episodes()[name]))[:n]


def renamed(facts: Sequence[Recorded], name: str) -> list[Recorded]:
    """The facts of an episode under another name."""
    data = [msgspec.json.encode(each.event) for each in facts]
    old = facts[0].key[-1]
    found: list[Recorded] = []
    for each, text in zip(facts, data, strict=True):
        event = msgspec.json.decode(text.replace(f'"{old}'.encode(), f'"{name}'.encode()), type=type(each.event))
        found.append(Recorded(each.stream, (name,), event))
    return found


@dataclass
class Sent:
    """What was appended: when, on the clock of the machine, and which fact it was."""

    at_s: dict[str, float]
    facts: dict[str, list[str]]

    def turns(self) -> list[str]:
        """The ids of generations."""
        return [fact for fact in self.at_s if fact.endswith("-tokens")]


async def play(live: Served, names: Sequence[str], sources: Sequence[str], sent: Sent, *, speed: float = 1.0) -> None:
    """Append the facts of episodes with the spacing of their record; each carries the time at which it was appended."""

    async def one(name: str, source: str) -> None:
        facts = renamed(episodes()[source], name)
        begin_ns = facts[0].event.at_ns
        began_s = time.monotonic()
        last = 0
        for number, each in enumerate(facts):
            due_s = began_s + (each.event.at_ns - begin_ns) / 1e9 / speed
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            at_ns = time.time_ns()
            facts[number] = Recorded(each.stream, each.key, msgspec.structs.replace(each.event, at_ns=at_ns))
            last = await append(live, facts[: number + 1], last)
            sent.at_s[each.event.id] = at_ns / 1e9
            sent.facts.setdefault(name, []).append(each.event.id)

    async with asyncio.TaskGroup() as tasks:
        for name, source in zip(names, sources, strict=True):
            tasks.create_task(one(name, source))


async def append(live: Served, facts: Sequence[Recorded], last: int) -> int:
    """Append the last of these behind the sequence `last`, as a driver does; behind what is left where the broker lost a tail."""
    key = facts[-1].key
    async with asyncio.timeout(30.0):
        while True:
            try:
                return await live.bus.append(facts[-1].event, *key, expected=last, timeout_s=2.0)
            except ConflictError:
                left = await live.bus.read_key("trace", *key)
                last = left[-1].sequence if left else 0
                for each in facts[len(left) : -1]:
                    last = await live.bus.append(each.event, *key, expected=last)
            except BusError:
                await asyncio.sleep(0.1)


async def request(live: Served, names: Sequence[str], sources: Sequence[str]) -> None:
    """Request episodes under new names."""
    requests = {each.event.episode: each for each in of_stream("plan") if isinstance(each.event, EpisodeRequested)}
    for name, source in zip(names, sources, strict=True):
        asked = requests[source].event
        await live.bus.append(msgspec.structs.replace(asked, id=f"request-{name}", episode=name, at_ns=time.time_ns()), name)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@pytest.mark.parametrize("n_turns", [40, pytest.param(N_TURNS, marks=pytest.mark.slow)])
async def test_a_turn_is_on_the_page_within_a_second_of_its_event(live: Served, new_reader: NewReader, n_turns: int) -> None:
    readers = [await new_reader() for _ in range(N_OPEN)]
    sources = longest(N_OPEN)
    seen: dict[str, float] = {}
    sent = Sent({}, {})
    n_rounds = 0
    pages = [await reader.open(live.at("episodes")) for reader in readers]
    for page in pages:
        await page.add_init_script(WATCH)
    while len([fact for fact in sent.turns() if fact in seen]) < n_turns:
        names = [f"r{n_rounds}-{number}" for number in range(N_OPEN)]
        n_rounds += 1
        await request(live, names, sources)
        await asyncio.gather(
            *(page.goto(live.at("episodes", name)) for page, name in zip(pages, names, strict=True)),
        )
        for page in pages:
            await expect(page.locator(".ending")).to_contain_text("no driver has it yet")
        await play(live, names, sources, sent)
        for page, name in zip(pages, names, strict=True):
            await expect(page.locator(f"[data-items~='{sent.facts[name][-1]}']")).to_have_count(1)
            seen.update(await page.evaluate("window.__seen"))
    late = [seen[fact] / 1e3 - sent.at_s[fact] for fact in sent.turns()]
    assert all(fact in seen for fact in sent.turns())
    figures = {"n": len(late), "p50_s": percentile(late, 0.5), "p99_s": percentile(late, 0.99), "max_s": max(late)}
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    assert len(late) >= n_turns and figures["p99_s"] < LATEST_S, figures


# --- outages ---


async def trouble(page: Page, kind: str) -> None:
    """The banner says that this is gone."""
    await expect(page.locator(f"#banner [data-trouble={kind}]")).to_be_visible(timeout=15_000)


async def well(page: Page) -> None:
    """Nothing is wrong any more."""
    await expect(page.locator("#banner .trouble")).to_have_count(0, timeout=20_000)


def may_be_away(reader: Reader) -> None:
    """A viewer that is gone is an error to the browser, a broker that is gone one to the viewer."""
    reader.may_complain = lambda text: (
        "ERR_CONNECTION" in text or "503" in text or "ERR_INCOMPLETE" in text or "ERR_EMPTY" in text
    )


async def items_of(page: Page) -> list[str]:
    """The ids of all that the episode page shows, repeats included."""
    return await page.eval_on_selector_all(
        ".turns [data-items]:not(details):not(.lost)", "all => all.flatMap((each) => each.dataset.items.split(' '))"
    )


@pytest.mark.parametrize("victim", ["viewer", "broker"])
async def test_an_outage_loses_and_repeats_nothing(live: Served, new_reader: NewReader, victim: str) -> None:
    reader = await new_reader()
    may_be_away(reader)
    sources = longest(3)
    names = [f"o-{number}" for number in range(3)]
    await request(live, names, sources)
    episode, rows = await reader.open(live.at("episodes", names[0])), await reader.open(live.at("episodes"))
    await expect(rows.locator(".row[data-name]")).to_have_count(3)
    sent = Sent({}, {})
    playing = asyncio.create_task(play(live, names, sources, sent, speed=0.4))
    await expect(episode.locator(".turn").first).to_be_visible()
    before = len(await items_of(episode))
    if victim == "viewer":
        await live.kill_viewer()
    else:
        await live.kill_broker()
    await trouble(episode, victim)
    await trouble(rows, victim)
    if victim == "viewer":
        await live.start_viewer()
    else:
        await live.start_broker()
    await well(episode)
    await well(rows)
    assert not playing.done() or before < len(sent.facts[names[0]])
    await playing
    outcomes = {each.key[-1]: each.event for each in of_stream("outcomes")}
    for name, source in zip(names, sources, strict=True):
        ended = msgspec.structs.replace(outcomes[source], id=f"outcome-{name}", episode=name, at_ns=time.time_ns())
        await live.bus.append(ended, name, timeout_s=10.0)
    await expect(episode.locator(".answer-box")).to_be_visible()
    shown = [item for item in await items_of(episode) if not item.endswith("-shown")]
    told = [fact for fact in sent.facts[names[0]] if not fact.endswith(("-finished",)) and "-taken-" not in fact]
    assert sorted(shown) == sorted(told)
    await expect(rows.locator(".row .stage-graded")).to_have_count(3)
    turns = [sum(fact.endswith("-tokens") for fact in sent.facts[name]) for name in names]
    assert sorted(map(int, await rows.locator(".row[data-name] .c-turns").all_inner_texts())) == sorted(turns)
    names_shown = await rows.locator(".row[data-name]").evaluate_all("rows => rows.map((row) => row.dataset.name)")
    assert sorted(names_shown) == sorted(names)


# --- many episodes ---


async def fill(held: Served, n: int) -> None:
    """So many ended episodes: recorded requests and outcomes under new names."""
    requests = [each.event for each in of_stream("plan") if isinstance(each.event, EpisodeRequested)]
    outcomes = {each.key[-1]: each.event for each in of_stream("outcomes")}
    turn = asyncio.Semaphore(256)
    bus = await connect(held.broker.url, held.run, "driver-9", SystemPlatform())

    async def one(number: int) -> None:
        asked = requests[number % len(requests)]
        outcome, name = outcomes[asked.episode], f"m-{number:05d}"
        group = f"{asked.group}-{number // len(requests)}"
        task = msgspec.structs.replace(asked.task, question=f"{asked.task.question} ({number})")
        async with turn:
            await bus.append(msgspec.structs.replace(asked, id=f"q-{name}", episode=name, group=group, task=task), name)
            await bus.append(msgspec.structs.replace(outcome, id=f"o-{name}", episode=name, group=group), name)

    async with asyncio.TaskGroup() as tasks:
        for number in range(n):
            tasks.create_task(one(number))
    await bus.close()


FILTER_TIMES = """async (act) => {
    const rows = () => [...document.querySelectorAll(".windowed .row[data-name]")].map((row) => row.dataset.name).join();
    const before = rows() + document.querySelector(".filter-count").textContent;
    const began = performance.now();
    const input = document.querySelector(act.field);
    input.value = act.value;
    input.dispatchEvent(new Event(input.tagName === "SELECT" ? "change" : "input", {bubbles: true}));
    while (rows() + document.querySelector(".filter-count").textContent === before) {
        if (performance.now() - began > 5000) throw new Error("the rows did not change");
        await new Promise(requestAnimationFrame);
    }
    return (performance.now() - began) / 1e3;
}"""
FILTERS = (
    ("input[name=text]", "patron"),
    ("select[name=correct]", "true"),
    ("select[name=purpose]", "train"),
    ("input[name=min_turns]", "3"),
    ("input[name=text]", "(77"),
)


@pytest.mark.parametrize("n", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_many_episodes_open_and_filter_at_once(
    tmp_path_factory: pytest.TempPathFactory, new_reader: NewReader, n: int
) -> None:
    held = await serve(tmp_path_factory.mktemp("many"), "many", live=True)
    try:
        await fill(held, n)
        await held.start_viewer()
        reader = await new_reader()
        page = await reader.open(held.at())
        await expect(page.locator("section[aria-label=Accounting] tbody tr").first).to_contain_text(f"{n:,}", timeout=30_000)
        began_s = time.monotonic()
        await page.goto(held.at("episodes"), wait_until="commit")
        await expect(page.locator(".filter-count")).to_have_text(f"{n:,} episodes")
        await expect(page.locator(".windowed .row[data-name]").first).to_be_visible()
        opened_s = time.monotonic() - began_s
        times: list[float] = []
        for field, value in FILTERS:
            times.append(await page.evaluate(FILTER_TIMES, {"field": field, "value": value}))
            await page.get_by_role("button", name="clear", exact=True).click()
            await expect(page.locator(".filter-count")).to_have_text(f"{n:,} episodes")
        print(json.dumps({"n": n, "opens_s": round(opened_s, 3), "filters_s": [round(each, 3) for each in times]}))
        assert opened_s < OPENS_S
        assert max(times) < FILTERS_S
        await scrolls(page, n)
        await page.goto("about:blank")
    finally:
        await held.close()


async def scrolls(page: Page, n: int) -> None:
    """To the end and back by the keyboard; few rows exist at any time."""
    await page.evaluate("document.activeElement.blur()")
    await page.keyboard.press("End")
    await expect(page.locator(f"#row-{n - 1}[data-name]")).to_be_visible()
    assert await page.locator(".windowed .row").count() < 80
    await page.keyboard.press("Home")
    await expect(page.locator("#row-0[data-name]")).to_be_visible()


async def test_rows_that_come_in_above_do_not_move_the_reader(live: Served, new_reader: NewReader) -> None:
    await fill(live, 200)
    page = await (await new_reader()).open(live.at("episodes"))
    await expect(page.locator(".filter-count")).to_have_text("200 episodes")
    await page.evaluate("document.querySelector('.windowed').scrollTop = 60 * 29 + 7")
    await expect(page.locator("#row-60[data-name]")).to_be_visible()
    name = await page.locator("#row-60").get_attribute("data-name")
    top = await page.locator("#row-60").evaluate("row => row.getBoundingClientRect().top")
    asked = next(each.event for each in of_stream("plan") if isinstance(each.event, EpisodeRequested))
    for number in range(130):
        new = f"n-{number}"
        await live.bus.append(msgspec.structs.replace(asked, id=f"q-{new}", episode=new), new)
    await expect(page.locator(".filter-count")).to_have_text("330 episodes")
    row = page.locator(f".row[data-name='{name}']")
    await expect(row).to_have_attribute("id", "row-190")
    assert await row.evaluate("row => row.getBoundingClientRect().top") == pytest.approx(top, abs=1)


async def test_windows_that_stand_beside_each_other_do_not_use_up_the_connections(live: Served, new_reader: NewReader) -> None:
    await fill(live, 6)
    reader = await new_reader()
    pages = [await reader.open(live.at("episodes", f"m-{number:05d}")) for number in range(5)]
    for page in pages:
        await expect(page.locator(".answer-box, .empty-title, .ending").first).to_be_visible()
