"""`magrathea host adopt`: makes a configuration from this host's libvirt domains, and can undo it.

Rule 1: without `--apply` nothing is changed. With it, the old configuration and each domain's old XML are saved first.
`--undo` restores exactly these; what somebody has changed since is not overwritten.
Rule 2: the configuration that it writes is an ordinary one. Reading it gives this host; adopting again changes nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import socket
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import psutil

from magrathea import files, places
from magrathea.cli import sources, view
from magrathea.cli.lost import lost
from magrathea.configuration import ConfigurationError
from magrathea.core.model import Kind

from ..configuration import DEFAULT_PATH, NodedConfiguration, read
from ..evacuation.cli import evacuate, give_back
from ..hypervisor.libvirt.movable import networks, pinned_now, process_of
from ..hypervisor.libvirt.pinning import QemuProcesses, pinned
from ..reboot.cli import sleep, wake
from . import adopt
from .adopt import Found, Proposal
from .domain_xml import NotAdoptable, adopted_xml
from .moved_domains import moved_domains

REFUSED, USAGE = 1, 2
STATE = Path(places.NODED_STATE_DIR)
BACKUP = "adopt"
"""A directory below the state directory: the old XML of each domain, and the old configuration."""
ADOPTED = "adopted"
"""A directory below that one: the same as `--apply` has left them."""


def _fail(text: str, code: int = USAGE) -> click.exceptions.Exit:
    click.echo(f"magrathea host adopt: {text}", err=True)
    return click.exceptions.Exit(code)


@dataclass(frozen=True, slots=True)
class XmlChange:
    """A domain's XML, before and after."""

    name: str
    before: str
    after: str

    def diff(self) -> str:
        return _diff(self.before, self.after, self.name)


def _diff(before: str, after: str, name: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), f"{name} now", f"{name} adopted", lineterm="")
    return "\n".join(lines)


@contextlib.contextmanager
def _files() -> Iterator[None]:
    """A file or folder that cannot be read or written becomes the command's message."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise _fail(f"{where}{error.strerror}; run this as root, with folders that can be written", REFUSED) from error


@contextlib.contextmanager
def _connected(uri: str) -> Iterator[Any]:
    try:
        import libvirt
    except ImportError as error:
        raise _fail(
            "libvirt's Python binding is missing: `pip install magrathea[libvirt]`, or Debian's python3-libvirt"
        ) from error
    libvirt.registerErrorHandler(lambda context, error: None, None)  # its errors are raised, so do not print them too
    try:
        connection = libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise _fail(f"{uri}: {error}; is libvirtd running, and may you use it? For another libvirtd: --uri") from error
    try:
        yield connection
    except libvirt.libvirtError as error:
        raise _fail(f"{uri}: {error}", REFUSED) from error
    finally:
        connection.close()


def _domains(connection: Any) -> list[Found]:
    import libvirt

    founds = []
    network, processes = networks(libvirt.libvirtError, connection), QemuProcesses()
    for domain in connection.listAllDomains():
        persistent, used = bool(domain.isPersistent()), None
        if domain.isActive():
            with contextlib.suppress(libvirt.libvirtError):  # a guest without a balloon driver has no figures
                stats = domain.memoryStats()
                if {"actual", "usable"} <= stats.keys():
                    used = (stats["actual"] - stats["usable"]) // 1024
        xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE if persistent else 0)
        live = domain.XMLDesc(0) if domain.isActive() else ""
        with contextlib.suppress(NotAdoptable):
            found = adopt.parse(xml, persistent=persistent, used_mib=used, live=live)
            why = pinned(xml, network) or pinned_now(live or xml, network, domain, process_of(domain, processes))
            founds.append(replace(found, pinned=why))
            continue
        click.echo(f"{domain.name()}: not changed: its XML cannot be understood", err=True)
    return founds


def _kinds(given: tuple[str, ...], configuration: NodedConfiguration | None) -> dict[str, tuple[Kind, str]]:
    kinds = {}
    if configuration is not None:
        known = _configured(configuration)
        kinds = {name: (configuration.domain[ours].kind, "as configured") for name, ours in known.items()}
    for word in given:
        name, _, kind = word.partition("=")
        if kind not in tuple(Kind):
            raise _fail(f"--kind {word}: NAME=KIND, one of {', '.join(Kind)}")
        kinds[name] = (Kind(kind), "set by --kind")
    return kinds


def _configured(configuration: NodedConfiguration | None) -> dict[str, str]:
    """libvirt's name of each configured domain -> its name in the configuration."""
    domains = configuration.domain if configuration else {}
    return {t.libvirt.name if t.libvirt and t.libvirt.name else name: name for name, t in domains.items()}


