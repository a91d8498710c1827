"""Running the notebooks: in order with papermill into a folder with a page, or in place for committing.

A run's folder holds, for each notebook, ``NAME.ipynb`` (executed), ``NAME.html``, and ``NAME/`` with what the
notebook wrote (``metrics.json`` among it), ``figures/*.png`` and ``run.json``; and, for all of them,
``metrics.json`` and ``index.html``. A later run into the same folder replaces these. All else in ``NAME/``, such as
a derived series, belongs to a person: no run removes or overwrites it.
"""

from __future__ import annotations

import ast
import base64
import itertools
import json
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ldctlib.errors import ParameterError
from ldctlib.files import make_folder, write_json, write_whole
from ldctlib.notebook import COMMON, check_common, check_names
from ldctlib.profiles import find_profile
from ldctlib.show import export, page

MAX_BYTES = 1_500_000  # of a committed notebook
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def find_notebooks(folder: Path, only: str = "") -> list[Path]:
    """``NN_*.ipynb`` in order; ``only`` is a list of numbers like ``"01,7"``. Raises ParameterError."""
    paths = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    wanted = {part.strip().zfill(2) for part in only.split(",") if part.strip()} if only else set(paths)
    if not wanted or wanted - set(paths):
        raise ParameterError(f"--only {only}: there are notebooks {', '.join(paths) or '(none)'} in {folder.name}")
    return [path for number, path in paths.items() if number in wanted]


def parse_assignment(text: str) -> tuple[str, Any]:
    """``"seed=3"`` → ``("seed", 3)``; values as in JSON, anything else is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ParameterError(f"-p {text}: write name=value, for example -p seed=3 or -p 'doses=[0.1, 0.25]'")
    if value in ("True", "False", "None"):
        return name, {"True": True, "False": False, "None": None}[value]
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def run(folder: Path, out: Path, *, profile: str, only: str = "", values: Mapping[str, Any] | None = None) -> int:
    """Run the notebooks of ``folder`` in order into ``out``; stop at the first failure. Returns 0 or 1.

    values : parameters of the notebooks by name, in place of their defaults

    The page and the metrics are written in either case. Raises ParameterError, before anything is removed or run, for
    an unknown profile, a parameter that no chosen notebook has or that has an impossible value, and where a file of
    ``out`` that no run has written would be overwritten.
    """
    paths = find_notebooks(folder, only)
    print(f"profile {profile}, notebooks {', '.join(path.name[:2] for path in paths)}")
    print(f"results in {_relative(Path(out).expanduser().absolute())}")
    chosen = _assign(paths, profile, dict(values or {}))
    out = make_folder(out).resolve()
    _check_out(out, paths)
    for path in paths:
        _remove_products(out, path.stem)
    for path in paths:
        print(f"{path.stem} …", end=" ", flush=True)
        record = _run_one(path, out, chosen[path])
        done = record["status"] == "done"
        print(f"{record['seconds']:.0f} s" if done else f"FAILED\n{record['error']}")
        _write_summary(out, profile)
        if not done:
            break
    print(f"look at {_relative(out / 'index.html')}")
    return int(not done)


def execute_in_place(path: Path) -> str:
    """Re-execute a notebook for committing; returns a line about it.

    What changes from run to run is left out: timestamps, widget state (each widget has a static figure beside
    it), memory addresses. Raises ParameterError, and leaves the file alone, if an output names a folder of
    this machine or the notebook is too large.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=folder, **quiet_kernel()).execute()
    make_stable(notebook)
    text = nbformat.writes(notebook) + "\n"
    if str(path.resolve().parent.parent) in text:
        raise ParameterError(f"{path.name}: an output shows a path of this machine; print names, not paths")
    if len(text.encode()) > MAX_BYTES:
        megabytes = len(text.encode()) / 1e6
        raise ParameterError(f"{path.name} would be {megabytes:.1f} MB, at most {MAX_BYTES / 1e6}; smaller figures")
    write_whole(path, text)
    return f"{path.stem}: {time.perf_counter() - start:.0f} s, {len(text) / 1e3:.0f} kB"


def quiet_kernel() -> dict[str, Any]:
    """Options of a notebook's client: a kernel on this machine need not warn that what it sends is not encrypted, nor
    that it was interrupted to end."""
    return dict(extra_arguments=["--log-level=CRITICAL"])  # a new list: the client appends to it


