"""Copies of the notebooks for students and for Kaggle."""

import json
import sys

import kaggle_notebooks
import nbformat
import pytest
import student_notebooks
from kaggle_notebooks import ROOT
from slugify import slugify

PATHS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


def call(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def is_solution(cell):
    return "solution" in cell.metadata.get("tags", [])


def test_students_get_everything_but_the_solutions(tmp_path, monkeypatch):
    call(student_notebooks, monkeypatch, "--out", tmp_path / "a class")
    copies = sorted((tmp_path / "a class").iterdir())
    assert [path.name for path in copies] == [path.name for path in PATHS]
    emptied = 0
    for path, copy in zip(PATHS, copies, strict=True):
        before = nbformat.read(path, as_version=4)
        after = nbformat.read(copy, as_version=4)
        nbformat.validate(after)
        assert after.metadata == before.metadata
        for old, new in zip(before.cells, after.cells, strict=True):
            if is_solution(old):
                emptied += 1
                title = old.source.splitlines()[0]
                assert new.source == f"{title}\n# Your teacher has the solution."
                old.source = new.source
            assert new == old
    assert emptied == 9


def test_the_solutions_are_not_overwritten(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(student_notebooks, monkeypatch, "--out", ROOT / "notebooks")
    assert "holds the notebooks with the solutions" in capsys.readouterr().err


def test_kaggle_gets_one_folder_per_notebook(tmp_path, monkeypatch, capsys):
    call(kaggle_notebooks, monkeypatch, "Me-2", "--out", tmp_path)
    shown = capsys.readouterr().out
    for path in PATHS:
        folder = tmp_path / path.stem
        assert f"kaggle kernels push --path {folder}\n" in shown
        metadata = json.loads((folder / "kernel-metadata.json").read_text())
        assert (folder / metadata["code_file"]).read_bytes() == path.read_bytes()
        # Kaggle's own function: an id that differs from it makes another notebook.
        assert metadata["id"] == f"me-2/{slugify(metadata['title'])}"
        assert metadata["dataset_sources"] == ["dansbecker/cityscapes-image-pairs"]
        assert metadata["enable_gpu"] == (path.stem == "03_train")
        assert metadata["enable_internet"] is True


def test_a_kaggle_name_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(kaggle_notebooks, monkeypatch, "me@example.org", "--out", tmp_path)
    assert "is not a Kaggle name" in capsys.readouterr().err
