"""What `asearch replay` prints for people. Texts of policy and pages are data: what a terminal would act on is not sent to it."""

from itertools import zip_longest

import click
import msgspec

from actors.cli.dead_letters import printable
from actors.cli.replaying.continuing import Branch, Continued, GradedAgain
from actors.cli.replaying.everything import Tally
from asearch.traces.counterfactual import Turn
from asearch.traces.verdicts import Verdict
from schemas.records import RewardItem


def tell_tally(tally: Tally) -> None:
    """The verdict on a run."""
    for difference in tally.differences:
        click.echo(printable(str(difference)))
    if tally.n_differences > len(tally.differences):
        click.echo(f"and {tally.n_differences - len(tally.differences)} more differences")
    click.echo(
        f"run '{tally.run}': {tally.episodes} episodes, {tally.identical} identical, {tally.different} different; "
        f"{tally.partial} of them as far as their facts go, {tally.graded_again} graded again; {tally.n_facts:,} facts"
    )


def tell_verdict(verdict: Verdict) -> None:
    """The verdict on an episode."""
    for difference in verdict.differences:
        click.echo(printable(str(difference)))
    told = "identical" if verdict.is_identical else f"{len(verdict.differences)} differences"
    rest = ", as far as its facts go" if verdict.partial else ""
    reward = ", its reward too" if verdict.graded else ""
    click.echo(f"{verdict.episode}: {told}{rest}{reward}; {verdict.n_facts} facts")


def tell_grades(graded: GradedAgain) -> None:
    """An episode under two rewards."""
    click.echo(printable(f"{graded.episode}: answer {graded.answer!r}"))
    for name, value, items in (
        (graded.old_grader, graded.old_reward, graded.old_items),
        (graded.grader, graded.new_reward, graded.new_items),
    ):
        click.echo(f"  {name:<14} {_reward(value, items)}")


def tell_continued(told: Continued) -> None:
    """Both ways in which an episode went, turn by turn."""
    click.echo(printable(f"{told.episode}: {told.question}"))
    click.echo(f"  from turn {told.from_turn}, weights {told.weights} at {told.engine}, seed {told.seed}, T {told.temperature:g}")
    for recorded, continued in zip_longest(told.recorded.turns, told.continued.turns):
        number = (recorded or continued).turn
        click.echo(f"turn {number}")
        if recorded is not None and continued is not None and recorded.text == continued.text:
            click.echo(f"  both      {_turn(recorded)}")
            continue
        click.echo(f"  recorded  {_turn(recorded)}")
        click.echo(f"  continued {_turn(continued)}")
    click.echo(f"recorded  {_end(told.recorded)}")
    click.echo(f"continued {_end(told.continued)}")


def _turn(turn: Turn | None) -> str:
    if turn is None:
        return "-"
    found = f"  → {turn.tool}: {turn.error or f'{turn.n_documents} documents'}" if turn.tool else ""
    return printable(f"{turn.text.strip()}{found}")


def _end(branch: Branch) -> str:
    return printable(f"{branch.status}, answer {branch.answer!r}, {branch.n_turns} turns, {_reward(branch.reward, branch.items)}")


def _reward(value: float | None, items: list[RewardItem]) -> str:
    parts = ", ".join(f"{item.name} {item.value:g} × {item.weight:g}" for item in items)
    return "no reward" if value is None else f"reward {value:g} ({parts})"


def json_line(value: msgspec.Struct) -> str:
    """One line of JSON."""
    return msgspec.json.encode(value).decode()
