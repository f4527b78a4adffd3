"""The page of `deitctl --help`, written without Rich, whose import takes longer than everything else there."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

SENTENCE = 400
"""Characters of a command's first sentence, which is folded, where Click would cut it off."""


class Overview(TyperGroup):
    """The commands and what each does; the help of a command is Typer's own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the page where nothing is asked for; Typer leaves that to Rich."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, options and commands as Click does."""
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a row a command, its name in color where a terminal shows one."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [
            (typer.style(name, fg="cyan", bold=True), command.get_short_help_str(SENTENCE))
            for name, command in commands.items()
            if command is not None and not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