def make_stable(notebook: Any) -> None:
    """Strip, in place, what differs between two executions of the same cells."""
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    seen: set[str] = set()
    for index, cell in enumerate(notebook.cells):
        if not cell.get("id") or cell.id in seen:
            cell.id = f"cell-{index:02d}"
        seen.add(cell.id)
        for key in ("execution", "papermill", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            export.drop_widgets(cell)
            for output in cell.outputs:
                _hide_addresses(output, "text")
                _hide_addresses(output.get("data", {}), "text/plain", "text/html")


def _hide_addresses(texts: Any, *keys: str) -> None:
    for key in set(keys) & set(texts):
        texts[key] = re.sub(r"\b0x[0-9a-f]{6,16}\b", "0x…", texts[key])


def _assign(paths: list[Path], profile: str, values: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Which of the values each notebook takes: those of the common parameters, and of the ones that it has."""
    find_profile(profile)
    if "profile" in values or "out" in values:
        raise ParameterError("profile and out are options of the course: --profile NAME, --out FOLDER")
    defaults = {path: _default_parameters(path) for path in paths}
    known = list(dict.fromkeys([*COMMON, *(name for each in defaults.values() for name in each)]))
    check_names(values, known, where="the course" if len(paths) > 1 else paths[0].stem)
    chosen = {}
    for path, default in defaults.items():
        taken = {name: value for name, value in values.items() if name in default}
        common = {name: value for name, value in {**default, **taken}.items() if name in ("data", "seed", "device")}
        data = check_common(profile=profile, **common)["data"]
        if "data" in taken and isinstance(data, Path):
            taken["data"] = str(data.resolve())  # notebooks run in their own folder
        chosen[path] = {"profile": profile, **taken}
    return chosen


def _default_parameters(path: Path) -> dict[str, Any]:
    """The parameters of a notebook and their defaults; what is no literal comes as its source."""
    import papermill

    defaults = {name: parameter["default"] for name, parameter in papermill.inspect_notebook(str(path)).items()}
    for name, source in defaults.items():
        with suppress(ValueError, SyntaxError):
            defaults[name] = ast.literal_eval(source)
    return defaults


def _records(out: Path) -> dict[str, dict[str, Any]]:
    """The records of earlier runs in ``out``, by notebook; other files of that name are left out."""
    records = {}
    for path in sorted(out.glob("*/run.json")):
        record = _read_json(path)
        if record.get("name") == path.parent.name and "status" in record:
            records[record["name"]] = record
    return records


def _check_out(out: Path, paths: list[Path]) -> None:
    records = _records(out)
    targets = [] if records else [out / "index.html", out / "metrics.json"]
    names = [path.stem for path in paths if path.stem not in records]
    targets += [out / f"{name}{suffix}" for name in names for suffix in (".ipynb", ".html")]
    for target in targets:
        if target.exists():
            raise ParameterError(f"{target} was not written by an earlier run of the course: name another --out")


def _remove_products(out: Path, name: str) -> None:
    """Remove what an earlier run of this notebook wrote itself, and nothing else."""
    folder, record = out / name, _records(out).get(name)
    if record is None:
        return
    figures = [folder / "figures" / Path(figure).name for figure in record["figures"]]
    products = [folder / "metrics.json", folder / "run.json", out / f"{name}.ipynb", out / f"{name}.html"]
    for path in figures + products:
        path.unlink(missing_ok=True)


def _run_one(path: Path, out: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Execute one notebook, and write and return its record."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder, executed = out / path.stem, out / path.name
    record: dict[str, Any] = dict(name=path.stem, title=path.stem, profile=chosen["profile"], figures=[], captions=[])
    record |= dict(metrics={}, status="failed", error="interrupted", seconds=0.0, html=False)
    write_json(folder / "run.json", record)  # first: a run that is killed leaves files that the next one may replace
    error, start = "", time.perf_counter()
    try:
        options = dict(cwd=str(path.parent), kernel_name="python3", progress_bar=False, **quiet_kernel())
        papermill.execute_notebook(str(path), str(executed), {**chosen, "out": str(folder)}, **options)
    except PapermillExecutionError as failure:
        error = f"cell {failure.cell_index} (In [{failure.exec_count}]): {failure.ename}: {failure.evalue}"
    except Exception as failure:  # a kernel that died or did not start: the page has to say so too
        error = f"{type(failure).__name__}: {failure}"
    record |= {"status": "failed" if error else "done", "error": error}
    record |= {"seconds": round(time.perf_counter() - start, 2)}
    if executed.exists():
        record |= _extract(executed, folder)
    metrics = _read_json(folder / "metrics.json")
    record["metrics"] = metrics.get("metrics", metrics)
    write_json(folder / "run.json", record)
    return record


def _extract(executed: Path, folder: Path) -> dict[str, Any]:
    """The notebook's title, its figures as PNG files, relative to the run's folder, with captions, and its page."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    headings = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    title = next((line.lstrip("# ").strip() for line in headings if line.startswith("# ")), executed.stem)
    images = export.figures(notebook)
    targets = (folder / "figures" / f"figure_{number:02d}.png" for number in itertools.count(1))
    free = (target for target in targets if not target.exists())
    data = (base64.b64decode(output["data"]["image/png"]) for output, _ in images)
    written = [write_whole(target, image) for image, target in zip(data, free, strict=False)]
    figures = [target.relative_to(folder.parent).as_posix() for target in written]
    html = _export(notebook, title, executed.with_suffix(".html"))
    return {"title": title, "figures": figures, "captions": [caption for _, caption in images], "html": html}


def _export(notebook: Any, title: str, target: Path) -> bool:
    """Write the notebook as HTML; a failure here is not a failure of the notebook."""
    try:
        write_whole(target, export.to_html(notebook, title))
    except Exception as failure:
        print(f"(no HTML: {failure})", end=" ")
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_summary(out: Path, profile: str) -> None:
    """``metrics.json`` and ``index.html`` of all in ``out``, earlier runs of other notebooks included."""
    records = _records(out)
    write_json(out / "metrics.json", {name: record["metrics"] for name, record in records.items()})
    write_whole(out / "index.html", page.build(records.values(), profile=profile))


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
