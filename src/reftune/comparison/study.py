"""A comparison as a configuration: which methods are trained on which tasks with what budget, and the runs it takes.

Must not know: how a run is done, how results are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import ReftuneError
from ..evaluation.own import tasks_of
from ..evaluation.tasks import GROUPS
from ..evaluation.tasks.base import Task
from ..files import key_of
from ..training.run import TRAINING_FIELDS, given_of, keys_and_values, refuse_unknown
from .methods import METHODS

__all__ = ["KINDS", "Run", "StudyConfig", "runs_of"]

# Results of another version are not taken for results of this one.
VERSION = 1
KINDS = ("text", "classes")
DEFAULT_METHODS = ("base", "loreft", "direft", "noreft", "loreft_published", "lora", "dora", "prefix_tuning", "ia3")


@dataclass
class StudyConfig:
    """What `reftune compare` reads from YAML.  Unknown keys are refused."""

    model: str
    """Folder or Hub name of the base model, or `smollm2`."""
    tasks: str | list[str | dict[str, Any]]
    """Names of tasks and groups, files of one's own, or mappings with file, train, split, score, answer, name; each is
    trained on and scored on its own, unless `together`."""
    title: str = "Comparison"
    kind: str = "text"
    """`text`: prompt and answer, for causal models; `classes`: a classification head on an encoder."""
    together: bool = False
    """Train once on the rows of all tasks, and score each."""
    methods: str | list[Any] = field(default_factory=lambda: list(DEFAULT_METHODS))
    """Names of `METHODS`, or mappings with method, label, config, training, epochs, seeds."""
    seeds: list[int] = field(default_factory=lambda: [42])
    epochs: float | None = None
    """The same for all methods; or `seconds`."""
    seconds: float | None = None
    """Of training, the same for all methods; the learning rate falls with the clock."""
    batch_size: int = 16
    max_length: int | None = 512
    train_rows: int | None = None
    """So many rows of each task, drawn once; none: all."""
    test_rows: int | None = None
    data_seed: int = 0
    """Of the rows that are drawn; the halves of a validation set are drawn by a run's seed."""
    held_out: bool = False
    """Score on training rows that are not trained on, to choose tasks and settings without looking at test rows."""
    dtype: str = "float32"
    """Of the base model."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `transformers.TrainingArguments` for all methods."""
    generation: dict[str, Any] = field(default_factory=dict)
    """Arguments of `generate` before the tasks' own."""
    eval_batch_size: int = 16
    tried: list[str] = field(default_factory=list)
    """What settings were tried before, and on what; the report says so."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ReftuneError(f"kind={self.kind!r} is not valid; use one of {', '.join(map(repr, KINDS))}")
        if (self.epochs is None) == (self.seconds is None):
            raise ReftuneError("a comparison needs one budget: either epochs or seconds")
        for name in ("epochs", "seconds"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (int, float)) or value <= 0):
                raise ReftuneError(f"{name}={value!r} is not valid; use a number above 0")
        if self.kind == "classes" and self.together:
            raise ReftuneError("together=True is for kind='text': a classification head has the classes of one task")
        if self.kind == "classes" and self.seconds is not None:
            raise ReftuneError("kind='classes' chooses the best epoch: give epochs, not seconds")
        for name in ("train_rows", "test_rows", "batch_size", "eval_batch_size", "max_length"):
            value = getattr(self, name)
            optional = name not in ("batch_size", "eval_batch_size")
            if not ((isinstance(value, int) and value > 0) or (optional and value is None)):
                raise ReftuneError(f"{name}={value!r} is not valid; use a whole number above 0")
        check_seeds(self.seeds)
        self.training = training_of(self.training)
        self.generation = keys_and_values("generation", self.generation)
        self.parsed_tasks()
        self.parsed_methods()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> StudyConfig:
        """From the content of a YAML file.

        Raises:
            ReftuneError: a key that is unknown or missing.
        """
        return cls(**given_of("the comparison", cls, values, needed=("model", "tasks")))

    def parsed_tasks(self) -> list[Task]:
        """The tasks, groups resolved."""
        tasks = tasks_of(self.tasks)
        if self.kind == "classes":
            without = [task.name for task in tasks if task.classes is None]
            if without:
                raise ReftuneError(f"kind='classes': {', '.join(without)} cannot be put as a classification")
        return tasks

    def parsed_methods(self) -> list[MethodEntry]:
        """The methods; those given by name with their own settings."""
        names = self.methods.split(",") if isinstance(self.methods, str) else self.methods
        if not isinstance(names, list):
            raise ReftuneError(f"methods={self.methods!r} is not valid; give a list of names or mappings")
        found = [MethodEntry.of(entry) for entry in names]
        labels = [entry.label for entry in found]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ReftuneError(f"methods: the label {twice[0]!r} is there twice; give each a label of its own")
        if not found:
            raise ReftuneError(f"methods is empty; there are {', '.join(METHODS)}")
        return found


@dataclass(frozen=True)
class MethodEntry:
    """One line of a comparison."""

    method: str
    label: str
    config: dict[str, Any]
    training: dict[str, Any]
    epochs: float | None = None
    seeds: tuple[int, ...] | None = None

    @staticmethod
    def of(entry: Any) -> MethodEntry:
        given: dict[str, Any] = {"method": entry.strip()} if isinstance(entry, str) else entry
        refuse_unknown("methods", given, {f.name for f in fields(MethodEntry)})
        name = given.get("method")
        if name not in METHODS:
            raise ReftuneError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
        method = METHODS[name]
        config, seeds = keys_and_values(f"config of {name}", given.get("config") or {}), given.get("seeds")
        method.check(config)
        if seeds is not None:
            check_seeds(seeds)
        return MethodEntry(
            method=name,
            label=str(given.get("label", method.label)),
            config={**method.config, **config},
            training={"learning_rate": method.learning_rate, **training_of(given.get("training") or {})},
            epochs=given.get("epochs"),
            seeds=None if seeds is None else tuple(seeds),
        )


@dataclass(frozen=True)
class Run:
    """One training and what it is scored on.  `key` names its settings: labels do not change results."""

    label: str
    train_task: str
    settings: dict[str, Any]
    """All that has an effect, as JSON can hold it."""

    @property
    def key(self) -> str:
        return key_of(self.settings)

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def method(self) -> str:
        return str(self.settings["method"])


def runs_of(config: StudyConfig) -> list[Run]:
    """All runs of a comparison, the first seed of everything first."""
    tasks = config.parsed_tasks()
    parts = [(_name_of(config, tasks), tasks)] if config.together else [(task.name, [task]) for task in tasks]
    common = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("title", "tasks", "methods", "seeds", "together", "tried", "training", "epochs")
    }
    runs: list[tuple[int, Run]] = []
    for name, members in parts:
        for entry in config.parsed_methods():
            trains = METHODS[entry.method].trains
            # without training seeds change nothing but a classification head, and the halves
            several = trains or config.kind == "classes"
            seeds = (entry.seeds or tuple(config.seeds)) if several else (0,)
            for turn, seed in enumerate(seeds):
                settings = {
                    **common,
                    "version": VERSION,
                    "tasks": [task.called for task in members],
                    "method": entry.method,
                    "config": entry.config,
                    "training": {**config.training, **entry.training},
                    "epochs": config.epochs if entry.epochs is None else entry.epochs,
                    "seed": seed,
                }
                if not trains:
                    settings |= dict.fromkeys(("training", "epochs", "seconds", "train_rows", "batch_size"))
                runs.append((turn, Run(entry.label, name, settings)))
    return [run for _, run in sorted(runs, key=lambda item: item[0])]


def _name_of(config: StudyConfig, tasks: list[Task]) -> str:
    names = tuple(task.name for task in tasks)
    for group, members in GROUPS.items():
        if names == tuple(members):
            return group
    return "+".join(names)


def check_seeds(seeds: Any) -> None:
    """Make sure that seeds are a list of different whole numbers.

    Raises:
        ReftuneError: they are not.
    """
    if not isinstance(seeds, (list, tuple)) or not seeds or any(type(seed) is not int for seed in seeds):
        raise ReftuneError(f"seeds={seeds!r} is not valid; give a list of whole numbers such as [42, 43, 44]")
    if len(set(seeds)) < len(seeds):
        raise ReftuneError(f"seeds={seeds!r} holds a seed twice; the second training would be the first")


def training_of(values: Any) -> dict[str, Any]:
    """Fields of TrainingArguments, as numbers where YAML had texts.

    Raises:
        ReftuneError: it has no such field.
    """
    refuse_unknown("training", values, TRAINING_FIELDS)
    return keys_and_values("training", values)
