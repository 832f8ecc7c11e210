"""The pages are true: links lead somewhere, names exist, Python runs, commands are understood.

A Python block runs by itself in an empty folder, beside the module ``my_project`` below, which plays the reader's own
code. What it prints ends with the ``text`` block that follows it, if one does. ``<!-- not run -->`` before a block
leaves it out.
"""

import builtins
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from zoo.cli import reproduce
from zoo.cli.catalogue import CONFIGS, recipe_name, recipes
from zoo.cli.claims import claim_names
from zoo.cli.lightning import run
from zoo.cli.main import HEAVY, main
from zoo.nn import exported

ROOT = Path(__file__).parent.parent
PAGES = [
    *(page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists()),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^(?P<mark><!-- not run -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
CODE = re.compile(r"`+([^`]+)`+")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"")

# Where a class that a page names may live. A bare name is looked for here; one with dots is imported.
MODULES = (
    "zoo", "zoo.callbacks", "zoo.continual", "zoo.datamodules", "zoo.datamodules.sources",
    "zoo.datamodules.sources.images", "zoo.functional", "zoo.metrics", "zoo.nn", "zoo.precision", "zoo.segmentation",
    "lightning.pytorch", "lightning.pytorch.callbacks", "lightning.pytorch.cli", "lightning.pytorch.loggers",
    "lightning.pytorch.strategies", "torch", "torch.nn", "torch.optim", "torch.utils.data", "torchmetrics",
    "torchvision.transforms.v2", "sklearn.linear_model",
)  # fmt: skip

MY_PROJECT = '''
"""Somebody's project, which knows nothing of zoo: five images of each of three classes, one task after the other."""
import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class MyModule(L.LightningModule):
    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.encoder = nn.Flatten().eval()
        self.head = nn.Linear(12, num_classes)
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1])
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        right = self.head(self.encoder(batch[0])).argmax(1) == batch[1]
        self.log("val/accuracy", right.float().mean())
    def on_validation_epoch_end(self):
        for task in range(self.current_epoch + 1):
            self.log(f"val/acc_task{task}", 0.5)
    def predict_step(self, batch, batch_idx):
        return {"label": self.head(self.encoder(batch[0])).argmax(1)}
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class MyData(L.LightningDataModule):
    num_classes, class_names, num_tasks = 3, ["cat", "dog", "hen"], 3
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(15, 3, 2, 2), torch.arange(15) % 3), batch_size=5)
    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

class MyModuleWithTasks(MyModule):
    def on_task_start(self, task):
        print(f"task {task.index}: classes {list(task.classes)}")
    def on_task_end(self, task):
        pass
'''


class Block(NamedTuple):
    """A fenced block: page and line, language, content, the ``text`` block right behind it, whether it runs."""

    where: str
    language: str
    code: str
    output: str
    runs: bool

    def __repr__(self) -> str:
        return self.where


def blocks() -> Iterator[Block]:
    """Yield every fenced block of every page."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found = list(FENCE.finditer(text))
        for fence, after in zip(found, [*found[1:], None], strict=False):
            follows = (
                after is not None and after["language"] == "text" and not text[fence.end() : after.start()].strip()
            )
            yield Block(
                where=f"{page.relative_to(ROOT).as_posix()}:{text.count(chr(10), 0, fence.start()) + 1}",
                language=fence["language"],
                code=fence["code"],
                output=after["code"] if after is not None and follows else "",
                runs=fence["mark"] is None,
            )


def commands() -> dict[str, str]:
    """Return every command of zoo in a shell block or in running text that can be typed as it stands, and where."""
    found = {}
    for block in BLOCKS:
        if block.language == "bash" and block.runs:
            for line in block.code.replace("\\\n", " ").splitlines():
                words = line.partition(" #")[0].strip().removeprefix("python -m ")
                if words.startswith("zoo "):
                    found.setdefault(words, block.where)
    return found


def prose(page: Path) -> str:
    """Return a page without its blocks and comments."""
    return COMMENT.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))


BLOCKS = list(blocks())
COMMANDS = commands()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A reader's folder: a project, all recipes, and a finished run of each."""
    (tmp_path / "my_project.py").write_text(MY_PROJECT)
    for recipe in recipes():
        (tmp_path / recipe.name).write_text(recipe.read_text())
        done = tmp_path / "runs" / recipe.stem / "0"
        (done / "checkpoints").mkdir(parents=True)
        (done / "checkpoints" / "last.ckpt").touch()
        (done / "config.yaml").write_text(recipe.read_text())
    (tmp_path / "configs").symlink_to(CONFIGS.resolve())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("ZOO_TRACEBACK", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)
    sys.modules.pop("my_project", None)
    return tmp_path


def test_there_are_pages_with_code() -> None:
    assert {"index.md", "callbacks.md", "nmc.md"} <= {page.name for page in PAGES}
    assert sum(block.language == "python" for block in BLOCKS) > 10
    assert len(COMMANDS) > 10


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(prose(page)):
        target, _, anchor = (match[1] or match[2]).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page.name} links to {target}#{anchor}, and no heading there is called so"


