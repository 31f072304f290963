"""Other people's training loops: one file each, imported by name only when it is wanted.

``distiller_ng.integrations.lightning``, ``.transformers`` and ``.accelerate`` need the package they are called after.
"""
