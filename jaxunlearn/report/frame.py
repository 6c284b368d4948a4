"""A run as a table of pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxunlearn.report.record import RunRecord

#: Columns that hold labels; where classes have names, each has a second column with them.
LABELS = ("label", "target", "before", "after")


def frame(record: RunRecord) -> Any:
    """Return a `pandas.DataFrame` with a row an instance, its id the index.

    Columns as in ``results.json``: ``label``, ``before`` and ``after`` (labels
    given, missing where logits were not finite), confidences and the label's
    probability before and after (0 to 1), ``target`` (relabelling only),
    ``forgotten``, ``forgotten_at`` (step, -1 for never); with class names
    ``label_name`` and so on, too.

    Raises:
      ModuleNotFoundError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a dataframe needs pandas: pip install 'jaxunlearn[pandas]'") from None

    rows = record.results["instances"]
    columns: dict[str, Any] = {}
    for name in rows[0]:
        if name == "id" or (name == "target" and record.goal != "relabel"):
            continue
        values = [row[name] for row in rows]
        if name in LABELS:
            columns[name] = pd.array(values, dtype="Int64")
            if record.class_names:
                named = [None if value is None else record.class_names[value] for value in values]
                columns[f"{name}_name"] = pd.array(named, dtype="str")
        elif name == "forgotten":
            columns[name] = np.array(values, bool)
        elif name == "forgotten_at":
            columns[name] = np.array(values, np.int64)
        else:
            columns[name] = np.array([np.nan if value is None else value for value in values], float)
    index = pd.Index([str(row["id"]) for row in rows], name="id", dtype="str")
    return pd.DataFrame(columns, index=index)
