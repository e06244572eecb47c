"""Numbers for people: none is rounded to 0."""


def count(value: float) -> str:
    """Return a count with a prefix.

    >>> count(60.5e9), count(3.54e7), count(2048)
    ('60.5 G', '35.4 M', '2.0 k')
    """
    for size, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= 0.1 * size:
            return f"{value / size:.1f}{prefix}"
    return f"{value:.0f}"


def data_size(bytes: float) -> str:
    """Return an amount of memory.

    >>> data_size(8.8e9), data_size(2.8e8), data_size(3.1e6), data_size(200), data_size(4)
    ('8.80 GB', '0.28 GB', '3.10 MB', '0.20 kB', '4 B')
    """
    for size, prefix in ((1e9, "GB"), (1e6, "MB")):
        if bytes >= 0.005 * size:
            return f"{bytes / size:.2f} {prefix}"
    return f"{bytes / 1e3:.2f} kB" if bytes >= 5 else f"{bytes:.0f} B"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would take.

    >>> duration(216_000), duration(1500), duration(61), duration(1), duration(0.04)
    ('60.0 hours', '25 minutes', '61 seconds', '1 second', '0.04 seconds')
    """
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    if seconds >= 120:
        return f"{seconds / 60:.0f} minutes"
    text = f"{seconds:.0f}" if seconds >= 2 else f"{seconds:.2g}"
    return f"{text} second" if text == "1" else f"{text} seconds"