def _machine(configuration: NodedConfiguration | None) -> tuple[int, int]:
    cpus, mib = psutil.cpu_count() or 1, psutil.virtual_memory().total // 2**20
    if configuration is not None:
        cpus = configuration.cpus
        mib = configuration.memory_mib + configuration.host.reserve_mib
    return cpus, mib


@click.group(short_help="this host as a whole: adopt its domains, evacuate it, sleep before a reboot")
def host() -> None:
    """Let Magrathea manage this host's libvirt domains, or undo that; put them to sleep before a reboot; empty it.

    \b
    Examples:
      magrathea host adopt
      magrathea host evacuate h1 --dry-run
      magrathea host sleep --dry-run
    """


host.add_command(lost)
host.add_command(sleep)
host.add_command(evacuate)
host.add_command(give_back)
host.add_command(wake)


@host.command("adopt", short_help="propose a configuration for the libvirt domains of this host")
@click.option("--uri", default="qemu:///system", show_default=True, help="libvirt's URI: qemu:///, xen:///, lxc:///.")
@click.option(
    "--config", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True, help="The configuration file."
)
@click.option(
    "--kind", "given", multiple=True, metavar="NAME=KIND", help="normal, priority or service; may be repeated."
)
@click.option(
    "--mode",
    type=click.Choice(["exclusive", "counted"]),
    default="exclusive",
    show_default=True,
    help="exclusive: one domain works at a time; counted: CPUs are counted.",
)
@click.option("--name", default=lambda: socket.gethostname().partition(".")[0], help="The host's name.")
@click.option("--apply", "applying", is_flag=True, help="Make the changes; save the old state first.")
@click.option("--undo", "undoing", is_flag=True, help="Restore what --apply has changed.")
@sources.form_option
def command(
    uri: str, config: Path, given: tuple[str, ...], mode: str, name: str, applying: bool, undoing: bool, form: str
) -> None:
    """Read this host's libvirt domains and propose a kind for each, the changes of its XML, and the node daemon's
    configuration. Nothing is changed without --apply.

    Kinds are guessed from names and sizes, and shown with the reason; --kind or the configuration
    overrides a guess. Domains that have moved to other hosts keep their tables; visitors of other hosts are left alone.
    A floor is what a guest uses now plus a margin, so run this while the guests are up and idle. A
    running domain gets its new channel and balloon at its next start (`virsh shutdown`, `virsh start`; a reboot inside
    the guest is not enough).

    \b
    Examples:
      magrathea host adopt
      magrathea host adopt --kind batch1=normal --kind rush=priority --kind dns=service
      magrathea host adopt --apply
      magrathea host adopt --undo

    Exit codes: 0 done, or nothing to do; 1 a domain cannot be adopted, or something is in the way; 2 wrong usage or
    configuration, or no connection.
    """
    if applying and undoing:
        raise _fail("--apply and --undo exclude each other")
    state = STATE / BACKUP
    if undoing:
        with _connected(uri) as connection, _files():
            _undo(connection, config, state)
        return
    configuration = None
    if files.exists(config):
        try:
            configuration = read(config)
        except ConfigurationError as error:
            raise _fail(str(error)) from error
        if configuration.host.driver != "libvirt":
            raise _fail(f"{config} uses the driver {configuration.host.driver!r}; give another file with --config")
    with _connected(uri) as connection, _files():
        found = _domains(connection)
        moved = moved_domains(configuration)
        configuration = moved.here
        kinds = _kinds(given, configuration)
        if unknown := sorted(set(kinds) - {f.name for f in found}):
            raise _fail(f"{uri} has no domain {', '.join(unknown)}; `virsh list --all` shows what it has", REFUSED)
        cpus, mib = _machine(configuration)
        proposals = [moved.noted(p) for p in adopt.propose(found, cpus, mib, kinds)]
        changes, proposals = _changes(proposals, configuration, moved.visitors)
        before = config.read_bytes().decode() if configuration else ""
        after = _wanted(before, proposals, configuration, name, mode, uri)
        _show(form, proposals, changes, config, before, after, adopt.missing_mib(proposals, mib), applying)
        for sentence in moved.sentences() if form == "table" else ():
            view.say(sentence)
        if applying:
            _apply(connection, changes, config, before, after, state, proposals)
    if any(p.refused for p in proposals):
        raise click.exceptions.Exit(REFUSED)


