"""Requests and replies of the fine-tuning API: OpenAI's files and jobs, and what the studio asks beside them.

What a request asks for and is not done is refused by name, never left out in silence.

Must not know: the store, models, how jobs are run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "UNFINISHED",
    "AdapterObject",
    "CheckpointObject",
    "CreateJob",
    "Deleted",
    "ErrorObject",
    "EventObject",
    "FileObject",
    "Hyperparameters",
    "JobObject",
    "Method",
    "Page",
    "PreviewReply",
    "PreviewRequest",
    "PreviewRow",
    "Progress",
    "Status",
]

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
UNFINISHED: tuple[Status, ...] = ("validating_files", "queued", "running", "paused")
"""A job of another status stays as it is."""

# OpenAI's limits
SUFFIX = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
LONGEST_SUFFIX = 64
MOST_METADATA = 16
LONGEST_KEY = 64
LONGEST_VALUE = 512
MOST_PREVIEWED = 100

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Request(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


# --- requests ---------------------------------------------------------------------------------------------------------


class Hyperparameters(Request):
    """`auto` is chosen from the number of rows, and is a number in the job that is created."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=256)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=100)] | None = None
    """Of the base rate of 9e-4, for DPO of 1e-4."""
    beta: Auto | Annotated[float, Field(gt=0, le=10)] | None = None
    """DPO only."""

    @field_validator("learning_rate_multiplier", "beta", mode="before")
    @classmethod
    def whole_numbers_too(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value


class MethodOptions(Request):
    hyperparameters: Hyperparameters | None = None


class Method(Request):
    type: Literal["supervised", "dpo"]
    supervised: MethodOptions | None = None
    dpo: MethodOptions | None = None

    @model_validator(mode="after")
    def options_of_its_type(self) -> Method:
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise ValueError(f"the type is {self.type!r}, but there are options for {other!r}")
        if self.type == "supervised" and self.given.beta is not None:
            raise ValueError("beta is for the type 'dpo'")
        return self

    @property
    def given(self) -> Hyperparameters:
        options = self.supervised if self.type == "supervised" else self.dpo
        return (options and options.hyperparameters) or Hyperparameters()


class CreateJob(Request):
    """Body of `POST /v1/fine_tuning/jobs`."""

    model: Name
    training_file: Name
    validation_file: Name | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """OpenAI's earlier place for those of `supervised`."""
    suffix: Annotated[str, Field(max_length=LONGEST_SUFFIX, pattern=f"^{SUFFIX}$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    metadata: dict[str, str] | None = None
    integrations: list[Any] | None = None
    reft: dict[str, Any] | None = None
    """Fields of `ReftConfig` that say what is edited and by what."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a row; longer prompts are cut from the left."""

    @model_validator(mode="after")
    def one_place_for_hyperparameters(self) -> CreateJob:
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError("hyperparameters and method are both given; put the hyperparameters into method")
        if self.integrations:
            raise ValueError("integrations are not served; leave them out")
        return self

    @field_validator("metadata")
    @classmethod
    def short_metadata(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is None:
            return None
        if len(value) > MOST_METADATA:
            raise ValueError(f"{len(value)} pairs; at most {MOST_METADATA}")
        if any(len(key) > LONGEST_KEY or len(text) > LONGEST_VALUE for key, text in value.items()):
            raise ValueError(f"keys have at most {LONGEST_KEY} characters, values {LONGEST_VALUE}")
        return value

    @property
    def way(self) -> Method:
        """The method, wherever the request has its options."""
        if self.method is not None:
            return self.method
        return Method(type="supervised", supervised=MethodOptions(hyperparameters=self.hyperparameters))


class PreviewRequest(Request):
    """Body of `POST /v1/reft/preview`: rows of an uploaded file, or rows as they stand in the page's table."""

    training_file: Name | None = None
    rows: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_PREVIEWED)] | None = None
    reft: dict[str, Any] | None = None
    max_length: Annotated[int, Field(ge=2)] | None = None
    after: Annotated[int, Field(ge=0)] = 0
    """Rows to leave out at the beginning."""
    limit: Annotated[int, Field(ge=1, le=MOST_PREVIEWED)] = 20

    @model_validator(mode="after")
    def one_of_both(self) -> PreviewRequest:
        if (self.training_file is None) == (self.rows is None):
            raise ValueError("either training_file or rows is needed")
        return self


# --- replies ----------------------------------------------------------------------------------------------------------


class FileObject(BaseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune", "fine-tune-results"]
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    status_details: str | None = None


class Deleted(BaseModel):
    id: str
    object: str
    deleted: bool = True


class ErrorObject(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class Progress(BaseModel):
    """Extra of a job: where it is, as of its last step."""

    step: int = 0
    total_steps: int | None = None
    epoch: float | None = None
    train_loss: float | None = None
    valid_loss: float | None = None
    tokens: int = 0
    """Trained until now; each epoch counts."""
    elapsed: float = 0.0
    """Seconds that were spent on training, over all goes."""


class JobObject(BaseModel):
    """OpenAI's job; `reft`, `max_length`, `progress`, `queue_position` and `adapter` are extras."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None = None
    estimated_finish: int | None = None
    model: str
    fine_tuned_model: str | None = None
    organization_id: str = "reftune"
    status: Status
    error: ErrorObject | None = None
    training_file: str
    validation_file: str | None = None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    result_files: list[str] = []
    trained_tokens: int | None = None
    seed: int
    metadata: dict[str, str] | None = None
    integrations: list[Any] = []
    suffix: str | None = None
    reft: dict[str, Any]
    max_length: int
    progress: Progress
    queue_position: int | None = None
    """How many jobs come before it, of one that waits."""


class EventObject(BaseModel):
    """`data`, of metrics: step, total_steps, epoch, train_loss or valid_loss, learning_rate, tokens, elapsed."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None = None


class CheckpointObject(BaseModel):
    """What a job can go on from; it is not served, and goes when the job has succeeded."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, Any]


class AdapterObject(BaseModel):
    """An adapter of the server, from a job or from the command line."""

    id: str
    """Its name in requests."""
    object: Literal["reft.adapter"] = "reft.adapter"
    loaded: bool
    """Whether requests can name it now."""
    job: str | None = None
    """Of the job that made it; None: it came otherwise, and can be neither downloaded nor deleted here."""
    created_at: int | None = None
    bytes: int | None = None
    """Of its weights on disk."""
    parameters: int | None = None
    groups: list[dict[str, Any]] = []
    """Of each group positions, layers, component, intervention, r."""
    layers: list[int] = []
    """All blocks that it edits."""
    training_file: str | None = None
    filename: str | None = None
    """Of the training file, as it was uploaded."""
    rows: int | None = None
    train_loss: float | None = None
    valid_loss: float | None = None
    metadata: dict[str, str] | None = None


class PreviewRow(BaseModel):
    """How one row is trained on.  Tokens before `prompt_length` are the prompt; of the others the loss is taken."""

    row: int
    """Its line in the file, or its number in the table, from 1."""
    error: str | None = None
    """Why it cannot be used; then there is nothing else."""
    ids: list[int] = []
    tokens: list[str] = []
    """Their texts, spaces and line ends as they read."""
    prompt_length: int = 0
    cut: int = 0
    """Prompt tokens that max_length leaves out, at the left."""
    edits: list[list[int]] = []
    """Of each token the numbers of the groups that edit it."""


class PreviewReply(BaseModel):
    object: Literal["reft.preview"] = "reft.preview"
    groups: list[dict[str, Any]]
    """Of each group positions, layers (numbers of blocks), component, intervention, r; `edits` names them by number."""
    reft: dict[str, Any]
    """The fields with which a job would begin, defaults filled in."""
    total: int
    has_more: bool
    data: list[PreviewRow]


class Page(BaseModel):
    """A part of a list; the next one is asked for with `after`, the id of the last."""

    object: Literal["list"] = "list"
    data: list[Any]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None
