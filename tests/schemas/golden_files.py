"""The golden bytes: what was once written, and what it means.

`golden/{Name}.{n}.msgpack` holds the bytes of a fully populated instance as the struct was then, `.json` its value. A field that
is added later gets a further n; a file is never changed, for bytes like these lie in the archives of users.
"""

from pathlib import Path

import msgspec

GOLDEN = Path(__file__).parent / "golden"


def files_of(struct: type[msgspec.Struct]) -> list[Path]:
    """The msgpack files of a struct, oldest first."""
    return sorted(GOLDEN.glob(f"{struct.__name__}.*.msgpack"), key=lambda path: int(path.name.split(".")[1]))


def is_covered(struct: type[msgspec.Struct], data: bytes) -> bool:
    """Whether a golden file holds exactly these bytes."""
    return any(path.read_bytes() == data for path in files_of(struct))
