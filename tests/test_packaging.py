"""The wheel and the source distribution hold the whole tree, and what they install works beside a project's own names.

Everything is built from a copy of the checkout and installed from files, without a network; one slow test asks the
package index for all dependencies.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import zoo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LINKS = ("callbacks", "configs", "datamodules")
NOT_COPIED = shutil.ignore_patterns("build", "dist", "*.egg-info", "runs", "data")  # at the top
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__")  # anywhere

IMPORT_BOTH = """
import callbacks, datamodules
import zoo, zoo.callbacks, zoo.datamodules, zoo.datamodules.sources
assert (callbacks.OWNER, datamodules.OWNER) == ("project", "project")
assert zoo.callbacks.TaskLoop.__module__ == "zoo.callbacks.task_loop"
assert zoo.datamodules.sources.Digits.__module__ == "zoo.datamodules.sources.digits"
print(zoo.__file__)
"""
TINY_FIT = [
    *("--model", "NMC", "--model.backbone", "test_efficientnet", "--model.pretrained", "false"),
    *("--data", "ClassIncrementalDataModule", "--data.num_tasks", "2", "--data.batch_size", "8"),
    *("--data.source", "Synthetic", "--data.source.num_classes", "4", "--trainer.accelerator", "cpu"),
]


def run(*words: str | Path, cwd: Path) -> str:
    """Run a program as a person would, without this process's import path; return what it prints."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_tree(target: Path) -> Path:
    """Copy the checkout with its links, and without what a build, a run or an editor left in it."""

    def ignore(folder: str, names: list[str]) -> set[str]:
        return NOT_SOURCE(folder, names) | (NOT_COPIED(folder, names) if Path(folder) == ROOT else set())

    shutil.copytree(ROOT, target, symlinks=True, ignore=ignore)
    return target


def files_of_tree(tree: Path) -> set[str]:
    """Return every file below zoo/, links followed."""
    walked = os.walk(tree / "zoo", followlinks=True)
    return {(Path(folder) / name).relative_to(tree).as_posix() for folder, _, names in walked for name in names}


def files_of_wheel(wheel: Path) -> set[str]:
    """Return every file of a wheel but its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def build(tree: Path, out: Path, *options: str) -> Path:
    """Build with the setuptools of this environment and return the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", out, tree, cwd=tree)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree") / "checkout")


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tree, tmp_path_factory.mktemp("wheel"), "--wheel")


# What is built --------------------------------------------------------------------------------------------------------


def test_package_list_names_every_package_of_the_tree() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inits = [Path(name).parent for name in files_of_tree(ROOT) if name.endswith("/__init__.py")]
    # Recipes are no package, but they are listed: a build without them has to stop too.
    assert listed == sorted([".".join(path.parts) for path in inits] + ["zoo.configs"])


def test_wheel_holds_every_file_below_zoo_and_nothing_else(tree: Path, wheel: Path) -> None:
    files = files_of_wheel(wheel)
    assert files == files_of_tree(tree)
    assert {
        "zoo/py.typed",
        "zoo/__init__.pyi",
        "zoo/callbacks/task_loop.py",
        "zoo/datamodules/sources/digits.py",
    } < files


def test_wheel_of_the_source_distribution_is_the_same(wheel: Path, tree: Path, tmp_path: Path) -> None:
    assert files_of_wheel(build(tree, tmp_path)) == files_of_wheel(wheel)
    assert len(list(tmp_path.glob("*.tar.gz"))) == 1


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("left", ["nothing", "text"])  # git without symbolic links leaves a text file in their place
def test_a_tree_without_its_links_builds_no_wheel(link: str, left: str, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "checkout")
    (tree / "zoo" / link).unlink()
    if left == "text":
        (tree / "zoo" / link).write_text(f"../{link}")
    with pytest.raises(AssertionError, match=f"package directory 'zoo/{link}'"):
        build(tree, tmp_path, "--wheel")


# What is installed ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, with packages that are named as our folders are."""
    for name in ("callbacks", "datamodules"):
        package = tmp_path / "project" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("OWNER = 'project'\n")
    return tmp_path / "project"


def make_environment(folder: Path, installer: str) -> tuple[Path, list[str | Path]]:
    """Make an empty environment; return its programs and the start of the command that installs into it."""
    bin = folder / ("Scripts" if os.name == "nt" else "bin")
    if installer == "uv":
        run(sys.executable, "-m", "uv", "venv", "--python", sys.executable, folder, cwd=folder.parent)
        return bin, [sys.executable, "-m", "uv", "pip", "install", "--python", bin / "python"]
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return bin, [bin / "python", "-m", "pip", "install", "--disable-pip-version-check"]


def lend_dependencies(bin: Path) -> None:
    """Let an environment import what is installed in this one; an editable zoo of this one stays out of its reach."""
    find = "import sysconfig; print(sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), sep='\\n')"
    target = Path(run(bin / "python", "-c", find, cwd=bin).splitlines()[0])
    (target / "lent.pth").write_text(run(sys.executable, "-c", find, cwd=bin))


def check_installed(bin: Path, project: Path) -> Path:
    """Import zoo beside a project's own packages and call its command; return the folder zoo was imported from."""
    package = Path(run(bin / "python", "-c", IMPORT_BOTH, cwd=project).strip()).parent
    assert run(bin / "zoo", "--version", cwd=project) == f"zoo {zoo.__version__}\n"
    listed = run(bin / "zoo", "list", cwd=project)
    assert all(f"  {name} " in listed for name in ("NMC", "Digits", "TaskLoop", "continual/nmc_digits"))
    return package


def check_fit(bin: Path, project: Path) -> None:
    """Train in a project with packages of its own."""
    run(bin / "python", "-m", "zoo", "fit", *TINY_FIT, cwd=project)
    header, *rows = (project / "runs/nmc/0/metrics.csv").read_text().splitlines()
    assert {"test/task00/acc", "test/task01/acc"} < set(header.split(","))
    assert rows


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_wheel_runs_inside_a_project_with_callbacks_and_datamodules(
    installer: str, wheel: Path, project: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    bin, install = make_environment(environment, installer)
    run(*install, "--no-deps", wheel, cwd=tmp_path)
    lend_dependencies(bin)
    assert environment in check_installed(bin, project).parents
    if installer == "pip":  # the other copy is the same
        check_fit(bin, project)


def test_editable_install_reads_the_checkout(project: Path, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "checkout")
    bin, install = make_environment(tmp_path / "environment", "uv")  # some versions of venv bring an old setuptools
    lend_dependencies(bin)  # before: setuptools builds it
    run(*install, "--no-deps", "--no-build-isolation", "--editable", tree, cwd=tmp_path)
    assert check_installed(bin, project) == tree / "zoo"


@pytest.mark.slow
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_wheel_with_all_dependencies_from_the_package_index(
    installer: str, wheel: Path, project: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    bin, install = make_environment(environment, installer)
    run(*install, wheel, cwd=tmp_path)
    assert environment in check_installed(bin, project).parents
    check_fit(bin, project)


@pytest.mark.parametrize("name", ["callbacks", "datamodules"])
def test_the_folders_at_the_top_say_how_they_are_imported(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: Import zoo.{name}, not {name}."


def test_citation_and_changelog_know_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == zoo.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{zoo.__version__}]" in changelog or f"The first release will be {zoo.__version__}." in changelog
