"""The command line: which arguments reach which job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldctlib import __main__ as command_line

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ldctlib", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_recipes_parse_the_options_of_train(tmp_path):
    """Abbreviated and with an equals sign, as they allow."""
    done = run("train", "redcnn", "--prof=workshop", "--stage=stable", "--dry-run", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (checkpoint,) = tmp_path.rglob("*.safetensors")
    assert b"workshop" in checkpoint.read_bytes()  # in its header


def test_train_shows_the_recipes_own_help():
    assert "python -m ldctlib.recipes" in run("train", "--help").stdout


def test_what_no_job_takes_is_refused(capsys):
    for arguments in (["course", "--onyl", "01"], ["bench", "all"], ["notebooks", "01"]):
        with pytest.raises(SystemExit):
            command_line.main(arguments)
        assert "unknown arguments" in capsys.readouterr().err


def test_an_error_of_the_library_is_a_line_and_a_code(capsys):
    assert command_line.main(["course", "--only", "99"]) == 2
    assert capsys.readouterr().err.startswith("error: --only 99: there are notebooks 00, 01")


def test_the_lab_opens_at_the_start_page(monkeypatch):
    commands = []
    monkeypatch.setattr(
        command_line.subprocess,
        "run",
        lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0),
    )
    assert command_line.main(["lab", "--no-browser"]) == 0
    assert commands[0][1:] == [
        "-m",
        "jupyterlab",
        str(ROOT / "notebooks"),
        "--LabApp.default_url=/lab/tree/00_start_here.ipynb",
        "--no-browser",
    ]
    assert command_line.START.is_file()
