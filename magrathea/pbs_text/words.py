"""Lists with commas, booleans, ids and owners of jobs.

Also part of the hooks: see the package.
"""


def words(text: "str") -> "list[str]":
    """The elements of a string_array, of a vnode's state, or of a list of jobs or users, without quotes."""
    return [word.strip().strip("\"'") for word in text.split(",") if word.strip()]


TRUE, FALSE = ("True", "TRUE", "true", "t", "T", "1", "y", "Y"), ("False", "FALSE", "false", "f", "F", "0", "n", "N")


def is_true(text: "str") -> "bool":
    """A boolean (`is_true_or_false` in attr_fn_b.c). Raises ValueError."""
    if text not in TRUE and text not in FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text in TRUE


def job_ids(jobs: "str") -> "list[str]":
    """Each job of a vnode's `jobs` ("12.srv/0, 12.srv/1, 13.srv/2") once, in their order."""
    return list(dict.fromkeys(word.partition("/")[0] for word in words(jobs)))


def is_subjob(id: "str") -> "bool":
    """True for a subjob of an array ("12[3].srv"), and for the array itself."""
    return "[" in id


def user_of(owner: "str") -> "str":
    """The user in `user@host`. A user's name may contain an @, a host's cannot."""
    return owner.rpartition("@")[0] or owner


def is_some(text: "str") -> "bool":
    """False for a number that is 0, whatever its unit, and for a boolean that is false."""
    try:
        return float(text.rstrip("bBwWkKmMgGtTpP")) != 0
    except ValueError:
        return text not in FALSE
