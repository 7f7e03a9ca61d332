"""Values that are given as text."""


def typed(text: str) -> bool | int | float | str:
    """Return a text as what it looks like.

    Examples
    --------
    >>> typed("4"), typed("0.3"), typed("true"), typed("weight")
    (4, 0.3, True, 'weight')
    """
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
