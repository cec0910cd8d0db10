"""Our dotted paths as Hugging Face's module names: one name per layer of a stack."""

from collections.abc import Iterable

from flax import nnx

from fedjax_fm.models.weights import Naming
from fedjax_fm.peft.layers import each_layer, stacks
from fedjax_fm.peft.patterns import matches
from fedjax_fm.peft.targets import get_module, named_modules, plain_names


class Names:
    """Names of an adapted or plain model's modules and parameters.

    A model says how it is named by `hugging_face`, a `Naming`; by default a stack's
    layers get their numbers.
    """

    def __init__(self, model: nnx.Module):
        self.plain, self.layers_of = plain_names(model), each_layer(model)
        unlisted = (
            p for p in stacks(model) if not isinstance(get_module(model, p), nnx.List)
        )
        default = Naming(stacked=tuple(self.plain(path) for path in unlisted))
        self.naming: Naming = getattr(model, "hugging_face", default)
        self.modules = [path for path, _ in named_modules(model) if path]

    def layers(self, path: str) -> range | None:
        """The numbers of the layers that a module or parameter holds; None outside of a stack."""
        return self.layers_of(path)[1]

    def parameter(self, path: str) -> list[tuple[str, bool]]:
        """(tensor name, whether torch stores the transpose), one per layer, of a parameter."""
        words = tuple(self.plain(path).split("."))
        return [
            self.naming.tensor(words, layer) for layer in self.layers(path) or [None]
        ]

    def module(self, path: str) -> list[str]:
        """One name per layer of a module."""
        return [
            name.removesuffix(".weight") for name, _ in self.parameter(f"{path}.kernel")
        ]

    def unnumbered(self, path: str) -> str:
        """A module's name without its layer's number."""
        return self.naming.tensor((*self.plain(path).split("."), "kernel"), None)[
            0
        ].removesuffix(".weight")

    def endings(self, paths: Iterable[str]) -> list[str]:
        """The shortest endings, sorted, that pick these modules and no others.

        PEFT's `target_modules`.
        """
        paths = set(paths)
        chosen = {self.unnumbered(path) for path in paths}
        others = {self.unnumbered(path) for path in self.modules} - chosen
        found = set()
        for name in chosen:
            words = name.split(".")
            tries = (".".join(words[-n:]) for n in range(1, len(words) + 1))
            found.add(
                next(
                    end
                    for end in tries
                    if end == name or not any(matches(other, [end]) for other in others)
                )
            )
        return sorted(found)
