"""The broker's rights per kind of actor, from the topology: what each may publish and subscribe.

Rights name one run. JetStream is reached through subjects too, so reading, acknowledging and purging are rights to publish on
the broker's own subjects. Streams and durable consumers are made by an operator, who may do everything.
"""

from dataclasses import dataclass, field

from schemas.topology import TOPOLOGY, Fact, Reader, any_key, broker_stream

RUN = "{run}"
"""Stands for the run in the generated document."""

EVERY_RUN = "*"
"""Stands for any run in a right."""

OPERATOR = "operator"


@dataclass
class Rights:
    """Allow and deny lists of subjects. `may_reply` lets an actor answer requests on inboxes that are not its own."""

    publish: set[str] = field(default_factory=set[str])
    deny_publish: set[str] = field(default_factory=set[str])
    subscribe: set[str] = field(default_factory=set[str])
    may_reply: bool = False

    def as_nats(self) -> dict[str, object]:
        """The `permissions` block of a user in the server's configuration."""
        publish: dict[str, list[str]] = {"allow": sorted(self.publish)}
        if self.deny_publish:
            publish["deny"] = sorted(self.deny_publish)
        block: dict[str, object] = {"publish": publish, "subscribe": {"allow": sorted(self.subscribe)}}
        if self.may_reply:
            block["allow_responses"] = True
        return block


def inbox(actor: str) -> str:
    """The prefix of the inboxes of one kind of actor: no other kind may listen there."""
    return f"_INBOX_{actor}"


def rights_of(actor: str, run: str) -> Rights:
    """The rights of one kind of actor in one run, or in every run. Raises ValueError for a kind that is not in the table."""
    if actor not in TOPOLOGY.actors:
        raise ValueError(f"{actor!r} is no kind of actor; there are {', '.join(TOPOLOGY.actors)}")
    rights = Rights(subscribe={f"{inbox(actor)}.>"})
    rights.publish.update(f"$JS.API.STREAM.INFO.{_stream(run, stream.name)}" for stream in TOPOLOGY.streams)
    for fact in TOPOLOGY.facts:
        if actor in fact.writers:
            rights.publish.update(_writing(fact, run))
    for reader in TOPOLOGY.readers:
        if reader.actor == actor:
            rights.publish.update(_reading(reader, run))
    for stream in TOPOLOGY.streams:
        if actor in stream.purged_by:
            rights.publish.add(f"$JS.API.STREAM.PURGE.{_stream(run, stream.name)}")
    _add_queues(rights, actor, run)
    _add_core(rights, actor, run)
    return rights


def permissions(run: str = RUN) -> dict[str, dict[str, object]]:
    """The permissions block of every kind of actor and of the operator."""
    blocks = {actor: rights_of(actor, run).as_nats() for actor in TOPOLOGY.actors}
    blocks[OPERATOR] = Rights(publish={">"}, subscribe={">"}).as_nats()
    return blocks


def _stream(run: str, stream: str) -> str:
    """The broker's name of a stream; it is one token of a subject, so of every run it can only be any."""
    return "*" if run == EVERY_RUN else broker_stream(run, stream)


def _writing(fact: Fact, run: str) -> set[str]:
    """A refused conditional append is read back, to see whether it was this writer's own."""
    subjects = {any_key(run, fact.event)}
    if fact.conditional:
        subjects.add(f"$JS.API.DIRECT.GET.{_stream(run, fact.stream)}")
    return subjects


def _reading(reader: Reader, run: str) -> set[str]:
    stream = _stream(run, reader.stream)
    if reader.only and not reader.in_order:
        return {f"$JS.API.DIRECT.GET.{stream}.{any_key(run, event)}" for event in reader.only}
    subjects = {f"$JS.API.DIRECT.GET.{stream}", f"$JS.API.DIRECT.GET.{stream}.>"}
    if reader.in_order:
        verbs = ("CREATE", "DELETE", "INFO", "MSG.NEXT")
        subjects.update(f"$JS.API.CONSUMER.{verb}.{stream}.*" for verb in verbs)
    return subjects


def _add_queues(rights: Rights, actor: str, run: str) -> None:
    """A queue's own workers take from it; a reader of the same stream must neither take from it nor change it."""
    for row in TOPOLOGY.consumers:
        stream = _stream(run, row.stream)
        own = (f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{row.name}", f"$JS.ACK.{stream}.{row.name}.>")
        if actor == row.actor:
            rights.publish.update((*own, f"$JS.API.CONSUMER.INFO.{stream}.{row.name}"))
        elif any(reader.actor == actor and reader.in_order and reader.stream == row.stream for reader in TOPOLOGY.readers):
            verbs = ("CREATE", "DELETE", "MSG.NEXT")
            rights.deny_publish.update(f"$JS.API.CONSUMER.{verb}.{stream}.{row.name}" for verb in verbs)


def _add_core(rights: Rights, actor: str, run: str) -> None:
    for row in TOPOLOGY.core:
        subject = f"asearch.{run}.core.{row.noun}.{row.verb}.>"
        if actor in row.senders:
            rights.publish.add(subject)
        if actor in row.receivers:
            rights.subscribe.add(subject)
            rights.may_reply |= row.reply is not None
