"""Commands and groups for click: help with options under headings, and output that is safe everywhere."""

from __future__ import annotations

from typing import Any

import click

from .terminal import make_output_safe

OTHER = "Other"


class SafeGroup(click.Group):
    """A group of commands with safe output, whose `--help` lists them in the order in which they were added."""

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run a command from the command line."""
        make_output_safe()
        return super().main(*args, **settings)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


class SectionOption(click.Option):
    """An option that `--help` lists under a heading.

    Args:
        section: The heading, for example "Data".
    """

    def __init__(self, *args: Any, section: str = OTHER, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose `--help` lists its options by section, in the order in which the sections first appear.

    Options without a section (`--help` and `--version` among them) come last, under "Other".
    A command whose options have no section lists them all under "Options". Its output is safe, see `make_output_safe`.
    """

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run the command from the command line."""
        make_output_safe()
        return super().main(*args, **settings)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options' help, a heading for each section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "section", OTHER), []).append(record)
        if OTHER in sections:
            sections[OTHER] = sections.pop(OTHER)  # moves it to the end
        for heading, records in sections.items():
            with formatter.section(heading if len(sections) > 1 else "Options"):
                formatter.write_dl(records)
