"""A run in Weights & Biases. Its key comes from its own environment variable or netrc, and is never seen here."""

import json
from pathlib import Path
from typing import Any

import msgspec

from actors.sinks.points import EndPoint, EvaluationPoint, SinkUnavailableError, StepPoint, Written
from schemas.events import RunStarted

EXTRA = "the Weights & Biases sink needs the extra 'wandb': pip install 'asearch[wandb]'"
NO_ACCOUNT = "Weights & Biases has no key: run `wandb login`, or set WANDB_API_KEY; --offline writes to disk and needs none"
STEP, TIME, DONE = "policy_step", "at_s", "steps_written"


class _State(msgspec.Struct):
    """What was recorded, in a file beside the records: an offline record cannot be asked."""

    next_step: int = 0
    evaluations: list[str] = []
    ended: bool = False


class WandbSink:
    """Records into one W&B run, whose id is that of the training run; going on resumes it."""

    def __init__(self, folder: Path, project: str, *, offline: bool) -> None:
        try:
            import wandb
        except ImportError as error:
            raise SinkUnavailableError(f"{EXTRA} ({error})") from error
        self._wandb: Any = wandb
        self._folder = folder
        self._project = project
        self._offline = offline
        self._run: Any = None
        self._state = _State()
        self._state_path = folder

    def open(self, started: RunStarted) -> Written:
        """Begin or resume the record. Raises SinkUnavailableError without an account."""
        if not self._offline and not self._wandb.login(prompt=False):
            raise SinkUnavailableError(NO_ACCOUNT)
        self._folder.mkdir(parents=True, exist_ok=True)
        identity = f"{started.run}-{started.at_ns // 1_000_000_000:x}"
        self._state_path = self._folder / f"{identity}{'-offline' if self._offline else ''}.json"
        self._state = _read(self._state_path)
        self._run = self._wandb.init(
            project=self._project,
            id=identity,
            name=started.run,
            resume="allow",
            mode="offline" if self._offline else "online",
            dir=str(self._folder),
            config={"recipe": started.recipe, "recipe_hash": started.recipe_hash, "seed": started.seed, **_config(started)},
            settings=self._settings(),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        # An online record knows it too, should the file have been lost.
        self._state.next_step = max(self._state.next_step, int(self._run.summary.get(DONE) or 0))
        return Written(self._state.next_step, set(self._state.evaluations), self._state.ended)

    def _settings(self) -> Any:
        """Only what is recorded on purpose leaves the machine: no source code, no git state, no terminal, no machine figures."""
        return self._wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
        )

    def step(self, point: StepPoint) -> None:
        """The step's scalars, and its staleness as a histogram."""
        record: dict[str, Any] = {STEP: point.step, TIME: point.at_ns / 1e9, DONE: point.step + 1, **point.scalars}
        if point.staleness:
            ages = range(min(point.staleness), max(point.staleness) + 1)
            edges = [age - 0.5 for age in (*ages, ages[-1] + 1)]
            counts = [point.staleness.get(age, 0) for age in ages]
            record["train/staleness"] = self._wandb.Histogram(np_histogram=(counts, edges))
        self._run.log(record)
        self._state.next_step = point.step + 1

    def evaluation(self, point: EvaluationPoint) -> None:
        """The evaluation's scalars, in the summary too."""
        self._run.log({STEP: point.step, TIME: point.at_ns / 1e9, **point.scalars})
        self._run.summary.update(point.scalars)
        self._state.evaluations.append(point.label)

    def end(self, point: EndPoint) -> None:
        """The accounting, in the summary."""
        self._run.summary.update({**point.scalars, "ended": point.reason})
        self._state.ended = True

    def flush(self) -> None:
        """Note what was handed over."""
        aside = self._state_path.with_suffix(".part")
        aside.write_bytes(msgspec.json.encode(self._state))
        aside.replace(self._state_path)

    def close(self) -> None:
        """Hand over the rest and end the record."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()


def _read(path: Path) -> _State:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_State)
    except (OSError, msgspec.DecodeError):
        return _State()


def _config(started: RunStarted) -> dict[str, Any]:
    try:
        return dict(json.loads(started.config)) if started.config else {}
    except ValueError:
        return {}
