"""The runs of the folder: their processes after a crash, their model folders."""

from pathlib import Path

import psutil

from actors.cli.checks.disks import gib
from actors.cli.checks.finding import Finding, Subject
from actors.runtime.local_run import SHARED_MEMORY
from actors.runtime.run_files import RUN_FILE, RunFile, read_run_file
from actors.runtime.run_states import RESULT
from actors.runtime.workspace import Workspace, is_live
from asearch.engines.sglang.launch import FOLDER
from asearch.errors import InputError
from asearch.models.folder import check_folder

OURS = (
    *("actors.cli.main", "asearch.corpus", "asearch.engines.embedded", "asearch.training.rank"),
    str(FOLDER / "launch_server.py"),
)
"""Modules and programs that the processes of a run are started with."""


def runs_of(subject: Subject) -> list[tuple[RunFile, Path]]:
    """The run that was asked for, else all, the newest last; unreadable ones are left out."""
    workspace = Workspace(subject.root)
    if subject.run is None:
        return [(content, workspace.run_dir(content.run)) for content in workspace.runs()]
    try:
        return [(read_run_file(workspace.run_dir(subject.run)), workspace.run_dir(subject.run))]
    except InputError:
        return []


def unfinished(subject: Subject) -> list[RunFile]:
    """Those of them that have not ended: what they need has to be there when they go on."""
    return [content for content, run_dir in runs_of(subject) if not (run_dir / RESULT).is_file()]


def run_files(subject: Subject) -> list[Finding]:
    """`run.json` of every run can be read."""
    workspace = Workspace(subject.root)
    paths = (
        [workspace.run_dir(subject.run)] if subject.run else sorted(path.parent for path in workspace.root.glob(f"*/{RUN_FILE}"))
    )
    broken: list[Finding] = []
    for path in paths:
        try:
            read_run_file(path)
        except InputError as error:
            fix = f"ls -l {path}: `run.json` is written anew when the run is started again (asearch up --run {path.name})"
            broken.append(Finding("run files", "failed", str(error), fix))
    return broken or [Finding("run files", "ok", f"{len(paths)} runs in {subject.root}")]


def orphans(subject: Subject) -> list[Finding]:
    """No process of a run outlives its supervisor."""
    found: list[Finding] = []
    for content, run_dir in runs_of(subject):
        if is_live(content):
            continue
        left = left_over(run_dir)
        if left:
            pids = " ".join(str(process.pid) for process in left)
            detail = f"the supervisor of run {content.run} is gone, {len(left)} of its processes still run: {pids}"
            again = f"start it again with `asearch up --run {content.run}`"
            found.append(Finding("left-over processes", "failed", detail, f"kill {pids} (kill -9 if they stay), then {again}"))
    return found or [Finding("left-over processes", "ok", "every process of a run has its supervisor")]


def left_weights(subject: Subject) -> list[Finding]:
    """No killed run has left its weights in shared memory."""
    found: list[Finding] = []
    for content, _ in runs_of(subject):
        folder = Path(content.weights_dir)
        if is_live(content) or SHARED_MEMORY not in folder.parents or not folder.is_dir():
            continue
        n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        detail = f"run {content.run}, which is not live, holds {gib(n_bytes)} of shared memory in {folder}"
        fix = f"start it again with `asearch up --run {content.run}`, or rm -r {folder}"
        found.append(Finding("left-over weights", "warning", detail, fix))
    return found


def left_over(run_dir: Path) -> list[psutil.Process]:
    """Live processes that were started for a run, and their children."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline", "status"]):
        words: list[str] = process.info["cmdline"] or []
        if process.info["status"] == psutil.STATUS_ZOMBIE or not _is_of(words, run_dir):
            continue
        try:
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
        except psutil.NoSuchProcess:
            continue
    return [found[pid] for pid in sorted(found)]


def _is_of(words: list[str], run_dir: Path) -> bool:
    if not any(module in words for module in OURS) and not any(Path(word).name == "asearch" for word in words[:2]):
        return False
    if "actors.cli.main" in words or any(Path(word).name == "asearch" for word in words[:2]):
        return "actor" in words and str(run_dir) in words
    return any(word.startswith(f"{run_dir}/") for word in words)


def models(subject: Subject) -> list[Finding]:
    """The model folder that the engines of the newest run, or of the one asked for, start with."""
    found: list[Finding] = []
    for content, _ in runs_of(subject)[-1:]:
        if not content.model_dir:
            found.append(Finding("model folder", "info", f"run {content.run} has made none yet"))
            continue
        try:
            config, _ = check_folder(Path(content.model_dir))
        except (InputError, OSError) as error:
            found.append(
                Finding("model folder", "failed", f"engines of run {content.run} cannot start: {error}", _model_fix(content))
            )
            continue
        detail = f"{content.model_dir} ({config.architecture}, {config.n_layers} layers)"
        found.append(Finding("model folder", "ok", detail))
    return found or [Finding("model folder", "ok", "there is no run yet")]


def _model_fix(content: RunFile) -> str:
    given = content.settings.model.path
    if given is not None:
        return f"mend {given}, or start a new run with another one: asearch train {content.settings.recipe} --model HF_DIR"
    return f"rm -r {content.model_dir} && asearch up --run {content.run} (the warm start makes it again)"
