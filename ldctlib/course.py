"""Running the notebooks: in order with papermill into a folder with a page, or in place for committing.

A run's folder holds, for each notebook, ``NAME.ipynb`` (executed), ``NAME.html``, and ``NAME/`` with what the
notebook wrote (``metrics.json`` among it), ``figures/*.png`` and ``run.json``; and, for all of them,
``metrics.json`` and ``index.html``.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldctlib.errors import ParameterError
from ldctlib.profiles import COMMON, PROFILES, check_names, did_you_mean
from ldctlib.show import page

MAX_BYTES = 1_500_000  # of a committed notebook
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def find_notebooks(folder: Path, only: str = "") -> list[Path]:
    """``NN_*.ipynb`` in order; ``only`` is a list of numbers like ``"01,7"``. Raises ParameterError."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not only:
        return paths
    numbers = {path.name[:2] for path in paths}
    wanted = {part.strip().zfill(2) for part in only.split(",") if part.strip()}
    if not wanted or wanted - numbers:
        raise ParameterError(f"--only {only}: there are notebooks {', '.join(sorted(numbers)) or '(none yet)'}")
    return [path for path in paths if path.name[:2] in wanted]


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


def run(folder: Path, out: Path, *, profile: str, only: str = "", given: Mapping[str, Any] | None = None) -> int:
    """Run the notebooks of ``folder`` in order into ``out``; stop at the first failure. Returns 0 or 1.

    The page and the metrics are written in either case. Raises ParameterError, before anything is run, for
    an unknown profile or a parameter that no chosen notebook has.
    """
    paths, given = find_notebooks(folder, only), dict(given or {})
    if not paths:
        print("no notebooks yet: nothing to run")
        return 0
    chosen = _assign(paths, profile, given)
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        _forget(out, path.stem)
    failed = False
    for path in paths:
        print(f"{path.stem} …", end=" ", flush=True)
        record = _run_one(path, out, chosen[path])
        (out / path.stem / "run.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
        print(f"{record['seconds']:.0f} s" if record["status"] == "done" else f"FAILED\n{record['error']}")
        _write_summary(out, profile)
        if record["status"] != "done":
            failed = True
            break
    print(f"look at {_relative(out / 'index.html')}")
    return int(failed)


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
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    make_stable(notebook)
    text = nbformat.writes(notebook) + "\n"
    if str(path.resolve().parent.parent) in text:
        raise ParameterError(f"{path.name}: an output shows a path of this machine; print names, not paths")
    if len(text.encode()) > MAX_BYTES:
        megabytes = len(text.encode()) / 1e6
        raise ParameterError(f"{path.name} would be {megabytes:.1f} MB, at most {MAX_BYTES / 1e6}; smaller figures")
    partial = path.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return f"{path.stem}: {time.perf_counter() - start:.0f} s, {len(text) / 1e3:.0f} kB"


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
            cell.outputs = [output for output in cell.outputs if not _is_widget(output)]
            for output in cell.outputs:
                _hide_addresses(output)


def _is_widget(output: Any) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _hide_addresses(output: Any) -> None:
    def hide(text: str) -> str:
        return re.sub(r"\b0x[0-9a-f]{6,16}\b", "0x…", text)

    if "text" in output:
        output["text"] = hide(output["text"])
    for kind in ("text/plain", "text/html"):
        if kind in output.get("data", {}):
            output["data"][kind] = hide(output["data"][kind])


def _assign(paths: list[Path], profile: str, given: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Which of the given parameters each notebook takes: the common ones, and its own."""
    if profile not in PROFILES:
        raise ParameterError(
            f"--profile {profile} does not exist{did_you_mean(profile, PROFILES)}. Allowed: {', '.join(PROFILES)}"
        )
    if "profile" in given or "out" in given:
        raise ParameterError("profile and out are options of the course: --profile NAME, --out FOLDER")
    if isinstance(given.get("data"), str) and Path(given["data"]).expanduser().exists():
        given = {**given, "data": str(Path(given["data"]).expanduser().resolve())}  # notebooks run elsewhere
    names = {path: _parameter_names(path) for path in paths}
    known = list(dict.fromkeys([*COMMON, *(name for own in names.values() for name in own)]))
    check_names(given, known, where="the course" if len(paths) > 1 else paths[0].stem)
    return {
        path: {"profile": profile, **{name: value for name, value in given.items() if name in names[path]}}
        for path in paths
    }


def _parameter_names(path: Path) -> list[str]:
    import papermill

    return list(papermill.inspect_notebook(str(path)))


def _forget(out: Path, name: str) -> None:
    """Remove an earlier run's results of this notebook, and nothing that is not one."""
    if (out / name / "run.json").exists():
        shutil.rmtree(out / name)
    for suffix in (".ipynb", ".html"):
        (out / f"{name}{suffix}").unlink(missing_ok=True)


def _run_one(path: Path, out: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder, executed = out / path.stem, out / path.name
    folder.mkdir(parents=True, exist_ok=True)
    error, start = "", time.perf_counter()
    try:
        papermill.execute_notebook(
            str(path),
            str(executed),
            {**chosen, "out": str(folder)},
            cwd=str(path.parent),
            kernel_name="python3",
            progress_bar=False,
        )
    except PapermillExecutionError as failure:
        error = f"cell {failure.cell_index} (In [{failure.exec_count}]): {failure.ename}: {failure.evalue}"
    except Exception as failure:  # a kernel that died or did not start: the page has to say so too
        error = f"{type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - start
    title, figures = path.stem, []
    if executed.exists():
        title, figures = _extract(executed, folder)
    return {
        "name": path.stem,
        "title": title,
        "status": "failed" if error else "done",
        "error": error,
        "seconds": round(seconds, 2),
        "profile": chosen["profile"],
        "figures": figures,
        "metrics": _read_metrics(folder),
        "html": _export(executed),
    }


def _extract(executed: Path, folder: Path) -> tuple[str, list[str]]:
    """The notebook's title, and its figures as PNG files, relative to the run's folder."""
    import nbformat

    notebook = nbformat.read(executed, as_version=4)
    headings = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    title = next((line.lstrip("# ").strip() for line in headings if line.startswith("# ")), executed.stem)
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    images = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    names = []
    (folder / "figures").mkdir(exist_ok=True)
    for number, image in enumerate(images, start=1):
        target = folder / "figures" / f"figure_{number:02d}.png"
        target.write_bytes(base64.b64decode(image))
        names.append(target.relative_to(folder.parent).as_posix())
    return title, names


def _export(executed: Path) -> bool:
    """Write the notebook as HTML beside it; a failure here is not a failure of the notebook."""
    from nbconvert import HTMLExporter

    try:
        html, _ = HTMLExporter(template_name="lab").from_filename(str(executed))
    except Exception as failure:
        print(f"(no HTML: {failure})", end=" ")
        return False
    executed.with_suffix(".html").write_text(html, encoding="utf-8")
    return True


def _read_metrics(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return record.get("metrics", record)


def _write_summary(out: Path, profile: str) -> None:
    """``metrics.json`` and ``index.html`` of all in ``out``, earlier runs of other notebooks included."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/run.json"))]
    metrics = {record["name"]: record["metrics"] for record in records}
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (out / "index.html").write_text(page.build(records, profile=profile), encoding="utf-8")


def _relative(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
