"""The command line: which arguments reach which job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ldctlib import __main__ as main_module
from ldctlib.benchmark import __main__ as benchmark
from ldctlib.benchmark import synthesis
from ldctlib.commands import command_line
from ldctlib.errors import ParameterError

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
            main_module.main(arguments)
        assert "unknown arguments" in capsys.readouterr().err


def test_an_error_of_the_library_is_a_line_and_a_code(capsys):
    assert main_module.main(["course", "--only", "99"]) == 2
    assert capsys.readouterr().err.startswith("error: --only 99: there are notebooks 00, 01")


CHILD = """
import signal, sys, time
def late(*_):
    time.sleep(1)  # longer than subprocess.run would wait
    open(sys.argv[1], "w").write("state")
    sys.exit(130)
signal.signal(signal.SIGINT, late)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="no process groups")
def test_ctrl_c_leaves_a_child_the_time_for_its_state(tmp_path):
    # a shell's background job ignores the interrupt, and so would its children
    parent = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    parent += "from ldctlib.__main__ import wait_for; wait_for([sys.executable, '-c', *sys.argv[1:]])"
    command = [sys.executable, "-c", parent, CHILD, str(tmp_path / "state")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (tmp_path / "state").read_text() == "state" and "KeyboardInterrupt" in errors and process.returncode != 0


@pytest.mark.parametrize("module", [benchmark, synthesis])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(module, tmp_path, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    for path, why in ((tmp_path / "absent" / "x.json", "no folder"), (tmp_path / "folder", "it is a folder")):
        monkeypatch.setattr(sys, "argv", ["benchmark", "--patients", "1", "--json", str(path)])
        assert module.main() == 2 and why in capsys.readouterr().err


def test_errors_and_ctrl_c_end_a_command_in_one_line(capsys):
    @command_line("the rest is kept")
    def main(raised):
        raise raised

    for raised, code, line in (
        (ParameterError("no such thing"), 2, "error: no such thing\n"),
        (KeyboardInterrupt(), 130, "stopped; the rest is kept\n"),
        (KeyboardInterrupt("after 7 steps"), 130, "stopped after 7 steps; the rest is kept\n"),
    ):
        assert main(raised) == code and capsys.readouterr().err == line
    with pytest.raises(ZeroDivisionError):  # a fault of ours keeps its traceback
        main(ZeroDivisionError())


def test_the_lab_opens_at_the_start_page(monkeypatch):
    commands = []
    monkeypatch.setattr(main_module, "wait_for", lambda command, **_: commands.append(command) or 0)
    assert main_module.main(["lab", "--no-browser"]) == 0
    assert commands[0][1:] == [
        "-m",
        "jupyterlab",
        str(ROOT / "notebooks"),
        "--LabApp.default_url=/lab/tree/00_start_here.ipynb",
        "--no-browser",
    ]
    assert main_module.START.is_file()
