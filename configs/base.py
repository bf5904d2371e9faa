"""Every field with its default: the paper's setting where the paper states it.

A block is the keyword arguments of exactly one function, named beside it. ``ConfigDict`` does not
leave ``zo_fl/train.py``; a field that is not here is an error.

Learning rates are not in the paper. ``warmup.lr`` is its author's public default order (0.1 to
0.03); ``zo.lr`` follows from matching the norm of the zeroth-order update, lr * tau^2 * |grad| *
sqrt(d / (S * cohort)), to that of a first-order step of rate 0.01 to 0.1.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns ZOWarmUp on CIFAR-10, ResNet18, 10/90 split."""
    config = ConfigDict()
    config.algorithm = "zowarmup"  # a name in zo_fl/algorithms
    config.seed = 0  # initial weights, cohorts, batches, augmentation, directions

    config.data = ConfigDict(  # zo_fl.data.federated.load
        dict(
            name="cifar10",  # cifar10_sample, synthetic, imagenet_resized/32x32, any set of TFDS
            data_dir="",  # "" = $TFDS_DATA_DIR, else ~/tensorflow_datasets
            num_clients=50,  # population, K
            partition="dirichlet",  # dirichlet, iid or shards
            alpha=0.1,  # label skew of dirichlet; smaller is more skewed
            shards_per_client=2,  # of shards
            high_fraction=0.1,  # share of high-resource clients, drawn at random
            val_fraction=0.1,  # of each client's examples
            partition_seed=0,  # partition, validation split and tiers
        )
    )
    config.model = ConfigDict(  # zo_fl.models.create
        dict(
            name="resnet18",  # resnet18, preact_resnet18, vit, cnn, cnn_large, mlp
            norm="batch",  # batch, group (2 groups), layer (vit), none
            conv="auto",  # xla, fast_grad, patches; auto = measured best of the backend
        )
    )
    config.warmup = ConfigDict(  # zo_fl.algorithms.fedavg.phase
        dict(
            num_rounds=200,  # the pivot
            cohort_size=0,  # clients a round; 0 = all that are eligible
            tiers="high",  # who may take part: high or all
            participation="uniform",  # of a cohort: uniform or stratified by tier
            local_epochs=3,
            batch_size=64,
            lr=0.05,  # client learning rate
            momentum=0.0,  # client momentum
            weight_decay=0.0,  # client weight decay, coupled (L2)
            server_lr=1.0,
            server=_server(),
            augment=True,  # random crop and flip
            precision="highest",  # matrix products; highest = float32, default = the fastest
        )
    )
    config.zo = ConfigDict(  # zo_fl.algorithms.zo.phase
        dict(
            num_rounds=300,
            cohort_size=0,
            tiers="all",
            participation="uniform",
            estimator="two_point",
            distribution="rademacher",  # rademacher, gaussian or sphere
            eps=1e-4,  # perturbation scale
            tau=0.75,  # standard deviation of a direction's coordinates
            num_directions=3,  # S
            seed_policy="per_client",  # per_client or shared directions
            aggregation="mean",  # mean, or the printed algorithm's sum over clients and directions
            bn_policy="batch_sync",  # frozen, batch, batch_sync, recalibrate: algorithms/zo.py
            microbatch=0,  # examples a forward pass; 0 = the client's whole set at once
            lr=2e-4,  # server and client rates multiplied; scaled for aggregation="mean"
            server=_server(),
            augment=False,
            precision="highest",
        )
    )
    config.run = ConfigDict(  # zo_fl.train
        dict(
            device="auto",  # auto, cpu, gpu or tpu
            num_devices=0,  # devices to use; 0 = all there are
            clients_per_vmap=1,  # clients evaluated at once on a device: speed and memory only
            rounds_per_jit=10,  # rounds a dispatch at most
            eval_every=10,  # rounds; the end of each phase is always evaluated
            eval_batch_size=500,
            eval_precision="highest",
            checkpoint_every=10,  # rounds; the end of each phase is always saved
        )
    )
    return config


def _server() -> ConfigDict:
    return ConfigDict(  # zo_fl.server_optimizers.create
        dict(
            name="sgd",  # sgd, momentum, adam, yogi, adagrad
            b1=0.9,
            b2=0.999,
            eps=1e-8,  # adaptivity
            initial_accumulator=0.0,
            bias_correction=True,
        )
    )
