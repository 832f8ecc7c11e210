"""``zoo fit|validate|test|predict``: Lightning's command line with zoo's names, run folders and error messages."""

import inspect
import logging
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from zipfile import is_zipfile

import lightning.pytorch as L
import torch
import yaml
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import zoo
from zoo.callbacks import (
    PredictedMasks,
    PredictionTable,
    SeedEpochs,
    StreamProgressBar,
    StreamReport,
    TaskLoop,
    TrainingReport,
)
from zoo.cli.errors import one_line
from zoo.cli.run_folder import RUNS, AtomicCheckpointIO, MetricsCSV, ResumeCheckpoint, last_run, new_run, run_of
from zoo.datamodules.streams import TaskStream
from zoo.functional import write_atomically
from zoo.precision import check_bitsandbytes

for _name in zoo.__all__:  # loads them: short names are those of classes that are imported
    getattr(zoo, _name)

LINKED = ("num_classes", "class_names")  # what a model may take from the data, and nothing else
RESTARTS = "SLURM_RESTART_COUNT"  # set by SLURM in a job that was requeued
TRACEBACK = "ZOO_TRACEBACK"  # environment variable: show all of an error
# What a run raises when data, files or settings do not fit, as opposed to a fault in a program.
EXPECTED = (ValueError, OSError, ImportError, MisconfigurationException)


def run(args: Sequence[str]) -> None:
    """Run one command.

    Args:
        args: The command and its options, as typed.

    Raises:
        SystemExit: With code 2 and one line on stderr if something that was typed or found does not fit. An error of
            another kind passes as it is.
    """
    quieten()
    ZooParser.words = list(args)
    cli = ZooCLI.__new__(ZooCLI)  # known here even if its constructor, which runs everything, fails
    try:
        cli.__init__(with_config_of_checkpoint(list(args)))  # type: ignore[misc]
    except SystemExit as stop:
        if hasattr(cli, "trainer") and cli.trainer.interrupted:  # Lightning leaves with 1 after Ctrl-C
            raise SystemExit(143 if cli.trainer.received_sigterm else 130) from stop
        raise
    except Exception as error:  # a constructor may raise anything, and its text is what a person needs
        built = hasattr(cli, "trainer")
        if os.environ.get(TRACEBACK) or (built and not isinstance(error, EXPECTED)):
            raise
        if built and (cli.run_dir / "config.yaml").exists():
            write_atomically(cli.run_dir / "traceback.txt", traceback.format_exc())
        elif built and cli.run_dir.is_dir() and not any(cli.run_dir.iterdir()):
            cli.run_dir.rmdir()  # nothing was run
        fail(args[0], one_line(innermost(error), words_of(args)) if not built else of_worker(str(error)))
    if cli.trainer.received_sigterm:  # Lightning ends as if all was well, and a scheduler would believe it
        raise SystemExit(143)


def quieten() -> None:
    """Leave out what Lightning repeats at each start and nobody acts on."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "Tip:" not in record.getMessage())
    for text in (
        "does not have many workers",
        "is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",
        "LightningCLI's args parameter is intended to run",
        "You have overridden `on_after_batch_transfer`",  # ours is meant to be
        r"Found \d+ module\(s\) in eval mode",  # frozen networks are meant to be
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", f".*{text}.*")


def fail(command: str, message: str) -> NoReturn:
    """Print one line and leave with code 2."""
    print(f"zoo {command}: {message} ({TRACEBACK}=1 shows more)", file=sys.stderr)
    raise SystemExit(2)


def innermost(error: BaseException) -> str:
    """Return the text of the error that a constructor raised, without what the parser wrapped around it."""
    while error.__cause__ is not None and is_parsers(error):
        error = error.__cause__
    return str(error) if str(error) and not isinstance(error, KeyError) else repr(error)


def of_worker(message: str) -> str:
    """Return what went wrong, in one line, of an error that may have been raised in a loader worker."""
    if message.startswith("Caught ") and "Original Traceback" in message:
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


def is_parsers(error: BaseException) -> bool:
    """Say whether jsonargparse raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and "jsonargparse" in frames[-1].filename


