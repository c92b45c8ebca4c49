"""Errors out of groups, on every Python."""

import asyncio

import pytest

from actors.runtime.naked import naked
from asearch.errors import BusError, InputError


async def fail(error: Exception) -> None:
    raise error


async def test_an_error_of_the_kind_comes_out_of_nested_groups() -> None:
    with pytest.raises(BusError, match="deep"), naked(BusError):
        async with asyncio.TaskGroup() as outer, asyncio.TaskGroup() as inner:
            outer.create_task(asyncio.sleep(60))
            inner.create_task(fail(BusError("deep")))


async def test_what_else_went_wrong_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup) as caught, naked(BusError):
        raise ExceptionGroup("both", [BusError("a"), InputError("b")])
    assert len(caught.value.exceptions) == 2
    with pytest.raises(InputError), naked(BusError):
        raise InputError("alone")
