"""Every alert fires in a test of its rule, and stays silent where it should."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "ops" / "monitoring"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
#: Exit status of ops/promtool where there is none to be had.
ABSENT = 77


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [ROOT / "ops" / "promtool", *arguments],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if done.returncode == ABSENT:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_do_what_their_tests_say() -> None:
    promtool("test", "rules", *(str(path) for path in sorted(MONITORING.glob("tests/*.yml"))))


def test_prometheus_takes_the_configuration_and_the_rules_that_it_names() -> None:
    promtool("check", "config", "prometheus.yml")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_and_is_silent_in_one_and_the_same_test(name: str) -> None:
    """Where nothing was given to it, silence would say nothing."""
    label, firing = f'{{alertname="{name}"}}', 'count by (alertname) (ALERTS{alertstate="firing"})'
    cases = [
        [
            label in [sample["labels"] for sample in check["exp_samples"] or ()]
            for check in case["promql_expr_test"]
            if check["expr"] == firing
        ]
        for path in MONITORING.glob("tests/*.yml")
        for case in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
    ]
    assert any(any(fires) and not all(fires) for fires in cases)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_type_next(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    assert ALERTS[name]["labels"]["severity"] in ("critical", "warning")
    assert annotations["summary"]
    assert re.search(r"Next: .*`|Look at .*`", annotations["description"])


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_its_section_of_the_docs(name: str) -> None:
    page, _, anchor = ALERTS[name]["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings


def test_every_section_of_the_docs_is_about_an_alert_that_there_is() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^#+ (Promptmill\w+)$", page, re.MULTILINE)) == set(ALERTS)


def test_prometheus_understands_the_query_of_every_panel(tmp_path: Path) -> None:
    board = json.loads((MONITORING / "grafana" / "dashboards" / "promptmill.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    for name, value in (("$__rate_interval", "1m"), ("$model", ".*"), ("$job_id", ".*")):
        queries = [query.replace(name, value) for query in queries]
    rules = [{"record": f"panel_{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "panels.yml"))
    assert len(queries) > 30
    assert not any("$" in query for query in queries)
