"""Bugs in the bus and its adapters."""

from tests.planted.mutation import Mutation, crash, prop, unit

BROKER_LOSS = "tests/runtime/test_broker_loss.py"
IN_MEMORY = "tests/properties/test_bus_machine.py::test_the_bus_in_memory_keeps_its_promises"
ON_A_SERVER = "tests/properties/test_bus_machine.py::test_the_bus_on_a_server_keeps_its_promises"

BUS = (
    Mutation(
        "reader-skips-after-reconnect",
        "a reader that is made anew begins one message too late",
        "actors/runtime/reader.py",
        "self._name, self._position + 1, self._filters)",
        "self._name, self._position + (1 if self._position_ns == 0 else 2), self._filters)",
        (crash(BROKER_LOSS + "::test_a_lost_message_of_a_read_is_read_again"),),
    ),
    Mutation(
        "reader-trusts-the-wire",
        "a message that was lost between broker and client is not missed",
        "actors/runtime/reader.py",
        "if in_order != self._n_received:",
        "if in_order < self._n_received:",
        (crash(BROKER_LOSS + "::test_a_lost_message_of_a_read_is_read_again"),),
    ),
    Mutation(
        "reader-reads-on-after-a-lost-tail",
        "a reader does not notice that the broker lost what it had handed out",
        "actors/runtime/reader.py",
        "if there is not None and there.at_ns != self._position_ns:",
        "if there is None and self._position_ns < 0:",
        (crash("tests/runtime/test_rewritten_tail.py"),),
    ),
    Mutation(
        "queue-forgets-on-restart",
        "what a worker asked for is not asked for again after the broker came back",
        "actors/runtime/durable.py",
        "    def _on_broken(self, reason: str) -> None:\n        self._trouble = reason\n        self._watchdog.n_replaced += 1\n"
        '        self._signal.set()\n\n    def _on_reconnect(self) -> None:\n        self._trouble = "reconnected"\n',
        "    def _on_broken(self, reason: str) -> None:\n        self._watchdog.n_replaced += 1\n"
        "        self._signal.set()\n\n    def _on_reconnect(self) -> None:\n",
        (crash(BROKER_LOSS + "::test_everything_goes_on_after_a_broker_restart"),),
    ),
    Mutation(
        "append-in-doubt-conflicts",
        "a conditional append whose acknowledgement was lost takes itself for somebody else",
        "actors/runtime/jetstream.py",
        "if there is not None and there.message_id == event_id and there.data == data:",
        "if there is not None and there.message_id != event_id and there.data == data:",
        (unit("tests/runtime/test_bus_contract.py"), crash(BROKER_LOSS)),
    ),
    Mutation(
        "other-bytes-under-the-same-id",
        "a repeat of a conditional append succeeds whatever it says",
        "actors/runtime/jetstream.py",
        "if there is not None and there.message_id == event_id and there.data == data:",
        "if there is not None and there.message_id == event_id:",
        (unit("tests/runtime/test_bus_contract.py"),),
    ),
    Mutation(
        "condition-on-the-subject-alone",
        "a conditional append compares with the facts of its own type, not with all facts of the key",
        "actors/runtime/jetstream.py",
        "        Nats_Expected_Last_Subject_Sequence_Subject=target.scope,\n",
        "        Nats_Expected_Last_Subject_Sequence_Subject=target.subject,\n",
        (unit("tests/runtime/test_bus_contract.py"),),
    ),
    Mutation(
        "append-never-retried",
        "an append in doubt is not sent again",
        "actors/runtime/publisher.py",
        "                    self.n_retries += 1\n                    await self._send(entry)\n",
        "                    self.n_retries += 1\n",
        (crash(BROKER_LOSS),),
    ),
    Mutation(
        "blob-not-verified",
        "a payload with other bytes passes",
        "actors/runtime/blobs.py",
        "if len(data) != ref.size_bytes or xxhash.xxh3_128_hexdigest(data) != ref.hash:",
        "if not data and ref.size_bytes:",
        (unit("tests/runtime/test_bus_contract.py"),),
    ),
    Mutation(
        "queue-without-a-bound",
        "a durable queue hands out without max_ack_pending",
        "actors/runtime/jsapi.py",
        '"max_ack_pending": row.max_ack_pending,',
        '"max_ack_pending": -1,',
        (unit("tests/runtime/test_bus_contract.py"), prop(ON_A_SERVER)),
    ),
    Mutation(
        "queue-gives-up",
        "a durable queue stops delivering a fact after two tries",
        "actors/runtime/jsapi.py",
        '"max_deliver": -1,',
        '"max_deliver": 2,',
        (unit("tests/actors/test_actor.py::test_a_poisonous_fact_goes_to_dead_and_holds_nobody_up"),),
    ),
    Mutation(
        "expired-delivery-forgotten",
        "in memory, a fact whose worker died is not delivered again",
        "actors/runtime/memory_queue.py",
        "        held.timer = None\n        self._requeue(held)\n\n    def _requeue",
        "        held.timer = None\n\n    def _requeue",
        (prop(IN_MEMORY),),
    ),
    Mutation(
        "in-progress-ignored",
        "in memory, a fact that is worked on for long is delivered to another worker",
        "actors/runtime/memory_queue.py",
        "        if left_s > 1e-6:\n",
        "        if left_s > 3600:\n",
        (prop(IN_MEMORY),),
    ),
)
