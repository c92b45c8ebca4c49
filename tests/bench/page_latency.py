"""How soon a turn of live training is on the page: `python -m tests.bench.page_latency [--turns 200] [--json]`.

Trains for real, with the page in Chromium on episodes that are under way. Latency is from the event's timestamp, which its driver
gives it before it is stored, to the change of the document.
"""

import argparse
import asyncio
import json
import shutil
import time
from typing import Any

import aiohttp
from playwright.async_api import Browser, async_playwright

from tests.bench.live_run import LiveRun, live_run
from tests.page.test_live import WATCH, percentile

N_TABS = 4
TIMEOUT_S = 600.0
TURN = "-tokens"


async def get(session: aiohttp.ClientSession, live: LiveRun, path: str, **params: str) -> Any:
    """An answer of the viewer."""
    async with session.get(f"{live.url}api/runs/{live.run}{path}", params=params) as answer:
        return await answer.json()


async def latencies_of(browser: Browser, session: aiohttp.ClientSession, live: LiveRun, episode: str) -> list[float]:
    """Seconds from event to document for every turn that came while the page stood open."""
    page = await browser.new_page()
    try:
        await page.add_init_script(WATCH)
        await page.goto(f"{live.url}runs/{live.run}/episodes/{episode}")
        await page.wait_for_selector("[data-items]", timeout=20_000)
        open_since_s = time.time()
        async with asyncio.timeout(120.0):
            while (await get(session, live, f"/episodes/{episode}"))["row"]["ended_ns"] == 0:  # noqa: ASYNC110 -- the end has no event here
                await asyncio.sleep(0.5)
        await asyncio.sleep(1.5)
        seen: dict[str, float] = await page.evaluate("window.__seen")
        items = (await get(session, live, f"/episodes/{episode}"))["items"]
    finally:
        await page.close()
    turns = [item for item in items if item["id"].endswith(TURN) and item["at_ns"] / 1e9 > open_since_s]
    missing = [item["id"] for item in turns if item["id"] not in seen]
    assert not missing, f"never shown: {missing}"
    return [seen[item["id"]] / 1e3 - item["at_ns"] / 1e9 for item in turns]


async def measure(live: LiveRun, n_turns: int) -> list[float]:
    """Latencies of at least `n_turns` turns, from N_TABS pages at a time."""
    found: list[float] = []
    begun_s = time.monotonic()
    async with async_playwright() as playwright, aiohttp.ClientSession() as session:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        while len(found) < n_turns and time.monotonic() - begun_s < TIMEOUT_S:
            rows = (await get(session, live, "/episodes", stage="open", limit=str(N_TABS)))["rows"]
            parts = await asyncio.gather(*(latencies_of(browser, session, live, row["episode"]) for row in rows))
            found.extend(each for part in parts for each in part)
        await browser.close()
    return found


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with live_run() as live:
        found = asyncio.run(measure(live, options.turns))
    shares = {"p50_s": 0.5, "p99_s": 0.99}
    result = {
        "turns": len(found),
        **{name: round(percentile(found, share), 3) for name, share in shares.items()},
        "max_s": round(max(found), 3),
    }
    print(json.dumps(result) if options.json else "\n".join(f"{name:<8} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
