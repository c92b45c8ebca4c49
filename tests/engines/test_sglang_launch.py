"""The command line of an SGLang server, and the settings that make it."""

import os
import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from models.models_for_tests import small_config, write_model

from asearch.configuration.engine import EngineSettings
from asearch.configuration.loading import load_settings
from asearch.engines.launch import Launch
from asearch.engines.sglang.launch import FOLDER, device, interpreter, launch
from asearch.errors import ConfigError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), small_config(), 0)


def python(folder: Path) -> str:
    path = folder / "python"
    path.touch()
    return str(path)


def started(model: Path, folder: Path, *, environ: dict[str, str] | None = None, **changes: Any) -> Launch:
    settings = EngineSettings(kind="sglang", python=python(folder), **({"device": "cpu"} | changes))
    return launch(settings, model, 4711, seed=-3, max_context_tokens=400, environ=environ or {})


def flag(launched: Launch, name: str) -> str:
    assert launched.argv.count(name) == 1, launched.argv
    return launched.argv[launched.argv.index(name) + 1]


def test_the_command_serves_the_model_on_loopback(model: Path, tmp_path: Path) -> None:
    launched = started(model, tmp_path)
    assert launched.argv[:2] == [str(tmp_path / "python"), str(FOLDER / "launch_server.py")]
    assert Path(launched.argv[1]).is_file()
    assert (flag(launched, "--model-path"), flag(launched, "--port")) == (str(model), "4711")
    assert flag(launched, "--host") == "127.0.0.1"
    assert launched.url() == "http://127.0.0.1:4711"
    assert int(flag(launched, "--random-seed")) >= 0


def test_the_context_is_longer_than_ours_but_never_than_the_models(model: Path, tmp_path: Path) -> None:
    assert flag(started(model, tmp_path), "--context-length") == "416"
    settings = EngineSettings(kind="sglang", python=python(tmp_path), device="cpu")
    launched = launch(settings, model, 1, seed=0, max_context_tokens=100_000, environ={})
    assert flag(launched, "--context-length") == "512"


def test_a_cpu_gets_the_flags_and_shims_that_it_needs(model: Path, tmp_path: Path) -> None:
    launched = started(model, tmp_path, threads=3)
    assert (flag(launched, "--device"), flag(launched, "--attention-backend")) == ("cpu", "torch_native")
    assert flag(launched, "--max-total-tokens") == "65536"
    assert "--sleep-on-idle" in launched.argv
    assert launched.env is not None
    assert (Path(launched.env["PYTHONPATH"]) / "sgl_kernel" / "__init__.py").is_file()
    assert (launched.env["SGLANG_USE_CPU_ENGINE"], launched.env["OMP_NUM_THREADS"]) == ("1", "3")


def test_a_gpu_gets_neither(model: Path, tmp_path: Path) -> None:
    launched = started(model, tmp_path, device="cuda")
    assert flag(launched, "--device") == "cuda"
    assert launched.env is not None
    assert not {"--attention-backend", "--dtype", "--max-total-tokens", "--sleep-on-idle"} & set(launched.argv)
    assert not {"PYTHONPATH", "SGLANG_USE_CPU_ENGINE", "OMP_NUM_THREADS"} & set(launched.env)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_a_server_is_told_where_to_count_and_finds_what_counts(model: Path, tmp_path: Path, where: str) -> None:
    settings = EngineSettings(kind="sglang", python=python(tmp_path), device=where)
    env = launch(settings, model, 1, seed=0, max_context_tokens=100, tally=tmp_path / "tallies" / "engine-0", environ={}).env
    assert env is not None and env["ASEARCH_TALLY"] == str(tmp_path / "tallies" / "engine-0")
    folders = env["PYTHONPATH"].split(os.pathsep)
    found = [each for distribution in distributions(path=folders) for each in distribution.entry_points]
    assert [(each.group, each.value) for each in found] == [("sglang.srt.plugins", "asearch_tally:register")]
    assert any((Path(folder) / "asearch_tally.py").is_file() for folder in folders)
    assert ((FOLDER / "cpu") in map(Path, folders)) is (where == "cpu")


