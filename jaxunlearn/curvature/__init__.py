"""Per-example Jacobian rows, Gram matrices, matrix-free products, metrics, the edit they solve for; layers' inputs.

Large networks never store their rows: `gram` accumulates by blocks of
parameters, `Jacobian.times` and `Jacobian.transpose_times` are forward- and
reverse-mode products. Products run in the weights' dtype, small linear algebra
in float64 on the host.
"""

from jaxunlearn.curvature.gram import (
    Part as Part,
    column_blocks as column_blocks,
    combine as combine,
    gram as gram,
    inner_products as inner_products,
    memory_for_rows as memory_for_rows,
)
from jaxunlearn.curvature.jacobian import (
    Jacobian as Jacobian,
    LogitDirection as LogitDirection,
    per_example_grad as per_example_grad,
)
from jaxunlearn.curvature.layers import (
    Layer as Layer,
    patches as patches,
    tapped_layers as tapped_layers,
)
from jaxunlearn.curvature.margin_qp import (
    InfeasibleError as InfeasibleError,
    MarginStep as MarginStep,
    solve_margin_qp as solve_margin_qp,
)
from jaxunlearn.curvature.metric import (
    Metric as Metric,
    Whitened as Whitened,
    inverse_root as inverse_root,
    origin as origin,
    scale as scale,
    second_moments as second_moments,
)
from jaxunlearn.curvature.moments import (
    are_of as are_of,
    as_artefact as as_artefact,
    input_moments as input_moments,
    layers_of as layers_of,
    moment as moment,
    moments_artefact as moments_artefact,
    without as without,
)
from jaxunlearn.curvature.selection import (
    put as put,
    select_paths as select_paths,
    take as take,
    unravel as unravel,
    width as width,
)
