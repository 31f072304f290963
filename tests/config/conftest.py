from config_helpers import load

__all__ = ["load"]
