"""The repository itself: dependencies in step, imports that only go downwards, nothing heavy at import."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

LAYERS = (
    ("units", "errors", "commands", "files", "image", "compat", "precision", "profiles", "notebook"),
    ("ct", "models"),
    ("phantom", "operators"),
    ("diffusion", "losses", "checkpoints"),
    ("training", "data"),
    ("pipelines",),
    ("metrics",),
    ("recipes", "methods", "generators"),
    ("denoise", "benchmark", "cases"),
    ("show",),
    ("course", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
APART = {("diffusion", "models"), ("diffusion", "ct"), ("diffusion", "phantom"), ("models", "ct"), ("ct", "models")}

MOST_LINES = 29_350
"""Of the library, which has to stay readable as a whole."""

DISTRIBUTION = {"PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml", "torch_fidelity": "torch-fidelity"}
PROVIDED = {"IPython": "ipykernel", "cycler": "matplotlib"}  # come with a package that is declared


def sources() -> list[Path]:
    return sorted((ROOT / "ldctlib").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    """``ldctlib.ct.dose`` → ``ct``; the package itself → ``""``."""
    return (module.split(".") + [""])[1]


def imported(path: Path) -> set[str]:
    """Full names of what a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import; write the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}  # a module, or a name in one
    return found


def climbs(importer: str, target: str) -> bool:
    """Whether ``importer`` may not import ``target``; both are names of layers."""
    return LEVEL[target] > LEVEL[importer] or (importer, target) in APART


def test_every_module_has_a_layer():
    assert {layer_of(module_name(path)) for path in sources()} - {""} <= set(LEVEL)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_downwards(path):
    importer = layer_of(module_name(path))
    targets = {layer_of(name) for name in imported(path) if name.startswith("ldctlib")} - {"", "__version__"}
    wrong = sorted(target for target in targets if importer and climbs(importer, target))
    assert not wrong, f"{module_name(path)} may not import {', '.join(wrong)}"


def test_the_layer_rule_can_fail():
    assert climbs("ct", "phantom") and climbs("diffusion", "models") and climbs("pipelines", "metrics")
    assert not climbs("data", "ct") and not climbs("show", "metrics")


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of nodes of which each leads to every other."""

    def reachable(start: str) -> set[str]:
        found, waiting = set(), [start]
        while waiting:
            new = edges.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    reach = {node: reachable(node) for node in edges}
    return {frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in edges if a in reach[a]}


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"e"}}) == {frozenset("bc")}
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == set()


def test_nothing_is_imported_in_a_circle():
    """Not between modules, and not between packages."""
    names = {module_name(path) for path in sources()}
    modules, packages = {}, {}
    for path in sources():
        name = module_name(path)
        targets = {target if target in names else target.rpartition(".")[0] for target in imported(path)}
        modules[name] = targets & names - {name, "ldctlib"}
        packages.setdefault(layer_of(name), set()).update(map(layer_of, modules[name]))
    found = circles(modules) | circles({a: targets - {a, ""} for a, targets in packages.items()})
    assert not found, "\n".join(" <-> ".join(sorted(group)) for group in found)


BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is heavy: import it where it is used")

BLOCKED = set(sys.argv[1].split(","))
import torch, numpy  # whatever they take themselves is theirs
for name in BLOCKED:
    assert name not in sys.modules or name in ("tqdm", "sympy"), name
sys.meta_path.insert(0, Blocker())
failed = {}
for name in sys.argv[2].split(","):
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(failed)
sys.exit(bool(failed))
"""


def declared() -> set[str]:
    """Names of all distributions that pyproject names, extras included."""
    extras = [item for extra in PROJECT["optional-dependencies"].values() for item in extra]
    return {re.match(r"[\w-]+", item).group().lower() for item in PROJECT["dependencies"] + extras} - {"ldctlib"}


