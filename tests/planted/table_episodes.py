"""Bugs of drivers, engines and whatever works on a queue."""

from tests.planted.mutation import Mutation, sim, unit

RUN = "actors/runtime/episode_run.py"
HELD = "actors/runtime/held_trace.py"
DRIVER = "tests/actors/test_driver.py"
VERSIONS = "tests/actors/test_token_versions.py"
SIM = "tests/sim/test_simulation.py"

EPISODES = (
    Mutation(
        "ack-before-effect",
        "a queued fact is acknowledged before its effects are stored",
        "actors/runtime/actor.py",
        "        keeper = asyncio.create_task(self._keep(delivery))\n        try:\n",
        "        await delivery.ack()\n        keeper = asyncio.create_task(self._keep(delivery))\n        try:\n",
        (unit("tests/actors/test_actor.py::test_a_poisonous_fact_goes_to_dead_and_holds_nobody_up"),),
    ),
    Mutation(
        "malformed-event-stops-a-queue",
        "bytes that are no event are given back again and again",
        "actors/runtime/actor.py",
        '            await self.bury(stored, stored.malformed or "malformed")\n            await delivery.term()\n',
        "            await delivery.nak(0.01)\n",
        (unit("tests/actors/test_actor.py::test_bytes_that_are_no_event_go_to_dead_unchanged"),),
    ),
    Mutation(
        "trace-without-compare-and-set",
        "a driver appends whatever another one has appended meanwhile",
        HELD,
        "                self.last_sequence = await self.bus.append(fact, self.episode, expected=self.last_sequence)\n"
        "            except ConflictError:\n                await self.reconcile()\n",
        "                self.last_sequence = await self.bus.append(fact, self.episode)\n"
        "            except ConflictError:\n                await self.reconcile()\n",
        (unit(DRIVER + "::test_a_driver_that_is_refused_abandons_the_episode"),),
    ),
    Mutation(
        "refused-driver-finishes-anyway",
        "a driver whose episode another one holds appends its facts behind the other's",
        HELD,
        '            raise Abandoned(f"episode {self.episode} is held by another driver")\n',
        "            return self.known[-1:]\n",
        (unit(DRIVER + "::test_a_driver_that_is_refused_abandons_the_episode"),),
    ),
    Mutation(
        "outcomes-without-compare-and-set",
        "a second outcome is stored beside the first",
        "actors/runtime/appends.py",
        "return await bus.append(offered, *key, expected=expected, scope=scope)",
        "return await bus.append(offered, *key, expected=expected if scope is Scope.STREAM else None, scope=scope)",
        (unit("tests/actors/test_grader.py::test_the_first_outcome_stays"),),
    ),
    Mutation(
        "takeover-begins-anew",
        "a driver that takes over repeats the recorded generations and calls",
        RUN,
        "return fold(self.agent, self.start, await self._facts(facts))",
        "return self.agent.begin(self.start)[0]",
        (unit(DRIVER + "::test_a_driver_that_takes_over_goes_on_from_the_trace"),),
    ),
    Mutation(
        "takeover-drops-held-tokens",
        "a driver that takes over asks for a generation from its beginning, though tokens of it are recorded",
        RUN,
        "return fold(self.agent, self.start, await self._facts(facts))",
        "return fold(self.agent, self.start, await self._facts(\n"
        "                fact for n, fact in enumerate(facts) if not isinstance(fact, TokensGenerated) or fact.finish\n"
        "                or any(isinstance(later, TokensGenerated) and later.finish for later in facts[n:])\n"
        "            ))",
        (unit("tests/actors/test_takeover.py"), sim("tests/sim/test_episode_kills.py")),
    ),
    Mutation(
        "stale-attempt-counts",
        "facts of a driver that was presumed dead are folded",
        "asearch/agents/recorded.py",
        "        elif not _is_from(self._holder, event):\n",
        "        elif self._holder is None and event.attempt != -1:\n",
        (unit("tests/agents/test_recorded.py"), sim("tests/sim/test_episode_kills.py")),
    ),
    Mutation(
        "duplicate-delivery-takes-twice",
        "of two drivers that answer deliveries of the same request both count as holders",
        "asearch/agents/recorded.py",
        "if self._holder is not None and event.attempt <= self._holder.attempt:",
        "if self._holder is not None and event.attempt < self._holder.attempt:",
        (unit("tests/agents/test_recorded.py"),),
    ),
    Mutation(
        "ended-episode-taken-again",
        "an episode that has its outcome is driven once more",
        RUN,
        "        if await self.trace.has_outcome():\n            return None\n        taken",
        "        taken",
        (unit("tests/actors/test_driver_faults.py::test_an_episode_that_has_ended_is_not_taken_again"),),
    ),
    Mutation(
        "stale-driver-ends-the-episode",
        "a driver that was presumed dead drops an episode that another one goes on with",
        RUN,
        "        await self.trace.reconcile()\n        await append_outcome(",
        "        await append_outcome(",
        (unit("tests/actors/test_driver_faults.py::test_a_driver_that_wakes_up_past_the_deadline_drops_nothing"),),
    ),
    Mutation(
        "blob-after-its-event",
        "the fact that refers to a payload is stored before the payload",
        RUN,
        "        blob = await self.bus.put_blob(request.episode, encode(trajectory))\n",
        "        import xxhash\n\n        from schemas.records import BlobRef\n\n        data = encode(trajectory)\n"
        "        ref = (xxhash.xxh3_128_hexdigest(data), len(data), 1)\n"
        "        blob = BlobRef(episode=request.episode, hash=ref[0], size_bytes=ref[1], n_chunks=ref[2])\n"
        "        self._late = asyncio.get_running_loop().call_later(\n"
        "            5.0, lambda: asyncio.ensure_future(self.bus.put_blob(request.episode, data))\n        )\n",
        (unit("tests/actors/test_blob_order.py"),),
    ),
    Mutation(
        "version-from-the-caller",
        "tokens are recorded under the version that the driver asked for",
        RUN,
        "            versions=chunk.versions,\n",
        "            versions=[\n                type(run)(\n"
        "                    version=type(run.version)(lineage=1, step=self.request.progress), start=run.start, end=run.end\n"
        "                )\n                for run in chunk.versions\n            ],\n",
        (unit(VERSIONS),),
    ),
    Mutation(
        "version-from-the-engines-clock",
        "tokens are told under the version that the engine holds when it tells of them",
        "actors/engine.py",
        "VersionRun(version=version_of(span.version), start",
        "VersionRun(version=self.version or version_of(span.version), start",
        (unit(VERSIONS),),
    ),
    Mutation(
        "weights-replaced-under-way",
        "weights are loaded while requests run",
        "actors/runtime/transfer/following.py",
        '        await server.pause("retract")\n',
        "",
        (sim(SIM + "::test_a_run_completes_and_its_accounts_agree"),),
    ),
    Mutation(
        "update-in-flight-told-as-none",
        "tokens that came after a weight update began are told under the name that the server has then",
        "asearch/engines/chunks.py",
        "if name is None or not self._is_settled() or (",
        "if name is None or (",
        (unit("tests/engines/test_chunks.py::test_after_a_load_they_are_held_back_until_the_server_says_whose_they_are"),),
    ),
    Mutation(
        "ids-outside-the-vocabulary",
        "a prompt with an id that the model does not have reaches the server, which SGLang's scheduler dies of",
        "actors/engine.py",
        "        return refuse_ids(unpack_ids(command.prompt.data), self._n_vocabulary)\n",
        '        return ""\n',
        (unit("tests/actors/test_engine_server.py::test_ids_outside_the_vocabulary_never_reach_the_server"),),
    ),
    Mutation(
        "server-restarted-without-end",
        "a server that fails again and again is started again and again",
        "actors/runtime/inference_server.py",
        "            if self._intensity.exceeded(self._platform.monotonic()):\n",
        "            if self._intensity.exceeded(self._platform.monotonic()) and self.n_starts > 20:\n",
        (unit("tests/runtime/test_inference_server.py::test_a_crash_loop_ends_with_an_error_that_names_the_log"),),
    ),
    Mutation(
        "outage-graded",
        "an episode whose engine is gone is finished as it stands and graded",
        RUN,
        '            await self.drop("engine_outage", str(error))\n            return\n',
        "            log.warning(str(error))\n",
        (unit("tests/actors/test_engine_outage.py"),),
    ),
)
