"""Larger flows that begin as smaller, trained ones."""

from __future__ import annotations

from typing import Any

from torch import nn

from video.flows.starflow_v import STARFlowV


def with_more_layers(flow: STARFlowV, number: int) -> STARFlowV:
    """A flow with more layers in its deep block, which change nothing until they are trained.

    Args:
        flow: the trained one.
        number: of layers to add.
    """
    *shallow, deep = (flow.config or {})["layers_per_block"]
    deeper = grown(flow, layers_per_block=[*shallow, deep + number])
    network: Any = deeper._transform.deep.network
    for layer in network.layers[deep:]:
        for linear in (layer.attention.proj, layer.mlp.down):
            for parameter in linear.parameters():
                nn.init.zeros_(parameter)
    return deeper


def grown(flow: STARFlowV, **changes: Any) -> STARFlowV:
    """A larger flow that begins with the weights of a trained one.

    Args:
        flow: the trained one.
        changes: arguments of `STARFlowV` in which the larger one differs; others are the flow's own.
    """
    larger = STARFlowV(**{**(flow.config or {}), **changes})
    larger.load_state_dict(larger.state_dict() | flow.state_dict())
    return larger
