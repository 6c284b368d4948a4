"""Per-example Jacobian rows, Gram matrices, matrix-free products, metrics, the edit they solve for; layers' inputs.

Large networks never store their rows: `gram` accumulates by blocks of
parameters, `Jacobian.times` and `Jacobian.transpose_times` are forward- and
reverse-mode products. Products run in the weights' dtype, small linear algebra
in float64 on the host.
"""

from jaxunlearn.curvature.gram import (
    Part,
    column_blocks,
    combine,
    gram,
    inner_products,
    memory_for_rows,
)
from jaxunlearn.curvature.jacobian import (
    Jacobian,
    LogitDirection,
    per_example_grad,
)
from jaxunlearn.curvature.layers import (
    Layer,
    patches,
    tapped_layers,
)
from jaxunlearn.curvature.margin_qp import (
    InfeasibleError,
    MarginStep,
    solve_margin_qp,
)
from jaxunlearn.curvature.metric import (
    Metric as Metric,
    Whitened,
    inverse_root,
    origin,
    scale,
    second_moments,
)
from jaxunlearn.curvature.moments import (
    are_of,
    as_artefact,
    input_moments,
    layers_of,
    moment,
    moments_artefact,
    places,
    without,
)
from jaxunlearn.curvature.selection import (
    put,
    select_paths,
    take,
    unravel,
    width,
)

__all__ = [
    "InfeasibleError",
    "Jacobian",
    "Layer",
    "LogitDirection",
    "MarginStep",
    "Part",
    "Whitened",
    "are_of",
    "as_artefact",
    "column_blocks",
    "combine",
    "gram",
    "inner_products",
    "input_moments",
    "inverse_root",
    "layers_of",
    "memory_for_rows",
    "moment",
    "moments_artefact",
    "origin",
    "patches",
    "per_example_grad",
    "places",
    "put",
    "scale",
    "second_moments",
    "select_paths",
    "solve_margin_qp",
    "take",
    "tapped_layers",
    "unravel",
    "width",
    "without",
]
