"""With which settings a run may go on."""

from pathlib import Path

import msgspec
import pytest

from actors.cli.train import settings_to_go_on
from actors.runtime.run_files import RunFile, write_run_file
from asearch.configuration.loading import load_settings
from asearch.configuration.settings import Settings
from asearch.errors import ConfigError


def begun(run_dir: Path, settings: Settings) -> None:
    run_dir.mkdir(exist_ok=True)
    texts = dict.fromkeys(("broker_url", "corpus_url", "model_dir", "train_tasks", "eval_tasks", "weights_dir"), "")
    write_run_file(run_dir, RunFile(run="r", settings=settings, supervisor_pid=1, supervisor_started=0.0, **texts))


@pytest.mark.parametrize("objective", ["decoupled_ppo", "ppo"])
def test_a_run_goes_on_by_the_rule_that_it_was_begun_with(tmp_path: Path, objective: str) -> None:
    settings = load_settings("toy", (f"trainer.objective={objective}",))
    assert settings_to_go_on(tmp_path / "new", settings) is settings
    assert settings.run.equal_rewards == ("keep" if objective == "ppo" else "discard")
    begun(tmp_path, settings)
    assert settings_to_go_on(tmp_path, settings) == settings
    silent = msgspec.structs.replace(settings, run=msgspec.structs.replace(settings.run, equal_rewards=None))
    begun(tmp_path, silent)
    assert settings_to_go_on(tmp_path, settings) == silent
    with pytest.raises(ConfigError, match="begun with other settings"):
        settings_to_go_on(tmp_path, load_settings("toy", (f"trainer.objective={objective}", "trainer.lr=0.5")))
