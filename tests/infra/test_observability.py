"""Dashboard, rules and scrape configuration against what a scrape renders: every name and every label is there."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from actors.cli.main import COMMANDS
from actors.runtime.measures import METRICS
from tests.runtime.test_metrics import everything

INFRA = Path(__file__).parents[2] / "infra"
RULES = INFRA / "prometheus" / "asearch.rules.yml"
DASHBOARD = INFRA / "grafana" / "asearch.json"
_NAME = re.compile(r"\basearch_[a-z_]+")
_MATCHED = re.compile(r"(\basearch_[a-z_]+)\{([^}]*)\}")


@pytest.fixture(scope="module")
def rendered() -> dict[str, set[str]]:
    """Labels of every metric of a scrape that has all of them."""
    body, _ = everything().render()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def check(expression: str, rendered: dict[str, set[str]]) -> None:
    for name in _NAME.findall(expression):
        assert name in rendered, f"{name} is in no scrape: {expression}"
    for name, matchers in _MATCHED.findall(expression):
        for label in re.findall(r"([a-z_]+)\s*[=!]", matchers):
            assert label in rendered[name], f"{name} has no label {label}: {expression}"


def test_every_metric_of_the_dashboard_is_rendered(rendered: dict[str, set[str]]) -> None:
    assert len(dashboard_expressions()) > 30
    for expression in dashboard_expressions():
        check(expression, rendered)


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set(_NAME.findall(DASHBOARD.read_text()))
    assert {metric.exposed for metric in METRICS} <= shown


def test_the_dashboard_is_whole() -> None:
    held = panels()
    assert len({panel["id"] for panel in held}) == len(held)
    for panel in held:
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"] and panel["targets"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    cells = [
        (x, y)
        for panel in held
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie over one another"


def test_every_metric_of_the_rules_is_rendered(rendered: dict[str, set[str]]) -> None:
    for rule in rules():
        check(rule["expr"], rendered)
        for label in re.findall(r"\$labels\.([a-z_]+)", json.dumps(rule.get("annotations", {}))):
            assert any(label in rendered[name] for name in _NAME.findall(rule["expr"]) if name in rendered), (rule, label)


def test_every_alert_says_what_to_do_with_the_command() -> None:
    assert len({rule["alert"] for rule in alerts()}) == len(alerts()) >= 9
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["annotations"]["summary"]
        named = re.findall(r"`asearch (\w+)", rule["annotations"]["description"])
        assert named and set(named) <= set(COMMANDS) | {"episodes"}, rule["alert"]


def test_what_must_be_watched_is_watched() -> None:
    watched = {rule["alert"] for rule in alerts()}
    assert watched >= {
        "AsearchQueueStalled",
        "AsearchStalenessNearBound",
        "AsearchRewardCollapsed",
        "AsearchDeadLetters",
        "AsearchDiskLow",
        "AsearchActorSilent",
        "AsearchAccountingBroken",
        "AsearchTrainerStalled",
        "AsearchStreamNearBound",
    }


def test_prometheus_scrapes_loopback_with_these_rules() -> None:
    content = yaml.safe_load((INFRA / "prometheus" / "prometheus.yml").read_text())
    assert content["rule_files"] == [RULES.name]
    [job] = content["scrape_configs"]
    assert job["job_name"] == "asearch" and job["metrics_path"] == "/metrics"
    assert all(target.startswith("127.0.0.1:") for target in job["static_configs"][0]["targets"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("arguments", [("check", "rules", RULES.name), ("test", "rules", "asearch.rules.test.yml")])
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
