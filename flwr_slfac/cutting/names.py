"""What a step of a traced forward is called."""

from torch.fx.node import Node


def call_name(node: Node) -> str:
    """Return the bare name of what a node calls.

    Examples
    --------
    >>> import torch
    >>> from torch import fx
    >>> graph = fx.Graph()
    >>> call_name(graph.call_function(torch.relu, (graph.placeholder("x"),)))
    'relu'
    """
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name).split("::")[-1]
    return str(getattr(node.target, "__name__", node.target))