def test_the_environment_is_ours_but_for_what_leads_to_our_packages(model: Path, tmp_path: Path) -> None:
    given = {"PATH": "/bin", "PYTHONPATH": "/ours", "PYTHONDONTWRITEBYTECODE": "1", "VIRTUAL_ENV": "/ours", "CUDA_HOME": "/cuda"}
    env = started(model, tmp_path, device="cuda", environ=given).env
    assert env is not None
    assert (env["PATH"], env["CUDA_HOME"]) == ("/bin", "/cuda")
    assert not {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV"} & set(env)
    assert env["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "1"
    assert env["HF_HUB_OFFLINE"] == "1"
    assert env["ASEARCH_PARENT"] == str(os.getpid())


def test_given_flags_pass_untouched_and_replace_ours(model: Path, tmp_path: Path) -> None:
    launched = started(model, tmp_path, args=["--tp-size", "2", "--dtype=bfloat16", "--stream-interval", "1"])
    assert launched.argv[-5:] == ["--tp-size", "2", "--dtype=bfloat16", "--stream-interval", "1"]
    assert "--dtype" not in launched.argv
    assert flag(launched, "--stream-interval") == "1"
    assert started(model, tmp_path, args=["--sleep-on-idle"]).argv.count("--sleep-on-idle") == 1


@pytest.mark.parametrize(
    "owned",
    ["--port", "--model-path", "--host=0.0.0.0", "--device", "--skip-tokenizer-init", "--config", "--ho=0.0.0.0", "--api-key"],
)
def test_flags_that_the_engine_owns_are_refused(model: Path, tmp_path: Path, owned: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.args may not hold {owned.partition('=')[0]}"):
        started(model, tmp_path, args=[owned, "1"])


def test_the_interpreter_is_found_or_the_error_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sh infra/sglang/setup\.sh"):
        interpreter(EngineSettings(kind="sglang"), [tmp_path])
    with pytest.raises(ConfigError, match="there is no /nowhere/python"):
        interpreter(EngineSettings(kind="sglang", python="/nowhere/python"))
    made = tmp_path / ".venv-sglang" / "bin"
    made.mkdir(parents=True)
    (made / "python").symlink_to("/bin/sh")
    # The link is not followed: a virtual environment is known by the path of its interpreter.
    assert interpreter(EngineSettings(kind="sglang"), [tmp_path]) == made / "python"


def test_auto_is_cuda_where_there_is_a_driver(tmp_path: Path) -> None:
    settings = EngineSettings(kind="sglang")
    assert device(settings, tmp_path / "none") == "cpu"
    assert device(settings, tmp_path) == "cuda"
    assert device(EngineSettings(kind="sglang", device="cpu"), tmp_path) == "cpu"


BAD = [
    (["engine.kind=vllm"], "it is 'embedded' (the default: small models on CPU) or 'sglang'"),
    (["engine.kind=sglang", "engine.device=tpu"], "one of auto, cpu, cuda"),
    (['engine.args=["--tp", "2"]'], "set engine.kind to 'sglang' too"),
    (["engine.kind=sglang", 'engine.args=["--port", "1"]'], "each engine takes a free one"),
    (["engine.kind=sglang", 'engine.urls=["localhost:3"]'], "write it as http://HOST:PORT"),
    (["engine.kind=sglang", 'engine.urls=["http://me:secret@host:3"]'], "write it as http://HOST:PORT"),
    (["engine.kind=sglang", 'engine.urls=["http://a:3", "http://a:3"]'], "twice"),
    (["engine.kind=sglang", "engine.count=3", 'engine.urls=["http://a:3", "http://b:3"]'], "names 2 servers"),
    (["engine.kind=sglang", 'engine.urls=["http://a:3"]', 'engine.args=["--tp", "2"]'], "have no effect"),
    (["engine.start_timeout_s=0"], "engine.start_timeout_s must be a number of seconds above 0"),
    (["engine.max_restarts=-1"], "engine.max_restarts must be 0 or more"),
]


@pytest.mark.parametrize(("overrides", "said"), BAD)
def test_settings_that_make_no_sense_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_settings("toy", overrides)


def test_there_is_an_engine_per_server_that_runs_already() -> None:
    settings = load_settings("toy", ["engine.kind=sglang", 'engine.urls=["http://a:3", "http://b:3"]'])
    assert settings.engine.n_engines == 2
    assert settings.engine.start_limit_s == 900.0
    assert load_settings("toy").engine.start_limit_s == 120.0


def test_a_server_gets_a_name_of_its_own_and_no_secrets(model: Path, tmp_path: Path) -> None:
    settings = EngineSettings(kind="sglang", python=python(tmp_path), device="cpu")
    environ = {"ASEARCH_WEIGHTS_TOKEN": "secret", "JUDGE_API_KEY": "secret", "LANG": "C"}
    launched = launch(settings, model, 1, seed=0, max_context_tokens=100, name="start-7", environ=environ)
    assert flag(launched, "--weight-version") == launched.name == "start-7"
    assert launched.env is not None and "secret" not in launched.env.values() and launched.env["LANG"] == "C"