def test_every_module_imports_with_torch_and_numpy_alone():
    heavy = {name.replace("-", "_") for name in declared()} - {"torch", "numpy"}
    heavy |= {"skimage", "PIL", "yaml", "IPython"}
    modules = [module_name(path) for path in sources() if path.stem != "__main__"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER, ",".join(sorted(heavy)), ",".join(modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_every_imported_package_is_declared():
    names = {name.partition(".")[0] for path in sources() for name in imported(path)}
    outside = names - set(sys.stdlib_module_names) - {"ldctlib"}
    needed = {DISTRIBUTION.get(name, PROVIDED.get(name, name)).lower() for name in outside}
    assert needed <= declared(), f"not in pyproject.toml: {sorted(needed - declared())}"


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def test_constraints_pin_one_release_of_torch_and_torchvision():
    assert set(pins()) == {"torch", "torchvision"}
    torch, torchvision = (tuple(map(int, pins()[name].split("."))) for name in ("torch", "torchvision"))
    assert torchvision == (torch[0] - 2, torch[1] + 15, torch[2])  # torch 2.n goes with torchvision 0.(n + 15)


def test_the_pins_satisfy_pyproject():
    for name, version in pins().items():
        bound = next(item for item in PROJECT["dependencies"] if re.match(rf"{name}>=", item)).partition(">=")[2]
        assert tuple(map(int, version.split("."))) >= tuple(map(int, bound.split(".")))


LEAN = "bm3d,compressed,nifti"
"""The extras that notebooks and scans use."""


def test_environment_yml_is_in_step():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]  # PyTorch's own channel is gone
    conda = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", f"-e .[{LEAN}]"]
    python = next(item for item in conda if item.startswith("python"))
    assert python.removeprefix("python").split(",")[0] == PROJECT["requires-python"]
    providers = {re.match(r"[\w-]+", item).group() for item in conda}
    assert not providers & {"pytorch", "torch", "torchvision"}  # pip is torch's one provider


def test_binder_installs_the_same_and_opens_what_exists():
    folder = ROOT / ".binder"
    environment = yaml.safe_load((folder / "environment.yml").read_text())
    python = next(item for item in environment["dependencies"] if item.startswith("python="))
    assert tuple(map(int, python.partition("=")[2].split("."))) >= load_bootstrap().OLDEST  # one release: its server's
    script = (folder / "postBuild").read_text()
    assert f'-c constraints.txt -e ".[{LEAN}]"' in script and "bootstrap.torch_source('linux', False, '')" in script
    (opened,) = re.findall(r"`(notebooks/\w+\.ipynb)` as the file to open", (ROOT / "README.md").read_text())
    assert (ROOT / opened).is_file()


def test_only_the_test_extra_brings_what_only_tests_need():
    extras = PROJECT["optional-dependencies"]
    lean = [*PROJECT["dependencies"], *(item for name in LEAN.split(",") for item in extras[name])]
    assert not [item for item in lean if re.match("pytest|nbval|ruff|pyyaml", item)]


def test_the_test_extra_holds_all_the_others():
    extras = PROJECT["optional-dependencies"]
    held = re.search(r"ldctlib\[(.*?)]", " ".join(extras["test"])).group(1).split(",")
    assert set(held) == set(extras) - {"test", "browser"}


def load_bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bootstrap_takes_torch_from_the_cpu_index_only_where_nothing_else_is_said():
    bootstrap = load_bootstrap()
    plain = "global.timeout='60'\n:env:.disable-pip-version-check='1'\n"
    cpu = ["--extra-index-url", bootstrap.TORCH_CPU_INDEX]
    assert bootstrap.torch_source("linux", False, plain) == cpu
    assert bootstrap.torch_source("linux", True, plain) == []
    assert bootstrap.torch_source("darwin", False, plain) == bootstrap.torch_source("win32", False, plain) == []
    for line in ("global.index-url='x'", "install.find-links='x'", ":env:.extra-index-url='x'", "user.no-index='1'"):
        assert bootstrap.torch_source("linux", False, plain + line) == [], line


def test_bootstrap_says_why_it_cannot(monkeypatch):
    bootstrap = load_bootstrap()
    assert bootstrap.why_no_venv() == ""
    monkeypatch.setattr(bootstrap, "OLDEST", (9, 0))
    assert "Python 9.0 or newer" in bootstrap.why_no_venv()
    monkeypatch.setattr(bootstrap, "OLDEST", (3, 11))
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    assert "python3-venv" in bootstrap.why_no_venv()
    assert sys.version_info >= bootstrap.OLDEST
    assert PROJECT["requires-python"] == ">=" + ".".join(map(str, bootstrap.OLDEST))


# Written in pieces, so that this file does not find itself.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~])/(?:wo" + r"rk|ho" + r"me|ro" + r"ot|Us" + r"ers|tm" + r"p)/\w",
    "unfinished work": "TO" + r"DO\b|FIX" + r"ME\b|\bXX" + "X\\b",
    "a registry's host": "pypi" + r"\.org|python" + "hosted",
}


