"""What a population may hold: values that reach a device as they are, or an error that
names the array.
"""

import tracemalloc

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax_fm import Population

OBJECTS = np.empty(2, object)
OBJECTS[:] = [[1, 2], [3]]
REFUSED = {
    "text": (
        np.array(["yes", "no"]),
        r"array 'x' holds text.*tokenize.*np\.unique.*leave it out",
    ),
    "text as objects": (np.array(["yes", "no"], object), "array 'x' holds text"),
    "bytes": (np.array([b"yes", b"no"]), "array 'x' holds text"),
    "ragged objects": (OBJECTS, r"array 'x' holds Python objects.*list.*pad"),
    "none": (
        np.array([1, None], object),
        "array 'x' has 1 missing value, the first in row 1",
    ),
    "dates": (
        np.array(["2026-01-01", "2026-01-02"], "datetime64[D]"),
        r"array 'x' holds dates.*astype",
    ),
    "durations": (np.array([1, 2], "timedelta64[s]"), "array 'x' holds dates"),
    "records": (
        np.array([(1, 2.0)] * 2, [("a", int), ("b", float)]),
        r"array 'x' is structured.*\['a', 'b'\]",
    ),
    "long double": (np.ones(2, np.longdouble), "array 'x' has dtype float128"),
    "foreign byte order": (np.ones(2, ">i4"), r"array 'x'.*byte order.*astype"),
    "int64 above": (np.array([1, 2**32 + 1]), r"array 'x'.*4294967297.*int32"),
    "int64 below": (np.array([0, -(2**31) - 1]), r"array 'x'.*-2147483649.*int32"),
    "uint64 above": (np.array([0, 2**32], np.uint64), r"array 'x'.*4294967296.*uint32"),
    "float64 above": (np.array([0.0, 1e39]), r"array 'x'.*1e\+39.*float32"),
    "float64 below": (np.array([np.nan, -1e300]), r"array 'x'.*-1e\+300.*float32"),
    "complex128 above": (np.array([0, 1e39j]), r"array 'x'.*complex64"),
    "masked": (
        np.ma.masked_array([1, 2], [False, True]),
        r"array 'x' is masked.*filled",
    ),
    "one number": (np.float32(3), r"array 'x'.*one row an example.*shape \(\)"),
}
LIMITS = {
    "int64": np.array([-(2**31), 2**31 - 1]),
    "uint64": np.array([0, 2**32 - 1], np.uint64),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "float64": np.array([np.inf, -np.inf, np.nan, 3.4e38, -3.4e38]),
    "bool": np.array([True, False]),
    "int8": np.array([-128, 127], np.int8),
    "float16": np.array([1.5, np.nan], np.float16),
    "bfloat16": np.array([1.5, 3e38], ml_dtypes.bfloat16),
    "complex128": np.array([1 + 2j, 3]),
    "empty int64": np.zeros((0, 3), np.int64),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_device_holds_is_refused_by_name(case):
    array, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=message):
        Population.from_arrays({"good": np.ones(2), "x": array}, [0, 1, 2])
    if np.ndim(array):
        with pytest.raises((TypeError, ValueError), match=message):
            Population.from_clients([{"good": np.ones(2), "x": array}])


@pytest.mark.parametrize(
    "case",
    [
        case
        for case, (array, _) in REFUSED.items()
        if array.dtype != object and case != "masked"
    ],
)
def test_what_no_device_holds_is_refused_when_a_folder_is_opened(case, tmp_path):
    array, message = REFUSED[case]
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "offsets.npy", np.array([0, 1, 2]))
    with pytest.raises((TypeError, ValueError), match=message):
        Population.open(tmp_path)


@pytest.mark.parametrize("case", LIMITS)
def test_what_fits_reaches_the_device_as_it_is(case):
    array = LIMITS[case]
    population = Population.from_arrays({"x": array}, [0, len(array)])
    on_device = np.asarray(jnp.asarray(population.arrays["x"]))
    np.testing.assert_array_equal(on_device, array.astype(on_device.dtype))
    if array.dtype.kind in "iu":
        np.testing.assert_array_equal(on_device.astype(object), array.astype(object))


@pytest.mark.parametrize("place", [0, 1 << 20, -1])
@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_one_value_out_of_range_is_found_wherever_it_is(place, value):
    array = np.zeros((3, (1 << 20) + 5), np.int64)
    array.reshape(-1)[place] = value
    for form in (array, np.asfortranarray(array), array[:, ::-1]):
        with pytest.raises(ValueError, match=f"'x'.*{value}"):
            Population.from_arrays({"x": form}, [0, 3])


