"""Checks of PLAN against OUTCOMES: every requested episode ends once, and only what was asked for ends."""

from collections import Counter, defaultdict

from actors.cli.auditing.evidence import Evidence, Rules
from actors.cli.auditing.problems import Problems
from schemas.events import EpisodeDead, EpisodeDropped, EpisodeGraded, EpisodeRequested, GroupAdmitted, Outcome

SHARED = ("group", "member", "members", "slot", "purpose", "refill", "label")


def check_episodes(evidence: Evidence, problems: Problems) -> None:
    """Requests and outcomes, one by one."""
    requests: dict[str, list[EpisodeRequested]] = defaultdict(list)
    for _, event in evidence.plan:
        if isinstance(event, EpisodeRequested):
            requests[event.episode].append(event)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    for _, outcome in evidence.outcomes:
        outcomes[outcome.episode].append(outcome)
    for episode, asked in requests.items():
        attempts = [request.attempt for request in asked]
        problems.unless(
            attempts == list(range(len(asked))), "attempts", f"episode {episode} was asked for with the attempts {attempts}"
        )
        if evidence.ended is not None and episode not in outcomes:
            problems.add("missing_outcome", f"the run has ended, but episode {episode} has no outcome")
    for episode, ended in outcomes.items():
        problems.unless(len(ended) == 1, "double_outcome", f"episode {episode} has {len(ended)} outcomes")
        if episode not in requests:
            problems.add("unrequested", f"episode {episode} has an outcome, but was never requested")
        else:
            _check_outcome(requests[episode][0], ended[0], problems)


def _check_outcome(request: EpisodeRequested, outcome: Outcome, problems: Problems) -> None:
    for name in SHARED:
        asked, got = getattr(request, name), getattr(outcome, name)
        problems.unless(asked == got, "outcome_differs", f"episode {request.episode}: {name} {got!r} was requested as {asked!r}")
    if request.task.id != outcome.task:
        problems.add("outcome_differs", f"episode {request.episode}: task {outcome.task!r} was {request.task.id!r}")
    if isinstance(outcome, EpisodeDropped | EpisodeDead) and not outcome.reason:
        problems.add("no_reason", f"episode {outcome.episode} was dropped or died without a reason")


def check_groups(evidence: Evidence, rules: Rules, discarded: set[str], problems: Problems) -> None:
    """Admissions: whole groups, slots in order, within the bound of staleness; refills of discarded groups, within theirs.

    `discarded` are the groups that OUTCOMES and the rules discard.
    """
    groups = [event for _, event in evidence.plan if isinstance(event, GroupAdmitted)]
    requested = Counter(event.group for _, event in evidence.plan if isinstance(event, EpisodeRequested) and event.attempt == 0)
    for group in groups:
        is_last_of_a_live_run = group is groups[-1] and evidence.ended is None
        if requested[group.group] != group.members and not is_last_of_a_live_run:
            text = f"group {group.group} has {group.members} members, {requested[group.group]} were requested"
            problems.add("group_not_whole", text)
    names = Counter(group.group for group in groups)
    for name, n in names.items():
        problems.unless(n == 1, "group_twice", f"group {name} was admitted {n} times")
    for name in requested.keys() - names.keys():
        problems.add("group_unknown", f"episodes of group {name} were requested, which was never admitted")
    _check_slots([group for group in groups if group.purpose == "train"], rules, discarded, problems)


def _check_slots(groups: list[GroupAdmitted], rules: Rules, discarded: set[str], problems: Problems) -> None:
    first = [group.slot for group in groups if group.refill == 0]
    problems.unless(first == list(range(len(first))), "slots", f"slots were not admitted in order: {first[:12]}...")
    by_place = {(group.slot, group.refill): group for group in groups}
    problems.unless(len(by_place) == len(groups), "slots", "a slot was filled twice")
    for group in groups:
        name = group.group
        if group.refill == 0:
            ahead = group.slot // rules.groups_per_step - group.progress
            text = f"group {name} was admitted {ahead} steps ahead of the policy, more than {rules.eta}"
            problems.unless(ahead <= rules.eta, "admission", text)
            continue
        text = f"group {name} is refill {group.refill} of its slot, but {rules.max_refills} are allowed"
        problems.unless(group.refill <= rules.max_refills, "too_many_refills", text)
        before = by_place.get((group.slot, group.refill - 1))
        if before is None or before.group != group.refill_of or before.group not in discarded:
            problems.add("refill_without_cause", f"group {name} replaces {group.refill_of}, which was not discarded")


def terms_of(evidence: Evidence, purpose: str, judged: dict[str, bool]) -> dict[str, int]:
    """The eight terms of a purpose, each counted episode by episode. `judged` says of a group if it was trained on."""
    requested = {event.episode for _, event in evidence.plan if isinstance(event, EpisodeRequested) and event.purpose == purpose}
    mine = {outcome.episode: outcome for _, outcome in evidence.outcomes if outcome.purpose == purpose}
    graded = [outcome for outcome in mine.values() if isinstance(outcome, EpisodeGraded)]
    fates = Counter(
        ("counted" if judged[outcome.group] else "discarded") if outcome.group in judged else "queued" for outcome in graded
    )
    if purpose != "train":
        fates = Counter(counted=len(graded))
    return {
        "requested": len(requested),
        "graded": len(graded),
        "dropped": sum(isinstance(outcome, EpisodeDropped) for outcome in mine.values()),
        "dead": sum(isinstance(outcome, EpisodeDead) for outcome in mine.values()),
        "in_flight": sum(episode not in mine for episode in requested),
        "counted": fates["counted"],
        "discarded": fates["discarded"],
        "queued": fates["queued"],
    }
