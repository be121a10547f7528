"""What may import what, that importing changes nothing, and that no piece of code is too long."""

import ast
from pathlib import Path

import pytest
from helpers import ROOT, run_script

SCRIPTS = ["preprocess", "train", "finetune", "ensemble", "generate_caption", "evaluate", "app"]
LIBRARY = sorted((ROOT / "captioning").glob("*.py"))
FOLDERS = ("", "captioning", "data", "docs", "models", "benchmarks")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
FUNCTION_LINES, FILE_LINES = 60, 350
HEAVY = {"tensorflow", "keras", "matplotlib", "sklearn", "gradio"}


def imported(path: Path, top_level: bool = False) -> set[str]:
    """The modules that a file imports anywhere, or those that it loads when it is imported."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_imports_lead_from_the_scripts_to_the_library_alone():
    tests = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"tests"}
    for path in LIBRARY:
        assert not packages(imported(path)) & {"model", *SCRIPTS, *tests}, path
    assert not packages(imported(ROOT / "model.py")) & {*SCRIPTS, *tests}
    for name in SCRIPTS:
        assert not packages(imported(ROOT / f"{name}.py")) & {*SCRIPTS, *tests}, name


def heavy(path: Path) -> bool:
    """Whether importing a file of the library imports TensorFlow or Keras, which change things."""
    names = imported(path, top_level=True)
    ours = [other for other in LIBRARY if f"captioning.{other.stem}" in names]
    return bool(packages(names) & {"tensorflow", "keras"}) or any(map(heavy, ours))


def test_importing_changes_nothing_and_prints_nothing():
    light = [f"captioning.{path.stem}" for path in LIBRARY if not heavy(path)]
    others = [f"captioning.{path.stem}" for path in LIBRARY if heavy(path)] + ["model"]
    assert "captioning.cli" in light
    assert "captioning.decoder" in others
    code = f"""
import importlib, logging, sys, warnings
import h5py, joblib, matplotlib.figure, numpy, PIL.Image, scipy.sparse, tqdm

def state():
    level = logging.getLogger("absl").level
    return list(warnings.filters), list(sys.path), sys.excepthook, level

def load(names):
    before = state()
    for name in names:
        importlib.import_module(name)
        assert state() == before, name

load({light})
assert not {HEAVY} & sys.modules.keys() - {{"matplotlib"}}
from captioning import cli
cli.load_tensorflow()
import keras
load({others})
"""
    done = run_script("-c", code)
    assert done.stdout == done.stderr == ""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script):
    code = (
        "import runpy, sys; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        f"finally: print({HEAVY} & sys.modules.keys())"
    )
    done = run_script("-c", code, f"{script}.py")
    assert "usage:" in done.stdout
    assert "(default: " in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_no_function_and_no_file_is_too_long():
    long = []
    for path in CODE:
        text = path.read_text()
        lines = {str(path.relative_to(ROOT)): (len(text.splitlines()), FILE_LINES)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                lines[f"{path.relative_to(ROOT)}: {node.name}"] = (length, FUNCTION_LINES)
        long += [f"{name}: {count}" for name, (count, most) in lines.items() if count > most]
    assert not long, "\n".join(long)
