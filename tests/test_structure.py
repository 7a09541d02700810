"""The layout of the package: which file may import which, and that imports do nothing."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "unet_utils"
FOLDERS = {"demo", "own_data", "platform", "plots", "use"}
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
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import: these tests do not follow it"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module_of(name) for name in found if name.split(".")[0] == "unet_utils"} - {module}


def module_of(name):
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


BELOW = {  # what a floor may import, beside itself
    "core": {"platform"},
    "platform": set(),
    "demo": {"platform"},
    "own_data": {"core", "platform"},
    "use": {"core", "platform"},
    "plots": {"core", "platform"},
}
EXCEPTIONS = {  # module, and what it may import all the same
    ("platform.environment", "device"),
    ("platform.environment", "checkpoints"),  # knows a run by the name of its file
    ("demo.canvas", "classes"),
    ("demo.pairs", "restoring"),
    ("use.photos", "demo.street"),  # draws a street for those who have no photo
    ("use.check_job", "demo.street"),  # needs frames on any machine, in seconds
}
BEHIND_THE_DOOR = {"demo", "own_data", "platform.download", "platform.unpacking"}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"__main__"}))
def test_each_floor_imports_only_what_is_below(module):
    """The roof, `__main__`, imports all."""
    floors = {floor(module)} | BELOW[floor(module)]
    if module == "sources":
        floors |= {"demo", "own_data"}
    for name in imports(module):
        assert name not in ("__init__", "__main__"), "import from the module that defines the name"
        assert floor(name) in floors or (module, name) in EXCEPTIONS, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_where_data_come_from_is_known_to_sources_alone(module):
    for name in imports(module):
        if {name, floor(name)} & BEHIND_THE_DOOR and (module, name) not in EXCEPTIONS:
            neighbours = floor(module) == floor(name) != "core"
            assert module == "sources" or neighbours, f"{module} imports {name}: ask sources"


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({module: imports(module, lazy=False) for module in MODULES}).prepare()


def test_there_are_no_other_folders():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == FOLDERS | {"weights"}


IMPORT_ALL = """
import importlib, os, sys
import matplotlib.pyplot, torch, torchvision, tqdm

def state():
    choices = torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    return dict(os.environ), matplotlib.rcParams.copy(), torch.get_num_threads(), choices

before, threads = state(), len(sys._current_frames())
for name in sys.argv[1:]:
    importlib.import_module(name)
for was, now in zip(before, state()):
    assert was == now, (was, now)
assert len(sys._current_frames()) == threads
assert not os.listdir(), os.listdir()
"""


@pytest.mark.slow
def test_nothing_happens_at_import(tmp_path):
    names = ["unet_utils" if module == "__init__" else f"unet_utils.{module}" for module in MODULES]
    names.remove("unet_utils.__main__")
    command = [sys.executable, "-c", IMPORT_ALL, *names]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
