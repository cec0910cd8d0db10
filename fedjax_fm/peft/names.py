"""Hugging Face's names of modules and parameters: one name per layer of a stack."""

from collections.abc import Iterable

from flax import nnx

from fedjax_fm.models.weights import Naming
from fedjax_fm.peft.layers import each_layer, stacks
from fedjax_fm.peft.patterns import matches
from fedjax_fm.peft.targets import get_module, named_modules, plain_names


class Names:
    """Hugging Face's names of an adapted or plain model's modules and parameters.

    They follow from the model's attribute `hugging_face`, a `Naming`. Without it,
    dotted paths are taken, with the number of each layer of a stack.

    Args:
      model: adapted or not.
    """

    def __init__(self, model: nnx.Module):
        self.plain, self.layers_of = plain_names(model), each_layer(model)
        stacked = []
        for path in stacks(model):
            if not isinstance(get_module(model, path), nnx.List):
                stacked.append(self.plain(path))
        default = Naming(stacked=tuple(stacked))
        self.naming: Naming = getattr(model, "hugging_face", default)
        self.modules = [path for path, _ in named_modules(model) if path]

    def layers(self, path: str) -> range | None:
        """Returns the numbers of the layers that a module or parameter holds.

        Args:
          path: dotted.

        Returns:
          A range; None outside of a stack.
        """
        return self.layers_of(path)[1]

    def parameter(self, path: str) -> list[tuple[str, bool]]:
        """Names a parameter as tensors of a Hugging Face file.

        Args:
          path: dotted.

        Returns:
          (name, whether torch stores the transpose), one for each layer.
        """
        words = tuple(self.plain(path).split("."))
        layers = self.layers(path) or [None]
        return [self.naming.tensor(words, layer) for layer in layers]

    def module(self, path: str) -> list[str]:
        """Names a module.

        Args:
          path: dotted.

        Returns:
          One name for each layer.
        """
        kernels = self.parameter(f"{path}.kernel")
        return [name.removesuffix(".weight") for name, _ in kernels]

    def unnumbered(self, path: str) -> str:
        """Names a module without the number of its layer.

        Args:
          path: dotted.

        Returns:
          One name.
        """
        words = self.plain(path).split(".")
        name, _ = self.naming.tensor((*words, "kernel"), None)
        return name.removesuffix(".weight")

    def endings(self, paths: Iterable[str]) -> list[str]:
        """Finds the shortest endings that pick these modules and no others.

        Args:
          paths: dotted, of modules.

        Returns:
          The endings, sorted, for PEFT's `target_modules`.
        """
        paths = set(paths)
        chosen = {self.unnumbered(path) for path in paths}
        others = {self.unnumbered(path) for path in self.modules} - chosen
        found = set()
        for name in chosen:
            for end in endings_of(name):
                taken = any(matches(other, [end]) for other in others)
                if end == name or not taken:
                    found.add(end)
                    break
        return sorted(found)


def endings_of(name: str) -> list[str]:
    """Lists the endings of a dotted name, the shortest first.

    Args:
      name: words joined by dots.

    Returns:
      One ending for each number of words.

    Example:
      >>> endings_of("layers.attention.query")
      ['query', 'attention.query', 'layers.attention.query']
    """
    words = name.split(".")
    return [".".join(words[-n:]) for n in range(1, len(words) + 1)]
