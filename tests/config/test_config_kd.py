"""Distillers in schedules: what a file says equals what Python says; every mistake with its place."""

from __future__ import annotations

import argparse

import pytest
import torch
import yaml
from config_helpers import problems_of
from torch import nn
from torch.nn import functional

import distiller_ng as distiller
