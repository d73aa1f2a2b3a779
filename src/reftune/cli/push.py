"""`reftune push`: a saved adapter to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ReftuneError
from .output import JsonFlag, consoles, emit, load_package, say

__all__ = ["check_login", "push", "push_adapter"]

EXAMPLE = """Put an adapter on the Hub.

Its weights, configuration, model card and prompt style go there; checkpoints
stay. The repository is made if there is none. It needs a login: hf auth login,
or the variable HF_TOKEN.

Examples:

    reftune push my-adapter ann/my-adapter

    reftune push my-adapter ann/my-adapter --private
"""
FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", "reftune.json")


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of the adapter.", metavar="ADAPTER")],
    name: Annotated[str, typer.Argument(help="Repository: USER/NAME.", metavar="NAME")],
    private: Annotated[bool, typer.Option("--private", help="If it is made: seen by its owner only.")] = False,
    as_json: JsonFlag = False,
) -> None:
    results, _ = consoles(as_json)
    load_package()
    check_login(name)
    url = push_adapter(folder, name, private=private)
    if as_json:
        emit({"url": url})
        return
    say(results, f"On the Hub: {url}")


push.__doc__ = EXAMPLE


def check_login(name: str) -> None:
    """Look at all that would keep an adapter from the Hub, before time is spent.

    Raises:
        ReftuneError: the name is none, the Hub is switched off or cannot be reached, or nobody is logged in.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ReftuneError(f"{name!r} is no name of a repository, such as ann/my-adapter: {error}") from error
    if constants.HF_HUB_OFFLINE:
        raise ReftuneError("the variable HF_HUB_OFFLINE forbids the Hub: unset it to push")
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ReftuneError("nobody is logged in on the Hub: run `hf auth login`, or set HF_TOKEN") from error
    except HfHubHTTPError as error:
        raise ReftuneError(f"the Hub does not know this login: run `hf auth login` again ({_said(error)})") from error
    except OSError as error:
        raise ReftuneError(f"the Hub cannot be reached: {error}") from error


def push_adapter(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload an adapter; its address.

    Raises:
        ReftuneError: the folder holds none, or the Hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from ..card import write_card

    lacking = [file for file in FILES[:2] if not (folder / file).is_file()]
    if lacking:
        raise ReftuneError(f"{str(folder)!r} holds no adapter: it lacks {' and '.join(lacking)}")
    if not (folder / "README.md").exists():
        write_card(folder)
    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(FILES), commit_message="A ReFT adapter"
        )
    except HfHubHTTPError as error:
        raise ReftuneError(f"the Hub refused {name!r}: {_said(error)}") from error
    except OSError as error:
        raise ReftuneError(f"the Hub cannot be reached: {error}; {str(folder)!r} is as it was") from error
    return f"{api.endpoint}/{repository}"


def _said(error: Exception) -> str:
    return str(getattr(error, "server_message", None) or error).strip().splitlines()[0]
