from jaxunlearn._config import BaseConfig as BaseConfig, hparam as hparam
from jaxunlearn._cpu import tune_cpu as tune_cpu
from jaxunlearn._types import (
    Artefact as Artefact,
    Batch as Batch,
    Draws as Draws,
    MethodSpec as MethodSpec,
    Model as Model,
    ModelSpec as ModelSpec,
    Phase as Phase,
    Preprocess as Preprocess,
    Problem as Problem,
    Recipe as Recipe,
    Result as Result,
)
from jaxunlearn.adapters import from_linen as from_linen, from_nnx as from_nnx, normalised as normalised
from jaxunlearn.attacks import fgsm as fgsm, pgd as pgd
from jaxunlearn.importance import holding_weight as holding_weight, mas as mas
from jaxunlearn.job import unlearn as unlearn
from jaxunlearn.losses import forgotten as forgotten
from jaxunlearn.transforms import (
    freeze as freeze,
    freeze_paths as freeze_paths,
    masked_regularization as masked_regularization,
)

from . import (
    adapters as adapters,
    artefacts as artefacts,
    attacks as attacks,
    audits as audits,
    checkpoint as checkpoint,
    convert as convert,
    curvature as curvature,
    data as data,
    importance as importance,
    inference as inference,
    job as job,
    loop as loop,
    losses as losses,
    methods as methods,
    models as models,
    patches as patches,
    proxies as proxies,
    report as report,
    sharding as sharding,
    testing as testing,
    training as training,
    transforms as transforms,
    wrappers as wrappers,
)

__version__: str
