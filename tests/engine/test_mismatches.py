"""Methods whose trees do not fit together are refused before a round runs, by the name
of the leaf.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from mlp_problem import make_clients, make_trees, mlp_loss

import fedjax_fm as ffm
from fedjax_fm.types import Aggregate


def simulator_of(upload_of, server=None, **how):
    """FedAvg whose clients send `upload_of(upload)`, beside them a server of one's own."""
    plain = ffm.fedavg(ffm.Task(mlp_loss), optax.sgd(0.05), local_steps=1, batch_size=4)
    (exchange,) = plain.exchanges

    def client(backbone, message):
        one = exchange.client(backbone, message)

        def other(*arguments):
            output = one(*arguments)
            return output._replace(upload=upload_of(output.upload))

        return other

    changed = exchange._replace(client=client, server=server or exchange.server)
    _, backbone = make_trees()
    population = ffm.Population.from_clients(make_clients())
    return ffm.Simulator(
        plain._replace(exchanges=(changed,)),
        population,
        backbone=backbone,
        cohort_size=3,
        **how,
    )


MODES = [{}, {"data": "host"}, {"devices": 2, "parallel": "pmap"}]


@pytest.mark.parametrize("how", MODES, ids=str)
def test_an_upload_that_broadcasts_to_another_shape(how):
    def wrong(upload):
        return {**upload, "v": upload["v"][None]}

    simulator = simulator_of(wrong, **how)
    state = simulator.init(make_trees()[0])
    message = r"the server's state after a round is not like .*: delta\.v: expected float32\[4\], got float32\[1, 4\]"
    with pytest.raises(ValueError, match=message):
        simulator.run(state, 1)


def test_an_upload_of_another_type():
    def server(state, aggregate: Aggregate, key):
        return state._replace(
            delta=jax.tree.map(lambda x: x.astype(jnp.bfloat16), aggregate.value)
        ), {}

    simulator = simulator_of(lambda upload: upload, server)
    with pytest.raises(
        ValueError, match=r"delta\.v: expected float32\[4\], got bfloat16\[4\]"
    ):
        simulator.run(simulator.init(make_trees()[0]), 1)


@pytest.mark.parametrize("how", MODES, ids=str)
def test_an_upload_with_a_leaf_more_says_what_the_server_was_given(how):
    simulator = simulator_of(lambda upload: {**upload, "extra": jnp.zeros(2)}, **how)
    state = simulator.init(make_trees()[0])
    with pytest.raises(ValueError) as caught:
        simulator.run(state, 1)
    note = (
        "fedjax_fm: in the server of exchange 0, which was given extra float32[2], v "
        "float32[4], w float32[3, 4]"
    )
    assert note in caught.value.__notes__


def test_an_error_in_a_clients_own_code_says_where_it_was():
    def broken(upload):
        raise KeyError("momentum")

    with pytest.raises(KeyError, match="momentum") as caught:
        simulator_of(broken).init(make_trees()[0])
    assert "fedjax_fm: in the client of exchange 0" in caught.value.__notes__
