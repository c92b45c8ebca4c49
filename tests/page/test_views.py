"""Every view shows the recorded run, wide and narrow, dark and light, by mouse and by keyboard; its addresses are links."""

import math
import re

import pytest
from playwright.async_api import Page, expect

from schemas.events import EpisodeFinished, EpisodeGraded, EpisodeRequested, ToolReturned
from tests.page.conftest import OTHER, NewReader, Served
from tests.page.recorded import episodes, of_stream

pytestmark = pytest.mark.asyncio(loop_scope="session")

OUTCOMES = {each.key[-1]: each.event for each in of_stream("outcomes")}
REQUESTS = {each.event.episode: each.event for each in of_stream("plan") if isinstance(each.event, EpisodeRequested)}
N = len(REQUESTS)
SHOWN = ".windowed .row[data-name]"


def an_episode() -> str:
    """One of training with a search, an answer and an advantage: the rewards of its group differ."""
    graded = [each for each in OUTCOMES.values() if isinstance(each, EpisodeGraded) and each.purpose == "train"]
    mixed = {e.group for e in graded if len({o.reward.value for o in graded if o.group == e.group}) > 1}
    return next(e.episode for e in graded if e.group in mixed and e.n_searches > 1 and e.answer and e.correct)


EPISODE = an_episode()
GROUP = REQUESTS[EPISODE].group


def views() -> dict[str, tuple[str, ...]]:
    """The views by name: the parts of their addresses."""
    return {
        "run": (),
        "episodes": ("episodes",),
        "episode": ("episodes", EPISODE),
        "tokens": ("episodes", EPISODE, "tokens"),
        "group": ("groups", GROUP),
        "behaviour": ("behaviour",),
    }


SIGNS = {
    "run": ".chart canvas",
    "episodes": SHOWN,
    "episode": ".turn",
    "tokens": ".token.trained",
    "group": ".member-turns li",
    "behaviour": ".behaviour canvas",
}


async def overflow(page: Page) -> list[str]:
    """What stands out to the right of the window."""
    return await page.evaluate("""() => document.documentElement.scrollWidth <= innerWidth ? [] :
        [...document.querySelectorAll("main *, header *")].filter((each) => each.getBoundingClientRect().right > innerWidth + 1)
            .slice(0, 5).map((each) => `${each.tagName}.${each.className}`).concat("overflow")""")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
async def test_every_view_shows_the_run_without_an_error_and_without_overflow(
    shown: Served, new_reader: NewReader, width: int, scheme: str
) -> None:
    reader = await new_reader(width, 844, scheme)
    page = await reader.open(shown.at())
    for name, parts in views().items():
        await page.goto(shown.at(*parts))
        await expect(page.locator(SIGNS[name]).first).to_be_visible()
        assert await overflow(page) == [], name
        assert await page.evaluate("document.documentElement.dataset.theme") == scheme
        ink, paper = await page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert contrast(ink, paper) > 7, name


def contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


async def test_every_text_of_the_theme_can_be_read(shown: Served, new_reader: NewReader) -> None:
    reader = await new_reader()
    page = await reader.open(shown.at("episodes"))
    for _ in range(2):
        for name in ("ink", "ink-2", "ink-3", "accent", "good", "bad", "warn-ink", "key"):
            colours = await page.evaluate(
                """(name) => ["--" + name, "--paper", "--raised", "--sunk"].map((each) => {
                    const probe = document.body.appendChild(document.createElement("i"));
                    probe.style.color = `var(${each})`;
                    const found = getComputedStyle(probe).color;
                    probe.remove();
                    return found;
                })""",
                name,
            )
            for ground in colours[1:]:
                assert contrast(colours[0], ground) >= 4.5, (name, ground)
        await page.keyboard.press("d")


async def test_the_run_shows_its_accounts_and_curves(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at())
    accounting = page.locator("section[aria-label=Accounting]")
    await expect(accounting.locator("tbody tr").first).to_contain_text(str(N))
    await expect(accounting).to_contain_text("both identities hold")
    assert await accounting.locator("td.sign.yes").count() == 2 * await accounting.locator("tbody tr").count()
    graded = sum(isinstance(each, EpisodeGraded) for each in OUTCOMES.values())
    first_row = accounting.locator("tbody tr").first.locator("td.num")
    numbers = [int(text) for text in await first_row.all_inner_texts()]
    assert numbers[:2] == [N, graded] and numbers[0] == sum(numbers[1:5]) and numbers[5] == sum(numbers[6:])
    titles = await page.locator(".chart-title").all_inner_texts()
    assert {"Reward", "Accuracy", "Staleness", "Throughput", "Queue ages", "Tool latency", "Drops by reason", "Cost"} <= set(
        titles
    )
    reward = page.locator(".chart", has=page.get_by_text("Reward", exact=True))
    await expect(reward.locator("canvas")).to_be_visible()
    assert "step 4" in await reward.locator(".at").inner_text()
    assert await page.locator("section[aria-label=Evaluation] .ci").count() > 1
    assert await page.locator(".timeline .tl-published").count() >= 5


