"""Real text that is on every machine with Python: paragraphs of the standard library's documentation strings, by topic.

The task: from which group of modules is this paragraph? Nothing is downloaded or imported: the sources are parsed. The
texts are those of the Python that runs this, so that results differ a little between versions.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections import Counter
from pathlib import Path

import torch

TOPICS = {
    "network": ["http", "urllib", "smtplib.py", "ftplib.py", "imaplib.py", "poplib.py", "socket.py", "socketserver.py",
                "ssl.py", "xmlrpc", "ipaddress.py", "selectors.py"],
    "files": ["os.py", "shutil.py", "pathlib.py", "zipfile.py", "zipfile", "tarfile.py", "tempfile.py", "gzip.py",
              "glob.py", "fnmatch.py", "posixpath.py", "ntpath.py", "filecmp.py", "lzma.py", "bz2.py"],
    "numbers": ["statistics.py", "random.py", "fractions.py", "_pydecimal.py", "numbers.py", "datetime.py",
                "_pydatetime.py", "calendar.py", "colorsys.py"],
    "testing": ["unittest", "doctest.py", "pdb.py", "bdb.py", "trace.py", "traceback.py", "timeit.py", "cProfile.py",
                "pstats.py", "inspect.py"],
    "tasks": ["threading.py", "asyncio", "multiprocessing", "concurrent", "queue.py", "sched.py", "subprocess.py"],
    "mail": ["email", "mailbox.py", "html", "xml", "quopri.py", "base64.py", "mimetypes.py"],
}  # fmt: skip
PAD, UNKNOWN, START = 0, 1, 2
Sample = dict[str, torch.Tensor]


def paragraphs(path: Path) -> list[str]:
    """Paragraphs of 8 words and more of a file's documentation strings."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    parts = [" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text)]
    return [part for part in parts if len(words(part)) >= 8]


def words(text: str) -> list[str]:
    """Lower-case words and numbers; names such as ``file_name`` fall apart."""
    return re.findall(r"[a-z]+|\d", text.lower())


def texts_by_topic() -> list[tuple[str, int]]:
    """Every paragraph once, with its topic's number."""
    library, found = Path(sysconfig.get_paths()["stdlib"]), {}
    for number, places in enumerate(TOPICS.values()):
        for place in places:
            path = library / place
            files = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
            for text in (text for file in files if file.is_file() for text in paragraphs(file)):
                found.setdefault(text, number)
    return list(found.items())


def load(
    length: int = 48, vocabulary: int = 3000
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]], int]:
    """Training and test samples as the Trainer takes them, 80 % and 20 %, and the number of words known."""
    texts = texts_by_topic()
    random.Random(0).shuffle(texts)
    size = len(texts) // 5
    test, train = texts[:size], texts[size:]
    counts = Counter(word for text, _ in train for word in words(text))
    numbers = {word: 3 + i for i, (word, n) in enumerate(counts.most_common(vocabulary)) if n > 1}

    def sample(text: str, topic: int) -> Sample:
        ids = [START, *(numbers.get(word, UNKNOWN) for word in words(text))][:length]
        mask = [1] * len(ids) + [0] * (length - len(ids))
        ids += [PAD] * (length - len(ids))
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(topic)}

    return [sample(*one) for one in train], [sample(*one) for one in test], len(numbers) + 3
