"""Pruning algorithms, one a file (layer 2).

``PRUNERS`` has them by the name schedules use; every one takes ``schedule``, ``scope`` and ``pattern`` besides its own
arguments. Files that begin with an underscore hold what several algorithms share.
"""

from distiller_ng.ops.masks import (
    create_mask_level_criterion,
    create_mask_sensitivity_criterion,
    create_mask_threshold_criterion,
    mask_tensor,
)
from distiller_ng.pruning.acdc import ACDCPruner
from distiller_ng.pruning.activation_apoz import ActivationAPoZRankedFilterPruner
from distiller_ng.pruning.activation_mean import ActivationMeanRankedFilterPruner
from distiller_ng.pruning.agp import AgpPruningRate, AutomatedGradualPruner
from distiller_ng.pruning.baidu_rnn import BaiduRNNPruner
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Pruner, Target
from distiller_ng.pruning.bernoulli import BernoulliFilterPruner
from distiller_ng.pruning.constant import ConstantPruner
from distiller_ng.pruning.dense_sparse_dense import DenseSparseDense
from distiller_ng.pruning.fm_reconstruction import FMReconstructionChannelPruner
from distiller_ng.pruning.gradient_ranked import GradientRankedFilterPruner
from distiller_ng.pruning.gradual_magnitude import MagnitudePruner
from distiller_ng.pruning.group_pruner import GroupPruner
from distiller_ng.pruning.groups import expand_to_groups
from distiller_ng.pruning.importance import IMPORTANCES, Importance
from distiller_ng.pruning.level import SparsityLevelParameterPruner
from distiller_ng.pruning.lp_ranked import (
    L1RankedStructureParameterPruner,
    L2RankedStructureParameterPruner,
    LpRankedStructureParameterPruner,
)
from distiller_ng.pruning.magnitude import MagnitudeParameterPruner
from distiller_ng.pruning.mfac import MFACPruner
from distiller_ng.pruning.movement import MovementPruner
from distiller_ng.pruning.obs import OBSPruner
from distiller_ng.pruning.random_level import RandomLevelStructureParameterPruner
from distiller_ng.pruning.random_ranked import RandomRankedFilterPruner
from distiller_ng.pruning.ranked_agp import (
    ActivationAPoZRankedFilterPruner_AGP,
    ActivationMeanRankedFilterPruner_AGP,
    BernoulliFilterPruner_AGP,
    GradientRankedFilterPruner_AGP,
    L1RankedStructureParameterPruner_AGP,
    L2RankedStructureParameterPruner_AGP,
    RandomRankedFilterPruner_AGP,
)
from distiller_ng.pruning.rigl import RigLPruner
from distiller_ng.pruning.sensitivity import SensitivityPruner
from distiller_ng.pruning.sparsegpt import SparseGPTPruner
from distiller_ng.pruning.sparsity_schedules import AGP, Constant, Exponential, Linear, MultiStep
from distiller_ng.pruning.splicing import SplicingPruner
from distiller_ng.pruning.structure import StructureParameterPruner
from distiller_ng.pruning.structured import StructuredPruner
from distiller_ng.pruning.wanda import WandaPruner

__all__ = [
    "AGP",
    "IMPORTANCES",
    "PRUNERS",
    "ACDCPruner",
    "ActivationAPoZRankedFilterPruner",
    "ActivationAPoZRankedFilterPruner_AGP",
    "ActivationMeanRankedFilterPruner",
    "ActivationMeanRankedFilterPruner_AGP",
    "AgpPruningRate",
    "AutomatedGradualPruner",
    "BaiduRNNPruner",
    "BernoulliFilterPruner",
    "BernoulliFilterPruner_AGP",
    "Constant",
    "ConstantPruner",
    "DenseSparseDense",
    "Exponential",
    "FMReconstructionChannelPruner",
    "GradientRankedFilterPruner",
    "GradientRankedFilterPruner_AGP",
    "GroupPruner",
    "Importance",
    "L1RankedStructureParameterPruner",
    "L1RankedStructureParameterPruner_AGP",
    "L2RankedStructureParameterPruner",
    "L2RankedStructureParameterPruner_AGP",
    "Linear",
    "LpRankedStructureParameterPruner",
    "MFACPruner",
    "MagnitudeParameterPruner",
    "MagnitudePruner",
    "MaskGroup",
    "MovementPruner",
    "MultiStep",
    "OBSPruner",
    "Pruner",
    "RandomLevelStructureParameterPruner",
    "RandomRankedFilterPruner",
    "RandomRankedFilterPruner_AGP",
    "RigLPruner",
    "SensitivityPruner",
    "SparseGPTPruner",
    "SparsityLevelParameterPruner",
    "SplicingPruner",
    "StructureParameterPruner",
    "StructuredPruner",
    "Target",
    "WandaPruner",
    "create_mask_level_criterion",
    "create_mask_sensitivity_criterion",
    "create_mask_threshold_criterion",
    "expand_to_groups",
    "mask_tensor",
]
