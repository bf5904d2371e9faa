"""Every field with its default: the paper's setting where the paper states it.

A block is the keyword arguments of exactly one function, named beside it. ``ConfigDict`` does not
leave ``zo_fl/train.py``; a field that is not here is an error.

Learning rates are not in the paper. ``warmup.lr`` is its author's public default order (0.1 to
0.03); ``zo.lr`` follows from matching the norm of the zeroth-order update, lr * tau^2 * |grad| *
sqrt(d / (S * cohort)), to that of a first-order step of rate 0.01 to 0.1. The other zeroth-order
methods' rates follow by matching the norm of *their* update of a round to it: with k local steps of
S directions each it is lr * tau^2 * |grad| * sqrt(k d / (S * cohort)), without the cohort if
directions are shared. HeteroFL's and BAFFLE's are their sources'. None was tuned.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns ZOWarmUp on CIFAR-10, ResNet18, 10/90 split."""
    config = ConfigDict()
    config.algorithm = "zowarmup"  # a name in zo_fl/algorithms; "fedavg+decomfl" runs both
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
            precision="float32",  # tf32, bfloat16: zo_fl/core/precision.py
        )
    )
    config.zo = _zo()  # zo_fl.algorithms.zo.phase
    config.zo.update(num_rounds=300, lr=2e-4)

    # Other methods. Alone they start from scratch and take all 500 rounds; after a warm-up
    # (algorithm="fedavg+decomfl") set num_rounds to 300.
    config.heterofl = ConfigDict(  # zo_fl.algorithms.heterofl.phase
        dict(
            num_rounds=500,
            cohort_size=0,
            levels="ab",  # widths 1, 1/2, 1/4, 1/8, 1/16 = a to e; the first is the high tier's
            assignment="tier",  # tier, or dynamic: re-drawn every round
            local_epochs=3,
            batch_size=64,
            lr=0.1,
            milestones=(200, 400),  # rounds after which lr is divided by 10
            momentum=0.9,
            weight_decay=5e-4,
            clip_norm=1.0,
            mask_logits=True,  # logits of classes that a client does not hold are set to 0
            augment=True,
            precision="float32",
        )
    )
    config.fedkseed = _zo(without=("seed_policy", "aggregation", "local_lr", "server"))
    config.fedkseed.update(  # zo_fl.algorithms.fedkseed.phase; fedkseed_pro reads it too
        num_rounds=500, distribution="gaussian", eps=5e-4, tau=1.0, num_directions=1
    )
    config.fedkseed.update(local_steps=200, batch_size=16, lr=4e-6)
    config.fedkseed.candidate_seeds = 4096  # K; its source has batches of 1, for language models
    config.decomfl = _zo(without=("seed_policy", "aggregation", "weights"))
    config.decomfl.update(  # zo_fl.algorithms.decomfl
        num_rounds=500, distribution="gaussian", eps=1e-3, tau=1.0, num_directions=5
    )
    config.decomfl.update(local_steps=4, batch_size=64, lr=1e-5)
    config.fedzo = _zo(without=("seed_policy", "aggregation", "weights"))
    config.fedzo.update(  # zo_fl.algorithms.fedzo.phase
        num_rounds=500, estimator="forward", distribution="sphere", tau=1.0, num_directions=5
    )
    config.fedzo.update(local_steps=10, batch_size=50, lr=1.0, local_lr=4e-5)
    config.fedzo.eps = 1e-4
    config.baffle = _zo(without=("seed_policy", "aggregation", "weights"))
    config.baffle.update(  # zo_fl.algorithms.baffle.phase
        num_rounds=500, estimator="forward", distribution="gaussian", eps=1e-4, tau=1.0
    )
    config.baffle.update(num_directions=100, batch_size=0, lr=1e-2, clip=0.3, ema=0.995)
    config.baffle.server.update(name="adam", b2=0.99, weight_decay=5e-4)
    config.mezo = _zo(
        without=(
            *("cohort_size", "tiers", "participation", "weights"),
            *("seed_policy", "aggregation", "local_steps", "local_lr"),
        )
    )
    config.mezo.update(  # zo_fl.algorithms.mezo
        num_rounds=500, distribution="gaussian", eps=1e-3, tau=1.0, num_directions=1
    )
    config.mezo.update(batch_size=64, lr=1e-5)
    config.run = ConfigDict(  # zo_fl.train
        dict(
            device="auto",  # auto, cpu, gpu or tpu
            num_devices=0,  # devices to use; 0 = all there are
            clients_per_vmap=0,  # clients evaluated at once on a device; 0 = measured best
            unroll=1,  # clients whose loop is unrolled; these two change speed and memory only
            data="auto",  # device: all on each; stream: on the host; auto: stream on many hosts
            rounds_per_jit=10,  # rounds a dispatch at most
            eval_every=10,  # rounds; the end of each phase is always evaluated
            eval_batch_size=500,
            eval_precision="float32",
            checkpoint_every=10,  # rounds; the end of each phase is always saved
        )
    )
    return config


def _zo(without: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the block of a zeroth-order method, without the fields that the method fixes."""
    fields = dict(
        num_rounds=0,
        cohort_size=0,
        tiers="all",
        participation="uniform",
        weights="examples",  # of clients in the mean: examples or uniform
        estimator="two_point",  # two_point: 2 S passes; forward: S + 1
        distribution="rademacher",  # rademacher, gaussian or sphere
        eps=1e-4,  # perturbation scale
        tau=0.75,  # standard deviation of a direction's coordinates
        num_directions=3,  # S
        seed_policy="per_client",  # per_client or shared directions
        aggregation="mean",  # mean, or the printed algorithm's sum over clients and directions
        local_steps=1,  # a client's own steps a round
        batch_size=0,  # examples a local step; 0 = the client's examples split evenly over them
        bn_policy="batch_sync",  # frozen, batch, batch_sync, recalibrate: clients/zeroth_order.py
        microbatch=0,  # examples a forward pass; 0 = all of a step at once
        lr=0.0,  # server and client rates multiplied; scaled for aggregation="mean"
        local_lr=0.0,  # between a client's own steps; 0 = lr
        server=_server(),
        augment=False,
        precision="float32",  # tf32, bfloat16: zo_fl/core/precision.py
    )
    return ConfigDict({name: value for name, value in fields.items() if name not in without})


def _server() -> ConfigDict:
    return ConfigDict(  # zo_fl.server_optimizers.create
        dict(
            name="sgd",  # sgd, momentum, adam, yogi, adagrad
            b1=0.9,
            b2=0.999,
            eps=1e-8,  # adaptivity
            initial_accumulator=0.0,
            bias_correction=True,
            weight_decay=0.0,  # decoupled
        )
    )
