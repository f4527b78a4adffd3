"""How a tree of Python reads, in counts, beside other projects' trees.

    python benchmarks/readability.py deitctl
    python benchmarks/readability.py deitctl ../nanochat/nanochat ../torchtitan/torchtitan   # side by side
    python benchmarks/readability.py deitctl --step                                           # a training step as well

Counts are directions, not grades: a verb is one of the list below, a comment is a line with `#`, vague names are those
that say nothing of their content.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import io
import re
import sys
import tokenize
from pathlib import Path

VERBS = frozenset(
    """
    accumulate add adapt advance allocate analyze append apply archive are as ask assert attach average backward
    begin bench benchmark bind blend block bootstrap broadcast build cache calibrate call can cast center change check
    choose clamp clean clear clip close collate collect combine compare compile complete compose compute configure
    connect construct contains convert copy correct count cover create crop cut decode deduplicate deepcopy default
    delete describe detach detect determine disable discard dispatch display distill divide do download draw drop dump
    embed enable encode end ensure enter erase estimate evaluate exchange exclude execute exit expand explain export
    extend extract fail fetch fill filter find finish fit flatten flip flush fold format forward freeze from fuse
    gather generate get give group guess halve handle has hash hold identify ignore import infer init initialize
    insert inspect install interpolate is iterate iter join jump keep label launch leave link list listen load locate
    lock log look lower make map mark mask match matches maybe measure merge mix move multiply name needs normalize
    note notice observe offer on open order override pack pad parse partition pass patch permute pick pin place plan
    plot pool predict prefetch prepare print process produce profile project propagate prune push put quantize quote
    raise randomize rank reach read rebuild receive record recover reduce refuse register relabel release reload
    remember remove rename render renormalize reorder repeat replace replay report represent request require reset
    reshape resize resolve restore resume retry return reuse reverse rewrite rotate round run sample save scale scan
    schedule score search seed select send serialize serve set setup shard share shear shorten should show shuffle
    sign skip slice smooth solve sort split spread stack stage start state step stop store stream strip submit
    subsample sum summarize supports suggest swap switch sync synchronize take tell test time to tokenize trace track
    train transform translate transpose traverse trim truncate try tune turn undo unflatten unfreeze uninstall unpack
    unwrap update upload use uses validate verify view visit wait walk want warm warn watch wrap write yield zero
    """.split()  # noqa: SIM905
)
VAGUE = (
    "found",
    "said",
    "given",
    "wanted",
    "known",
    "whole",
    "kept",
    "shown",
    "how",
    "told",
    "heard",
    "asked",
)
PRIVATE = re.compile(
    r"\b(pictures?|tutor|listener|contender|tally|twins|hear out|mends?|teacher's words?|"
    r"words of (a|the) teacher)\b",
    re.IGNORECASE,
)


def read_functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """List functions and methods; properties and dunder methods are named by other rules."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    nouns = ("property", "cached_property", "fixture", "contextmanager", "setter")
    return [
        f
        for f in functions
        if not f.name.startswith("__")
        and not any(any(noun in ast.unparse(d) for noun in nouns) for d in f.decorator_list)
    ]


def begins_with_verb(name: str) -> bool:
    """Say whether the first part of a function's name is a verb of the list."""
    return name.strip("_").split("_")[0].lower() in VERBS


def count_sentence_keys(tree: ast.AST) -> int:
    """Count keys of dict displays that are several words."""
    keys = [k for n in ast.walk(tree) if isinstance(n, ast.Dict) for k in n.keys]
    return sum(
        isinstance(k, ast.Constant) and isinstance(k.value, str) and " " in k.value for k in keys
    )