def anchors(page: Path) -> set[str]:
    """Return what a code host calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_blocks_are_closed_and_say_their_language(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") % 2 == 0
    languages = {fence["language"] for fence in FENCE.finditer(text)}
    assert languages <= {"python", "bash", "yaml", "toml", "text"}, languages


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python" and b.runs], ids=repr)
def test_python_runs(block: Block, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    exec(compile(block.code, block.where, "exec"), namespace)
    printed = capsys.readouterr().out
    assert lines(printed)[-len(lines(block.output)) :] == lines(block.output) or not block.output


def lines(text: str) -> list[str]:
    """Return the lines of a text, without blanks at their ends."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: COMMANDS[command])
def test_command_is_understood(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)[1:]
    if words[0] in HEAVY:
        if not {"--print_config", "--help"} & set(words):
            words.append("--print_config")
        with pytest.raises(SystemExit) as stop:
            run(words)
        assert stop.value.code == 0, capsys.readouterr().err
        return
    monkeypatch.setattr(reproduce, "reproduce", lambda *args: True)  # it would run for hours
    facts = {"backbone": "test_vit", "backbone_args": {}, "mean": [0.5], "std": [0.5]}
    monkeypatch.setattr(exported, "export_checkpoint", lambda *args: facts)  # the checkpoints here are empty
    (folder / words[-1]).unlink(missing_ok=True)
    if words[:2] == ["configs", "copy"]:
        for copied in folder.glob("*.yaml"):
            copied.unlink()
    assert main(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml" and b.runs], ids=repr)
def test_yaml_names_classes_and_recipes_that_exist(block: Block, folder: Path) -> None:
    content = yaml.safe_load(block.code)
    for kind in values_of(content, "class_path"):
        assert exists(kind, set()), f"{block.where} names the class {kind}"
    for recipe in values_of(content, "recipe"):
        assert recipe in map(recipe_name, recipes()), f"{block.where} names the recipe {recipe}"


def values_of(content: Any, key: str) -> Iterator[str]:
    """Yield every value of a key, however deep it stands."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name == key:
                yield value
            yield from values_of(value, key)
    elif isinstance(content, list):
        for value in content:
            yield from values_of(value, key)


@each_page
def test_names_exist(page: Path) -> None:
    """What stands in code is there: classes, anything behind ``zoo.``, files, recipes."""
    text = page.read_text(encoding="utf-8")
    own = {*re.findall(r"^\s*class (\w+)", text + MY_PROJECT, re.MULTILINE)}
    families = "|".join(sorted({recipe.parent.name for recipe in recipes()}))
    wrong = []
    for code in CODE.findall(prose(page)):
        unquoted = re.sub(r"(['\"]).*?\1", "", code)
        names = re.findall(r"\bzoo(?:\.\w+)+", code) + re.findall(r"(?<![\w./<])[A-Z]\w*[a-z]\w*\b(?![/.]\w)", unquoted)
        wrong += [name for name in names if not exists(name, own)]
        if not set(code) & set("<*["):  # a pattern, no path
            paths = re.findall(
                r"(?<![\w./])(?:\.ci|zoo|datamodules|callbacks|configs|tests|benchmarks|docs)/[\w./]+", code
            )
            wrong += [path for path in paths if not (ROOT / path).exists()]
        named = re.findall(rf"^(?:{families})/\w+$", code)
        wrong += [name for name in named if name not in map(recipe_name, recipes())]
    assert not wrong, f"{page.name} names what does not exist: {', '.join(wrong)}"


def exists(name: str, own: set[str]) -> bool:
    """Say whether a class, or anything with a dotted path, is there."""
    if "." not in name:
        spaces = [builtins, *map(importlib.import_module, MODULES)]
        return name in own or any(hasattr(space, name) for space in spaces)
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


@each_page
def test_tables_of_claims_have_both_marks_and_a_claim(page: Path) -> None:
    marks = re.findall(r"^<!-- (?:claim: (\S+)|/claim) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(marks[0::2]), "a table ends before it begins"
    assert not any(marks[1::2]), "a table begins before the one above ends"
    assert len(marks) % 2 == 0
    assert set(marks[0::2]) <= set(claim_names())


def test_every_page_is_on_the_map() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / target).resolve() for target, _ in LINK.findall(text)}
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md") if page.name != "index.md"}
    assert not pages - linked
