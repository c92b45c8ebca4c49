"""Every error that asearch raises on purpose. The message says what is wrong and what to do about it."""


class AsearchError(Exception):
    """Base of all errors of this project; the command line prints its text, without a traceback, and exits with `exit_code`."""

    exit_code = 1


class ConfigError(AsearchError):
    """A configuration, recipe or command-line setting is wrong."""

    exit_code = 2


class InputError(AsearchError):
    """An input file (corpus, tasks, model folder) is missing, malformed or unsupported."""

    exit_code = 2


class CheckpointError(AsearchError):
    """A checkpoint is incomplete, corrupt or does not fit the run."""


class EngineError(AsearchError):
    """An inference server did not start, did not answer, or answered with something that must not be used."""


class TransferError(AsearchError):
    """Weights did not arrive. What an engine serves is as it was."""


class WeightsGoneError(TransferError):
    """The source does not have the version any more: a newer one has been announced."""


class ChecksumError(TransferError):
    """Weights are not those that were announced."""


class AuxiliaryError(AsearchError):
    """An auxiliary model (judge, reader, simulator) gave no answer that can be used."""


class AuxiliaryRetryableError(AuxiliaryError):
    """All tries failed, each in a way that may pass: rate limits, server errors, lost connections."""


class AuxiliaryPermanentError(AuxiliaryError):
    """Asking again is no use: a wrong address, key, model or request, or an answer that must not be used."""


class AuxiliaryRefusedError(AuxiliaryError):
    """The model, or a filter in front of it, declined to answer."""


class AuxiliaryTimeoutError(AuxiliaryError):
    """There was no answer before the deadline."""


class ToolError(AsearchError):
    """A tool call failed for a reason outside the policy."""


class GradingError(AsearchError):
    """A grader could not come to a verdict for a reason outside the policy."""


class StorageError(AsearchError):
    """A disk is full, or refuses to write. What was there before is as it was."""


class TrainingError(AsearchError):
    """A training process failed or was given a batch that breaks an invariant."""


class SecondTrainerError(AsearchError):
    """Another trainer has claimed the model."""


class BusError(AsearchError):
    """The broker could not be reached, or refused."""


class ConflictError(BusError):
    """A conditional append was refused: somebody else has written first."""


class StreamFullError(BusError):
    """A stream is at its bound and discards new events."""


class NotStoredError(BusError):
    """An append is not known to be stored: the broker is away, or takes it and does not store it because its disk is full."""


class NoResponderError(BusError):
    """Nobody listens on the subject of a request."""


class RequestTimeoutError(BusError):
    """A request was not answered in time."""


class BlobMissingError(BusError):
    """A payload that an event refers to is not stored any more, or its bytes are not those that were stored."""


class StreamRewoundError(BusError):
    """The broker lost the tail of a stream, or made it anew: what was read before may be void; fold again from the start."""


class DecodeError(AsearchError):
    """Bytes that are not an event this code knows."""