def _changes(
    proposals: list[Proposal], configuration: NodedConfiguration | None, visitors: Collection[str]
) -> tuple[list[XmlChange], list[Proposal]]:
    run_dir = Path(configuration.paths.run_dir if configuration else places.NODED_RUN_DIR)
    changes, checked, ours = [], [], _configured(configuration)
    for p in proposals:
        if p.kind is not Kind.SERVICE and not p.refused and p.found.name not in visitors:
            try:
                name = ours.get(p.found.name, p.found.name)
                # A container gets a folder of its own, because the folder is mounted in it
                # (NodedConfiguration.guest_socket).
                socket = f"{name}/agent.sock" if p.found.type == "lxc" else f"{name}.sock"
                after = adopted_xml(p.found.xml, p.found.type, str(run_dir / "guest" / socket))
            except NotAdoptable as error:
                p = replace(p, refused=str(error))
            else:
                if p.found.xml != after:
                    changes.append(XmlChange(p.found.name, p.found.xml, after))
        checked.append(p)
    return changes, checked


def _wanted(
    before: str, proposals: list[Proposal], configuration: NodedConfiguration | None, name: str, mode: str, uri: str
) -> str:
    """The new text of the configuration file: a whole file, or the present one with the missing domains added."""
    if configuration is None:
        return adopt.file(proposals, name, mode, uri)
    new = [p for p in proposals if p.found.name not in _configured(configuration) and not p.refused]
    return before + "".join("\n" + adopt.table(p) for p in new)


def _show(
    form: str,
    proposals: list[Proposal],
    changes: list[XmlChange],
    config: Path,
    before: str,
    after: str,
    short: int,
    applying: bool,
) -> None:
    rows = [
        {
            "domain": p.found.name,
            "kind": p.kind.value,
            "cpus": p.cpus,
            "memory_mib": p.memory_mib,
            "floor_mib": p.floor_mib,
            "why": p.why,
            "refused": p.refused,
        }
        for p in proposals
    ]
    if form == "json":
        diffs = {c.name: c.diff() for c in changes}
        told = {"domains": rows, "changes": diffs, "configuration": after, "short_mib": short, "applied": applying}
        click.echo(json.dumps(told, indent=2))
        return
    if form == "plain":
        for row in rows:
            click.echo("\t".join(view.clean(" ".join(str(value).split())) for value in row.values()))
        return
    _table(rows)
    for row in rows:
        if row["refused"]:
            click.echo()
            view.say(f"{row['domain']} cannot be adopted: {row['refused']}")
    if short:
        click.echo(f"\nmemory: reserve, services and floors exceed this host's memory by {short} MiB; lower the floors")
    for change in changes:
        click.echo("\n" + change.diff())
    if before != after:
        click.echo("\n" + _diff(before, after, str(config)))
    if not changes and before == after:
        click.echo("\nnothing to change")
    elif not applying:
        click.echo("\nnothing has been changed; --apply does it")


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # a [ of a name is no markup

    table = Table(box=None, pad_edge=False)
    for column in ("DOMAIN", "KIND", "CPUS", "MEMORY", "FLOOR", "WHY"):
        table.add_column(column, justify="right" if column in ("CPUS", "MEMORY", "FLOOR") else "left")
    for row in rows:
        kind = "-" if row["refused"] else row["kind"]
        floor = f"{row['floor_mib']} MiB" if row["floor_mib"] else "-"
        cells = (row["domain"], kind, str(row["cpus"]), f"{row['memory_mib']} MiB", floor, row["why"])
        table.add_row(*(Text(view.clean(cell)) for cell in cells))
    Console(highlight=False).print(table)


