"""The command ``distiller-ng`` (layer 5): one file for each command, registered in ``COMMANDS``."""
