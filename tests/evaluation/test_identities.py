"""No term of the identities is what is missing in them: a term that is wrong shows, whichever it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from asearch.evaluation.accounting import Accounts
from tests.cli.audited import audited, commit
from tests.evaluation.stories import two_steps
from tests.evaluation.test_report import report_of


def lose(accounts: Accounts) -> None:
    train = accounts.purposes["train"]
    train.graded -= 1


def more_requests(accounts: Accounts) -> None:
    accounts.purposes["train"].requested += 1


def more_in_flight(accounts: Accounts) -> None:
    accounts.purposes["train"].open["ghost"] = 0


def more_dropped(accounts: Accounts) -> None:
    accounts.purposes["train"].dropped["deadline"] += 1


def more_dead(accounts: Accounts) -> None:
    accounts.purposes["train"].dead["poison"] += 1


def fewer_verdicts(accounts: Accounts) -> None:
    step = next(record for record in accounts.steps.values() if record.passed)
    step.passed.popitem()


def fewer_queued(accounts: Accounts) -> None:
    assert accounts.queued
    accounts.queued.popitem()


@pytest.mark.parametrize("wrong", [lose, more_requests, more_in_flight, more_dropped, more_dead, fewer_verdicts, fewer_queued])
def test_a_wrong_term_breaks_an_identity(wrong: Callable[[Accounts], None]) -> None:
    accounts = report_of(two_steps()).accounts
    assert accounts.broken() == []
    wrong(accounts)
    assert accounts.broken() != []


async def test_an_outcome_without_a_request_breaks_the_audits_identity(tmp_path: Path) -> None:
    story = two_steps()
    commit(story, tmp_path)
    story.told = [told for told in story.told if told[2].id != "request-t-0-0-0-0"]
    _, problems = await audited(story, tmp_path)
    assert "identity" in problems.counts, problems.lines()
