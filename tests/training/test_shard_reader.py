"""A folder of shards is read, and nothing else that its table of contents may name is run, made or opened."""

import pickle

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from dqcore.errors import InputError
from dqcore.training.shard_reader import ShardReader

TENSOR = TensorStorageMetadata(TensorProperties(), torch.Size([2]), [])


def table(folder, tensors, path="__0_0.distcp"):
    stored = {MetadataIndex("a"): _StorageInfo(path, 0, 8)}
    contents = Metadata(tensors, storage_data=stored, storage_meta=StorageMeta())
    (folder / ".metadata").write_bytes(pickle.dumps(contents))
    return ShardReader(folder)


def test_tensors_in_the_folder_are_read(tmp_path):
    found = table(tmp_path, {"a": TENSOR}).read_metadata()
    assert found.state_dict_metadata["a"].size == torch.Size([2]) and found.storage_meta.load_id


@pytest.mark.parametrize("path", ["/etc/passwd", "../other.distcp", "deeper/__0_0.distcp"])
def test_files_elsewhere_are_refused(tmp_path, path):
    with pytest.raises(InputError, match="its files lie elsewhere"):
        table(tmp_path, {"a": TENSOR}, path).read_metadata()


def test_what_is_no_tensor_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"names torch\.distributed\.checkpoint\.metadata\.BytesStorageMetadata"):
        table(tmp_path, {"a": TENSOR, "b": BytesStorageMetadata()}).read_metadata()
    with pytest.raises(InputError, match="something else than tensors"):
        table(tmp_path, {"a": TENSOR, "b": 3}).read_metadata()


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("torch", "load"), ("torch", "Size.count"), ("torch", "xSize"), ("pathlib", "PosixPath.unlink")],
)
def test_no_other_name_is_looked_up(tmp_path, module, name):
    """Of protocol 4 on a name may lead on from a class that is known to what it has."""
    text = pickle.SHORT_BINUNICODE
    words = b"".join(text + bytes([len(word)]) + word.encode() for word in (module, name))
    (tmp_path / ".metadata").write_bytes(b"\x80\x04" + words + pickle.STACK_GLOBAL + pickle.STOP)
    with pytest.raises(InputError, match=f"its table of contents names {module}.{name}"):
        ShardReader(tmp_path).read_metadata()