def count_lines(source: str) -> tuple[int, int]:
    """Return lines of code, docstrings and blank lines not counted, and lines with a comment."""
    code: set[int] = set()
    comments: set[int] = set()
    previous = tokenize.NEWLINE
    before_docstring = (tokenize.NEWLINE, tokenize.INDENT, tokenize.NL, tokenize.DEDENT)
    silent = (
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type == tokenize.STRING and previous in before_docstring:
            pass  # a docstring
        elif token.type not in silent:
            code.update(range(token.start[0], token.end[0] + 1))
        if token.type != tokenize.COMMENT:
            previous = token.type
    return len(code), len(comments)


def count_single_importers(files: dict[str, Path]) -> int:
    """Count modules that one other module alone imports."""
    importers: dict[str, set[str]] = collections.defaultdict(set)
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    importers[name if name in files else node.module].add(module)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importers[alias.name].add(module)
    return sum(len(importers[module]) == 1 for module in files)


def measure(root: Path) -> dict[str, float]:
    """Count what there is to count in the Python files below a folder."""
    paths = [
        p
        for p in sorted(root.rglob("*.py"))
        if not p.name.startswith("test_") and "tests" not in p.parts
    ]
    files = {
        ".".join((root.name, *p.relative_to(root).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): p
        for p in paths
    }
    figures: dict[str, float] = collections.defaultdict(float)
    functions = verbs = code = comments = 0
    sizes = []
    for path in paths:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        lines = source.splitlines()
        figures["lines"] += len(lines)
        if path.name != "__init__.py" or len(lines) > 60:
            sizes.append(len(lines))
        figures["lines with a private word"] += sum(bool(PRIVATE.search(line)) for line in lines)
        figures["lines over 100 columns"] += sum(len(line) > 100 for line in lines)
        figures["fmt: skip"] += len(re.findall(r"# fmt: (skip|off)", source))
        figures["keys that are sentences"] += count_sentence_keys(tree)
        stored = [
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        ]
        stored += [n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)]
        figures["vague variables"] += sum(name in VAGUE for name in stored)
        names = [f.name for f in read_functions(tree)]
        functions, verbs = functions + len(names), verbs + sum(map(begins_with_verb, names))
        here = count_lines(source)
        code, comments = code + here[0], comments + here[1]
    sizes.sort()
    figures["modules"] = len(sizes)
    figures["modules below 50 lines"] = sum(size < 50 for size in sizes)
    figures["modules over 400 lines"] = sum(size > 400 for size in sizes)
    figures["median module, lines"] = sizes[len(sizes) // 2]
    figures["modules with one importer"] = count_single_importers(files)
    figures["functions"] = functions
    figures["begin with a verb, %"] = round(100 * verbs / max(1, functions))
    figures["comments in 100 code lines"] = round(100 * comments / max(1, code), 1)
    return figures


def trace_step() -> dict[str, float]:
    """Take a training step of a small run and count deitctl's files, functions, calls and frames in it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from deitctl.training import step, trainer

    root = str(Path(trainer.__file__).parents[1])
    files: set[str] = set()
    functions: set[tuple[str, str]] = set()
    calls = 0
    seen: dict[str, float] = {}
    name = next(
        n for n in ("train_step", "take_step", "train_batch") if hasattr(trainer.Trainer, n)
    )
    inner = getattr(trainer.Trainer, name)

    def count(frame: object, event: str, _: object) -> None:
        nonlocal calls
        code = frame.f_code  # type: ignore[attr-defined]
        if (
            event == "call"
            and code.co_filename.startswith(root)
            and not code.co_name.startswith("<")
        ):
            files.add(code.co_filename)
            functions.add((code.co_filename, code.co_qualname))
            calls += 1

    def traced(self: object, *arguments: object) -> object:
        if seen:
            return inner(self, *arguments)
        sys.setprofile(count)
        try:
            return inner(self, *arguments)
        finally:
            sys.setprofile(None)
            seen["files of a step"], seen["functions of a step"] = len(files), len(functions)
            seen["calls of a step"] = calls

    optimizer_step = step.optimizer_step

    def counted(*arguments: object, **options: object) -> object:
        frame, frames = sys._getframe(1), 0
        while frame is not None:
            frames += frame.f_code.co_filename.startswith(root)
            frame = frame.f_back  # type: ignore[assignment]
        seen.setdefault("frames from main to the optimizer", frames + 1)
        return optimizer_step(*arguments, **options)

    import tempfile

    setattr(trainer.Trainer, name, traced)
    step.optimizer_step = counted
    if hasattr(trainer, "optimizer_step"):
        trainer.optimizer_step = counted
    from deitctl.__main__ import main as run_command

    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["deitctl", "train", "digits", "--model", "deit_tiny", "--epochs", "1", "--batch-size", "700",
                    "--workers", "0", "--quiet", "--format", "json", "--output", f"{folder}/run"]  # fmt: skip
        with contextlib.suppress(SystemExit):
            run_command()
    return seen


def main() -> None:
    """Print one column a tree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trees", nargs="+", type=Path)
    parser.add_argument(
        "--step",
        action="store_true",
        help="take a training step of deitctl and count what it enters",
    )
    options = parser.parse_args()
    columns = [measure(tree) for tree in options.trees]
    if options.step:
        columns[0] |= trace_step()
    width = max(len(name) for name in columns[0])
    print(" " * width, *(f"{tree.name[:14]:>15s}" for tree in options.trees))
    for name in columns[0]:
        print(
            f"{name:{width}s}", *(f"{column.get(name, float('nan')):15,.5g}" for column in columns)
        )


if __name__ == "__main__":
    main()
