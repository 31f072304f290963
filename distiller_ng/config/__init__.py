"""Schedules as text: read with line and column, checked as a whole, and turned into live objects (layer 4)."""

from distiller_ng.config.api import config_component_from_file_by_class, dict_config, file_config, read_schedule
from distiller_ng.config.checking import ScheduleCheck, check_schedule
from distiller_ng.config.frontends.base import FRONTENDS, Frontend
from distiller_ng.config.one_shot import apply
from distiller_ng.config.spec import ComponentSpec, PolicySpec, ScheduleSpec
from distiller_ng.policies.extensions import EXTENSIONS

__all__ = [
    "EXTENSIONS",
    "FRONTENDS",
    "ComponentSpec",
    "Frontend",
    "PolicySpec",
    "ScheduleCheck",
    "ScheduleSpec",
    "apply",
    "check_schedule",
    "config_component_from_file_by_class",
    "dict_config",
    "file_config",
    "read_schedule",
]
