"""The first requests of a group's episodes, a function of the group."""

import hashlib

from schemas.events import EpisodeRequested, GroupAdmitted


def requests_of(group: GroupAdmitted, recipe_hash: str, at_ns: int) -> list[EpisodeRequested]:
    """One request for each member."""
    return [
        EpisodeRequested(
            id=f"request-{group.group}-{member}-0",
            at_ns=at_ns,
            episode=f"{group.group}-{member}",
            group=group.group,
            member=member,
            members=group.members,
            slot=group.slot,
            purpose=group.purpose,
            task=group.task,
            seed=seed,
            progress=group.progress,
            recipe_hash=recipe_hash,
            refill=group.refill,
            label=group.label,
        )
        for member, seed in enumerate(group.seeds)
    ]


def sampling_seed(seed: int, group: str, member: int) -> int:
    """A sampling seed of 31 bits, the same for the same episode of the same run."""
    digest = hashlib.blake2b(f"{seed}\x1f{group}\x1f{member}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