def words_of(args: Sequence[str]) -> list[str]:
    """Return the command line and the configuration files it names, as text."""
    texts = [Path(word).read_text() for word in args if word.endswith((".yaml", ".yml")) and Path(word).is_file()]
    return [*args, *texts]


def options_of(args: Sequence[str], *names: str) -> list[str]:
    """Return the values given to an option, in either form: ``--name value`` and ``--name=value``."""
    values = [args[i + 1] for i, word in enumerate(args[:-1]) if word in names]
    return values + [word.partition("=")[2] for word in args if word.partition("=")[0] in names and "=" in word]


def with_config_of_checkpoint(args: list[str]) -> list[str]:
    """Add the configuration of a run to an evaluation of its checkpoint that names neither recipe nor model."""
    paths = options_of(args, "--ckpt_path")
    if not paths or args[0] == "fit" or options_of(args, "--config", "-c", "--model"):
        return args
    folder = run_of(paths[-1])
    config = folder / "config.yaml" if folder is not None else None
    return [args[0], "--config", str(config), *args[1:]] if config is not None and config.is_file() else args


class ZooParser(LightningArgumentParser):
    """A parser that answers with one line instead of a usage page."""

    words: ClassVar[list[str]] = []  # what was typed; parsers of nested classes know only their part of it

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason with the nearest names and leave with code 2."""
        fail(self.words[0], one_line(message, words_of(self.words)))


class SaveConfig(SaveConfigCallback):
    """Save the configuration of a run in its folder, without what belongs to one start only."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **kwargs: Any) -> None:
        config = config.clone()
        config["ckpt_path"], config["run_dir"] = None, None
        super().__init__(parser, config, overwrite=True, **kwargs)


