"""Releases: what refuses a tag, and the notes."""

import shutil
from pathlib import Path

import pytest
import release
import sync_notebooks
import yaml

ROOT = Path(__file__).parent.parent

CHANGELOG = """\
# Changelog

## 1.10.0, not released yet

* soon

## 1.1.0, 2026-11-28

New:

* one thing

## 1.0.0, 2026-11-27
"""


def test_the_notes_are_one_section_of_the_changelog():
    assert release.release_notes(CHANGELOG, "1.1.0") == "New:\n\n* one thing"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.1", "there are no notes for 1.1"),
        ("1.0.0", "there are no notes for 1.0.0"),
        ("1.10.0", "write the date"),
        ("2.0.0", "there are no notes"),
    ],
)
def test_notes_that_are_missing_or_have_no_date(version, message):
    with pytest.raises(ValueError, match=message):
        release.release_notes(CHANGELOG, version)


@pytest.fixture
def ready(tmp_path):
    """A copy of this repository that is ready for a release, and the tag."""
    for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    tag = sync_notebooks.release_tag(tmp_path)
    changelog = f"# Changelog\n\n## {tag[1:]}, 2026-11-28\n\n* new\n"
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    sync_notebooks.sync("https://github.com/me/mine", tag, tmp_path)
    return tmp_path, tag


def replace(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def test_a_release_that_is_ready(ready):
    folder, tag = ready
    assert release.find_problems(tag, folder) == []


def test_a_tag_of_another_version_is_refused(ready):
    folder, _ = ready
    problems = release.find_problems("v9.9.9", folder)
    assert problems[0].startswith("pyproject.toml: its version makes the tag v")
    assert len([line for line in problems if ".ipynb: not of v9.9.9" in line]) == len(
        list((folder / "notebooks").iterdir())
    )


def test_a_notebook_of_another_version_is_refused(ready):
    folder, tag = ready
    replace(
        folder / "notebooks" / "03_train.ipynb", f'VERSION = \\"{tag}\\"', 'VERSION = \\"main\\"'
    )
    (problem,) = release.find_problems(tag, folder)
    assert problem.startswith(f"03_train.ipynb: not of {tag} in https://github.com/me/mine")


def test_an_address_that_says_owner_is_refused(ready):
    folder, tag = ready
    sync_notebooks.sync("https://github.com/OWNER/unet-street-scenes", tag, folder)
    (problem,) = release.find_problems(tag, folder)
    assert "OWNER" in problem


def test_notes_without_a_date_are_refused(ready):
    folder, tag = ready
    replace(folder / "CHANGELOG.md", "2026-11-28", "not released yet")
    (problem,) = release.find_problems(tag, folder)
    assert problem.startswith("CHANGELOG.md: write the date")


def test_the_workflow_checks_before_it_publishes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    (job,) = workflow["jobs"].values()
    commands = [step.get("run", "") for step in job["steps"]]
    order = [
        next(number for number, command in enumerate(commands) if part in command)
        for part in ("scripts/release.py", "python -m build", "gh release create")
    ]
    assert order == sorted(order)


def test_the_citation_names_data_set_and_network():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert [each["doi"] for each in citation["references"]] == [
        "10.1109/CVPR.2016.350",
        "10.1007/978-3-319-24574-4_28",
    ]
    assert citation["repository-code"] == sync_notebooks.repository_url()
