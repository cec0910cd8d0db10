"""States on disk: whole or not there, and never quietly another one."""

import asyncio
import gc
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_fm.engine.state import HostStore
from fedjax_fm.runs import CheckpointError, Checkpoints, DamagedCheckpoint, OtherRun
from fedjax_fm.runs.checkpoint import _ignore_late_reads


class State(NamedTuple):
    weights: dict
    optimizer: tuple
    key: jax.Array
    nothing: jax.Array  # of size zero, which Orbax refuses
    store: HostStore
    round: jax.Array


def make_state(scale: float = 1.0) -> State:
    weights = {
        "w": scale * jnp.arange(6.0).reshape(2, 3),
        "mask": jnp.array([True, False]),
        "b": jnp.bfloat16(0.3),
    }
    store = HostStore(
        rows={"mine": np.full((3, 2), scale, np.float32)},
        touched=np.array([True, False, True]),
        first_delta={},
        rounds=np.array([4]),
    )
    return State(
        weights=weights,
        optimizer=optax.adam(0.1).init(weights["w"]),
        key=jax.random.key(7),
        nothing=jnp.zeros((0, 3)),
        store=store,
        round=jnp.int32(4 * scale),
    )


def assert_equal(a: State, b: State) -> None:
    def data(x):
        return (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        )

    jax.tree.map(lambda x, y: np.testing.assert_array_equal(data(x), data(y)), a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


@pytest.fixture
def three(tmp_path):
    """A folder to which rounds 1, 2 and 3 were saved."""
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    for number in (1, 2, 3):
        checkpoints.save(number, make_state(number))
    checkpoints.close()
    return tmp_path / "checkpoint"


def arrays_of(step):
    """The largest file of a checkpoint: its arrays."""
    return max(
        (file for file in step.rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )


def test_every_kind_of_leaf_comes_back_and_two_are_kept(three):
    checkpoints = Checkpoints(three)
    assert checkpoints.latest == 3
    assert sorted(int(path.name) for path in three.iterdir()) == [2, 3]
    state, problems = checkpoints.restore_newest(make_state())
    assert_equal(state, make_state(3))
    assert problems == []
    assert state.store.rows["mine"].flags.writeable  # rounds write into it
    assert_equal(checkpoints.restore(2, make_state()), make_state(2))


def test_an_empty_folder_holds_nothing(tmp_path):
    assert Checkpoints(tmp_path / "checkpoint").restore_newest(make_state()) == (
        None,
        [],
    )


def test_a_round_that_is_there_is_not_written_again(three):
    checkpoints = Checkpoints(three)
    checkpoints.save(3, make_state(9))
    assert_equal(checkpoints.restore(3, make_state()), make_state(3))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a byte near the start": lambda step: flip(arrays_of(step), 0.1),
    "a byte in the middle": lambda step: flip(arrays_of(step), 0.5),
    "a file cut short": lambda step: arrays_of(step).write_bytes(
        arrays_of(step).read_bytes()[:-20]
    ),
    "a file that is gone": lambda step: arrays_of(step).unlink(),
    "the manifest gone": lambda step: (step / "default" / "manifest.ocdbt").unlink(),
    "its own metadata cut short": lambda step: (
        step / "default" / "_METADATA"
    ).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_for_the_older_one(three, damage):
    DAMAGE[damage](three / "3")
    checkpoints = Checkpoints(three)
    state, problems = checkpoints.restore_newest(make_state())
    assert_equal(state, make_state(2))
    (problem,) = problems
    assert problem.startswith("the checkpoint of round 3 ")
    assert (three.parent / "damaged-3").is_dir()
    checkpoints.save(3, make_state(3))  # done once more
    assert_equal(Checkpoints(three).restore_newest(make_state())[0], make_state(3))


def test_a_round_that_is_damaged_again_is_set_aside_beside_the_first(three):
    for _ in range(3):
        flip(arrays_of(three / "3"), 0.5)
        checkpoints = Checkpoints(three)
        checkpoints.restore_newest(make_state())
        checkpoints.save(3, make_state(3))
        checkpoints.close()
    aside = sorted(path.name for path in three.parent.glob("damaged-*"))
    assert aside == ["damaged-3", "damaged-3-2", "damaged-3-3"]
    assert_equal(Checkpoints(three).restore_newest(make_state())[0], make_state(3))


def test_a_limit_on_files_is_no_full_disk(tmp_path):
    """RLIMIT_FSIZE, which the system holds against Orbax' own threads, too."""
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(1, make_state())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(
            CheckpointError,
            match=r"checkpoint/2: the file is larger than it may be; .*up to 1 are safe.*ulimit -f",
        ):
            checkpoints.save(2, make_state(2.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["1"]
    checkpoints.save(2, make_state(2.0))
    assert_equal(checkpoints.restore_newest(make_state())[0], make_state(2.0))


NOISE = """
import sys; sys.path[:0] = sys.argv[2:]
from pathlib import Path
import jax.numpy as jnp
from fedjax_fm.runs import Checkpoints
import test_checkpoint as t

for number in range(12):
    damage = t.DAMAGE[("a file that is gone", "the manifest gone")[number % 2]]
    state = {f"w{k}": jnp.arange(50_000.0) * 1.37 * k for k in range(8)}
    place = Path(sys.argv[1]) / str(number) / "checkpoint"
    checkpoints = Checkpoints(place)
    checkpoints.save(1, state), checkpoints.save(2, state), checkpoints.close()
    damage(place / "2")
    checkpoints = Checkpoints(place)
    found, problems = checkpoints.restore_newest(state)
    assert len(problems) == 1 and len(problems[0]) < 500 and "\\n" not in problems[0], problems
    checkpoints.close()
"""


def test_damage_is_told_by_the_warning_alone(tmp_path):
    """Orbax' threads log the error with their stacks, and reads on their way find their
    event loop closed.
    """
    paths = (str(Path(__file__).parent), str(Path(__file__).parents[1] / "helpers"))
    done = subprocess.run(
        [sys.executable, "-c", NOISE, str(tmp_path), *paths],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("message", "is_told"),
    [('NOT_FOUND: "w" in OCDBT database at ...', False), ("of somebody else", True)],
)
def test_a_read_that_nobody_waits_for_is_not_told(message, is_told, caplog):
    _ignore_late_reads()
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    future.set_exception(ValueError(message))
    with caplog.at_level("ERROR", logger="asyncio"):
        del future
        gc.collect()
    loop.close()
    assert ("never retrieved" in caplog.text) == is_told


def test_a_disk_that_is_full_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    """Orbax passes on a ValueError of its own, with the system's words in it."""
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(1, make_state())

    def full(step, args, custom_metadata):
        (tmp_path / "checkpoint" / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise ValueError(
            "RESOURCE_EXHAUSTED: Failed to write 9 bytes to file 1: No space "
            "left on device [os_error_code='28']"
        )

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints._manager, "save", full)
        with pytest.raises(
            CheckpointError,
            match=r"checkpoint/2: no space is left on the device; the rounds up to 1 are safe",
        ):
            checkpoints.save(2, make_state(2.0))
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["1"]
    checkpoints.save(2, make_state(2.0))
    assert_equal(checkpoints.restore_newest(make_state())[0], make_state(2.0))


def test_if_all_are_damaged_nothing_starts_from_scratch(three):
    for number in ("2", "3"):
        flip(arrays_of(three / number), 0.5)
    with pytest.raises(
        DamagedCheckpoint, match=r"no checkpoint in .* is whole: .*round 3 .*round 2 "
    ):
        Checkpoints(three).restore_newest(make_state())
    assert (three / "3").is_dir()


def test_another_configuration_is_refused_by_name(three):
    wider = make_state()._replace(
        weights={**make_state().weights, "w": jnp.zeros((2, 4))}
    )
    with pytest.raises(
        OtherRun,
        match=r"round 3 is of another run: .*w.*expected float32\[2, 4\], got float32\[2, 3\]",
    ):
        Checkpoints(three).restore_newest(wider)
    with pytest.raises(OtherRun, match=r"missing leaves .*extra"):
        Checkpoints(three).restore_newest(
            make_state()._replace(
                weights={**make_state().weights, "extra": jnp.ones(1)}
            )
        )
    assert (three / "3").is_dir()
