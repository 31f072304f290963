"""What the tests of commands share."""

from __future__ import annotations

from distiller_ng.cli.main import main


def fails_with(capsys, arguments, said):
    """The command ends in 1, with one clear line on standard error and nothing on standard output."""
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status == 1 and out == "", out
    assert said in err and "Traceback" not in err and len(err.splitlines()) == 1, repr(err)
