"""Packages have an order: imports go down or sideways, never up or in circles. The library neither prints nor exits."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deitctl

ROOT = Path(deitctl.__file__).parent
PACKAGES = (
    (
        "errors",
        "records",
        "config",
        "settings",
        "recipes",
        "events",
        "paths",
        "home",
        "cores",
        "launchers",
        "heartbeat",
        "names",
        "sizes",
        "byte_sizes",
        "threads",
    ),
    (
        "arithmetic",
        "device",
        "distributed",
        "constants",
        "free_memory",
        "pieces",
        "transfers",
        "lock",
        "rng",
    ),
    ("models",),
    ("data",),
    ("inference", "trackers"),
    ("evaluation", "explanation"),
    ("distillation",),
    ("training",),
    ("checks", "exporters", "report"),
    ("profiling", "packing", "hub", "sweeps"),
    ("api",),
    ("cli", "__main__"),
)
"""From the bottom to the top: a package imports its own, its neighbors and what is below."""
RANK = {name: number for number, names in enumerate(PACKAGES) for name in names}
TOP = len(PACKAGES) - 1
NO_TORCH = ("torch", "torchvision", "timm", "numpy")
FILES = {
    ".".join(("deitctl", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(ROOT.rglob("*.py"))
}
# run on their own, talk by stdout
CHILD_PROGRAMS = {"deitctl.exporters.runner", "deitctl.data.loader_process"} & set(FILES)
"""Modules of processes that end themselves."""


def rank_of(module: str) -> int | None:
    """The place of a module's package; `deitctl` itself has none and may name everything."""
    return RANK[module.split(".")[1]] if "." in module else None


def imports(module: str, *, at_module_level: bool = False) -> set[str]:
    """Every module that one imports; with `at_module_level`, only what importing it imports."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    nodes = list(_outside_functions(tree)) if at_module_level else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            source = node.module or ""
            found |= {
                f"{source}.{a.name}" if f"{source}.{a.name}" in FILES else source
                for a in node.names
            }
    return found


def _outside_functions(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _outside_functions(node)


def ours(names: set[str]) -> set[str]:
    return {n for n in names if n in FILES}


@pytest.mark.parametrize("module", FILES)
def test_every_file_belongs_to_a_package(module):
    assert module == "deitctl" or module.split(".")[1] in RANK


@pytest.mark.parametrize("module", [m for m in FILES if m != "deitctl"])
def test_imports_never_go_up(module):
    above = {n for n in ours(imports(module)) if n != "deitctl" and rank_of(n) > rank_of(module)}
    assert not above


def test_imports_have_no_circles():
    needs = {m: ours(imports(m, at_module_level=True)) - {m, "deitctl"} for m in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for needed in sorted(needs[module]):
                visit(needed, (*path, module))
            done.add(module)

    for module in FILES:
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in FILES if rank_of(m) == 0])
def test_the_lowest_modules_import_no_torch(module):
    assert not {n for n in imports(module) if n.split(".")[0] in NO_TORCH}


@pytest.mark.parametrize("module", [m for m in FILES if rank_of(m) != TOP])
def test_rich_and_typer_are_imported_by_the_command_line_alone(module):
    assert not {n for n in imports(module) if n.split(".")[0] in ("rich", "typer", "click")}


@pytest.mark.parametrize(
    "module", [m for m in FILES if rank_of(m) != TOP and m not in CHILD_PROGRAMS]
)
def test_the_library_neither_prints_nor_exits(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    raised = {
        ast.unparse(n.exc) for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None
    }
    assert not calls & {
        "print",
        "sys.exit",
        "exit",
        "quit",
        "os._exit",
        "sys.stdout.write",
        "sys.stderr.write",
    }
    assert not any(r.startswith("SystemExit") for r in raised)


@pytest.mark.parametrize("module", [m for m in FILES if m != "deitctl.device"])
def test_cuda_alone_is_called_in_one_file(module):
    text = FILES[module].read_text(encoding="utf-8")
    assert "torch.cuda.synchronize" not in text
    assert "torch.cuda.max_memory" not in text


@pytest.mark.parametrize("module", FILES)
def test_checkpoints_are_loaded_with_weights_only(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if ast.unparse(call.func) == "torch.load":
            assert any(
                k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords
            )
        assert ast.unparse(call.func) not in (
            "torch.save",
            "pickle.load",
            "pickle.loads",
            "pickle.dump",
        )


@pytest.mark.parametrize("module", FILES)
def test_modules_and_public_names_are_documented(module):
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    if not tree.body:
        return
    assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            is_exempt = _is_short_protocol(node) or _is_overload(node)
            assert ast.get_docstring(node) or is_exempt, node.name


def _is_overload(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether it is a signature of a function that follows, which has the docstring."""
    return any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)


def _is_short_protocol(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(b) == "Protocol" for b in node.bases)


def test_deits_load_without_timm_and_torchvision():
    """design.md, decision 1: half of the start-up of predict, eval and export."""
    code = (
        "import sys, deitctl.models.factory, deitctl.evaluation.evaluate, deitctl.data.open, deitctl.training.state;"
        "sys.exit(bool({'timm', 'torchvision', 'sklearn', 'matplotlib', 'onnx', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_lowest_modules_load_without_torch():
    modules = ", ".join(m for m in FILES if rank_of(m) == 0)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prediction_loads_without_torch():
    """Only `inference.torch_classifier` imports it, when a model needs it: an ONNX file does not."""
    code = (
        "import sys, deitctl.inference.classifier, deitctl.inference.onnx_classifier, deitctl.data.eval_transform;"
        "sys.exit(bool({'torch', 'safetensors', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_deit_is_trained_without_timm_and_torchvision(tmp_path):
    code = """
import sys
from dataclasses import replace
from deitctl.config import TrainConfig
from deitctl.data.readers.digits import load_digits
from deitctl.data.subsets import select
from deitctl.recipes import DIGITS
from deitctl.training.launch import run_training

augment = replace(DIGITS.augment, rand_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, random_erase_prob=0.5)
recipe = replace(DIGITS, img_size=32, epochs=1, batch_size=16, augment=augment)
machine = {"precision": "fp32", "workers": 0, "output_dir": sys.argv[1]}
config = TrainConfig(model="deit_tiny", data="digits", recipe=recipe, **machine)
train, val = load_digits()
run_training(config, datasets=(select(train, range(32)), select(val, range(16))))
sys.exit(bool({"timm", "torchvision"} & set(sys.modules)))
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")]
    assert subprocess.run(command, check=False).returncode == 0
