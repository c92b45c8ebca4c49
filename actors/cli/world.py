"""`asearch world OUT`: write a generated wiki with its questions, in the formats that `asearch train` reads."""

from pathlib import Path

import click
import msgspec

from asearch.data.worlds.files import CORPUS, PAGES, TEST, TRAIN, WorldManifest, write_world
from asearch.data.worlds.world import WorldSpec

DEFAULTS = WorldSpec()


@click.command("world")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--entities", type=int, default=DEFAULTS.n_entities, show_default=True, help="People in it.")
@click.option("--relations", type=int, default=DEFAULTS.n_relations, show_default=True, help="Relations between them.")
@click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Another seed, another world.")
@click.option("--test-questions", type=int, default=300, show_default=True, help="Held-out questions, as many of each hop.")
@click.option("--train-questions", type=int, default=3000, show_default=True, help="Training questions at most.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as one JSON line.")
def world(out: Path, entities: int, relations: int, seed: int, test_questions: int, train_questions: int, as_json: bool) -> None:
    """Write a fictional wiki to the folder OUT: corpus, HTML pages, training and held-out questions of one to three hops.

    The same options give the same bytes. A folder that holds a world is written anew; any other must be new or empty.
    """
    for option, value in (("--test-questions", test_questions), ("--train-questions", train_questions)):
        if value < 1:
            raise click.BadParameter(f"{value} is not at least 1", param_hint=option)
    spec = WorldSpec(seed=seed, n_entities=entities, n_relations=relations)
    manifest = write_world(spec, out, test_questions, train_questions)
    if as_json:
        click.echo(msgspec.json.encode({"folder": str(out.resolve()), **_told(manifest)}).decode())
    else:
        click.echo(_summary(out, manifest))


def _told(manifest: WorldManifest) -> dict[str, object]:
    return msgspec.structs.asdict(manifest)


def _summary(out: Path, manifest: WorldManifest) -> str:
    return "\n".join(
        (
            f"{out / CORPUS}: {manifest.n_articles} passages ({out / PAGES}: their pages)",
            f"{out / TRAIN}: {manifest.n_train} questions to train on",
            f"{out / TEST}: {manifest.n_test} questions held out",
            f"train on it: asearch train toy --corpus {out / CORPUS} --tasks {out / TRAIN} --eval-tasks {out / TEST}",
        )
    )
