"""The decoder that docs/formats.md spells out reads what is written: the page is enough to read a file by."""

import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from dqcore.stream import read_header, write_stream

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()


@pytest.mark.parametrize(("codebook_size", "num_granularities"), [(50, 2), (90, 3), (40, 1), (1, 2)])
def test_the_decoder_of_the_page_reads_streams(tables_of, photo, identity, codebook_size, num_granularities):
    (code,) = re.findall(r"^```python\n(import numpy.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    namespace: dict = {}
    exec(compile(code, "docs/formats.md", "exec"), namespace)
    tables = tables_of(codebook_size, num_granularities)
    codes, grain = photo(7, 9, tables)
    data = write_stream(codes, grain, (8 * 7 - 3, 8 * 9), tables, identity)
    header = read_header(data)
    coarse, finer = np.split(np.frombuffer(data[header.length : -4], np.uint8), [header.coarse_length])
    arrays = {field.name: getattr(tables, field.name).numpy() for field in fields(tables)}
    found = namespace["decode"](coarse.tobytes(), finer.tobytes(), header.region_grid, **arrays)
    assert np.array_equal(found[0], grain)
    assert np.array_equal(found[1], codes)
