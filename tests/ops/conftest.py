"""Fixtures for the tests of ops."""

import pytest
import torch


@pytest.fixture
def captured():
    """Records a call of a step in a CUDA graph; returns the graph and the step's result."""

    def capture(step):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            result = step()
        return graph, result

    return capture
