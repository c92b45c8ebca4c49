"""What a trainer and the process that broadcasts its weights say to each other: frames of `schemas.framing`, msgpack."""

import msgspec

from schemas.records import Count, Record


class SendWeights(Record, tag="send_weights", tag_field="type", frozen=True, kw_only=True):
    """Broadcast the tensors of these files of a folder, file by file, in the order of their bytes."""

    path: str
    files: list[str]


class SenderReady(Record, tag="sender_ready", tag_field="type", frozen=True, kw_only=True):
    """The process keeps a store at `port`, where members may meet."""

    port: Count


class WeightsSent(Record, tag="weights_sent", tag_field="type", frozen=True, kw_only=True):
    """All members have taken part."""

    n_bytes: Count
    elapsed_ns: Count


class SendFailed(Record, tag="send_failed", tag_field="type", frozen=True, kw_only=True):
    """The group is of no more use; the process ends."""

    message: str


encoder = msgspec.msgpack.Encoder()
command_decoder = msgspec.msgpack.Decoder(SendWeights)
reply_decoder = msgspec.msgpack.Decoder(SenderReady | WeightsSent | SendFailed)