def test_a_mapped_file_is_checked_in_chunks(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(8_000_000))  # 64 MB
    np.save(tmp_path / "y.npy", np.zeros(8_000_000, np.int32))
    np.save(tmp_path / "offsets.npy", np.array([0, 8_000_000]))
    tracemalloc.start()
    population = Population.open(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(population.arrays["x"], np.memmap)
    assert peak < 24e6


def test_lists_are_arrays_and_ragged_ones_are_named():
    population = Population.from_arrays({"x": [[1, 2], [3, 4]]}, [0, 2])
    assert population.arrays["x"].shape == (2, 2)
    with pytest.raises(ValueError, match=r"'x' is ragged.*2 to 3.*pad"):
        Population.from_arrays({"x": [[1, 2], [3, 4, 5]]}, [0, 2])
    with pytest.raises(ValueError, match=r"client 1.*'x' is ragged"):
        Population.from_clients([{"x": [[1, 2]]}, {"x": [[1, 2], [3]]}])


@pytest.mark.parametrize("name", [3, "", None, ("a", "b")])
def test_names_are_text(name):
    with pytest.raises((TypeError, ValueError), match="named by text"):
        Population.from_arrays({"good": np.ones(2), name: np.ones(2)}, [0, 2])


OFFSETS = {
    "fractions": [0, 2.5, 4],
    "whole floats": [0.0, 2.0, 4.0],
    "nan": [0, np.nan, 4],
    "flags": [False, True],
    "text": ["0", "2", "4"],
    "none": [0, None, 4],
    "complex": [0j, 4],
    "huge": [0, 2**63, 4],
    "dates": np.array([0, 4], "datetime64[s]"),
    "ragged": [[0], [1, 4]],
}


@pytest.mark.parametrize("case", OFFSETS)
def test_offsets_are_whole_numbers(case):
    n = 1 if case == "flags" else 4
    with pytest.raises(
        (TypeError, ValueError), match=r"offsets.*(integers|rise from 0)"
    ):
        Population.from_arrays({"x": np.ones(n)}, OFFSETS[case])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, ">i8"])
def test_offsets_of_any_integers_are_taken(dtype):
    population = Population.from_arrays(
        {"x": np.ones(4)}, np.array([0, 1, 1, 4], dtype)
    )
    assert population.offsets.dtype == np.dtype(np.int64)
    assert population.sizes.tolist() == [1, 0, 3]


FULL = {
    "label": np.array([1, 2], np.int32),
    "tokens": np.ones((2, 3), np.int16),
    "x": np.ones((2, 2), np.float32),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "empty",
    [np.array([]), [], np.zeros((0, 3), np.int8), np.array([], object)],
    ids=repr,
)
def test_an_empty_client_takes_the_dtypes_and_shapes_of_the_others(place, empty):
    clients = [FULL, FULL]
    clients.insert(place, dict.fromkeys(FULL, empty))
    population = Population.from_clients(clients)
    assert population.sizes.tolist() == [0 if k == place else 2 for k in range(3)]
    for name, array in FULL.items():
        assert population.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(
            population.arrays[name], np.concatenate([array, array])
        )


def test_a_client_that_is_empty_in_one_array_only_is_refused():
    with pytest.raises(ValueError, match="client 1: arrays must share"):
        Population.from_clients([FULL, {**FULL, "label": np.array([])}])


DTYPES = ["bool", "int32", "int64", "uint64", "float32", "float64", "complex64"]


@pytest.mark.parametrize(
    ("first", "second"), [(a, b) for a in DTYPES for b in DTYPES if a != b]
)
def test_clients_of_other_dtypes_are_refused_by_name(first, second):
    clients = [
        {"label": np.ones(2, first)},
        {"label": np.array([])},
        {"label": np.ones(3, second)},
    ]
    with pytest.raises(
        ValueError,
        match=rf"client 2: 'label' has dtype {second}, client 0 {first}.*astype",
    ):
        Population.from_clients(clients)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        ({"a": FULL, "b": FULL}, r"list\(clients\.values\(\)\)"),
        (FULL, "from_arrays"),
        ([(np.ones(2), np.ones(2))], "client 0.*mapping.*tuple"),
        ([FULL, None], "client 1.*mapping.*NoneType"),
        ([FULL, {**FULL, 3: np.ones(2)}], "named by text.*3"),
        ([FULL, {**FULL, "z": np.ones(2)}], "client 1 has arrays"),
        ([{"x": 3.0}], "client 0.*'x'.*one row an example"),
        ([{"x": "abc"}], "'x'"),
    ],
)
def test_what_are_no_clients_is_refused(clients, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Population.from_clients(clients)


def test_clients_may_come_from_a_generator():
    assert Population.from_clients(FULL for _ in range(3)).sizes.tolist() == [2, 2, 2]


def test_a_label_out_of_range_is_found_in_any_client():
    clients = [{"label": np.arange(3)} for _ in range(4)]
    clients[2] = {"label": np.array([0, 2**32 + 1])}
    with pytest.raises(ValueError, match=r"'label' holds 4294967297"):
        Population.from_clients(clients)


def test_a_client_is_asked_for_by_a_whole_number():
    population = Population.from_clients([FULL, FULL])
    assert population.client(np.int64(1))["label"].tolist() == [1, 2]
    for k in (1.0, True, "0"):
        with pytest.raises(TypeError, match="client id"):
            population.client(k)
    for k in (-1, 2):
        with pytest.raises(IndexError, match="from 0 to 1"):
            population.client(k)
