"""What may import what, that importing changes nothing, and that no piece of code is too long."""

import ast
from pathlib import Path

from helpers import ROOT, run_script

SCRIPTS = ["preprocess", "train", "finetune", "ensemble", "calibrate", "export"]
SCRIPTS += ["generate_caption", "evaluate", "compare", "app"]
LIBRARY = sorted((ROOT / "captioning").glob("*.py"))
FOLDERS = ("captioning", "data", "docs", "models", "benchmarks")
CODE = [path for folder in (ROOT, *map(ROOT.joinpath, FOLDERS)) for path in folder.glob("*.py")]
DEFINES = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
DEFINES += (ast.Try, ast.Assign, ast.AugAssign, ast.AnnAssign)
HEAVY = {
    "tensorflow",
    "keras",
    "onnxruntime",
    "onnx",
    "matplotlib",
    "sklearn",
    "scipy",
    "pycocoevalcap",
    "gradio",
}


def packages(path: Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_imports_lead_from_the_scripts_to_the_library_alone():
    tests = {path.stem for path in (ROOT / "tests").glob("*.py")}
    for path in LIBRARY:
        assert not packages(path) & {"model", *SCRIPTS, *tests}, path
    for name in ("model", *SCRIPTS):
        assert not packages(ROOT / f"{name}.py") & {*SCRIPTS, *tests}, name


def test_importing_only_defines():
    """It calls nothing for its effect, so it prints and changes nothing."""
    for path in (*LIBRARY, ROOT / "model.py"):
        for node in ast.parse(path.read_text()).body[1:]:  # after the docstring
            assert isinstance(node, DEFINES), f"{path}:{node.lineno}"
            for target in getattr(node, "targets", []):
                assert isinstance(target, ast.Name | ast.Tuple), f"{path}:{node.lineno}"


def test_help_loads_nothing_heavy():
    code = f"""
import runpy, sys
for script in {SCRIPTS}:
    sys.argv = [script + ".py", "--help"]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit:
        assert not {HEAVY} & sys.modules.keys(), script
"""
    told = run_script("-c", code).stdout
    shown = told.split("usage: ")[1:]
    assert len(shown) == len(SCRIPTS)
    for text in shown:
        assert "(default: " in text
        assert "option_strings" not in text  # of a % that argparse has taken for its own


def test_no_function_and_no_file_is_too_long():
    for path in CODE:
        text = path.read_text()
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"
