import logging
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distiller_ng.apputils import log_setup
from distiller_ng.apputils.log_setup import close_pylogger, config_pylogger, log_execution_env_state
from distiller_ng.errors import ArgumentError


@pytest.fixture(autouse=True)
def _put_back():
    package = logging.getLogger("distiller_ng")
    before = (list(package.handlers), package.level, package.propagate)
    yield
    close_pylogger()
    assert package.handlers == before[0] and package.propagate == before[2]
    package.setLevel(before[1])


def test_run_folder_file_and_first_line(tmp_path, capsys):
    logger = config_pylogger(None, "exp", tmp_path / "logs")
    folder, path = Path(logger.logdir), Path(logger.log_filename)
    assert re.fullmatch(r"exp___\d{4}\.\d\d\.\d\d-\d{6}", folder.name) and folder.parent == tmp_path / "logs"
    assert path == folder / f"{folder.name}.log"
    first = f"Log file for this run: {os.path.realpath(path)}"
    assert capsys.readouterr().out == first + "\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d .* - " + re.escape(first), path.read_text().strip())


def test_name_is_the_time_without_an_experiment(tmp_path):
    assert re.fullmatch(r"\d{4}\.\d\d\.\d\d-\d{6}", Path(config_pylogger(None, None, tmp_path).logdir).name)


def test_two_runs_in_one_second_get_two_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(log_setup.time, "strftime", lambda form: "2024.05.01-093000")
    names = [Path(config_pylogger(None, "e", tmp_path).logdir).name for _ in range(3)]
    assert names == ["e___2024.05.01-093000", "e___2024.05.01-093000_2", "e___2024.05.01-093000_3"]


def test_library_messages_go_to_the_file_of_the_latest_run_only(tmp_path):
    first = Path(config_pylogger(None, "one", tmp_path).log_filename)
    second = Path(config_pylogger(None, "two", tmp_path).log_filename)
    logging.getLogger("distiller_ng.pruning.level").warning("from the library")
    assert "from the library" not in first.read_text()
    assert second.read_text().count("WARNING: ") == 1 and "from the library" in second.read_text()
    assert len([h for h in logging.getLogger("distiller_ng").handlers if isinstance(h, logging.FileHandler)]) == 1


def test_root_logger_is_left_alone(tmp_path):
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    config_pylogger(None, "e", tmp_path, verbose=True)
    assert (root.level, list(root.handlers)) == before


@pytest.mark.parametrize(("verbose", "shown"), [(False, False), (True, True)])
def test_verbose_shows_debug(tmp_path, capsys, verbose, shown):
    logger = config_pylogger(None, "e", tmp_path, verbose)
    logger.debug("detail")
    logger.info("news")
    out = capsys.readouterr().out
    assert ("detail" in out) is shown and "news" in out
    assert ("detail" in Path(logger.log_filename).read_text()) is shown


def test_a_user_who_prints_the_root_logger_sees_no_line_twice(tmp_path, capsys):
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stdout)
    root.addHandler(handler)
    try:
        config_pylogger(None, "e", tmp_path).info("only once")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().out.count("only once") == 1


def test_configuration_file_gives_formats_and_level(tmp_path, capsys):
    conf = tmp_path / "logging.conf"
    conf.write_text(
        "[formatters]\nkeys: short, long\n[formatter_short]\nformat: > %(message)s\n"
        "[formatter_long]\nformat: %(levelname)s|%(message)s\n"
        "[handler_console]\nclass: StreamHandler\nargs: [__import__('os').abort()]\nformatter: short\n"
        "[handler_file]\nformatter: long\nargs=('%(logfilename)s', 'w')\n[logger_root]\nlevel: WARNING\n"
    )
    logger = config_pylogger(conf, "e", tmp_path)
    logger.info("hidden")
    logger.error("seen")
    assert capsys.readouterr().out == "ERROR: > seen\n"
    assert Path(logger.log_filename).read_text() == "ERROR: ERROR|seen\n"


def test_a_configuration_file_that_is_not_there_is_said(tmp_path, capsys):
    config_pylogger(tmp_path / "logging.conf", "e", tmp_path)
    assert re.search(r"WARNING: .*logging\.conf does not exist", capsys.readouterr().out)


@pytest.mark.parametrize(
    "text",
    ["no section", "[logger_root]\nlevel: LOUD\n", "[handler_file]\nformatter: f\n[formatter_f]\nformat: %(message\n"],
)
def test_a_bad_configuration_file_makes_no_folder(tmp_path, text):
    conf = tmp_path / "bad.conf"
    conf.write_text(text)
    with pytest.raises(ArgumentError, match=r"bad\.conf: not a usable logging configuration"):
        config_pylogger(conf, "e", tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("name", ["a/b", "..\\x"])
def test_experiment_names_are_plain(tmp_path, name):
    with pytest.raises(ArgumentError) as caught:
        config_pylogger(None, name, tmp_path)
    assert caught.value.argument == ("experiment_name",)


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(ArgumentError, match="below a file, not a folder"):
        config_pylogger(None, "e", tmp_path / "logs")


def test_close_is_safe_without_a_run():
    before = list(logging.getLogger("distiller_ng").handlers)
    close_pylogger()
    assert logging.getLogger("distiller_ng").handlers == before


# ---------------------------------------------------------------------------------------------------- environment


def test_environment_is_logged_and_returned(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs=3"])
    monkeypatch.chdir(tmp_path)
    logger = config_pylogger(None, "e", tmp_path)
    state = log_execution_env_state()
    text = Path(logger.log_filename).read_text()
    assert state["Python"] == platform.python_version() and state["PyTorch"] == torch.__version__
    assert int(state["Number of CPUs"]) >= 1
    for key, value in state.items():
        assert f"{key}: {value}" in text
    assert "Command line: train.py --epochs=3" in text


def test_git_commit_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert log_execution_env_state()["Git"] == "not available (no git repository here)"

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "trunk")
    (tmp_path / "f").write_text("1")
    git("add", "f")
    git("commit", "-q", "-m", "first")
    assert log_execution_env_state()["Git"] == f"commit {git('rev-parse', 'HEAD')}, branch trunk"
    (tmp_path / "f").write_text("2")
    assert log_execution_env_state()["Git"].endswith("with uncommitted changes")


def test_without_git(monkeypatch):
    def absent(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(log_setup.subprocess, "run", absent)
    assert log_execution_env_state()["Git"].startswith("not available")


def test_configuration_files_are_copied(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "agp.yaml").write_text("first")
    (tmp_path / "b" / "agp.yaml").write_text("second")
    run = tmp_path / "run"
    log_execution_env_state([str(tmp_path / "a" / "agp.yaml"), None, tmp_path / "b" / "agp.yaml"], run)
    assert (run / "configs" / "agp.yaml").read_text() == "first"
    assert (run / "configs" / "agp_2.yaml").read_text() == "second"
    log_execution_env_state(tmp_path / "a" / "agp.yaml", str(tmp_path / "run2"))
    assert (tmp_path / "run2" / "configs" / "agp.yaml").read_text() == "first"


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(ArgumentError, match=r"nope\.yaml does not exist"):
        log_execution_env_state(tmp_path / "nope.yaml", tmp_path / "run")
    assert not (tmp_path / "run").exists()
