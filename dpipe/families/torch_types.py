"""What networks are made of that is known to be harmless: layers, losses and optimizers, functions of tensors."""

_LAYERS = {
    "activation": "ELU GELU Hardtanh LeakyReLU LogSoftmax MultiheadAttention PReLU ReLU ReLU6 SELU SiLU Sigmoid "
    "Softmax Softplus Tanh",
    "batchnorm": "BatchNorm1d BatchNorm2d BatchNorm3d",
    "container": "ModuleDict ModuleList ParameterList Sequential",
    "conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    "dropout": "Dropout Dropout1d Dropout2d Dropout3d",
    "flatten": "Flatten Unflatten",
    "linear": "Bilinear Identity Linear NonDynamicallyQuantizableLinear",
    "normalization": "GroupNorm LayerNorm RMSNorm",
    "pooling": "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool1d AdaptiveMaxPool2d AvgPool1d AvgPool2d MaxPool1d "
    "MaxPool2d MaxPool3d",
    "sparse": "Embedding EmbeddingBag",
}
_SCHEDULES = "ConstantLR CosineAnnealingLR ExponentialLR LinearLR MultiStepLR OneCycleLR StepLR"
_LOSSES = (
    "binary_cross_entropy_with_logits cross_entropy gaussian_nll_loss huber_loss l1_loss mse_loss nll_loss "
    "poisson_nll_loss smooth_l1_loss"
)
_OPTIMIZERS = {"adagrad": "Adagrad", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}

TORCH_TYPES = frozenset(
    {
        "dpipe.train.networks.data_parallel.DataParallel",
        "dpipe.train.networks.model_parallel.ModelParallel",
        *(f"torch.nn.modules.{file}.{name}" for file, names in _LAYERS.items() for name in names.split()),
        *(f"torch.nn.functional.{name}" for name in _LOSSES.split()),
        *(f"torch.optim.{file}.{name}" for file, name in _OPTIMIZERS.items()),
        *(f"torch.optim.lr_scheduler.{name}" for name in _SCHEDULES.split()),
        "functools.partial",  # what it calls stands beside it, by its own name
        "torch._C._nn.mse_loss",
    }
)
