"""Clients: their data, how it is split among them, and which of them take part.

A `Population` holds the examples of all clients. A partitioner deals the rows of a
table to clients, a sampler of `samplers` draws the cohort of a round, and `traces`
makes arrays of who is available when.
"""

from fedjax_fm.population import samplers, traces
from fedjax_fm.population.partitioners import (
    ContinuousPartitioner,
    DirichletPartitioner,
    DistributionPartitioner,
    ExponentialPartitioner,
    GroupedNaturalIdPartitioner,
    IdToSizeFncPartitioner,
    IidPartitioner,
    InnerDirichletPartitioner,
    LinearPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
    ShardPartitioner,
    SizePartitioner,
    SquarePartitioner,
    VerticalEvenPartitioner,
    VerticalSizePartitioner,
)
from fedjax_fm.population.population import Population

__all__ = [
    "ContinuousPartitioner",
    "DirichletPartitioner",
    "DistributionPartitioner",
    "ExponentialPartitioner",
    "GroupedNaturalIdPartitioner",
    "IdToSizeFncPartitioner",
    "IidPartitioner",
    "InnerDirichletPartitioner",
    "LinearPartitioner",
    "NaturalIdPartitioner",
    "Partitioner",
    "PathologicalPartitioner",
    "Population",
    "ShardPartitioner",
    "SizePartitioner",
    "SquarePartitioner",
    "VerticalEvenPartitioner",
    "VerticalSizePartitioner",
    "samplers",
    "traces",
]
