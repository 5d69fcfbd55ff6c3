"""`select` and `schedselect`: chunks of resources, joined by + (`parse_plus_spec_r`, `parse_chunk_r` in grunt_parse.c).

PBS ignores the case of resource names and prints them as they were typed; here they are in lower case. Also part of the
hooks: see the package.
"""

from magrathea.pbs_text.amounts import DIGITS, whole_number

CLASS_RESOURCE = "magrathea_accepts"
CLASSES = ("priority", "preemptible", "protected")
MAX_SELECT = 64 * 1024
"""Most signs in a select that a user writes. It takes the server's one thread 0.06 s at most to read so much."""


def plus_parts(text: "str") -> "list[str]":
    """The texts between the + signs; a + within quotes of either kind does not separate. Raises ValueError."""
    if "'" not in text and '"' not in text:
        return text.split("+")
    parts, begin, quote = [], 0, ""
    for at, letter in enumerate(text):
        if letter == quote:
            quote = ""
        elif quote:
            continue
        elif letter == "+":
            parts.append(text[begin:at])
            begin = at + 1
        elif letter in "\"'":
            quote = letter
    if quote:
        raise ValueError(f"{text!r} has a quote without its end")
    return [*parts, text[begin:]]


def _up_to(text: "str", sign: "str", begin: "int") -> "tuple[str, bool, int]":
    """The text from `begin` up to this sign or the end, whether the sign is there, and where the rest begins.

    A user may write megabytes, and the server has one thread: no reader here copies the rest again and again.
    """
    at = text.find(sign, begin)
    return (text[begin:], False, len(text)) if at < 0 else (text[begin:at], True, at + 1)


def resources(text: "str") -> "list[tuple[str, str]]":
    """Names and values of `ncpus=2:mem=1gb`, values without their quotes. Raises ValueError."""
    found, at, end = [], 0, len(text.rstrip())
    while at < len(text):
        name, is_readable, at = _up_to(text, "=", at)
        name = name.strip()
        is_readable = is_readable and name[:1].isalpha() and name.replace("_", "").replace("-", "").isalnum()
        while text[at : at + 1].isspace():
            at += 1
        quoted = ""
        if text[at : at + 1] in ('"', "'"):
            quoted, is_closed, at = _up_to(text, text[at], at + 1)
            is_readable = is_readable and is_closed
        rest, colon, at = _up_to(text, ":", at)
        value = quoted + rest
        is_readable = is_readable and "(" not in rest and ")" not in rest  # PBS would end the chunk there
        if not is_readable or (colon and at >= end):
            raise ValueError(f"{text!r} is not of the form name=value:name=value")
        found.append((name.lower(), value.rstrip()))
    return found


def chunks(select: "str") -> "list[tuple[int, list[tuple[str, str]]]]":
    """(count, resources) of each chunk. Raises ValueError."""
    found = []
    for part in plus_parts(select):
        count, colon, rest = part.partition(":")
        if count.strip(" " + DIGITS):
            count, colon, rest = "1", ":", part
        if colon and not rest.strip():
            raise ValueError(f"{part!r} is no chunk like 2:ncpus=4:mem=1gb")
        pairs = resources(rest)
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{part!r} names a resource twice")
        found.append((whole_number(count.strip()), pairs))
    return found


def examined(select: "str") -> "tuple[set[str], str]":
    """Names of all resources in a select that a user wrote, and why it is refused; "" if it is clear what it asks for.

    The server writes it anew for the scheduler (`do_schedselect` in vnparse.c): strings with one kind of quotes around
    them, everything else without any. A value that needs others is read differently afterwards, and what was within it
    becomes a resource of its own. So no value has both kinds of quotes, or looks like a resource of Magrathea.
    """
    if len(select) > MAX_SELECT:
        return set(), f"it is longer than {MAX_SELECT} signs"
    try:
        pairs = [pair for _, pairs in chunks(select) for pair in pairs]
    except ValueError as error:
        return _words_of(select), str(error)
    names = {name for name, _ in pairs}
    for _, value in pairs:
        if '"' in value and "'" in value:
            return names, f"a value has both kinds of quotes: {value}"
        if "=" in value and "magrathea" in value.lower():
            return names, f"a value looks like a resource of Magrathea: {value}"
    return names, ""


def resource_names(select: "str") -> "set[str]":
    """Names of all resources in a select. If it cannot be parsed, every word in it, so that no name is missed."""
    try:
        return {name for _, pairs in chunks(select) for name, _ in pairs}
    except ValueError:
        return _words_of(select)


def _words_of(select: "str") -> "set[str]":
    return {word.strip("\"' ").lower() for word in select.replace("+", ":").replace("=", ":").split(":")}


def classes_in(select: "str") -> "set[str]":
    """All classes that a select names. If it cannot be parsed and names any, "unclear"."""
    if CLASS_RESOURCE not in select.lower():
        return set()  # most selects name none, and the server has one thread
    try:
        return {value for _, pairs in chunks(select) for name, value in pairs if name == CLASS_RESOURCE}
    except ValueError:
        return {"unclear"} if CLASS_RESOURCE in _words_of(select) else set()


def job_class(schedselect: "str") -> "str | None":
    """The class in the job's chunks, which its queue has set. None if a chunk has none, if they differ, or if the text
    cannot be parsed."""
    try:
        found = {dict(pairs).get(CLASS_RESOURCE) for _, pairs in chunks(schedselect)}
    except ValueError:
        return None
    one = found.pop() if len(found) == 1 else None
    return one if one in CLASSES else None
