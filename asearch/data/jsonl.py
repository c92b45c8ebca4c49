"""Lines of a JSONL file as typed rows; what is wrong with a line is said with its file and number."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from asearch.errors import InputError

MAX_LINE_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"

RowT = TypeVar("RowT")


def line_error(path: Path, number: int, problem: str, advice: str) -> InputError:
    """An error about line `number` (from 1) of `path`: what is wrong with it and what to do."""
    return InputError(f"{path}:{number}: {problem}. {advice}")


def read_rows(path: Path, row_type: type[RowT], advice: str) -> Iterator[tuple[int, RowT]]:
    """Yield (line number from 1, row) for every line that is not blank; `advice` ends the message about a malformed line.

    Raises InputError: the file cannot be read, or a line is not UTF-8, not JSON, not of `row_type`, or over MAX_LINE_BYTES.
    """
    decoder = msgspec.json.Decoder(row_type)
    try:
        with path.open("rb") as file:
            for number, line in _numbered_lines(path, file):
                if line.strip():
                    yield number, _decode(decoder, path, number, line, advice)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be read: {reason}. Give the path of a readable JSONL file.") from error


def _numbered_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise line_error(path, number, f"the line is longer than {MAX_LINE_BYTES} bytes", "Split it into several rows.")
        yield number, line.removeprefix(_BOM) if number == 1 else line


def _decode(decoder: "msgspec.json.Decoder[RowT]", path: Path, number: int, line: bytes, advice: str) -> RowT:
    try:
        return decoder.decode(line)
    except UnicodeDecodeError as error:
        raise line_error(path, number, "the line is not UTF-8", f"Save the file as UTF-8. {advice}") from error
    except RecursionError as error:
        raise line_error(path, number, "the JSON is nested too deeply", advice) from error
    except msgspec.ValidationError as error:
        raise line_error(path, number, str(error), advice) from error
    except msgspec.DecodeError as error:
        raise line_error(path, number, f"the line is not JSON ({error})", advice) from error
