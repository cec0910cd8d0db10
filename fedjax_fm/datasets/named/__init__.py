"""Named benchmarks: data, clients and protocols of the literature in one table.

    data = ffm.datasets.load("flowertune/finance", source="stand-in", limit=2000)
    population_of_rows = data.partitioner.partition(data.train)

`list_names()` has the names, `describe(name)` says what is known of one. Real rows come
from the Hugging Face hub, its local cache or a folder of files, and are never replaced
silently: a stand-in of the same schema has to be asked for.
"""

from fedjax_fm.datasets.named.benchmark import (
    Benchmark,
    Held,
    Hub,
    Partition,
    Settings,
)
from fedjax_fm.datasets.named.loading import NamedData, load
from fedjax_fm.datasets.named.table import (
    describe,
    find,
    list_names,
    markdown_table,
)
from fedjax_fm.datasets.named.templates import TEMPLATES, Template

__all__ = [
    "TEMPLATES",
    "Benchmark",
    "Held",
    "Hub",
    "NamedData",
    "Partition",
    "Settings",
    "Template",
    "describe",
    "find",
    "list_names",
    "load",
    "markdown_table",
]