def texts() -> list[Path]:
    kinds = ("*.py", "*.md", "*.toml", "*.yml", "*.txt", "*.cff")
    here = [path for kind in kinds for path in ROOT.glob(kind)]
    inside = [p for top in ("ldctlib", "tests", "data") for kind in kinds for p in (ROOT / top).rglob(kind)]
    return sorted([*here, *inside, *(ROOT / "notebooks").glob("*.ipynb"), ROOT / "Makefile", ROOT / ".ci" / "run"])


@pytest.mark.parametrize("what", FORBIDDEN)
def test_words_that_do_not_belong_here(what):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(FORBIDDEN[what], line) and '"image/png"' not in line  # base64 spells anything
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_is_clean(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]


def argument_names(node: ast.AST) -> set[str]:
    """Of a function, or of what makes an instance of a class: its fields and its constructor's arguments."""
    if isinstance(node, ast.ClassDef):
        fields = {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
        constructors = (each for each in node.body if getattr(each, "name", "") == "__init__")
        return fields.union(*map(argument_names, constructors)) - {"self"}
    spec = node.args
    arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    return {argument.arg for argument in arguments if argument}


def wrong_argument_lines(source: str) -> list[str]:
    """Lines of docstrings that tell of an argument, and not as "name : text"."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or not ast.get_docstring(node):
            continue
        if names := "|".join(map(re.escape, argument_names(node))):
            told = re.compile(rf"\**(?:{names})(?:, \**(?:{names}))*(?: \([^)]*\))?(?! : \S)(?:\s*:|\s{{2,}})")
            lines = enumerate(node.body[0].value.value.splitlines(), start=node.body[0].lineno)
            wrong += [f"{number}: {line.strip()[:70]}" for number, line in lines if told.match(line.strip())]
    return wrong


def test_the_argument_lines_that_are_wrong_are_found():
    right = (
        "window : in HU\n    roi, mask : pixels\n    window of the mask\n    z (where given) is one\n    other: text"
    )
    wrong = ("window: in HU", "mask    pixels", "roi, mask: pixels", "roi (H, W): pixels", "window  : in HU")
    for text, count in [(right, 0), *((line, 1) for line in wrong)]:
        source = f'def f(window, *, roi, mask=None, **z):\n    """Does it.\n\n    {text}\n    """'
        assert len(wrong_argument_lines(source)) == count, text
        fields = (
            f'class F:\n    """It.\n\n    {text}\n    """\n    window: int\n    mask: int\n    roi: int\n    z: int'
        )
        assert len(wrong_argument_lines(fields)) == count, text


def test_arguments_are_told_in_one_dialect():
    """Arguments in docstrings read ``name : text``."""
    lines = ((path.relative_to(ROOT), wrong_argument_lines(path.read_text(encoding="utf-8"))) for path in sources())
    wrong = [f"{path}:{line}" for path, found in lines for line in found]
    assert not wrong, "\n".join(wrong)


def test_the_library_stays_compact():
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources()) <= MOST_LINES


def test_the_files_of_each_paper_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## From a paper to its files$(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    _, _, *lines = [line for line in section.splitlines() if line.startswith("|")]
    assert lines
    for line in lines:
        paper, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        paths = [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]
        assert paths, f"{paper} names no file"
        missing = [path for path in paths if not ((ROOT / path).exists() or (ROOT / "ldctlib" / path).exists())]
        assert not missing, f"{paper}: {', '.join(missing)}"
