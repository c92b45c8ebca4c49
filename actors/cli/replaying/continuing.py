"""One episode with another reward, or gone on with from one of its turns. Nothing is written to the run's streams."""

import asyncio
from dataclasses import replace

import aiohttp
import msgspec

from actors.cli.replaying.lines import task_of
from actors.cli.replaying.services import EngineService, Say, engine_at, tools_of
from actors.cli.replaying.single import answer_key, read_one, replayer_of
from actors.runtime.platform import Platform
from actors.runtime.run_source import RunSource
from asearch.agents.episode import EpisodeState
from asearch.agents.recorded import start_of
from asearch.agents.registry import make_agent
from asearch.configuration.loading import change_settings
from asearch.configuration.settings import Settings
from asearch.errors import ConfigError, EngineError, GradingError, InputError
from asearch.rewards.grader import grade
from asearch.traces.counterfactual import Turn, folded, go_on, grade_record, turns_of
from asearch.traces.record import EpisodeRecord
from asearch.traces.regrading import regrade
from asearch.traces.verdicts import Verdict
from schemas.events import EpisodeGraded
from schemas.records import AnswerKey, RewardItem

OF_USE = ("agent.", "rewards.", "tools.")
"""Settings that change an episode, or what is said of it."""


class Branch(msgspec.Struct, kw_only=True):
    """One way in which the episode went from a turn on."""

    turns: list[Turn]
    status: str
    answer: str | None
    n_turns: int
    reward: float | None
    """None where there is none, or no answer key."""
    items: list[RewardItem]


class Continued(msgspec.Struct, kw_only=True):
    """What happened, beside what would have happened."""

    run: str
    episode: str
    question: str
    from_turn: int
    engine: str
    weights: str
    """What the engine calls its weights."""
    seed: int
    temperature: float
    recorded: Branch
    continued: Branch


class GradedAgain(msgspec.Struct, kw_only=True):
    """One episode under two rewards."""

    run: str
    episode: str
    answer: str | None
    old_grader: str
    grader: str
    old_reward: float | None
    new_reward: float
    old_items: list[RewardItem]
    new_items: list[RewardItem]


def changed(settings: Settings, overrides: tuple[str, ...], grader: str | None, of_use: tuple[str, ...] = OF_USE) -> Settings:
    """The run's settings with what the user changes of them. Raises ConfigError, also for what would change nothing."""
    for override in overrides:
        if not override.strip().startswith(of_use):
            raise ConfigError(f"{override.partition('=')[0]!r} changes nothing here; of use are {', '.join(of_use)}…")
    return change_settings(settings, overrides, {"rewards.name": grader} if grader else {})


async def grade_again(source: RunSource, episode: str, overrides: tuple[str, ...], grader: str | None) -> GradedAgain:
    """The verdict of another reward on an episode. Raises GradingError, InputError."""
    settings = changed(source.content.settings, overrides, grader)
    record = await _read(source, episode)
    reward = regrade(record, await _key(source, record), settings.rewards.config())
    old = record.outcome.reward if isinstance(record.outcome, EpisodeGraded) else None
    return GradedAgain(
        run=source.run,
        episode=episode,
        answer=record.finished.answer if record.finished else None,
        old_grader=source.content.settings.rewards.name,
        grader=settings.rewards.name,
        old_reward=old.value if old else None,
        new_reward=reward.value,
        old_items=old.items if old else [],
        new_items=reward.items,
    )


async def continue_from(
    source: RunSource, episode: str, turn: int, engine: str, settings: Settings, seed: int | None, platform: Platform, say: Say
) -> Continued:
    """Go on with an episode from the beginning of a turn. `settings` are the run's, changed or not.

    Raises InputError, EngineError; GradingError never: what cannot be graded has no reward.
    """
    record = await _read(source, episode)
    replayer = replayer_of(source)
    loaded = source.agent()
    if record.request is None or loaded is None:
        raise InputError(f"no driver has taken episode {episode} yet: there is nothing to go on from")
    start = start_of(record.request, source.content.settings.agent)
    state = folded(replayer.agent, start, record, turn)
    whole = folded(replayer.agent, start, record)
    changes = {"settings": settings.agent, "seed": start.seed if seed is None else seed}
    state = msgspec.structs.replace(state, start=msgspec.structs.replace(start, **changes))
    agent = make_agent(settings.agent, loaded[1])
    async with aiohttp.ClientSession() as session, engine_at(engine, source, platform, session, say) as (url, client):
        info = await client.model_info()
        async with tools_of(source, settings, platform, session, say) as tools:
            say(f"going on with {episode} from turn {turn} at {url}")
            service = EngineService(client, f"replay-{platform.new_id()[:8]}", settings.run.episode_deadline_s)
            try:
                async with asyncio.timeout(settings.run.episode_deadline_s):
                    ended = await go_on(agent, state, service, tools)
            except TimeoutError:
                limit_s = settings.run.episode_deadline_s
                raise EngineError(f"the episode did not end within run.episode_deadline_s ({limit_s:g} s)") from None
    key = await answer_key(source, task_of(record))
    is_eval = record.request.purpose == "eval"
    return Continued(
        run=source.run,
        episode=episode,
        question=record.request.task.question,
        from_turn=turn,
        engine=url,
        weights=str(info.get("weight_version", "")),
        seed=ended.start.seed,
        temperature=settings.agent.eval_temperature if is_eval else settings.agent.temperature,
        recorded=_recorded(whole, turn, record),
        continued=_branch(ended, turn, key, settings),
    )


def _recorded(state: EpisodeState, turn: int, record: EpisodeRecord) -> Branch:
    reward = record.outcome.reward if isinstance(record.outcome, EpisodeGraded) else None
    return _with_reward(state, turn, reward.value if reward else None, reward.items if reward else [])


def _branch(state: EpisodeState, turn: int, key: AnswerKey | None, settings: Settings) -> Branch:
    if key is None or state.finished is None or state.finished.dropped_reason is not None:
        return _with_reward(state, turn, None, [])
    try:
        reward = grade(grade_record(state), key, settings.rewards.config())
    except GradingError:
        return _with_reward(state, turn, None, [])
    return _with_reward(state, turn, reward.value, reward.items)


def _with_reward(state: EpisodeState, turn: int, value: float | None, items: list[RewardItem]) -> Branch:
    end = state.finished
    return Branch(
        turns=turns_of(state, turn),
        status="open" if end is None else end.dropped_reason or end.status,
        answer=end.answer if end is not None else None,
        n_turns=state.n_turns,
        reward=value,
        items=items,
    )


async def _read(source: RunSource, episode: str) -> EpisodeRecord:
    found = await read_one(source, replayer_of(source), episode)
    if isinstance(found, Verdict):
        raise InputError(f"what is archived of episode {episode} cannot be read: {found.differences[0]}")
    return replace(found, damage=[])


async def _key(source: RunSource, record: EpisodeRecord) -> AnswerKey:
    key = await answer_key(source, task_of(record))
    if key is None:
        raise InputError(f"the answer key of task {task_of(record)!r} is gone with the broker's store: nothing can be graded")
    return key
