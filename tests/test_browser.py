"""Widgets moved in a real browser: JupyterLab, a kernel, and Chromium through playwright.

Skipped where either is missing (``pip install -e ".[browser]"``; a Chromium of the system or of playwright).
The library's widgets take half a minute. Those of the course's notebooks, which are run whole for it, are moved where
LDCT_BROWSER_NOTEBOOKS names them, for example ``01,02`` or ``all``.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from itertools import product
from pathlib import Path

import nbformat
import pytest

from ldctlib import course
from ldctlib.__main__ import NOTEBOOKS, environment

CHOSEN = os.environ.get("LDCT_BROWSER_NOTEBOOKS", "")
SMALL = """
import numpy as np
from ldctlib.show import widgets
from ldctlib.units import SOFT_TISSUE
rng = np.random.default_rng(0)
clean = np.where(np.hypot(*np.mgrid[-32:32, -32:32]) < 24, 40.0, -1000.0)
noisy = clean + rng.normal(0, 30, clean.shape)
display(widgets.slice_viewer(np.stack([clean, noisy, clean + 60])))
display(widgets.wipe(noisy, clean))
display(widgets.dose_slider({0.25: noisy, 0.5: clean + 10, 1.0: clean}, clean))
"""
FAILURE = ".jp-RenderedText .ansi-red-fg"
"""A traceback."""
PICTURES = "() => [...document.querySelectorAll('img.widget-image')].map(e => e.src)"


@pytest.fixture(scope="module")
def browser():
    """Chromium: the system's own, or playwright's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: widgets are not moved in a browser")
    system = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as running:
        try:
            chromium = running.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: widgets are not moved in a browser ({str(error).splitlines()[0]})")
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address of a JupyterLab, its folder, its token)."""
    folder, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(8)
    shutil.copytree(NOTEBOOKS.parent / "docs", folder / "docs")  # whose results notebooks read
    (folder / "notebooks").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", f"--IdentityProvider.token={token}", "--expose-app-in-browser", "--allow-root"]
    command = [sys.executable, "-m", "jupyterlab", str(folder), "--no-browser", "--ip=127.0.0.1", *options]
    settings = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    log = folder / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment(threads=1) | settings)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        yield address, folder, token
    finally:
        server.terminate()
        server.wait()


def move_all(browser, lab, path: Path, seconds: float) -> dict[str, bool]:
    """Run a notebook in JupyterLab and move every slider one step: name -> did a picture change?"""
    address, folder, token = lab
    shutil.copy(path, folder / "notebooks" / path.name)
    page = browser.new_page(viewport={"width": 1400, "height": 4000})
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{address}/lab/tree/notebooks/{path.name}?token={token}&reset")
    page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')", timeout=120_000)
    page.wait_for_function("document.body.innerText.includes('| Idle')", timeout=120_000)  # the kernel
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    page.wait_for_function(
        "failure => { const p = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent);"
        " const done = p.length && p.every(t => /\\[\\d+\\]/.test(t) || t.trim() === '');"
        " return done || document.querySelector(failure) }",
        arg=FAILURE,
        timeout=1000 * seconds,
    )
    assert not page.locator(FAILURE).count(), page.locator(FAILURE).first.locator("xpath=..").inner_text()
    moved: dict[int, bool] = {}
    sliders = page.locator(".jp-OutputArea-output .widget-slider")
    # twice: what one slider shows may wait for another, as a latent's channel for the shift along it; and an image that
    # is generated anew may take a busy machine a minute
    for patience, i in product((1.0, 60.0), range(sliders.count())):
        if moved.get(i):
            continue
        handle = sliders.nth(i).locator(".noUi-handle")
        handle.scroll_into_view_if_needed()
        before = page.evaluate(PICTURES)
        handle.focus()
        for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):  # the last stop may be where it stands
            handle.press(key)
            end = time.monotonic() + patience
            while not (changed := page.evaluate(PICTURES) != before) and time.monotonic() < end:
                page.wait_for_timeout(200)
            if changed:
                break
        moved[i] = changed
    assert not page.locator(FAILURE).count()
    assert not errors, errors
    names = {f"{i} {sliders.nth(i).locator('.widget-label').inner_text()}": changed for i, changed in moved.items()}
    page.close()
    return names


def test_every_widget_of_the_library_redraws(browser, lab, tmp_path):
    path = tmp_path / "widgets.ipynb"
    cells = [nbformat.v4.new_code_cell(SMALL)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    moved = move_all(browser, lab, path, seconds=120)
    assert [name.split(" ", 1)[1] for name in moved] == ["slice", "level (HU)", "width (HU)", "before | after", "dose"]
    assert all(moved.values()), moved


@pytest.mark.skipif(not CHOSEN, reason="set LDCT_BROWSER_NOTEBOOKS=all to run the notebooks in a browser")
@pytest.mark.parametrize("path", course.find_notebooks(NOTEBOOKS, CHOSEN.replace("all", "")), ids=lambda p: p.stem)
def test_every_widget_of_a_notebook_redraws(browser, lab, path):
    moved = move_all(browser, lab, path, seconds=1800)
    assert all(moved.values()), moved
