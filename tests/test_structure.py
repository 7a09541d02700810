"""
import importlib, os, sys
import matplotlib.pyplot, torch, torchvision, tqdm

def state():
    threads = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    return dict(os.environ), matplotlib.rcParams.copy(), threads

before, threads = state(), len(sys._current_frames())
for name in sys.argv[1:]:
    importlib.import_module(name)
for was, now in zip(before, state()):
    assert was == now, (was, now)
assert len(sys._current_frames()) == threads
assert not os.listdir(), os.listdir()
"""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "unet_utils"
FOLDERS = {"demo", "use", "platform", "plots"}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""Files by the name of their module below `unet_utils`; that of the package itself is
`__init__`."""


def floor(module):
    """The folder that a module is in, or `core` for the files at the top level."""
    first = module.split(".")[0]
    return first if first in FOLDERS else "core"


def imports(module, lazy=True):
    """The modules of ours that a module imports; `lazy` counts imports inside of functions, too."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = {
        id(node) for top in ast.walk(tree) if isinstance(top, functions) for node in ast.walk(top)
    }
    found = set()
    for node in ast.walk(tree):
        if not lazy and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {
                alias.name for alias in node.names if alias.name.split(".")[0] == "unet_utils"
            }
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import: these tests do not follow it"
            if (node.module or "").split(".")[0] == "unet_utils":
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {_module_of(name) for name in found} - {module}


def _module_of(name):
    """`unet_utils.a.b` is the module `a.b`, or a name in the module `a`, or one in the package
    itself."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts) or "__init__"


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("classes", set()),
        ("encoders", set()),
        ("metrics", {"classes"}),
        ("model", {"classes", "encoders"}),
    ],
)
def test_the_ground_floor_imports_nothing_of_ours(module, allowed):
    assert imports(module) <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_each_floor_imports_only_what_is_below(module):
    used = imports(module)
    if module == "__main__":
        return  # the roof
    if floor(module) == "core":
        assert {floor(name) for name in used} <= {"core", "platform"}
    elif floor(module) == "platform":
        allowed = {"demo.pairs"} if module == "platform.archive" else set()  # for get_pairs("demo")
        assert {name for name in used if floor(name) != "platform"} <= allowed
    elif floor(module) == "use":
        assert {floor(name) for name in used} <= {"core", "platform", "use", "demo"}
    elif floor(module) == "plots":
        assert {floor(name) for name in used} <= {"core", "platform", "plots"}
    elif floor(module) == "demo":
        assert {name for name in used if floor(name) not in ("demo", "platform")} <= {
            "classes",
            "restoring",
        }
    assert "__init__" not in used, "import from the module that defines the name"
    assert "__main__" not in used


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({module: imports(module, lazy=False) for module in MODULES}).prepare()


def test_files_are_short():
    lines = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in MODULES.items()
    }
    assert {module: count for module, count in lines.items() if count > 300} == {}


def test_the_top_level_is_easy_to_survey():
    assert 14 <= len(list(PACKAGE.glob("*.py"))) <= 17
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {
        "__pycache__"
    } == FOLDERS | {"weights"}


IMPORT_ALL = """
import importlib, os, sys
import matplotlib.pyplot, torch, torchvision, tqdm

def state(): threads = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
    torch.get_default_dtype() return dict(os.environ), matplotlib.rcParams.copy(), threads

before, threads = state(), len(sys._current_frames())
for name in sys.argv[1:]:
    importlib.import_module(name)
for was, now in zip(before, state()):
    assert was == now, (was, now)
assert len(sys._current_frames()) == threads
assert not os.listdir(), os.listdir()
"""


def test_nothing_happens_at_import(tmp_path):
    names = ["unet_utils" if module == "__init__" else f"unet_utils.{module}" for module in MODULES]
    command = [
        sys.executable,
        "-c",
        IMPORT_ALL,
        *(name for name in names if not name.endswith("__main__")),
    ]
    path = {"PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True
    )
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
