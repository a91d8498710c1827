"""Make a virtual environment and install this repository into it: ``python3 bootstrap.py [.venv]``.

Runs on a bare Python. Installs again only when called again; the Makefile calls it when the stamp file
``.installed`` is older than the lists of dependencies.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
HERE = os.path.dirname(os.path.abspath(__file__))


def venv_python(folder):
    return os.path.join(folder, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))


def why_no_venv():
    """The reason why this Python cannot make a virtual environment, with what to do, or an empty string."""
    if sys.version_info < OLDEST:
        return (
            "Python {}.{} or newer is needed, and '{}' is {}.{}. Name another one: make course PYTHON=python3.12"
        ).format(*OLDEST, sys.executable, *sys.version_info[:2])
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        return (
            "'{}' cannot make virtual environments (its module {} is missing). On Debian or Ubuntu: "
            "sudo apt install python3-venv. Or use conda: conda env create -f environment.yml"
        ).format(sys.executable, " and ".join(missing))
    return ""


def has_nvidia_gpu():
    return bool(shutil.which("nvidia-smi")) or os.path.exists("/proc/driver/nvidia/version")


def pip_is_configured(config_list):
    """Whether the output of ``pip config list`` names a package source of the user's own."""
    sources = {"index-url", "extra-index-url", "find-links", "no-index"}
    return any(line.split("=")[0].rsplit(".", 1)[-1] in sources for line in config_list.splitlines())


def torch_source(platform, nvidia_gpu, config_list):
    """pip options for torch: the CPU index on Linux without an NVIDIA GPU, unless pip has its own sources."""
    if platform.startswith("linux") and not nvidia_gpu and not pip_is_configured(config_list):
        return ["--extra-index-url", TORCH_CPU_INDEX]
    return []


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else ".venv"
    reason = why_no_venv()
    if reason:
        sys.exit("bootstrap: " + reason)
    python = venv_python(folder)
    try:
        if not os.path.exists(python):
            print("Making a virtual environment in", folder, flush=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip"]
        config = subprocess.run(pip + ["config", "list"], check=True, capture_output=True, text=True).stdout
        source = torch_source(sys.platform, has_nvidia_gpu(), config)
        print("Installing into", folder, "(the first time takes a few minutes)", flush=True)
        constraints = os.path.join(HERE, "constraints.txt")
        install = ["install", "--quiet", "-c", constraints, "-e", HERE + "[test]"]
        subprocess.run(pip + install + source, check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"bootstrap: this step failed, see above: {error}\nDelete {folder} to start afresh.")
    with open(os.path.join(folder, ".installed"), "w"):
        pass


if __name__ == "__main__":
    main()
