"""Stands in for SGLang's kernel package, of which there is no CPU build on PyPI.

Every name imports and raises when it is called. Submodules are absent on purpose: SGLang then takes its own torch paths.
"""

from typing import Any, NoReturn

__version__ = "0.0.stub"


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU implementation here")

    missing.__name__ = name
    return missing
