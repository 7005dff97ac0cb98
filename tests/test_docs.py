"""What the documentation says, done."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from pathlib import Path

import click
import pyro
import pytest
from click.testing import CliRunner

import edgevae
import edgevae.export
import edgevae.train
from edgevae.cli import main as run_main
from edgevae.export.cli import main as export_main
from edgevae.train.cli import main as train_main
from edgevae.train.runs import main as runs_main

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TRAINING = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS: dict[str, click.Command] = {
    "python -m train.runs list": runs_main.commands["list"],
    "python -m train.runs": runs_main,
    "python -m train": train_main,
    "vae-train": train_main,
    "vae-export": export_main,
    **{f"vae-run {name}": command for name, command in run_main.commands.items()},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout as a reader has it: the committed models, and a run of his own."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "models").mkdir()
    for bundle in (REPOSITORY / "models").iterdir():
        (folder / "models" / bundle.name).symlink_to(bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command(train_main, ["--dataset", "digits", "--epochs", "1", "--no-report"])
    return folder


def run_command(command: click.Command, arguments: list[str]) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, f"{arguments}: {result.output}"


def run_code(code: str, folder: Path) -> None:
    """Run a program in a folder; in this process, as importing PyTorch takes longer than what most programs do."""
    with pytest.MonkeyPatch.context() as patch, pyro.get_param_store().scope():
        patch.chdir(folder)
        exec(compile(code, "<documentation>", "exec"), {"__name__": "__main__"})  # noqa: S102 - our own


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def docstring_code(module: object) -> str:
    """The indented block of a package's docstring."""
    lines = (module.__doc__ or "").splitlines()
    return "\n".join(line[4:] for line in lines if line.startswith("    ") or not line)


def examples(command: click.Command) -> list[str]:
    """The command lines in a help text's last block, `Examples:`."""
    _, found, block = inspect.cleandoc(command.help or "").partition("\nExamples:\n")
    return [line.strip() for line in block.splitlines() if line.strip()] if found else []


def documented_commands() -> list[str]:
    """Every command line of this project in the README and in the help texts, in that order."""
    console = "\n".join(re.findall(r"```console\n(.*?)```", README + TRAINING, re.DOTALL))
    helps = "\n".join(command.help or "" for command in [*COMMANDS.values(), run_main])
    lines = (line.split("#")[0].strip() for line in (console + "\n" + helps).splitlines())
    return list(dict.fromkeys(line for line in lines if line.startswith(("vae-", "python -m train"))))


def documented_runs() -> list[str]:
    """What the README and the help of `vae-run` itself say; the examples of its commands run below."""
    of_commands = {line for command in run_main.commands.values() for line in examples(command)}
    return [line for line in documented_commands() if line.startswith("vae-run") and line not in of_commands]


def parse(line: str) -> tuple[click.Command, list[str]]:
    for prefix, command in COMMANDS.items():
        if line == prefix or line.startswith(prefix + " "):
            return command, shlex.split(line[len(prefix) :])
    raise AssertionError(f"the documentation names an unknown command: {line}")


def test_there_is_documentation_to_test() -> None:
    assert len(code_blocks()) >= 2
    assert len(documented_commands()) >= 10


@pytest.mark.parametrize("index", range(len(code_blocks())))
def test_the_readmes_code_runs(index: int, workplace: Path) -> None:
    run_code(code_blocks()[index], workplace)


@pytest.mark.parametrize("module", [edgevae.train, edgevae.export, edgevae], ids=lambda module: module.__name__)
def test_the_packages_docstrings_run(module: object, workplace: Path) -> None:
    code = docstring_code(module).replace('models/digits"', 'docstring/digits"')
    run_code(code, workplace)


@pytest.mark.parametrize("line", documented_commands())
def test_documented_commands_have_the_options_that_they_use(line: str) -> None:
    command, arguments = parse(line)
    known = {option: parameter for parameter in command.params for option in parameter.opts}
    for name, value in itertools.pairwise([*arguments, ""]):
        if re.match(r"--?[a-zA-Z]", name):
            assert name in known, f"{line}: {name} is no option"
            kind = known[name].type
            if isinstance(kind, click.Choice):
                assert value in kind.choices, f"{line}: {value} is no choice"


@pytest.mark.parametrize("line", documented_runs())
def test_documented_runs_of_bundles_work(line: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run_command(run_main, shlex.split(line)[1:])


@pytest.mark.parametrize("name", run_main.commands)
def test_each_command_ends_its_help_with_examples_that_run(
    name: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = examples(run_main.commands[name])
    assert any(line.startswith(f"vae-run {name} ") for line in lines), f"the help of {name} has no example"
    (tmp_path / "models").symlink_to(workplace / "models")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "vae-run", f"{line} is no example of vae-run"
        run_command(run_main, arguments)
        for option, value in itertools.pairwise(arguments):
            assert option != "--out" or (tmp_path / value).stat().st_size > 0, f"{line} wrote no {value}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!https?:)[^)#]+)\)", README))))
def test_links_in_the_readme_lead_somewhere(path: str) -> None:
    assert (REPOSITORY / path).exists()


def test_the_readme_shows_the_verification_as_it_is() -> None:
    header = "graph        output                    max_abs_diff  tolerance  worst at"
    assert header in README
    assert header in (REPOSITORY / "models/mnist-mlp/README.md").read_text(encoding="utf-8")


GUIDES = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "docs/architecture.md")}


@pytest.mark.parametrize("guide", GUIDES)
def test_the_guides_name_files_that_exist(guide: str) -> None:
    named = set(re.findall(r"`((?:runtime|train|export|tests|docs|benchmarks|examples)/[\w./-]*)`", GUIDES[guide]))
    assert named
    assert {path for path in named if not (REPOSITORY / path).exists()} == set()


def test_the_make_targets_that_are_named_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    places = (".ci/run", ".github/workflows/test.yml", ".pre-commit-config.yaml", "README.md", *GUIDES)
    text = "\n".join((REPOSITORY / place).read_text(encoding="utf-8") for place in places)
    named = set(re.findall(r"(?m)(?:^|run: |entry: |`)make ([\w./-]+)", text))
    assert {"demo", "test", "test-runtime", "types"} <= named
    targets = {*re.findall(r"(?m)^([\w-]+):", makefile), ".venv/installed"}
    assert named - targets == set()
