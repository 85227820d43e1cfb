"""Every field of a configuration with its default.

Configs hold primary values only; everything derived (steps, GMACs, alpha in GMACs) is derived in
code, so that overrides follow.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

TWO_STAGES = ("pretrain", "joint")
STAGES = (*TWO_STAGES, "single")


def default_config() -> ConfigDict:
    """All fields. Epochs and rates are those of the embedded data; see `configs/` for others."""
    config = ConfigDict()
    config.seed = 0
    # Which stages to run, in this order: ('pretrain', 'joint'), one of them, or ('single',): all at
    # once from random weights, by the fields of `joint`.
    config.stages = TWO_STAGES
    # Evaluation: a workdir whose checkpoint to evaluate instead of --workdir's own.
    config.restore_from = ""

    config.model = _model()
    config.predictor = _predictor()
    config.data = _data()
    config.convert = _convert()
    config.pretrain = _stage(num_epochs=4, batch_size=32, base_learning_rate=4e-3)
    # Weight of the distillation between resolutions; 0: none.
    config.pretrain.distillation = 0.0
    # What is distilled from: the 'ensemble' of all resolutions, or the 'largest' one.
    config.pretrain.teacher = "ensemble"
    # What is trained of imported weights: 'all', 'last_stage' or 'last_two_stages' (all layers at
    # the last sizes of the feature map), 'batch_norm' or only the 'head', which is trained anyway;
    # or 'smaller_batch_norm', which leaves the head and the largest resolution as they are. 'auto':
    # that without labels, else 'last_two_stages'.
    config.pretrain.train = "all"
    # False: BatchNorms of imported weights normalise by the imported statistics, which they keep,
    # and train scale and bias only.
    config.pretrain.batch_statistics = True
    # Another run's workdir, whose finished stage 1 this one starts from, its filters pruned to
    # model.pruning_rates.
    config.pretrain.init_from = ""
    # Which filters: those of the smallest 'l1' norm, or nearest to their layer's geometric median
    # ('fpgm').
    config.pretrain.pruning_criterion = "fpgm"
    config.joint = _joint()

    config.eval = _eval()
    config.inference = _inference()
    config.budget = _budget()
    config.benchmark = _benchmark()
    config.predict = _predict()
    config.export = _export()

    config.report = ConfigDict()
    # Workdirs of evaluated runs that --mode=report compares.
    config.report.runs = ()

    config.checkpoint = ConfigDict()
    # Two: where a crash damages the last one, the one before is used.
    config.checkpoint.keep_latest = 2
    # Also save every so many steps, beside the end of every epoch; 0: no.
    config.checkpoint.every_steps = 0

    config.log = ConfigDict()
    config.log.every_steps = 20
    config.log.tensorboard = True
    # A field that does not exist cannot be set by mistake.
    config.lock()
    return config


def _eval() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.batch_size = 256
    evaluation.split = "test"
    # 'dense': every resolution, and what is compared with it; 'bucketed': the chosen one only, at
    # DRNet's own cost.
    evaluation.dispatch = "dense"
    # Compare DRNet with controls, whose thresholds come from the calibration split: it is evaluated
    # too. For 'dense'.
    evaluation.controls = True
    # Keep the outputs for every image in logits.npz, so that the model runs once: 4 bytes a class,
    # resolution and image.
    evaluation.keep_logits = True
    # Images of every resolution in report.html.
    evaluation.gallery = 12
    return evaluation


def _inference() -> ConfigDict:
    inference = ConfigDict()
    # Batch sizes that are compiled; groups of other sizes are split. Empty: 1, 2, 3, 4, 6, 8, 16,
    # 32 and 64; on a GPU also 128 and more, up to 1024 of small images (docs/inference.md).
    inference.buckets = ()
    # Fold BatchNorm into the convolutions.
    inference.fold = True
    # Measure every bucket first, and split groups as is then cheapest.
    inference.measure = True
    return inference


def _budget() -> ConfigDict:
    budget = ConfigDict()
    # At most one, calibrated by --mode=calibrate; none: the paper's choice. Mean cost of an image,
    # predictor included, in GMACs; mean time of an image in ms, on this device; or points of top-1
    # below the largest resolution.
    budget.gmacs = placeholder(float)
    budget.ms = placeholder(float)
    budget.max_drop = placeholder(float)
    # For ms: images that are classified at once; 0: any number, each network at its best bucket.
    budget.batch_size = 0
    # For max_drop: hold with this probability on new images; 0: on the calibration split alone.
    budget.confidence = 0.0
    return budget


def _benchmark() -> ConfigDict:
    benchmark = ConfigDict()
    benchmark.batch_sizes = (1, 8, 32, 128)
    # Mean cost of an image in GMACs, predictor included: adaptive methods beside lambda = 0.
    benchmark.gmacs = ()
    # Of every method, in turns; fewer where these seconds, for each batch size and input, are over.
    benchmark.repeats = 200
    benchmark.seconds = 30.0
    # Of compiling and timing together: once they are over nothing more begins, and the table says
    # what was left out.
    benchmark.max_seconds = 600.0
    return benchmark


def _predict() -> ConfigDict:
    predict = ConfigDict()
    # A folder of pictures, whatever folders are in it.
    predict.input = ""
    # Where the results go; default: predictions/<name of the input> in the workdir.
    predict.output = ""
    # Of the predictions: 'csv', or 'jsonl': a JSON object a line.
    predict.format = "csv"
    # Pictures of every resolution in gallery.html; 0: no gallery.
    predict.gallery = 60
    # Processes that classify, each with a device of its own (Ray, the extra `ray`); 0: this one.
    predict.workers = 0
    return predict


def _export() -> ConfigDict:
    export = ConfigDict()
    # A folder that is empty or not there yet; default: `export` in the workdir.
    export.output = ""
    # Sizes of batches, for each of which one program with fixed places a resolution is a file too,
    # made for the budget that is set, else for lambda 0. Its places need a calibration.
    export.fixed_batches = ()
    # Every network by jax.export too, for use in JAX.
    export.stablehlo = False
    # Of the data set, on whose images the exported files are compared with JAX.
    export.split = "test"
    # So many of them, from all over the split; 0: all.
    export.images = 64
    # Also files in int8, with ranges of values from the calibration split.
    export.int8 = False
    # So many images of `export.split` tell what they get right; 0: all.
    export.int8_images = 2000
    return export


def _model() -> ConfigDict:
    model = ConfigDict()
    model.name = "resnet10"
    # Keyword arguments of this network, as in a call; those left out are at the network's default.
    # A ResNet takes width, stem and zero_init_residual, the others take width_multiplier: see the
    # functions marked @register in drnet_jax/models.
    model.args = "width=16, stem='small'"
    # By stage of the network, the share of its blocks' inner channels that it lacks; empty: none
    # (docs/training.md, Pruning).
    model.pruning_rates = ()
    # Candidate sides in pixels, largest first. One resolution: a plain classifier.
    model.resolutions = (64, 48, 32)
    # False: one BatchNorm for all resolutions (the paper's ablation).
    model.resolution_aware = True
    # Samples in the joint stage's BatchNorm statistics: 'all', or 'routed' (the paper's text).
    model.statistics = "all"
    # What a second look keeps of a 'glance': 'none', or its 'logits', added with weights that are
    # fitted to held-out images.
    model.reuse = "none"
    # With fewer samples than this in a batch, or routed to a resolution, the running statistics
    # normalise and stay as they are; no batch may be smaller.
    model.min_samples = 4
    model.dtype = "float32"
    # Compute the inside of every block anew in the backward pass: less memory, more time.
    model.remat = False
    # XLA's own convolutions and pooling on the CPU too, instead of faster ones that are equal up to
    # rounding (drnet_jax/models/convolution.py).
    model.stock_operations = False
    return model


def _predictor() -> ConfigDict:
    predictor = ConfigDict()
    # What chooses: a network of its own that sees the 'pixels' (the paper's), or a first look, a
    # 'glance', of the classifier at its smallest resolution, which every image then pays for.
    predictor.kind = "pixels"
    # How the choice is trained in stage 2. 'gumbel': with the classifier (the paper's). Fitted to
    # the calibration split, of a 'glance': 'correctness', how likely each resolution is right,
    # 'spend', the same at all of the target cost, and 'threshold', one score, without training.
    predictor.objective = "gumbel"
    # What a 'glance' is judged by: scores of its logits (drnet_jax/models/glance.py), 'pooled' for
    # its features; the first alone for 'threshold', and where images are too few to fit more.
    predictor.inputs = ("margin", "logit_margin", "entropy", "norm_logit")
    # Of 'pixels': any network of drnet_jax/models, 'resnet' being basic blocks in stages of
    # `stage_sizes`.
    predictor.name = "resnet"
    # As model.args.
    predictor.args = "stage_sizes=(1, 1, 1), width=8, stem='small'"
    predictor.size = 32
    return predictor


def _data() -> ConfigDict:
    data = ConfigDict()
    # 'digits_on_photos' (embedded), 'folder' (your own pictures), 'imagenet100', or any image
    # classification set of TFDS by its name.
    data.name = "digits_on_photos"
    # The folder of pictures, or where TFDS keeps its data sets.
    data.dir = ""
    # Of the data set: another number is an error; 0: whatever it has.
    data.num_classes = 0
    # Held out of every class, where the data set has no such split of its own.
    data.calibration_fraction = 0.1
    data.test_fraction = 0.2
    data.split_seed = 0
    # Processes that decode in training; 0: threads, as in evaluation.
    data.num_workers = 0
    # Random resized crops in training: smallest and largest fraction of the picture's area.
    data.crop_scale = (0.08, 1.0)
    # Centred crop in evaluation, as a fraction of the picture's shorter side.
    data.eval_crop = 224 / 256
    # More unreadable images stop a training, up to then they are left out; more that were replaced
    # under their names since it was begun are refused, up to then they count as repaired.
    data.max_corrupt = 20
    # True: evaluation leaves them out too, instead of stopping.
    data.skip_corrupt = False
    data.flip = False
    data.mean = (0.5, 0.5, 0.5)
    data.std = (0.25, 0.25, 0.25)
    # Training images of every class; 0: all.
    data.images_per_class = 0
    # Images of each split (random ones; of the embedded data the first ones); 0: all.
    data.train_images = 0
    data.eval_images = 0
    return data


def _convert() -> ConfigDict:
    convert = ConfigDict()
    # A weight file of torchvision, timm, Keras and the like, which stage 1 starts from (docs/
    # models.md says which); empty: random weights.
    convert.weights = ""
    # Its classes, where the data have some of them only: a file with a name a line, in the order of
    # the outputs.
    convert.classes = ""
    # The file's last layer: 'keep', 'new' (fitted to the data), or 'auto': kept where it is of the
    # data's classes.
    convert.head = "auto"
    # False: `data.dir` is any folder of pictures, and their labels are what the imported network
    # says at the largest resolution.
    convert.labels = True
    return convert


def _joint() -> ConfigDict:
    joint = _stage(num_epochs=3, batch_size=96, base_learning_rate=1e-3)
    # Another run's workdir, whose finished stage 1 stage 2 starts from.
    joint.init_from = ""
    # Of a fitted objective and of reused logits: the images that they are fitted to. Those of
    # 'train' are easier than new ones (docs/beyond.md).
    joint.fit_split = "calibration"
    joint.predictor_lr_scale = 3.0
    # Of 'single': weight of the sum of the cross-entropies at all resolutions, so that each learns
    # whatever is chosen meanwhile; with 0 the choice can settle on one before the others learn.
    joint.branch_weight = 1.0
    joint.eta = 0.3
    # What choices cost in the regulariser, the target and lambda: 'macs', or 'ms' of an image on
    # this device, each network at the best of inference.buckets, measured once before the training.
    joint.cost = "macs"
    # Target cost of the classifier, at most one of: alpha in GMACs or ms (without the predictor),
    # or a fraction of the largest resolution's cost. Both unset: no regulariser.
    joint.alpha = placeholder(float)
    joint.alpha_fraction = placeholder(float)
    joint.alpha_fraction = 0.5
    # Gumbel-softmax temperature: max(tau_min, tau * tau_decay^epoch).
    joint.tau = 1.0
    joint.tau_decay = 1.0
    joint.tau_min = 0.1
    return joint


def _stage(num_epochs: int, batch_size: int, base_learning_rate: float) -> ConfigDict:
    stage = ConfigDict()
    stage.num_epochs = num_epochs
    stage.batch_size = batch_size
    # Work a batch off in so many micro-batches, for a smaller memory; BatchNorm sees one at a time.
    stage.accumulate = 1
    stage.optimizer = "adamw"
    stage.base_learning_rate = base_learning_rate
    stage.schedule = "cosine"
    stage.warmup_epochs = 0.5
    # For schedule 'step': times decay_rate every decay_epochs.
    stage.decay_epochs = 30
    stage.decay_rate = 0.1
    stage.momentum = 0.9
    stage.weight_decay = 1e-4
    # True: decay reaches BatchNorm parameters and biases too.
    stage.decay_all = False
    # Clip the global gradient norm; 0: no.
    stage.clip_norm = 0.0
    stage.label_smoothing = 0.0
    # Moving average of weights and statistics, used by evaluation and by the next stage; 0: none.
    # Early on its decay is (1 + step) / (10 + step), so that it forgets the initial weights.
    stage.ema_decay = 0.0
    return stage
