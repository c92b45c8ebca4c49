"""Auxiliary models: whether the endpoints that runs are set to ask answer, take the key and have the model."""

import asyncio

import aiohttp

from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.runs import unfinished
from asearch.configuration.auxiliary import AuxiliarySettings
from asearch.engines.chat import ChatClient
from asearch.errors import AuxiliaryPermanentError, AuxiliaryRetryableError, AuxiliaryTimeoutError, ConfigError

ANSWER_TIMEOUT_S = 5.0
Named = tuple[str, AuxiliarySettings]


async def endpoints(subject: Subject) -> list[Finding]:
    """Every endpoint of a run that has not ended lists the model that it is to answer as. No model is asked for an answer."""
    named: list[Named] = []
    for content in unfinished(subject):
        named += [each for each in content.settings.auxiliary.items() if each not in named]
    if not named:
        return [Finding("auxiliary", "ok", "no run asks auxiliary models")]
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(_judge(each, session)) for each in named]
    return [each.result() for each in asked]


async def _judge(named: Named, session: aiohttp.ClientSession) -> Finding:
    name, model = named
    title, where = f"auxiliary.{name}", f"{model.model} at {model.base_url}"
    try:
        served = await ChatClient(model, session).models(ANSWER_TIMEOUT_S)
    except ConfigError as error:
        return Finding(title, "failed", str(error), f"export {model.api_key_env}=..., where the run is started")
    except (AuxiliaryRetryableError, AuxiliaryTimeoutError) as error:
        return Finding(title, "failed", str(error), f"start what serves {where}, or set {title}.base_url")
    except AuxiliaryPermanentError as error:
        fix = f"check {title}.base_url and {title}.api_key_env; some endpoints have no /models, then nothing is wrong"
        return Finding(title, "warning", str(error), fix)
    if model.model not in served:
        offered = ", ".join(served[:5]) or "none"
        return Finding(title, "failed", f"{model.base_url} has no model {model.model}; it has: {offered}", f"set {title}.model")
    return Finding(title, "ok", where)
