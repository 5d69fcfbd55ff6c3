"""Sizes, whole numbers and durations (`to_size` in attr_fn_size.c, `decode_l`, `decode_time`).

Also part of the hooks: see the package.
"""

DIGITS = "0123456789"
SIZE_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
WORD_BYTES = 8


def whole_number(text: "str") -> "int":
    """A number such as that of ncpus. Raises ValueError."""
    if not text or text.strip(DIGITS):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def size_bytes(text: "str") -> "int":
    """A size in bytes. Raises ValueError.

    The text is digits, then optionally k, m, g, t or p, then optionally b (bytes) or w (words), in upper or lower case.
    """
    unit = text.lstrip(DIGITS)
    digits = text[: len(text) - len(unit)]
    scale = unit[:-1] if unit[-1:] in ("b", "B", "w", "W") else unit
    if not digits or scale.lower() not in SIZE_SHIFTS or scale.strip("kKmMgGtTpP"):
        raise ValueError(f"{text!r} is no size like 2gb or 100kw")
    return (int(digits) << SIZE_SHIFTS[scale.lower()]) * (WORD_BYTES if unit[-1:] in ("w", "W") else 1)


def whole_mib(size: "int") -> "int":
    """Bytes in MiB, rounded up."""
    return -(-size // 2**20)


def duration_s(text: "str") -> "int":
    """Seconds of `hh:mm:ss`, `mm:ss` or `ss`, with or without a fraction, rounded as PBS does. Raises ValueError."""
    whole, _, fraction = text.partition(".")
    parts = whole.split(":")
    if len(parts) > 3 or fraction.strip(DIGITS):
        raise ValueError(f"{text!r} is no duration like 1:30:00")
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + whole_number(part)
    return seconds + (fraction[:1] > "4")
