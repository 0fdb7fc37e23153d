"""Which room may import which, how large a file may be, and where the grid stands."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "encodecmae_sb"
# Lowest first. A room imports only from rooms below it; those on one line do not know
# each other.
FLOORS = [
    {"bundled", "utils"},
    {"nnet", "data"},
    {"pretrained"},
    {"lobes"},
    {"inference"},
    {"hear"},
    {"evaluation"},
    {"brains"},
    {"pipelines"},
    {"commands"},
    {"xares"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imported(path, package=PACKAGE):
    """Rooms that a file imports from, lazily or not, with the line of each."""
    here = path.relative_to(package.parent).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = list(here[: -node.level]) if node.level else []
            base = start + (node.module or "").split(".") if node.module else start
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "encodecmae_sb" and len(name) > 1:
                yield node.lineno, name[1]


def backward(package=PACKAGE):
    """The arrows that run back, as text."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for line, other in imported(path, package):
            if room == "__init__" or other in (room, "__version__"):
                continue
            if FLOOR[other] >= FLOOR[room]:
                found.append(f"{path.relative_to(package)}:{line} imports {other}")
    return found


def test_arrows_run_one_way():
    """recipes -> ... -> utils, lazy imports included."""
    assert backward() == []


@pytest.mark.parametrize(
    "planted",
    [
        "from encodecmae_sb.data.crops import RandomCrops",
        "from ..lobes import EnCodecMAE",
        "import encodecmae_sb.pretrained.folder",
        "def f():\n    from encodecmae_sb import brains",
    ],
)
def test_a_planted_arrow_is_seen(tmp_path, planted):
    """In every spelling."""
    nnet = tmp_path / "encodecmae_sb" / "nnet"
    nnet.mkdir(parents=True)
    (nnet / "planted.py").write_text(planted)
    assert len(backward(tmp_path / "encodecmae_sb")) == 1


def test_few_loose_modules():
    """A thing is found by the name of its room."""
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "hear.py", "xares.py"}


def tokens(path):
    """The tokens of a file, without docstrings and comments."""
    text = path.read_text(encoding="utf-8")
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            docstrings.update(range(first.lineno, first.end_lineno + 1))
    empty = {
        *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
        *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    }
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in empty and token.start[0] not in docstrings:
            yield token


FILES = sorted(
    path
    for folder in ("encodecmae_sb", "recipes", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def test_files_are_small():
    """At most 300 lines of code, but for the script that makes the corpus."""
    large = {}
    for path in FILES:
        lines = set()
        for token in tokens(path):
            lines.update(range(token.start[0], token.end[0] + 1))
        if len(lines) > 300:
            large[path.name] = len(lines)
    assert large.keys() <= {"make_corpus.py"}, large


def test_recipes_are_short():
    """They parse, prepare, build and fit; what they call is in the package."""
    recipes = (ROOT / "recipes").glob("*.py")
    assert sum(len(path.read_text().splitlines()) for path in recipes) <= 2200


def test_the_grid_stands_in_one_place():
    """Its numbers are in utils/grid.py, in yamls and in tests, and nowhere else."""
    found = []
    for path in FILES:
        if "tests" in path.relative_to(ROOT).parts or path.name == "grid.py":
            continue
        for token in tokens(path):
            if token.type == tokenize.NUMBER and float_of(token.string) in (320, 24000):
                found.append(f"{path.relative_to(ROOT)}:{token.start[0]}")
    assert found == []


def float_of(text):
    """The value of a number in Python's own spelling."""
    return float(ast.literal_eval(text).real)
