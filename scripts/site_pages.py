"""Pages of the documentation site that are not in `docs`: a hook of MkDocs (mkdocs.yml), which `make docs` runs.

- `reference/options.md`: every option of the command, off the typer application;
- `reference/api.md`: every name of `reftune.__all__`, of which mkdocstrings writes the docstring;
- `reference/messages.md`: every message that the package raises, off its sources;
- `notebooks/…`: the notebooks, as pages;
- `repository/…`: files of the repository that pages link to, and what these link to.

Must not know: what the pages say.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

import reftune
from reftune.cli.app import VERBS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src/reftune"
OUTSIDE = "repository"
# in the navigation, whether or not a page links to them
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "results/README.md", "benchmarks/README.md")
LINK = re.compile(r"(?<=\]\()(?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?(?=\))")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HIDDEN = "…"


# --- files of the repository ------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Add what is made here to the files of `docs`."""
    from mkdocs.structure.files import File  # noqa: PLC0415 — of an extra

    made = {"options": options_page(), "api": api_page(), "messages": messages_page()}
    for name, content in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=notebook_page(notebook)))
    pages = [ROOT / "docs" / file.src_uri for file in files.documentation_pages() if not file.generated_by]
    for path in linked([*pages, *(ROOT / name for name in ALWAYS)]):
        uri = f"{OUTSIDE}/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Have links lead to where the site has what they mean, tables within <details> shown, and guides found first."""
    uri = page.file.src_uri
    if uri.startswith(f"{OUTSIDE}/"):
        # long tables of figures would stand before the guides
        page.meta["search"] = {"exclude": True}
    elif uri in ("troubleshooting.md", "start.md"):
        page.meta["search"] = {"boost": 4}
    if uri.startswith("reference/"):
        return markdown
    is_of_docs = not uri.startswith((f"{OUTSIDE}/", "notebooks/"))
    here = PurePosixPath(f"docs/{uri}" if is_of_docs else uri.removeprefix(f"{OUTSIDE}/"))
    text = re.sub(r"<(details|summary)>", r"<\1 markdown>", markdown)
    return LINK.sub(lambda found: _site_link(found, uri, here), text)


def _site_link(found: re.Match[str], uri: str, here: PurePosixPath) -> str:
    meant = PurePosixPath(os.path.normpath(here.parent / found["path"]))
    there = meant.relative_to("docs") if meant.is_relative_to("docs") else PurePosixPath(OUTSIDE) / meant
    return os.path.relpath(there, PurePosixPath(uri).parent) + (found["anchor"] or "")


def linked(pages: list[Path]) -> list[Path]:
    """The files outside of `docs` that are named, or that pages link to, and what these link to in turn."""
    found: dict[Path, None] = {}
    while pages:
        page = pages.pop()
        if not page.is_relative_to(ROOT / "docs"):
            found[page] = None
        if page.suffix != ".md":
            continue
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        targets = [Path(os.path.normpath(page.parent / link["path"])) for link in LINK.finditer(text)]
        pages += [t for t in targets if t.is_file() and t not in found and not t.is_relative_to(ROOT / "docs")]
    return list(found)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and what was printed if that was kept."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            text = "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))
            parts.append(f"```text\n{text.rstrip()}\n```")
    title, *rest = parts[0].split("\n", 1)
    note = f"This page is the notebook `{path.relative_to(ROOT).as_posix()}`: open that to run it."
    return "\n\n".join([title, note, *rest, *parts[1:]]) + "\n"


# --- the command ------------------------------------------------------------------------------------------------------


def options_page() -> str:
    """Every verb of the command with its arguments and options."""
    parts = [
        "# Every option\n",
        "What `--help` of each command says. [Command line](../cli.md) has examples, and what each prints.\n",
    ]
    for verb, command in ((name, found.command) for name, found in VERBS.items()):
        first = (command.help or "").strip().split("\n\n")[0].split("Examples:")[0]
        rows = [_option_row(parameter) for parameter in command.params if not parameter.hidden]
        parts += [f"## reftune {verb}\n", " ".join(first.split()) + "\n", "| | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def _option_row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    shown = (
        ", ".join(f"`{name}`" for name in parameter.opts)
        if is_option
        else f"`{parameter.metavar or parameter.name.upper()}`"
    )
    text = (getattr(parameter, "help", None) or "").strip()
    choices = get_args(parameter.type_descriptor.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        text += f" One of {', '.join(choices)}."
    default = parameter.default
    is_told = default is not None and default is not False and not callable(default) and default != ()
    value = f"`{default}`" if is_told else "needed" if parameter.required else ""
    return f"| {shown} | {_cell(text)} | {value} |"


# --- the Python names -------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Every public name; mkdocstrings writes what its docstring says."""
    names = sorted(reftune.__all__, key=lambda name: (not name[0].isupper() or name.isupper(), name.lower()))
    described = "\n".join(f"::: reftune.{name}\n" for name in names)
    return f"# Python API\n\nThe names of `reftune`. The guides show them in use.\n\n{described}"


# --- messages ---------------------------------------------------------------------------------------------------------


class Message(NamedTuple):
    """What one `raise` says; values that are only known then are `…`."""

    part: str
    """Of the package: the folder or module."""
    error: str
    text: str


def messages_page() -> str:
    """A table of all messages for each part of the package."""
    found = sorted(set(messages()))
    intro = (
        "# Every error message\n\nEvery message that the package raises, from its sources, with `…` for what it names. "
        "Search for a few words of yours. Messages that many people meet are explained in "
        "[Troubleshooting](../troubleshooting.md).\n"
    )
    parts = [intro]
    for part in sorted({message.part for message in found}):
        rows = [f"| {_cell(m.text)} | `{m.error}` |" for m in found if m.part == part]
        parts += [f"## {part}\n", "| message | raised as |", "|---|---|", *rows, ""]
    return "\n".join(parts)


def messages() -> Iterator[Message]:
    """Of all `raise Error("…")` of the package."""
    for path in sorted(SOURCES.rglob("*.py")):
        part = path.relative_to(SOURCES).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                error = ast.unparse(node.exc.func).rpartition(".")[2]
                texts = [text for argument in node.exc.args if (text := template(argument))]
                longest = max(texts, key=len, default="")
                # a sentence of its own, not only what others say
                if len(re.findall(r"[a-z]{2,}", longest)) > 2 and error[0].isupper() and error != "AssertionError":
                    yield Message(part, error, longest)


def texts() -> Iterator[str]:
    """All texts in the sources of the package, those that `messages` cannot tell to be messages too."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)):
                yield template(node)


def template(node: ast.expr) -> str:
    """The text of an expression, with `…` for what is not known before it runs."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HIDDEN
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return HIDDEN


def _cell(text: str) -> str:
    """Text as a cell of a table: as it is, not as Markdown."""
    line = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)
