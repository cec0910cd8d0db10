"""pfl-research: FederatedAveraging on a simulated backend, without evaluation.

One process, PyTorch.
"""

import protocol
import torch
import torch_models
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional as F

# Rounds between two evaluations. pfl evaluates every client in round 0 in any case,
# which lengthens the first call alone.
NEVER = 10**9


def with_loss(model):
    """Pfl reads the loss and the metrics off the module."""
    model.loss = lambda x, y, eval=False: F.cross_entropy(model(x), y)
    model.metrics = lambda x, y, eval=False: {
        "loss": Weighted(float(model.loss(x, y)) * len(x), len(x))
    }
    return model


def build(workload, data):
    """See protocol.serve."""
    module = with_loss(torch_models.make(workload, data.start))
    model = PyTorchModel(
        module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)
    )
    clients = torch_models.tensors(data)
    sampler = get_user_sampler("minimize_reuse", list(range(data.n_clients)))
    population = FederatedDataset(
        lambda k: Dataset(list(clients[k]), user_id=str(k)), sampler
    )
    backend = SimulatedBackend(
        population, population, postprocessors=[WeightByDatapoints()]
    )
    local = NNTrainHyperParams(
        local_batch_size=data.batch_size,
        local_num_epochs=data.epochs,
        local_learning_rate=data.learning_rate,
    )
    algorithm, done = FederatedAveraging(), 0

    def run(rounds):
        nonlocal done
        done += rounds
        settings = NNAlgorithmParams(
            central_num_iterations=done,
            evaluation_frequency=NEVER,
            train_cohort_size=data.n_clients,
            val_cohort_size=0,
        )
        algorithm.run(
            settings,
            backend,
            model,
            local,
            callbacks=[],
            send_metrics_to_platform=False,
        )

    return run, lambda: torch_models.named(module, data.start)


if __name__ == "__main__":
    protocol.serve(build)