async def test_the_list_is_filtered_by_the_bar_and_the_address_keeps_it(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("episodes"))
    await expect(page.locator(".filter-count")).to_have_text(f"{N} episodes")
    word = REQUESTS[EPISODE].task.question.split()[2].split("'")[0]
    await page.keyboard.press("/")
    await page.keyboard.type(word)
    wanted = {
        name
        for name, asked in REQUESTS.items()
        if word.lower() in f"{asked.task.question}\n{getattr(OUTCOMES[name], 'answer', '')}".lower()
    }
    await expect(page.locator(".filter-count")).to_have_text(f"{len(wanted)} of {N} episodes")
    assert set(await page.locator(SHOWN).evaluate_all("rows => rows.map((row) => row.dataset.name)")) <= wanted
    await page.select_option("select[name=correct]", "true")
    right = {name for name in wanted if getattr(OUTCOMES[name], "correct", None)}
    await expect(page.locator(".filter-count")).to_have_text(f"{len(right)} of {N} episodes")
    assert page.url.endswith(f"episodes?text={word}&correct=true")
    await page.reload()
    await expect(page.locator(".filter-count")).to_have_text(f"{len(right)} of {N} episodes")
    assert await page.input_value("input[name=text]") == word
    await page.fill("input[name=min_turns]", "99")
    await expect(page.locator(".empty-list")).to_contain_text("No episode is like this")
    await page.keyboard.press("Escape")
    await page.keyboard.press("Escape")
    await expect(page.locator(".filter-count")).to_have_text(f"{N} episodes")


async def test_the_list_is_sorted_by_its_heads(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("episodes"))
    await page.locator(".heads .c-turns button").click()
    await expect(page.locator(".heads .c-turns")).to_have_attribute("aria-sort", "descending")
    turns = [each.n_turns for each in OUTCOMES.values() if isinstance(each, EpisodeGraded)]
    await expect(page.locator("#row-0 .c-turns")).to_have_text(str(max(turns)))
    await page.locator(".heads .c-turns button").click()
    await expect(page.locator("#row-0 .c-turns")).to_have_text(str(min(turns)))


async def test_the_keyboard_leads_everywhere_and_back(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("episodes"))
    await expect(page.locator(SHOWN).first).to_be_visible()
    for key in ("j", "j", "j", "k"):
        await page.keyboard.press(key)
    chosen = page.locator(".row.selected")
    await expect(chosen).to_have_attribute("id", "row-1")
    name = await chosen.get_attribute("data-name")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(shown.at("episodes", str(name)))
    await expect(page.locator(".turn").first).to_be_visible()
    await page.keyboard.press("j")
    await expect(page.locator(".turn.selected")).to_have_attribute("id", "turn-1")
    await page.keyboard.press("t")
    await expect(page.locator(".segment").first).to_be_visible()
    await page.keyboard.press("u")
    await expect(page.locator(".turn").first).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(chosen).to_have_attribute("data-name", str(name))
    await page.keyboard.press("?")
    await expect(page.locator("dialog.help")).to_contain_text("next episode")
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog.help")).to_have_count(0)
    for keys, place in (("gb", "behaviour"), ("gr", ""), ("ge", "episodes")):
        for key in keys:
            await page.keyboard.press(key)
        await expect(page).to_have_url(shown.at(place).rstrip("/"))
    await expect(page.locator(SHOWN).first).to_be_visible()


async def test_dark_and_light_are_chosen_and_kept(shown: Served, new_reader: NewReader) -> None:
    reader = await new_reader(scheme="light")
    page = await reader.open(shown.at("episodes"))
    await page.keyboard.press("d")
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
    await page.reload()
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
    other = await reader.open(shown.at("behaviour"))
    assert await other.evaluate("document.documentElement.dataset.theme") == "dark"


async def test_an_episode_is_told_turn_by_turn(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("episodes", EPISODE))
    facts = [each.event for each in episodes()[EPISODE]]
    finished = next(fact for fact in facts if isinstance(fact, EpisodeFinished))
    await expect(page.locator(".turn")).to_have_count(finished.n_turns)
    await expect(page.locator("h1")).to_have_text(REQUESTS[EPISODE].task.question)
    written = await page.locator(".wrote").all_text_contents()
    assert [" ".join(text.split()) for text in written] == [" ".join(text.split()) for text in finished.generated or []]
    results = [fact.result for fact in facts if isinstance(fact, ToolReturned) and fact.result is not None]
    documents = [document for result in results for document in result.documents]
    texts = await page.locator(".document .long-part").all_text_contents()
    assert texts == [document.text for document in documents if document.text]
    outcome = OUTCOMES[EPISODE]
    assert isinstance(outcome, EpisodeGraded) and outcome.answer
    await expect(page.locator(".answer-box")).to_have_text(f"✓ correct answer{outcome.answer}")
    await expect(page.locator(".key-box")).to_contain_text("not seen by the policy")
    await expect(page.locator(".reward-parts tbody tr")).to_have_count(len(outcome.reward.items))
    assert await page.locator(".spans .span").count() >= finished.n_turns
    saw = page.locator("details.saw").nth(1)
    await saw.locator("summary").click()
    await expect(saw.locator(".saw-text")).to_contain_text("<information>")