class ZooCLI(LightningCLI):
    """Lightning's command line.

    Args:
        args: The command and its options.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.args = list(args)
        self.run_dir = Path()  # known when the Trainer is built: a mistake before that takes no number
        self.home: Path | None = None  # the folder of the run that is named or gone on with
        self.checkpoint: str | None = None
        super().__init__(
            parser_class=ZooParser,
            parser_kwargs={name: {"allow_abbrev": False} for name in self.subcommands()}
            | {"allow_abbrev": False, "prog": "zoo"},
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=self.args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, and what a model takes from the data."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="Folder of the run (default: runs/<recipe>/<n>)."
        )
        for name in LINKED:
            if not self.is_given(name):
                parser.link_arguments(
                    "data",
                    f"model.init_args.{name}",
                    compute_fn=partial(self.linked, name),
                    apply_on="instantiate",
                )

    def linked(self, name: str, data: Any) -> Any:
        """Return what the data says, or the model's own default where the data says nothing.

        Raises:
            ValueError: If neither says anything.
        """
        if hasattr(data, name):
            return getattr(data, name)
        parameters = inspect.signature(pkgutil.resolve_name(self._get(self.config, "model").class_path)).parameters
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            raise ValueError(f"{type(data).__name__} has no {name}: give --model.{name}.")
        return parameters[name].default if name in parameters else None

    def is_given(self, name: str) -> bool:
        """Say whether the user gives a model's argument himself, on the command line or in a configuration."""
        if options_of(self.args, f"--model.{name}", f"--model.init_args.{name}"):
            return True
        for path in options_of(self.args, "--config", "-c"):
            config = yaml.safe_load(Path(path).read_text()) if Path(path).is_file() else None
            model = config.get("model") if isinstance(config, dict) else None
            if isinstance(model, dict) and name in (model.get("init_args") or {}):
                return True
        return False

    # The run folder and the checkpoint -------------------------------------------------------------------------------

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint and the run folder, and settle whose settings count.

        Lightning's method of this name lets the file win over the command line in silence, also in fit. Here the
        command line wins in fit, and differences are printed; in evaluation the file wins.
        """
        command = self.config.subcommand
        config = self.config[command]
        path = config.ckpt_path
        self.home = Path(config.run_dir) if config.run_dir else None
        if path == "last":
            self.home = self.home or last_run(self.recipe)
            path = str(self.home / "checkpoints" / "last.ckpt")
        elif path == "best" and command != "fit":
            raise ValueError("--ckpt_path best is known to the fit that made it only: give a file, or last.")
        elif path and command != "fit":
            self.home = self.home or run_of(path)
        elif path is None and command == "fit" and os.environ.get(RESTARTS, "0") != "0":
            path = self.checkpoint_of_requeued_job()
        self.checkpoint = path
        if path in (None, "best", "hpc", "registry"):
            return
        saved = read_hyper_parameters(path)
        if not saved:
            return
        given = config.model
        if not same_class(kind := saved.pop("_class_path", given.class_path), given.class_path):
            raise ValueError(f"{path} is a checkpoint of {kind}, not of {given.class_path}.")
        saved = {name: value for name, value in saved.items() if name not in LINKED}
        own = given.init_args.as_dict()
        different = {name: value for name, value in saved.items() if name in own and plain(own[name]) != plain(value)}
        if different and command == "fit":
            lines = [f"  {name}: {own[name]!r} instead of {value!r}" for name, value in different.items()]
            print("\n".join([f"The command line differs from {path}, and wins:", *lines]), file=sys.stderr)
        elif different:
            print(f"Settings of the model as in {path}: {', '.join(sorted(different))}.", file=sys.stderr)
            update = {command: {"model": {"class_path": given.class_path, "init_args": {**own, **different}}}}
            self.config = self.parser.parse_object(update, self.config)

    def checkpoint_of_requeued_job(self) -> str | None:
        """Return the last whole epoch of the run that SLURM has requeued, or None if it had not finished one.

        Lightning would take what it saved at the signal, from the middle of an epoch, which a stream refuses.

        Raises:
            ValueError: If it is not known which run that was.
        """
        if self.home is None:
            raise ValueError("SLURM has restarted this job, and its own run is not known: give --run_dir FOLDER.")
        path = self.home / "checkpoints" / "last.ckpt"
        return str(path) if path.is_file() else None

    @property
    def recipe(self) -> str:
        """Name of the recipe: of the configuration file, else of the model."""
        files = options_of(self.args, "--config", "-c")
        if files:
            path = Path(files[-1])
            return path.parent.parent.name if path.name == "config.yaml" and path.parent.name.isdigit() else path.stem
        return str(self.config[self.config.subcommand].model.class_path).rpartition(".")[2].lower()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Hand the checkpoint that was found to the Trainer."""
        given = super()._prepare_subcommand_kwargs(subcommand)
        if isinstance(self.datamodule, TaskStream) and "verbose" in given:
            given["verbose"] = False  # StreamReport prints one table; Lightning would repeat it for every loader
        return {**given, "ckpt_path": self.checkpoint}

    # What is built ---------------------------------------------------------------------------------------------------

    def after_instantiate_classes(self) -> None:
        """Take links that a stranger's model does not know out of what it saves."""
        accepted = inspect.signature(type(self.model).__init__).parameters
        for name in LINKED:
            if name not in accepted:
                self.model.hparams.pop(name, None)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the Trainer: its folder, and the callbacks that a command promises unless one of the kind is given."""
        given = dict(self._get(self.config_init, "trainer", default={}))
        if self.home is None:
            self.home = RUNS / self.recipe / "fast_dev_run" if given["fast_dev_run"] else new_run(self.recipe)
        # The files of the fit stay as they are when its checkpoint is evaluated.
        self.run_dir = self.home / str(self.subcommand) if self.checkpoint and self.subcommand != "fit" else self.home
        callbacks = given["callbacks"] or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        fit, stream = self.subcommand == "fit", isinstance(self.datamodule, TaskStream)

        def has(kind: type) -> bool:
            return any(isinstance(callback, kind) for callback in callbacks)

        if stream:
            if not has(TaskLoop):
                callbacks.insert(0, TaskLoop())  # before all others: they must see what the task's hooks wrote
            if not has(StreamReport):
                callbacks.append(StreamReport())
            if not has(ProgressBar) and given["enable_progress_bar"] is not False:
                callbacks.append(StreamProgressBar())
            if fit and given["max_epochs"] is None:
                kwargs["max_epochs"] = self.datamodule.num_epochs
        elif fit:
            if not has(SeedEpochs) and self._get(self.config, "seed_everything") is not False:
                callbacks.insert(0, SeedEpochs())  # before all others: they may draw
            if not has(TrainingReport):
                callbacks.append(TrainingReport())
        keeps_last = any(getattr(callback, "save_last", None) for callback in callbacks)
        if not fit or given["fast_dev_run"]:
            kwargs["enable_checkpointing"] = False if not has(Checkpoint) else None
        elif not keeps_last and given["enable_checkpointing"] is not False:
            callbacks.append(ResumeCheckpoint(self.run_dir))
        if self.subcommand == "predict" and not has(PredictionTable):
            callbacks.append(PredictionTable(self.run_dir))
        if self.subcommand == "predict" and not has(PredictedMasks):
            callbacks.append(PredictedMasks(self.run_dir / "masks"))  # writes nothing where no masks are predicted
        kwargs |= {"callbacks": callbacks, "default_root_dir": str(self.run_dir)}
        if given["logger"] is not False:
            others = given["logger"] if given["logger"] not in (None, True) else []
            metrics = MetricsCSV(self.run_dir)
            metrics.resumed = fit and self.checkpoint is not None
            kwargs["logger"] = [metrics, *(others if isinstance(others, list) else [others])]
        plugins = given["plugins"] or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if (
            fit
            and not any(isinstance(plugin, CheckpointIO) for plugin in plugins)
            and writes_plain_files(given["strategy"])
        ):
            plugins.append(AtomicCheckpointIO())
        return super().instantiate_trainer(plugins=plugins or None, **kwargs)

    def before_fit(self) -> None:
        """Check that the fit has the precision that was asked for, and say where the run is.

        Raises:
            ValueError: If float16 was, on a CPU: Lightning takes bfloat16 for it, and only warns. If Lightning's
                bitsandbytes plugin would change what trains.
        """
        asked = str(self._get(self.config_init, "trainer", default={})["precision"])
        if asked in ("16", "16-mixed") and self.trainer.precision == "bf16-mixed":
            raise ValueError(f"precision={asked!r} needs a GPU: on a CPU use --trainer.precision bf16-mixed.")
        check_bitsandbytes(self.trainer.precision_plugin, self.model)
        self.say(f"Run folder: {self.run_dir}")

    def after_fit(self) -> None:
        """Say where everything was written."""
        self.say(f"Written to {self.run_dir}: {', '.join(sorted(path.name for path in self.run_dir.glob('*')))}")

    def after_predict(self) -> None:
        """Say where the table is, and the masks."""
        self.say(f"Predictions: {self.run_dir / 'predictions.csv'}")
        if (self.run_dir / "masks").is_dir():
            self.say(f"Masks: {self.run_dir / 'masks'}")

    def say(self, text: str) -> None:
        """Print on the first process."""
        if self.trainer.is_global_zero:
            print(text)


def writes_plain_files(strategy: Any) -> bool:
    """Say whether a strategy writes one plain file; the sharded ones take no other writer."""
    return isinstance(strategy, str) and (strategy == "auto" or strategy.startswith(("ddp", "single")))


def read_hyper_parameters(path: str) -> dict[str, Any]:
    """Return the hyper-parameters of a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, or one that cannot be loaded safely.
    """
    if "://" in path:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"--ckpt_path {path}: there is no such file.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        hyper_parameters = dict(checkpoint.get("hyper_parameters", {}))
        checkpoint["state_dict"]
    except Exception as error:  # pickle, zip, key and type errors: whatever the file is, it is not ours
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"--ckpt_path {path} is no Lightning checkpoint that loads with weights_only=True ({reason})."
        ) from error
    hyper_parameters.pop("_instantiator", None)
    return hyper_parameters


def same_class(path: str, other: str) -> bool:
    """Say whether two import paths, such as zoo.NMC and zoo.continual.nmc.NMC, lead to one class."""
    try:
        return pkgutil.resolve_name(path) is pkgutil.resolve_name(other)
    except (ImportError, AttributeError):  # the class of the file is not to be had here
        return path == other


def plain(value: Any) -> Any:
    """Return nested namespaces as dicts and tuples as lists, for a comparison."""
    value = value.as_dict() if hasattr(value, "as_dict") else value
    return list(value) if isinstance(value, tuple) else value
