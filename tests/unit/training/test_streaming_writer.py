import errno

import pytest
import torch

from zs_nemo.training import streaming_writer
from zs_nemo.training.streaming_writer import StreamingWriter, WriteSession


def test_a_full_disk_is_told_as_such(monkeypatch):
    # PyTorch's archive fails once more as it is closed, with other words.
    monkeypatch.setattr(streaming_writer, "_write", lambda stream, item, data, name: torch.save(data, stream))
    writer = StreamingWriter("/dev", session=WriteSession())
    writer._name, writer._results, writer._data = "full", [], [(None, torch.zeros(100_000))]
    with pytest.raises(OSError, match="No space left on device") as caught:
        writer._write()
    assert caught.value.errno == errno.ENOSPC
