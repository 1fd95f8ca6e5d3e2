"""The bit stream ``.dqc``: one photo's codes and grain map, entropy-coded, in as few bytes as its tables allow."""

from dqcore.stream.counts import CodeCounts, code_classes, fit_tables
from dqcore.stream.files import TABLES, load_code_tables, save_code_tables
from dqcore.stream.header import Header, read_header
from dqcore.stream.stream import Decoded, read_stream, write_stream
from dqcore.stream.tables import CodeTables

__all__ = [
    "TABLES",
    "CodeCounts",
    "CodeTables",
    "Decoded",
    "Header",
    "code_classes",
    "fit_tables",
    "load_code_tables",
    "read_header",
    "read_stream",
    "save_code_tables",
    "write_stream",
]
