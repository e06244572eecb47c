"""A check of arguments that must be generators."""

from .base_generator import BaseGenerator


def check_generator(generator: object, kind: type[BaseGenerator] = BaseGenerator) -> None:
    """Raise TypeError unless `generator` is one of this kind. The message says what to pass instead."""
    if isinstance(generator, kind):
        return
    expected = "a pml_gca generator" if kind is BaseGenerator else f"a {kind.__name__}"
    found, hint = type(generator).__name__, ""
    if isinstance(generator, type):
        found = f"the class {generator.__name__}"
        hint = f". Make one: {generator.__name__}(num_classes, embedding_size)"
    elif isinstance(getattr(generator, "generator", None), kind):
        hint = ". Pass the generator inside it: .generator"
    elif kind is BaseGenerator:
        hint = ", instead of one such as GlobalCorrelationGenerator(num_classes, embedding_size)"
    raise TypeError(f"generator must be {expected}, got {found}{hint}")
