"""The model zoo: architectures by name, sized for any data set (layer 5).

``create_model(False, "fashion-mnist", "resnet20_cifar")`` builds a model with Distiller's module names. Each
``*_MODEL_NAMES`` lists the architectures designed for that data set's images; every architecture can be built for
every data set.
"""

from distiller_ng.models._zoo import Architecture, designed_for, zoo_names
from distiller_ng.models.cifar10.plain_cifar import PlainCifar
from distiller_ng.models.cifar10.preresnet_cifar import PreactResNetCifar
from distiller_ng.models.cifar10.resnet_cifar import ResNetCifar, ResNetCifarEarlyExit
from distiller_ng.models.cifar10.simplenet_cifar import SimplenetCifar
from distiller_ng.models.cifar10.vgg_cifar import VGGCifar
from distiller_ng.models.digits.digits_cnn import DigitsCnn
from distiller_ng.models.factory import create_model, is_inception, model_names, register_user_model
from distiller_ng.models.imagenet.alexnet import AlexNet
from distiller_ng.models.imagenet.alexnet_batchnorm import AlexNetBN
from distiller_ng.models.imagenet.mobilenet import MobileNet
from distiller_ng.models.imagenet.resnet import ResNet
from distiller_ng.models.imagenet.resnet_earlyexit import ResNetEarlyExit
from distiller_ng.models.imagenet.vgg import VGG
from distiller_ng.models.language.rnn_model import RNNModel
from distiller_ng.models.mnist.simplenet_mnist import SimplenetMnist, SimplenetV2Mnist
from distiller_ng.models.weights import load_weights_, read_state_dict
from distiller_ng.ops.dataset_shapes import DatasetShape, dataset_names, dataset_shape, register_dataset_shape

ALL_MODEL_NAMES = tuple(zoo_names())
DIGITS_MODEL_NAMES = tuple(designed_for("digits"))
MNIST_MODEL_NAMES = tuple(designed_for("mnist"))
FASHION_MNIST_MODEL_NAMES = tuple(designed_for("fashion-mnist"))
CIFAR10_MODEL_NAMES = tuple(designed_for("cifar10"))
IMAGENET_MODEL_NAMES = tuple(designed_for("imagenet"))

__all__ = [
    "ALL_MODEL_NAMES",
    "CIFAR10_MODEL_NAMES",
    "DIGITS_MODEL_NAMES",
    "FASHION_MNIST_MODEL_NAMES",
    "IMAGENET_MODEL_NAMES",
    "MNIST_MODEL_NAMES",
    "VGG",
    "AlexNet",
    "AlexNetBN",
    "Architecture",
    "DatasetShape",
    "DigitsCnn",
    "MobileNet",
    "PlainCifar",
    "PreactResNetCifar",
    "RNNModel",
    "ResNet",
    "ResNetCifar",
    "ResNetCifarEarlyExit",
    "ResNetEarlyExit",
    "SimplenetCifar",
    "SimplenetMnist",
    "SimplenetV2Mnist",
    "VGGCifar",
    "create_model",
    "dataset_names",
    "dataset_shape",
    "is_inception",
    "load_weights_",
    "model_names",
    "read_state_dict",
    "register_dataset_shape",
    "register_user_model",
]