def _apply(
    connection: Any,
    changes: list[XmlChange],
    config: Path,
    before: str,
    after: str,
    state: Path,
    proposals: list[Proposal],
) -> None:
    if not [p for p in proposals if p.kind is not Kind.SERVICE and not p.refused]:
        raise _fail("none of the domains could take jobs; nothing has been changed", REFUSED)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    (state / ADOPTED).mkdir(exist_ok=True, mode=0o700)
    new = config.with_name(config.name + ".new")
    if before != after:
        config.parent.mkdir(parents=True, exist_ok=True)
        _write_as(config, new, after)
        try:
            read(new)
        except ConfigurationError as error:
            raise _fail(f"{error}\nnothing has been changed", REFUSED) from error
    for change in changes:
        _keep(state / f"{change.name}.xml", change.before)
        connection.defineXML(change.after)
        files.replace(state / ADOPTED / f"{change.name}.xml", _present(connection, change.name).encode())
        domain = connection.lookupByName(change.name)
        later = "; it gets the channel at its next start" if domain.isActive() else ""
        later = later or ("; it gets the channel when it starts anew, not when it wakes" if _sleeps(domain) else "")
        click.echo(f"{change.name}: defined{later}")
    if before != after:
        _keep(state / "noded.toml", before)
        new.replace(config)
        files.replace(state / ADOPTED / "noded.toml", after.encode())
        click.echo(f"{config}: written; `magrathea-noded --check`, then start it")


def _sleeps(domain: Any) -> bool:
    import libvirt

    try:
        return bool(domain.hasManagedSaveImage(0))
    except libvirt.libvirtError:  # containers have none
        return False


def _keep(path: Path, text: str) -> None:
    """Save the state before the first change, which undoing restores. A later state never replaces it."""
    if not path.exists():
        files.replace(path, text.encode())


def _present(connection: Any, name: str) -> str:
    import libvirt

    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    return str(connection.lookupByName(name).XMLDesc(flags))


def _write_as(config: Path, path: Path, text: str) -> None:
    """Write `path` with the owner and mode that `config` has, if it is there."""
    former = config.stat() if config.exists() else None
    files.replace(path, text.encode(), stat.S_IMODE(former.st_mode) if former else 0o644)
    if former is not None and (former.st_uid, former.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(path, former.st_uid, former.st_gid)


def _undo(connection: Any, config: Path, state: Path) -> None:
    import libvirt

    kept, done = [], 0
    for backup in sorted(state.glob("*.xml")):
        name = backup.name.removesuffix(".xml")
        adopted = state / ADOPTED / backup.name
        try:
            present = _present(connection, name)
        except libvirt.libvirtError:
            kept.append(f"{name} no longer exists; its old XML: {backup}")
            continue
        if adopted.exists() and present.encode() != adopted.read_bytes():
            kept.append(f"{name} has been changed since; compare with {backup} and `virsh edit {name}`")
            continue
        connection.defineXML(backup.read_bytes().decode())
        backup.unlink()
        adopted.unlink(missing_ok=True)
        click.echo(f"{name}: restored")
        done += 1
    former, written = state / "noded.toml", state / ADOPTED / "noded.toml"
    if former.exists():
        if config.exists() and config.read_bytes() != written.read_bytes():
            kept.append(f"{config} has been changed since; its old text: {former}")
        else:
            text = former.read_bytes().decode()
            if text:
                new = config.with_name(config.name + ".new")
                _write_as(config, new, text)
                new.replace(config)
            else:
                config.unlink(missing_ok=True)
            former.unlink()
            written.unlink()
            click.echo(f"{config}: {'restored' if text else 'removed'}")
            done += 1
    for line in kept:
        click.echo(line, err=True)
    if not done and not kept:
        click.echo("nothing to undo")
    if kept:
        raise click.exceptions.Exit(REFUSED)
