"""Compiles N:M packing for a machine that is not here.

`python compile_vector_wise.py TOPOLOGY`, in a process of its own: which platform JAX
starts is decided once. Prints one JSON object: for packing, for unpacking and for a
product with what was packed, bytes of its outputs, and its kernels.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.append(str(Path(sys.prefix) / "aot"))  # the compilers, apart from the rest

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from fedjax_fm import aot, sparsity

SHAPE = (1024, 2048)


def pack(x):
    return sparsity.pack_vector_wise(x, 2, 4, axis=0)


def product(x, packed):
    return x @ sparsity.unpack_vector_wise(packed)


def said(program):
    """What the compiler says of one program."""
    text = program.as_text()
    return {
        "outputs": program.memory_analysis().output_size_in_bytes,
        "arguments": program.memory_analysis().argument_size_in_bytes,
        "kernels": text.count("tpu_custom_call") + text.count("__gpu$xla.gpu.triton"),
    }


def main(name):
    device = aot.topology(name).devices[0]
    here = SingleDeviceSharding(device)

    def placed(shape):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=here)

    weights = placed(jax.ShapeDtypeStruct(SHAPE, jnp.bfloat16))
    rows = placed(jax.ShapeDtypeStruct((256, SHAPE[0]), jnp.bfloat16))
    packed = jax.tree.map(placed, jax.eval_shape(pack, weights))
    programs = {
        "pack": jax.jit(pack).lower(weights),
        "unpack": jax.jit(sparsity.unpack_vector_wise).lower(packed),
        "product": jax.jit(product).lower(rows, packed),
    }
    print(json.dumps({k: said(lowered.compile()) for k, lowered in programs.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
