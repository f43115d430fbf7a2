"""The chain inside of a module with a `forward` of its own, as torch.fx sees it.

It can be cut wherever all that is computed later follows from one value: after a residual block, not inside of it.
"""

from typing import Any

from dpipe.errors import InputError


def traced_links(module: Any) -> list[Any]:
    """Cut a module into as many modules as can be called one after another.

    Their weights are those of the module, by their full names.

    Raises
    ------
    InputError
        If what is computed depends on the data, or on more than one input.
    """
    from torch import fx

    try:
        graph = fx.Tracer().trace(module)
    except Exception as err:  # whatever the module's own code raises when it meets a stand-in for data
        raise InputError(
            f"{type(module).__name__} cannot be split: torch.fx cannot follow its forward() ({err}). Branches that "
            "depend on data break when a module is cut. Put them into a layer of their own, and give a "
            "torch.nn.Sequential or a list of functions that build layers."
        ) from err
    nodes = [node for node in graph.nodes if node.op != "output"]
    inputs = [node for node in nodes if node.op == "placeholder" and node.users]
    outputs = [node for node in graph.nodes if node.op == "output"]
    if len(inputs) != 1 or not isinstance(outputs[0].args[0], fx.Node):
        raise InputError(
            f"{type(module).__name__} cannot be split: its forward() must take one tensor, and give one."
        )
    nodes = [node for node in nodes if node.op != "placeholder"]
    steps = _steps(nodes, inputs[0], outputs[0].args[0])
    found, given = [], inputs[0]
    for step in steps:
        cut = fx.Graph()
        known = {given: cut.placeholder("x")}
        for node in step:
            known[node] = cut.node_copy(node, known.__getitem__)
        cut.output(known[step[-1]])
        found.append(fx.GraphModule(module, cut))
        given = step[-1]
    return found


def _steps(nodes: list[Any], given: Any, last: Any) -> list[list[Any]]:
    """Group what is computed, so that each group needs one value of those before it only."""
    place = {node: i for i, node in enumerate(nodes)}
    # how far a value reaches: the last place that uses it
    reach = {node: max((place.get(user, len(nodes)) for user in node.users), default=-1) for node in nodes}
    reach[given] = max(place.get(user, -1) for user in given.users)
    steps: list[list[Any]] = []
    step: list[Any] = []
    furthest = reach[given]
    for i, node in enumerate(nodes):
        if reach[node] < 0 and node is not last:
            continue  # nothing uses it
        step.append(node)
        if furthest <= i and all(reach[each] <= i for each in step[:-1]) and node.op != "get_attr":
            steps.append(step)
            step, furthest = [], reach[node]
    return [*steps, step] if step else steps
