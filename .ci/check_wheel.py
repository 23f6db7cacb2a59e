"""Build the wheel, install it into a throw-away environment, use it there, and check the tests' types against it.

The environment sees the packages of .venv through a path file, so that nothing heavy is installed again. Path files
that lie in a folder named by a path file are not read, so .venv's own editable latelier stays out of sight.
"""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
UV = os.environ.get("UV", "uv")
RECIPE = "semdisdiffae"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Return what a command printed; when it fails, show that and stop."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nwheel: {' '.join(map(str, command))} exited with {done.returncode}")
    return done.stdout


def build(into: Path) -> Path:
    """Build outside the checkout: setuptools would pack what an older build left in build/."""
    (into / "setup.cfg").write_text(f"[build]\nbuild_base = {into}/build\n[egg_info]\negg_base = {into}\n")
    run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into, ROOT),
        DIST_EXTRA_CONFIG=str(into / "setup.cfg"),
    )
    return next(into.glob("*.whl"))


def check_contents(wheel: Path) -> None:
    """Every file that belongs to the package is in the wheel, and nothing else is."""
    expected = {"latelier/py.typed"} | {f"latelier/{path.name}" for path in ROOT.glob("*.py")}
    for package in ROOT.glob("*/__init__.py"):
        files = (path for path in package.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        expected |= {f"latelier/{path.relative_to(ROOT).as_posix()}" for path in files}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    if names != expected:
        lacks, has = sorted(expected - names), sorted(names - expected)
        sys.exit(f"wheel: lacks {lacks}, has {has} too much; see [tool.setuptools] in pyproject.toml")


def install(wheel: Path, into: Path) -> Path:
    """Return the ``bin`` of a fresh environment that holds the wheel."""
    run(UV, "venv", "--no-project", "--python", sys.executable, into)
    run(UV, "pip", "install", "--python", into, "--no-deps", wheel)
    site = next(into.glob("lib/python*/site-packages"))
    (site / "packages_of_the_checkout.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return into / "bin"


def use(binaries: Path, version: str, empty: Path) -> None:
    modules = ["latelier", *(f"latelier.{package.parent.name}" for package in ROOT.glob("*/__init__.py"))]
    code = f"import {', '.join(modules)}; print(latelier.__file__)"
    origin = Path(run(binaries / "python", "-c", code, cwd=empty).splitlines()[-1])
    if binaries.parent not in origin.parents:
        sys.exit(f"wheel: latelier was imported from {origin}; it must come from {binaries.parent}")
    answer = run(binaries / "latelier", "--version", cwd=empty)
    if version not in answer.split():
        sys.exit(f"wheel: `latelier --version` printed {answer!r}; it must print {version}")
    if RECIPE not in run(binaries / "latelier", "list", cwd=empty).split():
        sys.exit(f"wheel: `latelier list` does not name {RECIPE!r}")


def main() -> None:
    with TemporaryDirectory(prefix="latelier-wheel-") as name:
        scratch = Path(name).resolve()
        empty = scratch / "empty"
        empty.mkdir()
        wheel = build(scratch)
        check_contents(wheel)
        binaries = install(wheel, scratch / ".venv")  # the name that [tool.pyright] gives the environment
        use(binaries, wheel.name.split("-")[1], empty)
        tested = [folder for folder in ("tests", "benchmarks") if any((ROOT / folder).glob("*.py"))]
        pyright = Path(sys.executable).with_name("pyright")
        run(pyright, "--warnings", "--venvpath", scratch, *tested)


if __name__ == "__main__":
    main()
