"""Numbers that no factory of robust rules and attacks may be given."""

import inspect

import jax.numpy as jnp
import optax
import pytest
import quadratics
from bad_values import Row, cases, is_refused, unlisted

import fedjax_fm as ffm
from fedjax_fm import robust
from fedjax_fm.robust import attacks

FEDAVG = ffm.fedavg(quadratics.TASK, optax.sgd(0.1), **quadratics.FULL)
MEAN = robust.mean()
METHOD = {"algorithm": robust.robust(FEDAVG, MEAN), "attack": attacks.ipm(1.0)}

ROWS = (
    Row(robust.robust, {"algorithm": FEDAVG, "rule": MEAN}, {"most_weight": "real?", "factors": "flag"}),
    Row(robust.trimmed_mean, {"trim": 0.1}, {"trim": "real"}),
    Row(robust.krum, {"liars": 1}, {"liars": "whole"}),
    Row(robust.multi_krum, {"liars": 1}, {"liars": "whole", "kept": "whole?"}),
    Row(robust.bulyan, {"liars": 1}, {"liars": "whole"}),
    Row(robust.geometric_median, {}, {"iterations": "whole", "smoothing": "real"}),
    Row(robust.centred_clipping, {"radius": 1.0}, {"radius": "real or infinite", "iterations": "whole"}),
    Row(robust.norm_bound, {"bound": 1.0}, {"bound": "real or infinite"}),
    Row(robust.sign_majority, {"step_size": 1.0}, {"step_size": "real"}),
    Row(attacks.attacked, METHOD | {"liars": [0]}, {"omniscient": "flag"}),
    Row(attacks.liars_of, {"n_clients": 5, "share": 0.2}, {"n_clients": "whole", "share": "real", "seed": "whole"}),
    Row(attacks.sign_flip, {}, {"scale": "real"}),
    Row(attacks.gaussian, {"deviation": 1.0}, {"deviation": "real", "added": "flag"}),
    Row(attacks.replacement, {"target": jnp.zeros(2), "scale": 1.0}, {"scale": "real"}),
    Row(attacks.boosted, {"scale": 2.0}, {"scale": "real", "most_norm": "real or infinite"}),
    Row(attacks.alie, {}, {"deviations": "real?"}),
    Row(attacks.ipm, {"scale": 1.0}, {"scale": "real"}),
    Row(attacks.min_max, {}, {"direction": "choice"}),
    Row(attacks.min_sum, {}, {"direction": "choice"}),
)  # fmt: skip
# Numbers of a traced round, ids and tables, which tests of their own refuse.
APART = (attacks.supported_deviations, attacks.relabelled, attacks.poisoned)


@pytest.mark.parametrize(("row", "parameter", "value"), cases(ROWS))
def test_a_bad_value_is_refused_by_its_name(row, parameter, value):
    is_refused(row, parameter, value)


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (robust.trimmed_mean, -0.1),
        (robust.trimmed_mean, 0.5),
        (robust.krum, -1),
        (robust.bulyan, -1),
        (robust.centred_clipping, 0.0),
        (robust.norm_bound, 0.0),
        (robust.sign_majority, 0.0),
        (attacks.sign_flip, 0.0),
        (attacks.gaussian, -1.0),
        (attacks.ipm, 0.0),
    ],
)
def test_a_value_out_of_bounds_is_refused(make, bad):
    with pytest.raises(ValueError, match=f"={bad}"):
        make(bad)


def test_every_parameter_is_in_the_table():
    found = {getattr(x, name) for x in (robust, attacks) for name in x.__all__}
    factories = [x for x in found if inspect.isfunction(x) and x not in APART]
    assert len(factories) > 15
    assert unlisted(factories, ROWS) == []
