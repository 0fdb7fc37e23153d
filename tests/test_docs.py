"""Every command, link, path and example of the pages is one that works.

Commands are parsed, not run: the tests of the recipes run them.
"""

import argparse
import ast
import functools
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import speechbrain as sb
import yaml
from hyperpyyaml import resolve_references

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
YAMLS = sorted((ROOT / "hparams").glob("*.yaml"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
COMMANDS = sorted((ROOT / "encodecmae_sb/commands").glob("[a-z]*.py"))
# Programs that the pages use besides Python; their options are not looked at.
OTHERS = set(
    "pip source mkdir ln rm ls cut sort for do done ruff hear-validator hf".split()
)
MAX_LINES = 150


class Wrong(AssertionError):
    """Something on a page that would not work."""


def fenced(text):
    """The language and the text of each block of code."""
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)


def prose(text):
    """The text without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", text)


def spans(text):
    """Code within lines; one that goes over the end of a line is joined."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def split_commands(script):
    """The commands of a chunk of shell, each a list of words."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("();<>|&"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def commands_of(path):
    """The commands of a page, of a yaml's header or of a recipe's docstring."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        for language, code in fenced(text):
            if language == "bash":
                yield from split_commands(code)
        for span in spans(text):
            if re.match(r"(python3?|torchrun|bash|pytest) ", span):
                yield from split_commands(span.rstrip("…"))
        return
    if path.suffix == ".yaml":
        text = "\n".join(re.findall(r"(?m)^# ?(.*)$", text.partition("\nseed:")[0]))
    else:
        text = ast.get_docstring(ast.parse(text))
    # In a header only indented lines are commands, and [...] may be left out.
    text = re.sub(r"\[(--.*?)\]", r"\1", text.replace("\\\n", " "))
    for line in re.findall(r"(?m)^ +((?:python3?|torchrun) .*)$", text):
        line = re.sub(r"\[AUDIO\w* \.\.\.\]", "", line)
        yield from split_commands(line.replace("...", "X"))


def check_command(words):
    """Makes sure that a command would be understood."""
    program, *rest = words
    if program == "torchrun":
        start = next((i for i, w in enumerate(rest) if w.endswith(".py")), None)
        if start is None:
            raise Wrong(f"{words}: no script")
        check_script(rest[start], rest[start + 1 :])
    elif program in ("python", "python3"):
        if rest[:2] == ["-m", "encodecmae_sb"]:
            if rest[2:] not in ([], ["--version"]):
                check_script(f"encodecmae_sb/commands/{rest[2]}.py", rest[3:])
        elif rest[0] != "-m":
            check_script(rest[0], rest[1:])
    elif program in ("pytest", "bash"):
        for word in rest[:1] if program == "bash" else rest:
            if not word.startswith("-"):
                check_path(word)
    elif program not in OTHERS and not re.match(r"\w+=", program):
        raise Wrong(f"{program}: what is that? ({' '.join(words)})")


def check_path(name):
    """Makes sure that the repository has such a file or folder."""
    if not any(ROOT.glob(name.rstrip("/"))):
        raise Wrong(f"{name}: there is no such file or folder")


def check_script(script, argv):
    """Makes sure that a script takes these arguments."""
    check_path(script)
    if not script.startswith(("recipes/", "encodecmae_sb/commands/")):
        return
    if argv == ["--help"]:
        return
    parser, known = parser_of(script)
    if parser is not None:
        try:
            if known:
                argv = [argv[0], *parser.parse_known_args(argv)[1]]
            else:
                parser.parse_args(argv)
        except SystemExit as end:
            if end.code:
                raise Wrong(f"{script} does not take {argv}") from end
        if not known:
            return
    check_path(argv[0])
    _, _, overrides = sb.parse_arguments([*argv, "--noprogressbar"])
    text = (ROOT / argv[0]).read_text(encoding="utf-8")
    resolve_references(text, overrides)
    for key in re.findall(r"(?m)^(\w+):", overrides):
        if key not in yaml_keys(argv[0]):
            raise Wrong(f"--{key}: neither in {argv[0]} nor an option of SpeechBrain")


@functools.cache
def yaml_keys(name):
    """The top-level keys of a yaml file."""
    node = yaml.compose((ROOT / name).read_text(encoding="utf-8"), yaml.SafeLoader)
    return [key.value for key, _ in node.value]


class _Parser(Exception):
    """Brings a script's parser out of the script."""


@functools.cache
def parser_of(script):
    """The argparse parser of a script, and whether it passes on what it does not know.

    The script runs until it parses its arguments. None for recipes whose options are
    those of their yaml and of SpeechBrain.
    """
    if "ArgumentParser(" not in "".join(sources_of(script)):
        return None, False

    def parse_args(self, *_):
        raise _Parser(self, False)

    def parse_known_args(self, *_):
        raise _Parser(self, True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)
        patch.setattr(sys, "argv", [script])
        try:
            if script.startswith("recipes/"):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                runpy.run_path(str(ROOT / script))["main"]([])
        except _Parser as found:
            return found.args
    raise Wrong(f"{script} parses nothing")


def sources_of(script):
    """The text of a script, and of the command or pipeline of the same name."""
    package, name = ROOT / "encodecmae_sb", Path(script).name
    paths = [ROOT / script, package / "pipelines" / name]
    if "encodecmae_sb.commands" in (ROOT / script).read_text(encoding="utf-8"):
        paths.append(package / "commands" / name)
    for path in paths:
        if path.is_file():
            yield path.read_text(encoding="utf-8")


@functools.cache
def all_options():
    """Every option that any recipe takes."""
    options = {key for path in YAMLS for key in yaml_keys(path.relative_to(ROOT))}
    scripts = [*RECIPES, *COMMANDS]
    parsers = [parser_of(str(path.relative_to(ROOT)))[0] for path in scripts]
    parsers.append(sb.core.RunOptions._create_parser())
    for parser in filter(None, parsers):
        for action in parser._actions:
            options |= {name.lstrip("-") for name in action.option_strings}
    return options | {"index-url"}


def names_in(path):
    """What a file defines: functions, classes, `Class.method`, constants."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Assign):
            yield from (name.id for name in node.targets if isinstance(name, ast.Name))
        for inner in getattr(node, "body", ()):
            if isinstance(node, ast.ClassDef) and isinstance(inner, ast.FunctionDef):
                yield f"{node.name}.{inner.name}"


def slugs(page):
    """What a link may name behind # on a page."""
    for title in re.findall(r"(?m)^#+ (.*)$", prose(page.read_text(encoding="utf-8"))):
        yield re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def ids(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


SOURCES = PAGES + YAMLS + RECIPES + COMMANDS


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_commands(path):
    for words in commands_of(path):
        check_command(words)


@pytest.mark.parametrize(
    "command",
    [
        "python recipes/pretrain.py hparams/mini.yaml --trainingsteps 3",
        "torchrun --standalone recipes/pretrain.py hparams/mini.yaml --lrr 3",
        "python recipes/pretrain.py hparams/minni.yaml",
        "python recipes/pretrian.py hparams/mini.yaml",
        "python recipes/embed.py ENCODER_FOLDER AUDIO --layr all",
        "python recipes/embed.py ENCODER_FOLDER",
        "python -m encodecmae_sb classify CLASSIFIER_FOLDER AUDIO --topp 3",
        "python -m encodecmae_sb embedd ENCODER_FOLDER AUDIO",
        "python -m encodecmae_sb probe hparams/probe_mini.yaml --pooling_ mean",
        "python recipes/benchmark.py hparams/base.yaml --batchsize 8",
        "pytest tests/test_nothing.py",
        "conda install nothing",
    ],
)
def test_wrong_commands_are_found(command):
    (words,) = split_commands(command)
    with pytest.raises(Wrong):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_options_in_the_text(page):
    if page.name == "CHANGELOG.md":
        return  # it names what has gone, too
    for span in spans(page.read_text(encoding="utf-8")):
        for option in re.findall(r"(?:^|\s)--([a-z]\w+)", span):
            if not re.match(r"pip |ruff |torchrun ", span):
                assert option in all_options(), f"--{option} in `{span}`"


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_and_paths(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.is_file(), link
            assert not anchor or anchor in slugs(target), link
    rooms = r"(?:encodecmae_sb|recipes|hparams|tests|docs|\.ci)/[\w./*]*"
    if page.name == "CHANGELOG.md":
        return  # it names what has gone, too
    for span in spans(text):
        for name in re.findall(rf"(?:^|\s)({rooms})(?=$|[\s,:])", span):
            check_path(name)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_tests_that_a_page_names(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"((?:`tests/\w+\.py`,? ?)+): `(test_\w+)`", text)
    assert page.name != "resume.md" or len(named) >= 8
    for files, test in named:
        for file in re.findall(r"tests/\w+\.py", files):
            assert test in names_in(ROOT / file), (file, test)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_python(page):
    for language, code in fenced(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    assert hasattr(module, alias.name) or importlib.util.find_spec(name)
            elif isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(a.name) for a in node.names)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_yaml(page):
    for language, code in fenced(page.read_text(encoding="utf-8")):
        if language == "yaml":
            check_yaml(yaml.compose(code, yaml.SafeLoader))


def check_yaml(node):
    """Makes sure that what `!new:` and `!name:` name is there and has the arguments."""
    children = node.value if isinstance(node.value, list) else []
    kind, _, name = node.tag.partition(":")
    if kind in ("!new", "!name") and name.startswith(
        ("encodecmae_sb.", "speechbrain.")
    ):
        module, _, name = name.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name))
        if isinstance(node, yaml.MappingNode):
            for key, _ in children:
                assert key.value in parameters.parameters, f"{name}: {key.value}"
    for child in children:
        for part in child if isinstance(child, tuple) else (child,):
            check_yaml(part)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_length(page):
    if page.name != "CHANGELOG.md":
        assert len(page.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_figures_have_their_command(page):
    """Under the heading of a table of figures there is a command that gives them."""
    command = re.compile(r"\b(python recipes/|pytest )")
    for section in re.split(r"(?m)^#+ ", page.read_text(encoding="utf-8")):
        rows = re.findall(r"(?m)^\|(?! ---)(.*)\|$", section)
        figures = [row for row in rows if re.search(r"\|\s*-?\d+\.\d+[^|]*(\||$)", row)]
        if figures:
            assert command.search(section.replace("\n", " ")), section.splitlines()[0]


def test_the_front_door():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"(?m)^pip install -e '\.\[test\]' && pytest$", text)  # .ci/run
    assert "pip install -e . && python recipes/pretrain.py hparams/mini.yaml" in text
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in text, f"README does not link {page.name}"


def test_architecture_names_what_there_is():
    """Its tables have a file and then names in it; a file comes once in a section."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    sections = re.split(r"(?m)^## ", text)[1:]
    count = 0
    for section in sections:
        files = []
        for row in re.findall(r"(?m)^\| `(\w[\w/]*\.py)` \|(.*)\|$", section):
            path = ROOT / "encodecmae_sb" / row[0]
            path = path if path.is_file() else ROOT / row[0]
            assert path.is_file(), row[0]
            names = set(names_in(path))
            for name in re.findall(r"`([\w.]+)`", row[1].split("|")[0]):
                assert name in names, f"{row[0]} has no {name}"
                count += 1
            files.append(row[0])
        repeated = {file for file in files if files.count(file) > 1}
        assert all(file.startswith("brains/") for file in repeated), repeated
    assert count > 30


def test_the_drawing():
    """It has no background, and loads nothing."""
    drawing = (ROOT / "docs/model.svg").read_text(encoding="utf-8")
    assert "<title" in drawing
    assert "<desc" in drawing
    assert not re.search(r"href|url\(|<script|<image", drawing)
