"""`exec_vnode` and `exec_host`: where a job runs and what it has there (`parse_node_resc_r` in grunt_parse.c).

Also part of the hooks: see the package.
"""

from magrathea.pbs_text.amounts import whole_number
from magrathea.pbs_text.select import plus_parts, resources


def placed(exec_vnode: "str") -> "list[list[tuple[str, list[tuple[str, str]]]]]":
    """For each chunk of `(n1:ncpus=1:mem=5kb+n2:ncpus=1)+(n3:ncpus=2)` its vnodes, each with its resources.

    A resource that occurs twice counts twice, as in PBS. Raises ValueError.
    """
    found = []  # type: list[list[tuple[str, list[tuple[str, str]]]]]
    inside = False
    for part in plus_parts(exec_vnode):
        text = part.strip()
        opens, closes = text.startswith("("), text.endswith(")")
        vnode, colon, rest = text[opens : len(text) - closes].partition(":")
        if (opens and inside) or (closes and not opens and not inside) or not vnode.strip() or (colon and not rest):
            raise ValueError(f"{exec_vnode!r} is no exec_vnode like (n1:ncpus=1)+(n2:ncpus=1)")
        if not inside:
            found.append([])
        found[-1].append((vnode.strip(), resources(rest)))
        inside = (inside or opens) and not closes
    if inside:
        raise ValueError(f"{exec_vnode!r} has a parenthesis without its end")
    return found


def vnodes_of(exec_vnode: "str") -> "list[str]":
    """Each vnode once, in the order of the chunks. Raises ValueError."""
    return list(dict.fromkeys(vnode for chunk in placed(exec_vnode) for vnode, _ in chunk))


def cpus_by_vnode(exec_vnode: "str") -> "dict[str, int]":
    """The CPUs on each vnode, in the order of the chunks. Raises ValueError."""
    cpus = {}  # type: dict[str, int]
    for chunk in placed(exec_vnode):
        for vnode, given in chunk:
            asked = sum(whole_number(value) for name, value in given if name == "ncpus")
            cpus[vnode] = cpus.get(vnode, 0) + asked
    return cpus


def hosts_of(exec_host: "str") -> "list[str]":
    """Each chunk's host in `n1/0*2+n2/0`, or `n1:15002/0*2+n2:15002/0` (exec_host2); [] if it is empty."""
    return [part.partition("/")[0].partition(":")[0] for part in exec_host.split("+") if part]
