"""`magrathea guest`: makes a single file that installs the agent in a guest: a shell script, or a cloud-init fragment.

Its parts are in deploy/guest (in an installed package: beside this file). The guest needs a POSIX shell, base64, tar
and its own Python 3.6 or later, but nothing of this package.
"""

from __future__ import annotations

import base64
import gzip
import io
import re
import shlex
import tarfile
from pathlib import Path

import click

from magrathea.surroundings import SOCKET_PATH_BYTES

from .. import agent

HERE = Path(__file__).resolve().parents[1]
AGENT = HERE / "agent"
SOURCES = (
    ("install.sh", (Path("guest/install.sh"), Path("../deploy/guest/install.sh"))),
    ("magrathea-agent.init", (Path("guest/magrathea-agent.init"), Path("../deploy/guest/magrathea-agent.init"))),
    (
        "magrathea-agent.service",
        (Path("guest/magrathea-agent.service"), Path("../deploy/systemd/magrathea-agent.service")),
    ),
)
CHANNEL = "port:/dev/virtio-ports/org.magrathea.0"
PLACE = "/var/lib/cloud/magrathea-install.sh"
LINE = 76


class Missing(Exception):
    """A part of the installer is missing in this installation."""


def parts() -> dict[str, bytes]:
    """The installer's files by name. Raises Missing."""
    found = {f"agent/{path.name}": path.read_bytes() for path in AGENT.glob("*.py")}
    for name, places in SOURCES:
        path = next((HERE / place for place in places if (HERE / place).is_file()), None)
        if path is None:
            raise Missing(f"{name} is not in {HERE}; install the package again")
        found[name] = path.read_bytes()
    return found


def _fill(tar: tarfile.TarFile) -> None:
    for name, data in sorted(parts().items()):
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), 0o644
        tar.addfile(entry, io.BytesIO(data))


def script(arguments: tuple[str, ...] = ()) -> str:
    """A shell script that unpacks itself and installs the agent. Its own arguments are added to `arguments`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _fill(tar)
    packed = base64.b64encode(gzip.compress(buffer.getvalue(), mtime=0)).decode()
    body = "\n".join(packed[at : at + LINE] for at in range(0, len(packed), LINE))
    given = " ".join(shlex.quote(word) for word in arguments)
    return f"""#!/bin/sh
# Installs Magrathea's agent {agent.VERSION} in this guest, as root; `sh SCRIPT --help` shows all options.
set -eu
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
base64 -d <<'END' | gzip -d | tar -x -f - -C "$parts"
{body}
END
sh "$parts/install.sh" {given}{" " if given else ""}"$@"
"""


def cloud_init(arguments: tuple[str, ...] = ()) -> str:
    """A cloud-init fragment (user data) that writes the script and runs it once."""
    content = base64.b64encode(script(arguments).encode()).decode()
    body = "\n".join("      " + content[at : at + LINE] for at in range(0, len(content), LINE))
    return f"""#cloud-config
# Installs Magrathea's agent {agent.VERSION}; merge it with your own user data.
write_files:
  - path: {PLACE}
    permissions: '0700'
    encoding: b64
    content: |
{body}
runcmd:
  - [sh, {PLACE}]
"""


def _channel(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The channel, if the guest's installer would take it. Raises BadParameter."""
    if not re.fullmatch(r"(port|unix):/[A-Za-z0-9/._:@-]*", value):
        raise click.BadParameter(f"{value!r}: give port:/PATH or unix:/PATH of letters, digits and / . _ : @ -")
    if value.startswith("unix:") and len(value.removeprefix("unix:")) > SOCKET_PATH_BYTES:
        raise click.BadParameter(f"{value!r}: the path of a socket has at most {SOCKET_PATH_BYTES} letters")
    return value


def _python(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The path of the guest's Python, if the guest's installer would take it. Raises BadParameter."""
    if value and not re.fullmatch(r"/[A-Za-z0-9/._+-]+", value):
        raise click.BadParameter(f"{value!r}: give a path like /usr/bin/python3 of letters, digits and / . _ + -")
    return value


_channel_option = click.option(
    "--channel",
    callback=_channel,
    default=CHANNEL,
    show_default=True,
    help="The guest's channel to its host: port:/PATH or unix:/PATH.",
)
_python_option = click.option(
    "--python",
    callback=_python,
    default="",
    metavar="PATH",
    help="The guest's Python; default: the first that is found.",
)


def _arguments(channel: str, python: str) -> tuple[str, ...]:
    return (
        *(("--channel", channel) if channel != CHANNEL else ()),
        *(("--python", python) if python else ()),
    )


@click.group(short_help="make an installer of the agent for guests")
def guest() -> None:
    """Make an installer of the agent for a guest.

    \b
    Examples:
      magrathea guest script > install-agent.sh        # then, in the guest: sh install-agent.sh
      magrathea guest cloud-init > user-data
    """


def _tell(make: str, channel: str, python: str) -> None:
    try:
        text = (script if make == "script" else cloud_init)(_arguments(channel, python))
    except Missing as error:
        click.echo(f"magrathea guest {make}: {error}", err=True)
        raise click.exceptions.Exit(1) from error
    click.echo(text, nl=False)


@guest.command("script", short_help="print one shell script with everything in it")
@_channel_option
@_python_option
def script_command(channel: str, python: str) -> None:
    """Print a shell script that installs the agent in a guest. Run it there as root; run it again to replace the agent.

    \b
    Examples:
      magrathea guest script > install-agent.sh
      magrathea guest script | ssh root@guest sh
      magrathea guest script --channel unix:/run/magrathea-host/n1.sock > install-agent.sh

    In the guest `sh install-agent.sh --uninstall` removes the agent, `--root DIRECTORY` installs into an image.

    Exit codes: 0 done; 1 this package is incomplete; 2 wrong usage.
    """
    _tell("script", channel, python)


@guest.command("cloud-init", short_help="print the same as user data for cloud-init")
@_channel_option
@_python_option
def cloud_init_command(channel: str, python: str) -> None:
    """Print a cloud-init fragment that installs the agent at the guest's first boot.

    \b
    Examples:
      magrathea guest cloud-init > user-data

    Exit codes: 0 done; 1 this package is incomplete; 2 wrong usage.
    """
    _tell("cloud-init", channel, python)
