"""Find a Python. Must parse and run on Python 3.6, see `tools/project.py`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# What to look for when the running Python is too old, the likeliest to have all wheels first.
SUPPORTED = ("3.13", "3.12", "3.11", "3.14")


def find_python(versions: "tuple[str, ...]") -> "str | None":
    """The running Python if it will do, or else the first of `versions` that starts."""
    if versions == SUPPORTED and sys.version_info >= (3, 11):
        return sys.executable
    for version in versions:
        for path in _candidates(version):
            if _is_python(path, version):
                return path
    return None


def _candidates(version: str) -> "list[str]":
    on_path = shutil.which("python" + version)
    found = [on_path] if on_path else []
    roots = [Path.home() / ".pyenv"]
    if "PYENV_ROOT" in os.environ:
        roots.insert(0, Path(os.environ["PYENV_ROOT"]))
    for root in roots:
        pattern = "versions/" + version + "*/bin/python"
        try:
            found += sorted(map(str, root.glob(pattern)), reverse=True)
        except OSError:  # another user's
            continue
    return found


def _is_python(path: str, version: str) -> bool:
    """Ask it, since pyenv puts programs on PATH that only say that this version is not chosen."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        answer = subprocess.check_output([path, "-c", code], stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return False
    return answer.decode().strip() == version


def how_to_install() -> str:
    if sys.platform == "darwin":
        return "run `brew install python@3.13`"
    if Path("/etc/debian_version").exists():
        return "run `apt-get install python3 python3-venv` (Debian 12 or newer, Ubuntu 24.04 or newer)"
    return "install it from your system's packages"
