"""Commands with many options: their help shows them under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


class SectionedCommand(click.Command):
    """A command whose options are shown by section (heading → flags, in the order of its help).

    What no section names, as --help, follows under "Other".
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every option once."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        rows = {option.opts[0]: option.get_help_record(ctx) for option in options}
        left = {flag: row for flag, row in rows.items() if row is not None}
        for heading, flags in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([left.pop(flag) for flag in flags])
        with formatter.section("Other"):
            formatter.write_dl(list(left.values()))
