"""The arms: what a student learns from its labels and from a tuned teacher."""

from collections.abc import Callable
from typing import Any

import optax
from flax import nnx

import fedjax_fm as ffm
from fedjax_fm import peft, study, tasks
from fedjax_fm.evaluation.evaluate import means
from fedjax_fm.study.judged import joined

# Objectives of Distiller, each beside soft targets of the logits.
SCORES = ("accuracy", "agreement")
SOFT = {"share": 0.5, "temperature": 2.0}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {"share": 0.0},
    "soft": SOFT,
    "square": SOFT | {"features": 1.0, "distance": tasks.mean_square},
    "cosine": SOFT | {"features": 1.0, "distance": tasks.cosine_distance},
    "information": SOFT | {"features": 1.0, "distance": tasks.mutual_information()},
    "last": SOFT | {"features": 1.0, "layer_map": tasks.last},
    "earth_mover": SOFT | {"features": 1.0, "layer_map": tasks.earth_mover},
}


def teacher(run: study.Run) -> Any:
    """The teacher's weights, tuned in one place; computed once for all arms.

    Args:
      run: of a seed.
    """

    def make() -> Any:
        config, pictures = run.config, run.data
        adapted = peft.apply(pictures.teacher, peft.full())
        task = tasks.classification(adapted, inputs=["hidden"])
        steps = config.teacher_steps
        adam = optax.adam(optax.cosine_decay_schedule(config.teacher_rate, steps))
        algorithm = ffm.fedavg(
            task, optax.sgd(1.0), adam, local_steps=1, batch_size=config.batch_size
        )
        taught = {"hidden": pictures.taught["deep"], "label": pictures.taught["label"]}
        found = run.simulate(
            algorithm,
            ffm.Population.from_clients([taught]),
            adapted.delta,
            steps,
            backbone=adapted.backbone,
            cohort_size=1,
            travels=False,
        )
        return nnx.state(adapted.model(*found.model()))

    return run.once("teacher", make)


def task_of(run: study.Run, student: peft.Adapted, objective: str) -> ffm.Task:
    """What the student minimises.

    Args:
      run: of a seed.
      student: what is trained.
      objective: of `OBJECTIVES`.
    """
    graphdef = nnx.graphdef(run.data.teacher)

    def of_student(delta, backbone, batch, key):
        model: Any = student.model(delta, backbone["student"])
        return model.outputs(batch["shallow"])

    def of_teacher(backbone, batch):
        return nnx.merge(graphdef, backbone["teacher"]).outputs(batch["deep"])

    return tasks.distilled(of_student, of_teacher, **OBJECTIVES[objective])


def taught(
    objective: str,
    *,
    central: bool = False,
    shuffle: bool = False,
    tuned: bool = True,
) -> Callable[[study.Run], dict[str, float]]:
    """An arm.

    Args:
      objective: of `OBJECTIVES`.
      central: whether one place has all pictures, and makes as many steps.
      shuffle: whether labels are permuted.
      tuned: whether the teacher was.
    """

    def arm(run: study.Run) -> dict[str, float]:
        config, clients = run.config, run.data.clients
        student = peft.apply(run.data.student, peft.full())
        task = task_of(run, student, objective)
        weights = teacher(run) if tuned else nnx.state(run.data.teacher)
        if shuffle:
            packed = ffm.Population.from_clients(clients)
            arrays = study.shuffled_labels(packed.arrays, run.seed)
            packed = ffm.Population.from_arrays(arrays, packed.offsets)
            clients = [packed.client(k) for k in range(packed.n_clients)]
        if central:
            clients = [joined(clients)]
        cohort = min(config.cohort, len(clients))
        steps = config.local_steps * config.cohort // cohort
        algorithm = ffm.fedavg(
            task,
            optax.adam(run["rate"]),
            local_steps=steps,
            batch_size=config.batch_size,
        )
        found = run.simulate(
            algorithm,
            ffm.Population.from_clients(clients),
            student.delta,
            config.rounds,
            backbone={"student": student.backbone, "teacher": weights},
            cohort_size=cohort,
            task=task,
            test=run.data.test,
            every=config.rounds,
            block_size=1,
            travels=not central,
        )
        return {name: found.scores[name] for name in SCORES}

    return arm


def untrained(run: study.Run) -> dict[str, float]:
    """An arm: the student as it begins."""
    student = peft.apply(run.data.student, peft.full())
    backbone = {"student": student.backbone, "teacher": teacher(run)}
    task = task_of(run, student, "plain")
    found = means(ffm.evaluate(task, student.delta, backbone, run.data.test))
    return {name: found[name] for name in SCORES}


def of_teacher(run: study.Run) -> dict[str, float]:
    """An arm: the teacher itself."""
    model: Any = nnx.merge(nnx.graphdef(run.data.teacher), teacher(run))
    adapted = peft.apply(model, peft.full())
    task = tasks.classification(adapted, inputs=["hidden"])
    test = {"hidden": run.data.test["deep"], "label": run.data.test["label"]}
    scores = means(ffm.evaluate(task, adapted.delta, adapted.backbone, test))
    return {"accuracy": scores["accuracy"], "agreement": 1.0}
