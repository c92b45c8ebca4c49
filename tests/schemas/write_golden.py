"""Write the golden files that are missing: `python tests/schemas/write_golden.py`. Never overwrites one."""

import msgspec
from golden_files import GOLDEN, files_of, is_covered
from schema_samples import EVENTS, MESSAGES, STORED, sample


def write_missing() -> list[str]:
    """The names of the files written."""
    GOLDEN.mkdir(exist_ok=True)
    written: list[str] = []
    for struct in (*EVENTS, *MESSAGES, *STORED):
        value = sample(struct)
        data = msgspec.msgpack.encode(value)
        if is_covered(struct, data):
            continue
        name = f"{struct.__name__}.{len(files_of(struct)) + 1}"
        with (GOLDEN / f"{name}.json").open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
        with (GOLDEN / f"{name}.msgpack").open("xb") as file:
            file.write(data)
        written.append(name)
    return written


if __name__ == "__main__":
    for name in write_missing():
        print(name)
