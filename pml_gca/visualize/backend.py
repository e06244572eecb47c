"""matplotlib, where it is installed."""

from types import ModuleType


def import_matplotlib() -> ModuleType:
    try:
        import matplotlib.figure
        import matplotlib.lines
        import matplotlib.patches
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pml-gca[examples]'") from error
    return matplotlib
