"""Bugs of the scheduler and the recorder."""

from tests.planted.mutation import Mutation, prop, unit

SCHEDULER = "actors/scheduler.py"
RECORDER = "actors/recorder.py"

PLAN = (
    Mutation(
        "plan-without-compare-and-set",
        "a scheduler appends to the plan without a condition, so two write one plan",
        SCHEDULER,
        "            self._last_plan = await append_patiently(\n                self.bus,\n"
        "                event,\n                *key,\n"
        "                expected=before,\n                scope=Scope.STREAM,\n"
        "                waits_for=lambda why: self.become(self.state, why),\n            )\n",
        "            self._last_plan = await self.bus.append(event, *key)\n",
        (unit("tests/actors/test_scheduler.py::test_of_two_schedulers_one_exits"),),
    ),
    Mutation(
        "lease-never-lapses",
        "what a driver once held is held for ever",
        SCHEDULER,
        "self._leases.items() if now_s - lease[0] < lease_s}",
        "self._leases.items() if lease[0] <= now_s}",
        (unit("tests/actors/test_lapsed_lease.py"),),
    ),
    Mutation(
        "leases-ignored",
        "an episode is asked for again though a driver works on it",
        SCHEDULER,
        "if episode in self._open and episode not in held and now_s",
        "if episode in self._open and now_s",
        (unit("tests/actors/test_scheduler.py::test_what_nobody_holds_is_asked_for_again"),),
    ),
    Mutation(
        "group-left-half-requested",
        "a scheduler that restarts does not ask for the episodes that an admitted group still lacks",
        SCHEDULER,
        "            self._unasked.update((request.episode, request) for request in self._requests_of(event))\n",
        "",
        (unit("tests/actors/test_scheduler.py::test_a_restart_asks_for_what_an_admitted_group_still_lacks"),),
    ),
    Mutation(
        "leftovers-stay-in-flight",
        "a run that ends gives its open episodes no outcome",
        SCHEDULER,
        '            await append_outcome(self.bus, dropped(request, self.platform.now_ns(), "run_ended"))\n',
        "            continue\n",
        (unit("tests/actors/test_scheduler.py::test_a_stop_in_the_middle_leaves_whole_groups_and_nothing_in_flight"),),
    ),
    Mutation(
        "refills-forgotten-on-restart",
        "a scheduler that restarts from what it wrote of the purged outcomes forgets the refills that were due",
        "asearch/learning/planner.py",
        "self._refills = {name: refill for name, refill in named.items() if name not in self._refilled}",
        "self._refills = {}",
        (unit("tests/learning/test_due_refills.py"),),
    ),
    Mutation(
        "fold-of-the-wrong-moment",
        "what stands for the purged outcomes is the ledger between two closes: groups of the unfinished batch are lost",
        "asearch/learning/planner.py",
        "        snapshot = self._snapshot\n",
        "        snapshot = self._ledger.snapshot()\n",
        (unit("tests/learning/test_planner.py"), prop("tests/properties/test_admission_machine.py")),
    ),
    Mutation(
        "trace-purged-before-the-archive-is-synced",
        "facts are purged while their archive is in memory",
        RECORDER,
        "        await self._in_thread(self._sync)\n        await self._purge_trace()\n",
        "        await self._purge_trace()\n",
        (unit("tests/actors/test_archive_order.py"),),
    ),
    Mutation(
        "trace-purged-too-far",
        "facts of an episode that is still open are purged",
        RECORDER,
        "min(self._first.values(), default=self._trace_sequence + 1) - 1",
        "max(self._first.values(), default=self._trace_sequence + 1) - 1",
        (unit("tests/actors/test_recorder.py::test_trace_is_purged_below_the_oldest_open_episode_only"),),
    ),
    Mutation(
        "outcomes-purged-too-early",
        "outcomes and payloads go with the newest checkpoint, though a trainer may have to go back to the one before",
        RECORDER,
        "*(each.watermark for each in self._commits[-2:]))",
        "*(each.watermark for each in self._commits[-1:]))",
        (unit("tests/actors/test_recorder.py::test_outcomes_and_blobs_go_up_to_what_nobody_has_to_read_again"),),
    ),
    Mutation(
        "outcomes-purged-under-the-scheduler",
        "outcomes go before the scheduler has written what stands for them",
        RECORDER,
        "up_to = min(archived_up_to, self._folded, *",
        "up_to = min(archived_up_to, *",
        (unit("tests/actors/test_recorder.py::test_outcomes_and_blobs_go_up_to_what_nobody_has_to_read_again"),),
    ),
)