async def test_the_tokens_show_what_was_trained(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("episodes", EPISODE, "tokens"))
    finished = next(each.event for each in episodes()[EPISODE] if isinstance(each.event, EpisodeFinished))
    n = finished.n_tokens_generated
    await expect(page.locator(".tokens .token.trained")).to_have_count(n)
    await page.locator(".tokens .token.trained").first.hover()
    told = " | ".join(" ".join(text.split()) for text in await page.locator(".inspector .fact").all_inner_texts())
    for fact in (r"id \d+", r"log-prob at rollout -?\d", r"at training -?\d", r"advantage \+\d", r"policy \d+\.\d+", "mask 1"):
        assert re.search(fact, told), (fact, told)
    await page.get_by_role("button", name="train − rollout").click()
    await expect(page.locator(".tokens .token:is(.d0, .up1, .up2, .up3, .down1, .down2, .down3)")).to_have_count(n)
    await page.keyboard.press("4")
    assert await page.locator(".tokens .token[class*=tv]").count() >= n
    assert page.url.endswith("?by=version")
    await page.reload()
    await expect(page.get_by_role("button", name="version")).to_have_attribute("aria-pressed", "true")


async def test_a_group_stands_side_by_side(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("groups", GROUP))
    members = [name for name, asked in REQUESTS.items() if asked.group == GROUP]
    await expect(page.locator(".member")).to_have_count(len(members))
    texts = await page.locator(".member .advantage .num").all_inner_texts()
    advantages = [float(text.replace("−", "-")) for text in texts]
    assert len(advantages) == len(members) and any(advantages) and math.isclose(sum(advantages), 0, abs_tol=0.01)
    await page.keyboard.press("j")
    await page.locator(".member a.turn-number").first.click()
    await expect(page.locator(".turn.selected")).to_have_count(1)


async def test_behaviour_stands_beside_its_rules(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("behaviour"))
    await expect(page.get_by_role("status").filter(has_text=f"{N} episodes")).to_be_visible()
    cards = page.locator(".behaviour")
    names = await cards.locator(".chart-title").all_inner_texts()
    assert {"planning", "cross validation", "reformulation", "verification", "honest non answer"} <= set(names)
    for rule in await cards.locator(".rule > p").all_inner_texts():
        assert len(rule) > 20


async def test_unknown_names_say_so_and_lead_back(shown: Served, new_reader: NewReader) -> None:
    reader = await new_reader()
    reader.may_complain = lambda text: "404" in text
    page = await reader.open(shown.at("episodes", "no-such-episode"))
    await expect(page.locator(".empty-title")).to_contain_text("has no episode 'no-such-episode'")
    await page.keyboard.press("g")
    await page.keyboard.press("e")
    await expect(page.locator(SHOWN).first).to_be_visible()


async def test_runs_are_drawn_over_each_other(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at())
    reward = page.locator(".chart", has=page.get_by_text("Reward", exact=True)).locator(".readout .value-name")
    await expect(reward).to_have_text(["reward"])
    await page.get_by_role("checkbox", name=f"draw {OTHER} over the curves").check()
    await expect(reward).to_have_text([shown.run, OTHER])
    assert page.url.endswith(f"?with={OTHER}")
    await page.reload()
    await expect(reward).to_have_text([shown.run, OTHER])
    row = page.locator("section[aria-label=Runs] tbody tr", has_text=OTHER)
    await expect(row).to_contain_text("ended")
    await page.get_by_role("checkbox", name=f"draw {OTHER} over the curves").uncheck()
    await expect(reward).to_have_text(["reward"])


LEFT_OUT = """async () => {
    const { scaleOf, classOf } = await import("/static/views/token_paint.js");
    const segment = (train) => ({ids: [1, 2], mask: [0, 1], logprobs: [null, -0.5], train_logprobs: train, versions: []});
    const segments = [segment(null), segment([null, -0.25]), segment([null, null])];
    return ["mask", "difference"].map((mode) => segments.map((each) => classOf(each, 1, scaleOf(mode, segments), [], [])));
}"""


async def test_tokens_that_an_update_left_out_are_told_from_those_that_it_took(shown: Served, new_reader: NewReader) -> None:
    page = await (await new_reader()).open(shown.at("episodes"))
    by_mask, by_difference = await page.evaluate(LEFT_OUT)
    assert by_mask == ["own stale", "own trained", "own stale"]
    assert by_difference == ["own stale", "own up3", "own stale"]
