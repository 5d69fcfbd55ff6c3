"""`magrathea completion`: prints shell code that completes commands, options, and names of domains, hosts and jobs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "magrathea"
VARIABLE = "_MAGRATHEA_COMPLETE"


@click.command(short_help="print the code for shell completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the code with which SHELL completes commands, options, and current names of domains, hosts and jobs.

    \b
    Examples:
      magrathea completion bash > /etc/bash_completion.d/magrathea
      eval "$(magrathea completion zsh)"
      magrathea completion fish > ~/.config/fish/completions/magrathea.fish

    Exit codes: 0 printed; 2 wrong usage.
    """
    from magrathea.cli.main import cli

    made = get_completion_class(shell)
    assert made is not None, "click has the shells of the choice"
    click.echo(made(cli, {}, PROGRAM, VARIABLE).source())
